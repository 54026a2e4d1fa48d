// BullMQ's page "Manually processing jobs", word for word, against a cluster (QUORUMQ_NODES).
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, before, test } from 'node:test';
import { createRequire } from 'node:module';
import { pieces, runnable } from './pieces.mjs';
import { until } from './node.mjs';

const require = createRequire(import.meta.url);
const ours = require('../dist/cjs/index.js');
const bullmq = require('bullmq');
const nodes = process.env.QUORUMQ_NODES?.split(',');
const options = { skip: nodes ? false : 'QUORUMQ_NODES names no cluster' };
const name = 'my-queue';
let queue;

before(async () => {
  if (nodes) await (queue = new ours.Queue(name)).obliterate({ force: true });
});
after(async () => {
  await queue?.obliterate({ force: true });
  await queue?.close();
});
const kinds = {
  'imported from quorumq-bullmq': ours,
  // With BullMQ's own import the connection is the one addition.
  "BullMQ's own": {
    Job: bullmq.Job,
    Worker: class extends bullmq.Worker {
      constructor(worker, processor, opts) {
        super(worker, processor, { connection: { nodes }, ...opts }, ours.createQuorumqBackend);
      }
    },
  },
};

test('the page has its six pieces', () => assert.equal(pieces.length, 6));

for (const [kind, { Worker, Job }] of Object.entries(kinds)) {
  for (const succeeded of [true, false]) {
    test(`one job is taken and ${succeeded ? 'completed' : 'failed'}: ${kind}`, options, async () => {
      const added = await queue.add('one', { a: 1 });
      await runnable(pieces[0], { Worker, Job, succeeded })();
      const found = await queue.getJob(added.id);
      assert.equal(await found.getState(), succeeded ? 'completed' : 'failed');
      if (succeeded) assert.equal(found.returnvalue, 'some return value');
      else assert.equal(found.failedReason, 'my error message');
    });
  }

  test(`a longer lock, extended, and the check of stalled jobs: ${kind}`, options, async () => {
    const { worker } = await runnable(pieces[1], { Worker }, ['worker'])();
    const token = 'my-token';
    await queue.add('one', { a: 1 });
    const { job } = await runnable(pieces[2], { worker, token, Job }, ['job'])();
    await runnable(pieces[3], { worker })();
    await job.moveToCompleted('done', token, false);
    await worker.close();
  });

  test(`a job goes back while the queue is rate limited: ${kind}`, options, async () => {
    const given = { Worker, Job, queue, connection: { nodes }, prefix: 'bull' };
    const { worker, job } = await runnable(pieces[5], given, ['worker', 'job'])();
    assert.equal(await job.getState(), 'waiting');
    assert.ok((await queue.getRateLimitTtl()) > 50_000);
    await queue.removeRateLimitKey();
    await job.remove();
    await worker.close();
  });
}

for (const [what, processed, state] of [
  ['as it stands, which says nothing of success', '', 'failed'],
  ['with the processing that the page leaves open', 'success = job.data.at >= 0;\n', 'completed'],
]) {
  test(`the endless loop, ${what}`, options, async () => {
    const jobs = await queue.addBulk(Array.from({ length: 5 }, (_, at) => ({ name: 'one', data: { at } })));
    const loop = spawn(process.execPath, [new URL('loop.mjs', import.meta.url).pathname, processed], { stdio: 'inherit' });
    try {
      const ended = () => Promise.all(jobs.map(job => job.getState()));
      let states = [];
      const ends = Date.now() + 20_000;
      while (Date.now() < ends && !(states.length && states.every(one => one === state))) states = await ended();
      assert.deepEqual(states, jobs.map(() => state));
    } finally {
      loop.kill('SIGKILL');
      await until(() => loop.exitCode !== null || loop.signalCode !== null);
    }
  });
}
