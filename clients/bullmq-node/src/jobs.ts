import type { JobJson, JobsOptions, KeepJobs, ParentKeyOpts } from 'bullmq';
import { json, text } from './wire.js';

/** What a job is shown as over the wire; see the table of calls. */
type Shown = Record<string, any>;

const defined = (fields: Record<string, unknown>): Record<string, unknown> => {
  for (const key of Object.keys(fields)) if (fields[key] === undefined) delete fields[key];
  return fields;
};

/** Splits `prefix:name:id` for an id that may have colons of its own, where the id is not known. */
export function splitKey(key: string): { queue: string; id: string } {
  const parts = key.split(':');
  // Ids have no colon or two; names of queues have none, prefixes may have some.
  const at = key.lastIndexOf(':');
  if (parts.length > 4 && parts[parts.length - 3] === 'repeat') {
    const id = parts.slice(-3).join(':');
    return { queue: key.slice(0, -id.length - 1), id };
  }
  return { queue: key.slice(0, at), id: key.slice(at + 1) };
}

/** Makes what `addJob` sends of a job. */
export function added(job: JobJson, jobId: string | undefined, parentKeyOpts: ParentKeyOpts = {}): Record<string, unknown> {
  const opts: JobsOptions & Record<string, any> = job.opts ?? {};
  const dedup = opts.deduplication ?? opts.debounce;
  const parentKey = parentKeyOpts.parentKey ?? job.parentKey;
  const parent = job.parent;
  let tie: Record<string, unknown> | undefined;
  if (parentKey) {
    const { queue, id } =
      parent?.id !== undefined && `${parent.queueKey}:${parent.id}` === parentKey ? { queue: parent.queueKey, id: parent.id } : splitKey(parentKey);
    tie = defined({
      id,
      queue,
      fpof: flag(parent?.fpof ?? opts.failParentOnFailure),
      cpof: flag(parent?.cpof ?? opts.continueParentOnFailure),
      idof: flag(parent?.idof ?? opts.ignoreDependencyOnFailure),
      rdof: flag(parent?.rdof ?? opts.removeDependencyOnFailure),
    });
  }
  return defined({
    id: jobId ? jobId : undefined,
    name: job.name,
    data: Buffer.from(job.data),
    opts: json(opts),
    timestamp: job.timestamp,
    delay: typeof opts.delay === 'number' && opts.delay > 0 ? Math.floor(opts.delay) : undefined,
    priority: opts.priority ? opts.priority : undefined,
    lifo: flag(opts.lifo),
    attempts: opts.attempts,
    waits: flag(parentKeyOpts.addToWaitingChildren),
    parent: tie,
    dedup: dedup
      ? defined({
          id: String(dedup.id),
          ttl: dedup.ttl,
          extend: flag(dedup.extend),
          replace: flag(dedup.replace),
          reschedule: flag(dedup.reschedule),
          keepLastIfActive: flag(dedup.keepLastIfActive),
        })
      : undefined,
    repeatJobKey: job.repeatJobKey,
  });
}

const flag = (value: unknown): true | undefined => (value ? true : undefined);

const maybe = (value: Uint8Array | string | undefined | null): string | undefined => (value == null ? undefined : text(value));

/** Makes what BullMQ calls a JobJson of a job as it is shown. */
export function shown(found: Shown): JobJson {
  return defined({
    id: found.id,
    name: found.name,
    data: text(found.data),
    opts: JSON.parse(text(found.opts)),
    progress: found.progress == null ? 0 : JSON.parse(text(found.progress)),
    delay: found.delay ?? 0,
    priority: found.priority ?? 0,
    timestamp: found.timestamp,
    attemptsStarted: found.attemptsStarted ?? 0,
    attemptsMade: found.attemptsMade ?? 0,
    stalledCounter: found.stalledCounter ?? 0,
    finishedOn: found.finishedOn ?? undefined,
    processedOn: found.processedOn ?? undefined,
    repeatJobKey: found.repeatJobKey ?? undefined,
    deduplicationId: found.deduplicationId ?? undefined,
    debounceId: found.deduplicationId ?? undefined,
    failedReason: found.failedReason ?? undefined,
    deferredFailure: found.deferredFailure ?? undefined,
    stacktrace: maybe(found.stacktrace),
    returnvalue: maybe(found.returnvalue),
    parentKey: found.parentKey ?? undefined,
    parent: found.parent ?? undefined,
    processedBy: found.processedBy ?? undefined,
  }) as unknown as JobJson;
}

/** Makes the four that a worker expects of what a take answers. */
export function taken(answer: [Shown | null, string, number, number] | null): any[] {
  if (!answer) return [];
  const [job, id, ttl, due] = answer;
  return job ? [shown(job), id, 0, 0] : [null, ttl > 0 ? '' : 0, ttl, due];
}

/** Makes `[count, age, limit]` of what says which finished jobs stay: the job's own word, else the worker's. */
export function keep(wanted: boolean | number | KeepJobs | undefined, worker: KeepJobs | undefined): [number, number | null, number | null] {
  const rule: KeepJobs =
    wanted === undefined || wanted === null
      ? worker ?? { count: -1 }
      : typeof wanted === 'object'
        ? wanted
        : { count: typeof wanted === 'number' ? wanted : wanted ? 0 : -1 };
  const { count, age, limit } = rule as { count?: number; age?: number; limit?: number };
  return [count ?? -1, age === undefined ? null : age * 1000, limit ?? null];
}

/** Makes `fields` of what a failed run leaves. */
export function fields(update: Record<string, any> | undefined): Record<string, unknown> | null {
  if (!update) return null;
  return defined({
    failedReason: update.failedReason == null ? undefined : String(update.failedReason),
    stacktrace: update.stacktrace === undefined ? undefined : Buffer.from(update.stacktrace),
  });
}
