// The connection: what travels together, what is sent again and where, and how errors look to BullMQ.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { createRequire } from 'node:module';
import { FakeNode, until } from './node.mjs';

const require = createRequire(import.meta.url);
const { createQuorumqBackend, ConnectionClosedError, UnrecoverableError, Queue, Worker } = require('../dist/cjs/index.js');
const { base, settingsOf, setDefaults } = require('../dist/cjs/options.js');
const { splitKey, keep, added } = require('../dist/cjs/jobs.js');

const started = [];
const node = async (...args) => {
  const one = await new FakeNode(...args).start();
  started.push(one);
  return one;
};
const backends = [];
const backend = (nodes, more = {}, options = {}) => {
  const made = createQuorumqBackend('q', { connection: { nodes: nodes.map(one => one.url), ...more } }, options);
  made.on('error', () => undefined);
  backends.push(made);
  return made;
};
after(async () => {
  await Promise.all(backends.map(one => one.close(true)));
  await Promise.all(started.map(one => one.stop().catch(() => undefined)));
});

test('calls of one turn travel in one message, in their order', async () => {
  const one = await node(({ args }) => [0, args[0]]);
  const made = backend([one]);
  await made.waitUntilReady();
  const found = await Promise.all(Array.from({ length: 100 }, (_, at) => made.deleteDeduplicationKey(`k${at}`)));
  assert.deepEqual(found, Array.from({ length: 100 }, (_, at) => `k${at}`));
  assert.equal(one.messages.length, 1);
  assert.deepEqual(one.calls.map(call => call.number), Array.from({ length: 100 }, (_, at) => at + 1));
  await made.deleteDeduplicationKey('last');
  assert.deepEqual(one.acknowledged, [0, 100]);
});

test('calls say what time it is where a node wants to know, those before its hello too, and nowhere else', async () => {
  for (const [clock, nows] of [['server', [undefined, undefined]], ['client', [5, 7]]]) {
    const one = await node(() => [0, 1], { welcome: { clock } });
    const made = backend([one]);
    const { Date: real } = globalThis;
    try {
      globalThis.Date = { now: () => 5 };
      const early = made.deleteDeduplicationKey('a');
      await made.waitUntilReady();
      globalThis.Date = { now: () => 7 };
      await Promise.all([early, made.deleteDeduplicationKey('b')]);
    } finally {
      globalThis.Date = real;
    }
    assert.deepEqual(one.calls.map(call => call.now), nows);
  }
});

test('two backends with the same nodes share one connection, until both are closed', async () => {
  const one = await node();
  const [first, second] = [backend([one]), backend([one])];
  await Promise.all([first.waitUntilReady(), second.waitUntilReady()]);
  assert.equal(one.sockets.size, 1);
  await first.close();
  await second.deleteDeduplicationKey('k');
  await assert.rejects(first.deleteDeduplicationKey('k'), ConnectionClosedError);
  await second.close();
  await until(() => one.sockets.size === 0);
});

test('what a node did not answer is sent to the next one, in order and under its numbers', async () => {
  let isDead = true;
  const reply = call => (isDead ? undefined : [0, call.args[0]]);
  const [first, second] = [await node(reply), await node(reply)];
  const made = backend([first, second]);
  await made.waitUntilReady();
  const calls = ['a', 'b', 'c'].map(key => made.deleteDeduplicationKey(key));
  await until(() => first.calls.length + second.calls.length === 3);
  isDead = false;
  const [went, stays] = first.calls.length ? [first, second] : [second, first];
  await went.stop();
  const later = made.deleteDeduplicationKey('d');
  assert.deepEqual(await Promise.all([...calls, later]), ['a', 'b', 'c', 'd']);
  assert.deepEqual(stays.calls.map(call => [call.number, call.args[0]]), [[1, 'a'], [2, 'b'], [3, 'c'], [4, 'd']]);
  assert.equal(stays.hellos[0].session, went.hellos[0].session);
});

