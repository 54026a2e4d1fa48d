/**
 * BullMQ's speed on the backends that are named: QUORUMQ_NODES, REDIS_URL, POSTGRES_URL (which need the packages `ioredis` and `pg` beside `bullmq`).
 * Each load runs on each backend in turn, ROUNDS times for SECONDS each, because a machine changes by more than what is measured;
 * prints the median of each, in jobs a second, and what quorumq does of the other's in the same round. `scripts/bullmq bench` runs it.
 */
import { performance } from 'node:perf_hooks';
import { Queue, Worker, createPostgresBackend } from 'bullmq';
import { createQuorumqBackend } from 'quorumq-bullmq';

const { QUORUMQ_NODES, REDIS_URL, POSTGRES_URL } = process.env;
const ROUNDS = Number(process.env.ROUNDS ?? 3);
const SECONDS = Number(process.env.SECONDS ?? 4);
const DATA = { to: 'user@example.com', text: 'x'.repeat(160) };
/** Jobs that are there before workers begin: more than any of them does in its time. */
const SUPPLY = Number(process.env.SUPPLY ?? 6000) * SECONDS;

const postgres = (name, opts, options) =>
  createPostgresBackend(name, { ...opts, connection: { connectionString: POSTGRES_URL, migrate: true } }, options);
const backends = {
  ...(QUORUMQ_NODES && { quorumq: [{ nodes: QUORUMQ_NODES.split(',') }, createQuorumqBackend] }),
  ...(REDIS_URL && { redis: [{ url: REDIS_URL, maxRetriesPerRequest: null }] }),
  ...(POSTGRES_URL && { postgres: [{}, postgres] }),
};

/** Calls `step(at)` again and again, `width` at a time, until the time is over; returns how many jobs a second that was. */
async function repeated(width, jobs, step) {
  const begin = performance.now();
  let count = 0;
  const until = begin + SECONDS * 1000;
  const one = async () => {
    while (performance.now() < until) {
      await step();
      count += jobs;
    }
  };
  await Promise.all(Array.from({ length: width }, one));
  return (count * 1000) / (performance.now() - begin);
}

const job = { name: 'bench', data: DATA };
const adding = (width) => (queue) => repeated(width, 1, () => queue.add('bench', DATA));
const bulk = (size) => (queue) => repeated(1, size, () => queue.addBulk(Array(size).fill(job)));

const processing = (concurrency) => async (queue, connect) => {
  for (let left = concurrency === 1 ? SUPPLY / 3 : SUPPLY; left > 0; left -= 1000) await queue.addBulk(Array(1000).fill(job));
  let done = 0;
  const [connection, factory] = connect;
  const worker = new Worker(queue.name, async () => 1, { connection, concurrency, autorun: false }, factory);
  worker.on('error', (error) => console.error(error.message));
  // From the first job on: what a worker does before that is not what is measured.
  const first = new Promise((resolve) => worker.once('completed', resolve));
  worker.on('completed', () => done++);
  await worker.waitUntilReady();
  const running = worker.run();
  await first;
  const begin = performance.now();
  done = 0;
  await new Promise((resolve) => setTimeout(resolve, SECONDS * 1000));
  const rate = (done * 1000) / (performance.now() - begin);
  if ((await queue.getWaitingCount()) === 0) console.error(`${queue.name}: ran out of jobs; raise SUPPLY`);
  await worker.close();
  await running;
  return rate;
};

const LOADS = {
  'add, one at a time': adding(1),
  'add, 32 in flight': adding(32),
  'addBulk of 100': bulk(100),
  'addBulk of 1,000': bulk(1000),
  'processing, concurrency 1': processing(1),
  'processing, concurrency 32': processing(32),
  'processing, concurrency 100': processing(100),
};

const middle = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const shown = (value) => Math.round(value).toLocaleString('en').padStart(9);
const names = Object.keys(backends);
console.log(`${ROUNDS} rounds of ${SECONDS} s; jobs a second, the median\n`);
console.log([''.padEnd(30), ...names.map((name) => name.padStart(9)), ...names.slice(1).map((name) => `of ${name}`.padStart(12))].join(' '));
for (const [what, load] of Object.entries(LOADS)) {
  if (process.env.LOADS && !what.includes(process.env.LOADS)) continue;
  const rates = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const name of names) {
      const [connection, factory] = backends[name];
      const queue = new Queue(`bench-${name}-${process.pid}-${round}-${what.replace(/\W+/g, '-')}`, { connection }, factory);
      await queue.waitUntilReady();
      rates[name].push(await load(queue, backends[name]));
      await queue.obliterate({ force: true });
      await queue.close();
    }
  }
  const ratios = names.slice(1).map((name) => middle(rates[names[0]].map((rate, at) => rate / rates[name][at])));
  console.log([what.padEnd(30), ...names.map((name) => shown(middle(rates[name]))), ...ratios.map((ratio) => ratio.toFixed(2).padStart(12))].join(' '));
}
process.exit(0);
