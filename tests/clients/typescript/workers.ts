// Producers and workers that go on while nodes are killed: what they were told, and what became of it.
// ADDRESSES: where clients connect. They add jobs until something comes in at the standard input, finish the rest, and print what they saw.

import { Queue, QueueEvents, Worker } from 'bunqueue/client';

const ADDRESSES = (process.env.ADDRESSES ?? '127.0.0.1:6789').split(',');
const RUN = process.env.RUN ?? 'run';
const EACH_MS = Number(process.env.EACH_MS ?? 40);
const name = `kills-${RUN}`;
let turn = 0;
const connection = () => {
  const [host, port] = ADDRESSES[turn++ % ADDRESSES.length].split(':');
  return { host, port: Number(port), commandTimeout: 15_000 };
};
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const said: Record<string, number> = {};
const note = (who: string, error: unknown) => {
  const text = `${who}: ${String((error as Error)?.message ?? error)}`.replace(/[0-9a-f]{8}-[0-9a-f-]{27}|kills-\S+/g, '<id>');
  said[text] = (said[text] ?? 0) + 1;
};

const acknowledged = new Set<string>();
const runs = new Map<string, number>();
const completed = new Map<string, number>();
let adding = true;
let again = 0;

const queues = ADDRESSES.map(() => new Queue(name, { connection: connection() }));
const workers = [0, 1, 2].map(() => {
  const worker = new Worker(
    name,
    async (job: any) => {
      runs.set(job.id, (runs.get(job.id) ?? 0) + 1);
      await sleep(5 + (job.data.n % 20));
      return { n: job.data.n };
    },
    { connection: connection(), concurrency: 10, lockDuration: 10_000, heartbeatInterval: 2_000 },
  );
  worker.on('error', (error: unknown) => note('worker', error));
  worker.on('failed', (_job: unknown, error: unknown) => note('failed', error));
  worker.on('completed', (job: any) => completed.set(job.id, (completed.get(job.id) ?? 0) + 1));
  return worker;
});
const events = new QueueEvents(name, { connection: connection() });
const told = new Map<string, number>();
events.on('error', (error: unknown) => note('events', error));
events.on('completed', ({ jobId }: any) => told.set(jobId, (told.get(jobId) ?? 0) + 1));

async function produce(which: number) {
  for (let n = which; adding; n += 4) {
    // The same key each time, for longer than this takes: a job that was taken although its answer was lost is not taken twice. Its id
    // alone would not do: a new job may have the id of one that is completed.
    const deduplication = { id: `${n}`, ttl: 3_600_000 };
    for (;;) {
      try {
        acknowledged.add((await queues[n % queues.length].add('n', { n }, { deduplication })).id);
        break;
      } catch (error) {
        note('add', error);
        again++;
        await sleep(200);
      }
    }
    await sleep(EACH_MS);
  }
}

const producing = [0, 1, 2, 3].map(produce);
process.stdin.once('data', () => (adding = false));
await Promise.all(producing);

const ask = async <T>(doing: () => Promise<T>): Promise<T> => {
  for (let times = 0; ; times++) {
    try {
      return await doing();
    } catch (error) {
      note('asking', error);
      if (times > 100) throw error;
      await sleep(200);
    }
  }
};
const [queue] = queues;
const ends = Date.now() + 60_000;
let counts: any;
do {
  await sleep(200);
  counts = await ask(() => queue.getJobCountsAsync());
} while ((counts.waiting || counts.active || counts.delayed) && Date.now() < ends);
const lost: string[] = [];
for (const id of acknowledged) if ((await ask(() => queue.getJobState(id))) !== 'completed') lost.push(id);
const meta = (await ask(() => queue.getMetrics('completed'))).meta;
await sleep(500);
console.log(
  JSON.stringify({
    acknowledged: acknowledged.size,
    again,
    lost,
    counts,
    // As the cluster counts them: a job that was completed twice would be two.
    completions: meta.count,
    'completed by workers': completed.size,
    'told twice by workers': [...completed.values()].filter((times) => times > 1).length,
    'run more than once': [...runs.values()].filter((times) => times > 1).length,
    'events of completion': told.size,
    'events that came twice': [...told.values()].filter((times) => times > 1).length,
    said,
  }),
);
process.exit(0);