test('a node that cannot do it now is asked again, and nobody hears of it', async () => {
  let tries = 0;
  const one = await node(call => ((tries += 1) < 4 ? [1, 'no leader'] : [0, call.args[0]]));
  const made = backend([one]);
  assert.equal(await made.deleteDeduplicationKey('k'), 'k');
  assert.equal(tries, 4);
});

test('another node is asked when one goes on like that', async () => {
  const [first, second] = [await node(() => [1, 'cut off']), await node(() => [1, 'cut off'])];
  const made = backend([first, second]);
  const call = made.deleteDeduplicationKey('k');
  await until(() => first.calls.length + second.calls.length > 5);
  const other = first.calls.length ? second : first;
  other.reply = () => [0, 'done'];
  assert.equal(await call, 'done');
});

test('after commandTimeout it is a closed connection, whatever went before', async () => {
  const one = await node(() => [1, 'no leader']);
  const made = backend([one], { commandTimeout: 300 });
  const began = Date.now();
  await assert.rejects(made.deleteDeduplicationKey('k'), ConnectionClosedError);
  assert.ok(Date.now() - began >= 300);
  const nobody = createQuorumqBackend('q', { connection: { nodes: 'http://127.0.0.1:9', commandTimeout: 300 } });
  nobody.on('error', () => undefined);
  await assert.rejects(nobody.deleteDeduplicationKey('k'), ConnectionClosedError);
  await nobody.close(true);
});

test('a token that is none is told once, and rejects calls at once', async () => {
  const one = await node(undefined, { token: 'right' });
  const wrong = backend([one], { token: 'wrong' });
  await assert.rejects(wrong.waitUntilReady(), /token is not known/);
  await assert.rejects(wrong.deleteDeduplicationKey('k'), ConnectionClosedError);
  const right = backend([one], { token: 'right' });
  await right.waitUntilReady();
});

