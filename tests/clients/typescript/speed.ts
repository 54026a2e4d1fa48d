// How fast the package is with a server: prints a line of JSON with jobs a second. ADDRESSES, SECONDS, DURABLE.

import { Queue, Worker } from 'bunqueue/client';

const ADDRESSES = (process.env.ADDRESSES ?? '127.0.0.1:6789').split(',');
const SECONDS = Number(process.env.SECONDS ?? 3);
const durable = process.env.DURABLE === '1' ? { durable: true } : {};
const RUN = process.env.RUN ?? 'run';
let turn = 0;
const connection = () => {
  const [host, port] = ADDRESSES[turn++ % ADDRESSES.length].split(':');
  return { host, port: Number(port) };
};
const data = { text: 'x'.repeat(200) };
const found: Record<string, number> = {};
const queueOf = (what: string) => new Queue(`speed-${RUN}-${what.replace(/[^a-z0-9]+/gi, "-")}`, { connection: connection() });

/** Do something again and again, so many at once; note how many jobs a second that was. */
async function measure(what: string, atOnce: number, each: number, doing: (queue: Queue) => Promise<unknown>) {
  const queue = queueOf(what);
  await doing(queue);
  const begun = performance.now();
  let done = 0;
  const loop = async () => {
    while (performance.now() - begun < SECONDS * 1000) {
      await doing(queue);
      done += each;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, loop));
  found[what] = Math.round((done / (performance.now() - begun)) * 1000);
  await queue.obliterateAsync();
}

const bulk = (count: number) => Array.from({ length: count }, () => ({ name: 'n', data, opts: durable }));
await measure('add, one at a time', 1, 1, (queue) => queue.add('n', data, durable));
await measure('add, 100 in flight', 100, 1, (queue) => queue.add('n', data, durable));
const hundred = bulk(100);
const thousand = bulk(1000);
await measure('addBulk of 100', 1, 100, (queue) => queue.addBulk(hundred));
await measure('addBulk of 1,000', 1, 1000, (queue) => queue.addBulk(thousand));

for (const concurrency of [10, 50]) {
  const what = `worker, ${concurrency} at once`;
  const queue = queueOf(what);
  const count = concurrency * 200;
  for (let added = 0; added < count; added += 1000) await queue.addBulk(thousand.slice(0, Math.min(1000, count - added)));
  const begun = performance.now();
  await new Promise<void>((resolve) => {
    let done = 0;
    const worker = new Worker(queue.name, async () => 1, { connection: connection(), concurrency });
    worker.on('error', () => undefined);
    worker.on('completed', () => {
      if (++done === count) void worker.close().then(() => resolve());
    });
  });
  found[what] = Math.round((count / (performance.now() - begun)) * 1000);
  await queue.obliterateAsync();
}
console.log(JSON.stringify(found));
process.exit(0);
