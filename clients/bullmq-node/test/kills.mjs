// Jobs and workers that go on while leaders are killed: told at the end, as JSON, is how often each job ran, the times in which none
// completed (when each ended, and how long it was), and what workers said of errors. Jobs are added until there are JOBS of them and
// standard input has ended.
// Settings: JOBS, WORKERS, PACE_MS between two adds; nodes as QUORUMQ_NODES.
import { createRequire } from 'node:module';

const { Queue, Worker } = createRequire(import.meta.url)('../dist/cjs/index.js');
const [least, workers, pace] = ['JOBS', 'WORKERS', 'PACE_MS'].map((name, at) => Number(process.env[name] ?? [600, 20, 50][at]));
const name = `kills-${Date.now()}`;
/** What is shorter is none. */
const PAUSE_MS = Math.max(2 * pace, 100);
const ran = new Map();
const errors = [];
const queue = new Queue(name);
queue.on('error', () => undefined);
let completed = 0;
let last;
const pauses = [];
const all = Array.from({ length: workers }, () => {
  const worker = new Worker(name, async job => void ran.set(job.data.at, (ran.get(job.data.at) ?? 0) + 1));
  worker.on('error', error => errors.push(String(error.message)));
  worker.on('failed', (job, error) => errors.push(`failed: ${error.message}`));
  worker.on('completed', () => {
    const now = Date.now();
    if (last && now - last >= PAUSE_MS) pauses.push([now, now - last]);
    last = now;
    completed += 1;
  });
  return worker;
});
await queue.waitUntilReady();
process.stdout.write('ready\n');
let isOver = false;
process.stdin.on('end', () => (isOver = true)).resume();
const added = [];
for (let at = 0; at < least || !isOver; at += 1) {
  added.push(queue.add('one', { at }).catch(error => errors.push(`add: ${error.message}`)));
  await new Promise(resolve => setTimeout(resolve, pace));
}
const jobs = added.length;
await Promise.all(added);
const ends = Date.now() + 60_000;
while (completed < jobs && Date.now() < ends) await new Promise(resolve => setTimeout(resolve, 50));
const counts = await queue.getJobCounts();
const twice = [...ran.values()].filter(times => times > 1).length;
process.stdout.write(`${JSON.stringify({ jobs, ran: ran.size, twice, completed, pauses, errors: errors.slice(0, 10), counts })}\n`);
await Promise.all(all.map(worker => worker.close()));
await queue.obliterate({ force: true });
await queue.close();