test('no more is unanswered than the window lets', async () => {
  const held = [];
  const one = await node(call => void held.push(call.number), { welcome: { window: { calls: 3, bytes: 1 << 20 } } });
  const made = backend([one]);
  const calls = Array.from({ length: 10 }, (_, at) => made.deleteDeduplicationKey(`k${at}`));
  await until(() => held.length === 3);
  await new Promise(resolve => setTimeout(resolve, 50));
  assert.deepEqual(held, [1, 2, 3]);
  one.reply = call => [0, call.number];
  for (const number of [1, 2, 3]) one.answer(number, 0, number);
  assert.deepEqual(await Promise.all(calls), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
});

test('a call that is too large for a message is refused, and the others go on', async () => {
  const one = await node(() => [0, null], { welcome: { maxMessage: 1000 } });
  const made = backend([one]);
  await made.waitUntilReady();
  await assert.rejects(made.addLog('1', 'x'.repeat(2000)), /larger than a message/);
  await made.addLog('1', 'x');
});

test('a wait ends when it is interrupted, and does not begin after that', async () => {
  const one = await node(({ name }) => (name === 'wait' ? undefined : [0, 0]));
  const made = backend([one], {}, { withBlockingConnection: true });
  await made.waitUntilReady();
  const waiting = made.waitForJob(60);
  await until(() => one.calls.some(call => call.name === 'wait'));
  await made.disconnectBlocking();
  assert.equal(await waiting, null);
  assert.equal(await made.waitForJob(60), null);
  await until(() => one.calls.some(call => call.name === 'cancel'));
  await made.reconnectBlocking();
  one.reply = ({ name }) => (name === 'wait' ? [0, 0] : [0, 0]);
  assert.deepEqual(await made.waitForJob(60), { member: '0', score: 0 });
});

test('a wait goes on at the next node', async () => {
  const [first, second] = [await node(() => undefined), await node(() => undefined)];
  const made = backend([first, second]);
  const waiting = made.waitForJob(60);
  await until(() => first.calls.length + second.calls.length === 1);
  const [went, stays] = first.calls.length ? [first, second] : [second, first];
  stays.reply = () => [0, 0];
  await went.stop();
  assert.deepEqual(await waiting, { member: '0', score: 0 });
});

test('closing waits for what is under way, unless it is forced', async () => {
  const one = await node(() => undefined);
  const made = backend([one]);
  await made.waitUntilReady();
  const call = made.deleteDeduplicationKey('k');
  let isClosed = false;
  const closing = made.close().then(() => (isClosed = true));
  await until(() => one.calls.length === 1);
  await new Promise(resolve => setTimeout(resolve, 30));
  assert.equal(isClosed, false);
  one.answer(1, 0, 7);
  assert.equal(await call, 7);
  await closing;
  const forced = backend([one]);
  const lost = forced.deleteDeduplicationKey('k');
  await forced.close(true);
  await assert.rejects(lost, ConnectionClosedError);
});

test('refusals are in the words of BullMQ', async () => {
  const one = await node(({ args }) => [Number(args[0]), 'text']);
  const made = backend([one]);
  const said = async (call, kind = Error) => {
    const error = await call.then(() => assert.fail(), found => found);
    assert.ok(error instanceof kind);
    return [error.message, error.code];
  };
  assert.deepEqual(await said(made.promote('-1')), ['Missing key for job -1. promote', -1]);
  assert.deepEqual(await said(made.promote('-3')), ['Job -3 is not in the delayed state. promote', -3]);
  assert.deepEqual(await said(made.retryJob('-2', false, 't')), ['Missing lock for job -2. retryJob', -2]);
  assert.deepEqual(await said(made.retryJob('-6', false, 't')), ['Lock mismatch for job -6. Cmd retryJob from active', -6]);
  assert.deepEqual(
    await said(made.moveToCompleted({ id: '-9', opts: {} }, 1, false, 't', false), UnrecoverableError),
    ['Cannot complete job -9 because it has at least one failed child. moveToFinished', -9],
  );
  assert.deepEqual(await said(made.promote('3')), ['text', 3]);
});

test('who is there is said again at every node', async () => {
  const [first, second] = [await node(() => [0, 0]), await node(() => [0, 0])];
  const made = createQuorumqBackend('q', { connection: { nodes: [first.url, second.url] }, name: 'w1' }, { withBlockingConnection: true });
  await made.waitUntilReady();
  const [went, stays] = first.calls.length ? [first, second] : [second, first];
  const name = `bull:${Buffer.from('q').toString('base64')}:w:w1`;
  assert.deepEqual(went.calls.map(call => [call.name, call.args[1]]), [['register', name]]);
  await went.stop();
  await until(() => stays.calls.some(call => call.name === 'register' && call.args[1] === name));
  await made.close();
  assert.ok(stays.calls.some(call => call.name === 'unregister'));
});

test('which nodes: those of the connection, else those of use, else an error that says what to do', async () => {
  const { QUORUMQ_NODES: named } = process.env;
  delete process.env.QUORUMQ_NODES;
  assert.throws(() => settingsOf({ host: 'redis', port: 6379 }), /use\(\{ nodes/);
  process.env.QUORUMQ_NODES = 'http://e:1,http://f:2';
  assert.deepEqual(settingsOf({ host: 'redis', port: 6379 }).nodes, ['http://e:1', 'http://f:2']);
  if (named) process.env.QUORUMQ_NODES = named;
  else delete process.env.QUORUMQ_NODES;
  assert.throws(() => settingsOf({ nodes: [] }), /at least one node/);
  assert.throws(() => settingsOf({ nodes: 'ftp://x' }), /no address of a node/);
  setDefaults({ nodes: 'a:8080,https://b:1/x' });
  assert.deepEqual(settingsOf({ host: 'redis', port: 6379 }).nodes, ['http://a:8080', 'https://b:1']);
  assert.deepEqual(settingsOf('http://c:1').nodes, ['http://c:1']);
  assert.equal(base('wss://d:2/path'), 'https://d:2');
});

test("BullMQ's classes from here ask for no connection", async () => {
  const one = await node(() => [0, 0]);
  setDefaults({ nodes: one.url });
  const [queue, worker] = [new Queue('my-queue'), new Worker('my-queue', null, { lockDuration: 60000 })];
  await Promise.all([queue.waitUntilReady(), worker.waitUntilReady()]);
  await Promise.all([queue.close(), worker.close()]);
});

test('keys are taken apart', () => {
  assert.deepEqual(splitKey('bull:q:1'), { queue: 'bull:q', id: '1' });
  assert.deepEqual(splitKey('a:b:q:1'), { queue: 'a:b:q', id: '1' });
  assert.deepEqual(splitKey('bull:q:repeat:x:5'), { queue: 'bull:q', id: 'repeat:x:5' });
});

test('which finished jobs stay', () => {
  assert.deepEqual(keep(true), [0, null, null]);
  assert.deepEqual(keep(false), [-1, null, null]);
  assert.deepEqual(keep(undefined, { age: 2, count: 3 }), [3, 2000, null]);
  assert.deepEqual(keep(5, { age: 2 }), [5, null, null]);
  assert.deepEqual(keep({ age: 1, limit: 7 }), [-1, 1000, 7]);
});

test('a job on its way', () => {
  const job = { name: 'n', data: '{"a":1}', opts: { delay: 5, priority: 2, attempts: 3, deduplication: { id: 'd', ttl: 4 } }, timestamp: 9 };
  const made = added(job, undefined, { parentKey: 'bull:p:1', addToWaitingChildren: true });
  assert.deepEqual(
    { ...made, data: made.data.toString(), opts: JSON.parse(made.opts) },
    {
      name: 'n', data: '{"a":1}', opts: job.opts, timestamp: 9, delay: 5, priority: 2, attempts: 3, waits: true,
      parent: { id: '1', queue: 'bull:p' }, dedup: { id: 'd', ttl: 4 },
    },
  );
});

test('whoever adds a job hears of it before a worker of the process has it', async () => {
  const held = [];
  const one = await node(call => void held.push(call));
  const made = backend([one]);
  await made.waitUntilReady();
  const order = [];
  const adding = made.addJob({ name: 'n', data: '1', opts: {}, timestamp: 1 }).then(async () => {
    for (let at = 0; at < 20; at += 1) await null;
    order.push('added');
  });
  const taking = made.moveToActive('t').then(() => order.push('taken'));
  await until(() => held.length === 2);
  one.together([[2, 0, [{ id: '1', name: 'n', data: Buffer.from('1'), opts: Buffer.from('{}'), timestamp: 1 }, '1', 0, 0]], [1, 0, '1']]);
  await Promise.all([adding, taking]);
  assert.deepEqual(order, ['added', 'taken']);
});

test('the moment at which reading events begins is an id before a reader is ready, and stays it', async () => {
  const asked = [];
  let isLost = false;
  const answer = ({ name, args }, at) => {
    if (name !== 'readEvents') return [0, 0];
    asked.push(args);
    if (args[0] !== '$') return [0, ['8-0', [['8-0', ['event', 'x']]]]];
    if (isLost) return [0, ['7-0', []]];
    isLost = true;
    // A node that is lost with the answer: the reader is not ready until another one has given it.
    for (const socket of at.sockets) socket.terminate();
  };
  const nodes = [await node(answer), await node(answer)];
  const made = backend(nodes, {}, { blocking: true });
  const named = made.setName('n');
  await made.waitUntilReady();
  assert.deepEqual(asked, [['$', -1], ['$', -1]]);
  await named;
  assert.deepEqual(await made.readEvents('$', 10_000), [['bull:q:events', [['8-0', ['event', 'x']]]]]);
  assert.deepEqual(asked.slice(2), [['7-0', 10_000]]);
});

test('a reader that begins at an id, or has not begun, is ready without one', async () => {
  const one = await node(({ name }) => (name === 'readEvents' ? undefined : [0, 0]));
  const begun = createQuorumqBackend('q', { connection: { nodes: [one.url] }, lastEventId: '5-0' }, { blocking: true });
  backends.push(begun);
  await begun.setName('n');
  await begun.waitUntilReady();
  await backend([one], {}, { blocking: true }).waitUntilReady();
  assert.ok(one.calls.every(call => call.name !== 'readEvents'));
});
