import { Packr, Unpackr } from 'msgpackr';

export const PROTOCOL = 1;
export const PATH = '/bullmq/v1/socket';

/** Codes of answers; those below zero are BullMQ's own. */
export const DONE = 0;
export const AGAIN = 1;
export const FORGOTTEN = 5;

/** Close codes that no other try will change. */
export const BAD_MESSAGE = 4400;
export const BAD_TOKEN = 4401;
export const BAD_SESSION = 4403;

export interface Welcome {
  protocol: number;
  server: string;
  node: string;
  nodes: string[];
  clock: 'server' | 'client';
  maxMessage: number;
  window: { calls: number; bytes: number };
  level: number;
}

export type Answer = [number: number, code: number, result: any];

const packr = new Packr({ useRecords: false, encodeUndefinedAsNil: true, variableMapSize: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: 'number' });

export const pack = (value: unknown): Buffer => packr.pack(value);
export const unpack = (message: Buffer): any => unpackr.unpack(message);

/** JSON text on the wire: bytes that nobody reads on the way. */
export const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value) ?? 'null');

export const text = (value: Uint8Array | string): string =>
  typeof value === 'string' ? value : Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('utf8');

/** The head of a message, before so many calls that are packed already. */
export function head(acknowledged: number, count: number): Buffer {
  const size = count < 16 ? Buffer.from([0x90 | count]) : Buffer.from([0xdc, count >> 8, count & 0xff]);
  return Buffer.concat([Buffer.from([0x92]), pack(acknowledged), size]);
}
