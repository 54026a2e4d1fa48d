import { ConnectionClosedError, UnrecoverableError } from 'bullmq';

/** What a call was refused for that BullMQ has no number for. `code`: 2 its arguments, 3 the token's rights, 4 no such call, 5 its session. */
export class QuorumqError extends Error {
  constructor(
    message: string,
    readonly code: number,
  ) {
    super(message);
    this.name = 'QuorumqError';
  }
}

/** An answer that is no result. */
export interface Refusal {
  code: number;
  text: string;
}

/** What is known of a call by whoever makes it, for BullMQ's own words. */
export interface Facts {
  command: string;
  job?: string;
  state?: string;
  parent?: string;
}

/** What BullMQ says of its numbers. */
const WORDS: Record<string, (facts: Facts) => string> = {
  '-1': f => `Missing key for job ${f.job}. ${f.command}`,
  '-2': f => `Missing lock for job ${f.job}. ${f.command}`,
  '-3': f => `Job ${f.job} is not in the ${f.state} state. ${f.command}`,
  '-4': f => `Job ${f.job} has pending dependencies. ${f.command}`,
  '-5': f => `Missing key for parent job ${f.parent}. ${f.command}`,
  '-6': f => `Lock mismatch for job ${f.job}. Cmd ${f.command} from ${f.state}`,
  '-7': f => `The parent job ${f.parent} cannot be replaced. ${f.command}`,
  '-8': f => `Job ${f.job} belongs to a job scheduler and cannot be removed directly. ${f.command}`,
  '-9': f => `Cannot complete job ${f.job} because it has at least one failed child. ${f.command}`,
};

/** Words a refusal as BullMQ does, with its number as `code`. */
export function worded(refusal: Refusal, facts: Facts): Error {
  const { code, text } = refusal;
  if (code > 0) return new QuorumqError(text, code);
  const words = WORDS[String(code)]?.(facts) ?? `Unknown code ${code} error for ${facts.job}. ${facts.command}`;
  const error = code === -9 ? new UnrecoverableError(words) : new Error(words);
  return Object.assign(error, { code });
}

/** The only kind of error about a connection that BullMQ's workers sleep over; after any other they ask again at once. */
export function closed(reason?: string): Error {
  return new ConnectionClosedError(undefined, reason === undefined ? undefined : new Error(reason));
}
