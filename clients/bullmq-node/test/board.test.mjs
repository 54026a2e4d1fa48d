// bull-board as in examples/bullmq/board.mjs, against a cluster (QUORUMQ_NODES): what its page asks for, and what its buttons do.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

const { Queue, Worker } = createRequire(import.meta.url)('../dist/cjs/index.js');
const options = { skip: process.env.QUORUMQ_NODES ? false : 'QUORUMQ_NODES names no cluster' };
const name = 'board';
// Where imports find the packages, this one included.
const program = new URL('../dist/board.mjs', import.meta.url);
let queue, board, url;

async function freePort() {
  for (;;) {
    const port = 20000 + Math.floor(Math.random() * 12000);
    const server = createServer();
    const free = await new Promise(resolve => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

async function ask(path, how = {}) {
  const answer = await fetch(`${url}/api${path}`, how);
  const text = await answer.text();
  assert.ok(answer.ok, `${path}: ${answer.status} ${text}`);
  return text && JSON.parse(text);
}

const shown = async status => (await ask(`/queues?activeQueue=${name}&status=${status}&page=1&jobsPerPage=20`)).queues[0];

before(async () => {
  if (options.skip) return;
  await (queue = new Queue(name)).obliterate({ force: true });
  copyFileSync(new URL('../../../examples/bullmq/board.mjs', import.meta.url), program);
  const port = await freePort();
  url = `http://127.0.0.1:${port}`;
  const env = { ...process.env, NODES: process.env.QUORUMQ_NODES, QUEUES: name, PORT: String(port) };
  board = spawn(process.execPath, [program.pathname], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise((resolve, reject) => {
    board.stdout.once('data', resolve);
    board.once('exit', code => reject(new Error(`bull-board ended with ${code}`)));
  });
});
after(async () => {
  board?.kill();
  await queue?.obliterate({ force: true });
  await queue?.close();
});

test('its page and its list of queues are served, with counts and jobs', options, async () => {
  assert.match(await (await fetch(`${url}/queue/${name}`)).text(), /<html/);
  await queue.addBulk([
    { name: 'now', data: { a: 1 } },
    { name: 'later', data: { a: 2 }, opts: { delay: 3_600_000 } },
    { name: 'first', data: { a: 3 }, opts: { priority: 5 } },
  ]);
  const waiting = await shown('waiting');
  assert.equal(waiting.name, name);
  const { waiting: wait, delayed, prioritized } = waiting.counts;
  assert.deepEqual({ wait, delayed, prioritized }, { wait: 1, delayed: 1, prioritized: 1 });
  assert.deepEqual(waiting.jobs.map(job => [job.name, job.data]), [['now', { a: 1 }]]);
  assert.deepEqual((await shown('delayed')).jobs.map(job => job.name), ['later']);
});

test('its buttons pause, resume, promote, retry, remove and empty', options, async () => {
  const put = path => ask(`/queues/${name}${path}`, { method: 'PUT' });
  await put('/pause');
  assert.equal(await queue.isPaused(), true);
  assert.equal((await shown('waiting')).isPaused, true);
  await put('/resume');
  assert.equal(await queue.isPaused(), false);

  const [later] = await queue.getDelayed();
  await put(`/${later.id}/promote`);
  assert.equal(await later.getState(), 'waiting');

  const worker = new Worker(name, async () => Promise.reject(new Error('no')));
  try {
    while ((await queue.getFailedCount()) < 3) await new Promise(resolve => setTimeout(resolve, 50));
  } finally {
    await worker.close();
  }
  const { jobs } = await shown('failed');
  assert.deepEqual(jobs.map(job => job.failedReason), ['no', 'no', 'no']);
  assert.equal((await ask(`/queues/${name}/${later.id}`)).job.failedReason, 'no');
  await put(`/${later.id}/retry`);
  assert.equal(await later.getState(), 'waiting');
  await put(`/${later.id}/clean`);
  assert.equal(await queue.getJob(later.id), undefined);
  // It spares what ended within the last five seconds.
  await put('/clean/failed');
  assert.equal((await shown('failed')).counts.failed, 2);
  await queue.add('more', {});
  await put('/empty');
  assert.equal(await queue.getWaitingCount(), 0);
});

test('its panels show workers, logs and a flow, and set limits', options, async () => {
  const set = (path, body) =>
    ask(`/queues/${name}${path}`, { method: 'PUT', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
  const worker = new Worker(name, undefined, { name: 'panels' });
  try {
    await worker.waitUntilReady();
    const { workers } = await ask(`/queues/${name}/workers`);
    assert.equal(workers.length, 1);
    assert.match(JSON.stringify(workers), /panels/);
  } finally {
    await worker.close();
  }
  const job = await queue.add('logged', {});
  await job.log('a line');
  assert.match(JSON.stringify(await ask(`/queues/${name}/${job.id}/logs`)), /a line/);
  await ask(`/queues/${name}/${job.id}/flow`);
  await set('/concurrency', { concurrency: 7 });
  assert.equal(await queue.getGlobalConcurrency(), 7);
  await set('/rate-limit', { max: 5, duration: 1000 });
  assert.deepEqual(await queue.getGlobalRateLimit(), { max: 5, duration: 1000 });
  await ask(`/queues/${name}/metrics`);
  await ask('/job-schedulers');
  await set('/pause', {});
  await set('/obliterate', { force: true });
  assert.equal(await queue.getWaitingCount(), 0);
});
