// What a program sees that uses the package as its README says: each check does something and returns what it saw, without ids and times.
// The same answers are wanted from every server. ADDRESSES: where it is, host:port with commas; connections go to one after the other.

import { Bunqueue, FlowProducer, Queue, QueueEvents, UnrecoverableError, Worker, closeAllSharedPools } from 'bunqueue/client';

const ADDRESSES = (process.env.ADDRESSES ?? '127.0.0.1:6789').split(',');
const ONLY = process.env.ONLY ? new RegExp(process.env.ONLY) : null;
const RUN = process.env.RUN ?? Math.random().toString(36).slice(2, 8);
const AT_ONCE = Number(process.env.AT_ONCE ?? 6);
let turn = 0;

type Check = (here: Here) => Promise<unknown>;
const checks: [string, Check][] = [];
const check = (name: string, doing: Check) => checks.push([name, doing]);

/** What a check uses: a queue of its own, and everything that has to be closed afterwards. */
class Here {
  opened: { close: (...args: any[]) => any }[] = [];
  name: string;

  constructor(number: number) {
    this.name = `check-${RUN}-${number}`;
  }

  get connection() {
    const [host, port] = ADDRESSES[turn++ % ADDRESSES.length].split(':');
    return { host, port: Number(port), token: process.env.TOKEN || undefined };
  }

  queue<T = any>(name = this.name, more: object = {}): Queue<T> {
    return this.keep(new Queue<T>(name, { connection: this.connection, ...more }));
  }

  worker(processor: (job: any) => any, more: object = {}, name = this.name): Worker {
    const worker = new Worker(name, processor, { connection: this.connection, ...more });
    worker.on('error', () => undefined);
    return this.keep(worker);
  }

  async events(name = this.name): Promise<QueueEvents> {
    const events = this.keep(new QueueEvents(name, { connection: this.connection }));
    events.on('error', () => undefined);
    await events.waitUntilReady();
    return events;
  }

  keep<T extends { close: (...args: any[]) => any }>(one: T): T {
    this.opened.push(one);
    return one;
  }

  async done() {
    for (const one of this.opened.reverse()) await one.close();
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Wait for what is so at some time: up to 20 s. */
async function until<T>(what: () => Promise<T> | T, ms = 20_000): Promise<T> {
  const ends = Date.now() + ms;
  for (;;) {
    const found = await what();
    if (found) return found;
    if (Date.now() > ends) throw new Error('it did not happen in time');
    await sleep(25);
  }
}

const state = async (queue: Queue, id: string) => await queue.getJobState(id);
const refusal = async (doing: () => Promise<unknown>) => {
  try {
    const found = await doing();
    return `no error: ${JSON.stringify(found)}`;
  } catch (error) {
    return `error: ${(error as Error).message}`;
  }
};

/** Have a worker do so many jobs, and return what it saw of each in order of their ends. */
async function work(here: Here, count: number, processor: (job: any) => any, more: object = {}) {
  const seen: any[] = [];
  const worker = here.worker(processor, more);
  worker.on('completed', (job: any, result: any) => seen.push(['completed', job.name, result]));
  worker.on('failed', (job: any, error: any) => seen.push(['failed', job?.name, error.message]));
  await until(() => seen.length >= count);
  return { worker, seen };
}

// -- Adding

check('add returns the job', async (here) => {
  const job = await here.queue().add('hello', { a: 1 });
  return [job.name, job.data, job.progress, job.attemptsMade, job.priority, job.delay, typeof job.id, job.queueName === here.name];
});
check('a job that was added is found', async (here) => {
  const queue = here.queue();
  const { id } = await queue.add('hello', { a: [1, { b: null }], text: 'ü \u{1F600} "' });
  const job = (await queue.getJob(id))!;
  return [job.id === id, job.name, job.data, await job.getState(), job.opts.attempts, typeof job.timestamp, Date.now() - job.timestamp < 60_000];
});
check('a job that there is not', async (here) => [await here.queue().getJob('none'), await here.queue().getJobState('none')]);
check('an id of its own', async (here) => {
  const queue = here.queue();
  const first = await queue.add('a', { n: 1 }, { jobId: `${here.name}-own` });
  const again = await queue.add('a', { n: 2 }, { jobId: `${here.name}-own` });
  return [first.id === again.id, (await queue.getJob(first.id))!.data, await queue.countAsync()];
});
check('many at once', async (here) => {
  const queue = here.queue();
  const jobs = await queue.addBulk(Array.from({ length: 250 }, (_, n) => ({ name: `n${n}`, data: { n } })));
  const found = await Promise.all([0, 100, 249].map(async (n) => (await queue.getJob(jobs[n].id))!.data));
  return [jobs.length, new Set(jobs.map((job) => job.id)).size, found, await queue.countAsync()];
});
check('many with options of their own', async (here) => {
  const queue = here.queue();
  await queue.addBulk([
    { name: 'late', data: 1, opts: { delay: 60_000 } },
    { name: 'own', data: 2, opts: { jobId: `${here.name}-b` } },
    { name: 'plain', data: 3 },
  ] as any);
  const counts = await queue.getJobCountsAsync();
  return [counts.delayed, counts.waiting, (await queue.getJob(`${here.name}-b`))!.name];
});
check('none at once', async (here) => await here.queue().addBulk([]));
check('adds that are made together', async (here) => {
  const queue = here.queue();
  const jobs = await Promise.all(Array.from({ length: 300 }, (_, n) => queue.add('one', { n })));
  return [new Set(jobs.map((job) => job.id)).size, jobs.every((job, n) => (job.data as any).n === n), await queue.countAsync()];
});
check('data of every kind', async (here) => {
  const queue = here.queue();
  const kinds = [null, true, 0, -1, 1.5, 1e15, 9007199254740991, '', 'x', [], [1, [2]], {}, { a: undefined, b: 2 }, { __proto__x: 1 }, 4294967296, -2147483649];
  const jobs = await Promise.all(kinds.map((data) => queue.add('kind', data as any)));
  return await Promise.all(jobs.map(async (job) => (await queue.getJob(job.id))!.data));
});
check('a name in the data stays', async (here) => {
  const queue = here.queue();
  const job = await queue.add('outer', { name: 'inner', x: 1 } as any);
  const found = (await queue.getJob(job.id))!;
  return [found.name, found.data];
});
check('two megabytes', async (here) => {
  const queue = here.queue();
  const job = await queue.add('big', { text: 'x'.repeat(2 << 20) });
  return ((await queue.getJob(job.id))!.data as any).text.length;
});
check('data that is too large', async (here) => /too large/i.test(await refusal(() => here.queue().add('big', { text: 'x'.repeat(11 << 20) }))));
check('default options of a queue', async (here) => {
  const queue = here.queue(here.name, { defaultJobOptions: { attempts: 7, priority: 3 } });
  const job = (await queue.getJob((await queue.add('a', 1 as any)).id))!;
  return [job.opts.attempts, job.priority];
});
check('a name for a queue that cannot be', async (here) => (await refusal(() => here.queue('a b').add('x', 1 as any))).startsWith('error'));
check('durable', async (here) => {
  const queue = here.queue();
  return await state(queue, (await queue.add('d', 1 as any, { durable: true })).id);
});
check('a timestamp of its own', async (here) => {
  const queue = here.queue();
  const job = await queue.add('t', 1 as any, { timestamp: 1_700_000_000_000 });
  return typeof (await queue.getJob(job.id))!.timestamp;
});

// -- Counting and listing

check('counts', async (here) => {
  const queue = here.queue();
  await queue.add('a', 1 as any);
  await queue.add('b', 1 as any, { delay: 60_000 });
  const counts = await queue.getJobCountsAsync();
  return [counts.waiting, counts.delayed, counts.active, counts.completed, counts.failed, await queue.countAsync()];
});
check('counts by priority', async (here) => {
  const queue = here.queue();
  for (const priority of [0, 5, 5, 9]) await queue.add('p', 1 as any, { priority });
  return await queue.getCountsPerPriorityAsync();
});
check('lists', async (here) => {
  const queue = here.queue();
  for (const name of ['a', 'b', 'c']) await queue.add(name, 1 as any);
  await queue.add('late', 1 as any, { delay: 60_000 });
  const names = (jobs: any[]) => jobs.map((job) => job.name);
  return [names(await queue.getWaitingAsync()), names(await queue.getWaitingAsync(1, 1)), names(await queue.getDelayedAsync()), names(await queue.getActiveAsync())];
});
check('lists of several states', async (here) => {
  const queue = here.queue();
  await queue.add('a', 1 as any);
  await queue.add('late', 1 as any, { delay: 60_000 });
  return (await queue.getJobsAsync({ state: ['waiting', 'delayed'] })).map((job) => job.name).sort();
});
check('numbers of one state each', async (here) => {
  const queue = here.queue();
  await queue.add('a', 1 as any);
  await queue.add('late', 1 as any, { delay: 60_000 });
  return [await queue.getWaitingCount(), await queue.getDelayedCount(), await queue.getActiveCount(), await queue.getCompletedCount(), await queue.getFailedCount()];
});

// -- Working

check('a worker does what there is', async (here) => {
  const queue = here.queue();
  const job = await queue.add('sum', { a: 1, b: 2 });
  const { seen } = await work(here, 1, (job) => ({ sum: job.data.a + job.data.b }));
  await until(async () => (await state(queue, job.id)) === 'completed');
  const found = (await queue.getJob(job.id))!;
  return [seen, found.returnvalue, await found.isCompleted(), typeof found.finishedOn, typeof found.processedOn];
});
check('what a processor sees', async (here) => {
  const queue = here.queue();
  await queue.add('look', { x: 1 }, { attempts: 3, priority: 2 });
  let seen: any;
  await work(here, 1, (job) => {
    seen = [job.name, job.data, job.attemptsMade, job.opts.attempts, job.priority, typeof job.id, typeof job.timestamp, job.queueName === here.name];
  });
  return seen;
});
check('many jobs, ten at a time', async (here) => {
  const queue = here.queue();
  await queue.addBulk(Array.from({ length: 300 }, (_, n) => ({ name: 'j', data: { n } })));
  const done = new Map<number, number>();
  await work(here, 300, (job) => void done.set(job.data.n, (done.get(job.data.n) ?? 0) + 1), { concurrency: 10 });
  await until(async () => (await queue.getJobCountsAsync()).completed === 300);
  return [done.size, Math.max(...done.values()), (await queue.getJobCountsAsync()).waiting];
});
check('jobs come in order', async (here) => {
  const queue = here.queue();
  await queue.addBulk(Array.from({ length: 20 }, (_, n) => ({ name: `${n}`, data: n })) as any);
  return (await work(here, 20, () => null)).seen.map((one) => one[1]);
});
check('those of a higher priority come first', async (here) => {
  const queue = here.queue();
  for (const [name, priority] of [['low', 0], ['high', 10], ['mid', 5]] as const) await queue.add(name, 1 as any, { priority });
  return (await work(here, 3, () => null)).seen.map((one) => one[1]);
});
check('the last in comes first', async (here) => {
  const queue = here.queue();
  for (const name of ['a', 'b', 'c']) await queue.add(name, 1 as any, { lifo: true });
  return (await work(here, 3, () => null)).seen.map((one) => one[1]);
});
check('a delay passes', async (here) => {
  const queue = here.queue();
  const added = Date.now();
  await queue.add('late', 1 as any, { delay: 700 });
  await work(here, 1, () => null);
  return Date.now() - added >= 690;
});
check('results of every kind', async (here) => {
  const queue = here.queue();
  const kinds = [null, 0, 'x', [1], { a: 1 }, true];
  const jobs = await Promise.all(kinds.map((kind) => queue.add('r', { kind } as any)));
  await work(here, kinds.length, (job) => job.data.kind);
  await until(async () => (await queue.getJobCountsAsync()).completed === kinds.length);
  return await Promise.all(jobs.map(async (job) => (await queue.getJob(job.id))!.returnvalue ?? null));
});
check('a worker that returns nothing', async (here) => {
  const queue = here.queue();
  const job = await queue.add('v', 1 as any);
  await work(here, 1, () => undefined);
  await until(async () => (await state(queue, job.id)) === 'completed');
  return (await queue.getJob(job.id))!.returnvalue ?? null;
});
check('progress, while and after', async (here) => {
  const queue = here.queue();
  const job = await queue.add('p', 1 as any);
  let during: any;
  await work(here, 1, async (job) => {
    await job.updateProgress(50, 'half');
    during = (await queue.getJob(job.id))!.progress;
  });
  await until(async () => (await state(queue, job.id)) === 'completed');
  return [during, (await queue.getJob(job.id))!.progress];
});
check('log lines', async (here) => {
  const queue = here.queue();
  const job = await queue.add('l', 1 as any);
  await work(here, 1, async (job) => {
    await job.log('one');
    await job.log('two');
  });
  await queue.addJobLog(job.id, 'three');
  const all = await queue.getJobLogs(job.id);
  await queue.clearJobLogs(job.id);
  return [all.count, all.logs.map((line) => line.replace(/^.*\] ?/, '')), (await queue.getJobLogs(job.id)).count];
});
check('data that a processor changes', async (here) => {
  const queue = here.queue();
  const job = await queue.add('u', { n: 1 });
  await work(here, 1, async (job) => await job.updateData({ n: 2 }));
  return (await queue.getJob(job.id))!.data;
});
check('a job that takes longer than its lock', async (here) => {
  const queue = here.queue();
  const job = await queue.add('long', 1 as any);
  let runs = 0;
  await work(here, 1, async () => {
    runs++;
    await sleep(2500);
  }, { lockDuration: 1500, heartbeatInterval: 300, concurrency: 1 });
  await until(async () => (await state(queue, job.id)) === 'completed');
  return runs;
});
check('a worker that pauses and resumes', async (here) => {
  const queue = here.queue();
  const { worker, seen } = await work(here, 0, () => null);
  worker.pause();
  await sleep(300);
  await queue.add('a', 1 as any);
  await sleep(300);
  const while_paused = seen.length;
  worker.resume();
  await until(() => seen.length === 1);
  return [while_paused, worker.isPaused(), worker.isRunning()];
});
check('a worker that waits for jobs', async (here) => {
  const queue = here.queue();
  const { seen } = await work(here, 0, () => null, { pollTimeout: 5000 });
  await sleep(400);
  const added = Date.now();
  await queue.add('a', 1 as any);
  await until(() => seen.length === 1);
  return Date.now() - added < 3000;
});
check('workers are known', async (here) => {
  const queue = here.queue();
  const worker = here.worker(() => null, { concurrency: 3 });
  await worker.waitUntilReady();
  const found = await until(async () => {
    const workers = await queue.getWorkers();
    return workers.length ? workers : null;
  });
  await worker.close();
  await until(async () => (await queue.getWorkersCount()) === 0);
  return [found.length];
});
check('a closed worker leaves what it has not begun', async (here) => {
  const queue = here.queue();
  await queue.addBulk(Array.from({ length: 30 }, (_, n) => ({ name: `${n}`, data: n })) as any);
  const { worker, seen } = await work(here, 1, async () => await sleep(100), { concurrency: 1, batchSize: 10 });
  await worker.close();
  const done = seen.length;
  await until(async () => (await queue.getJobCountsAsync()).active === 0);
  const counts = await queue.getJobCountsAsync();
  return [counts.active, counts.completed + counts.waiting, counts.completed >= done];
});
check('taking jobs by hand', async (here) => {
  const queue = here.queue();
  const added = await queue.add('manual', { n: 1 });
  const worker = here.worker(() => null, { autorun: false });
  const job: any = await worker.getNextJob('token-1');
  if (!job) return 'no job';
  const during = await state(queue, added.id);
  await worker.processJobManually(job, job.token);
  return [job.name, during, await until(async () => ((await state(queue, added.id)) === 'completed' ? 'completed' : null))];
});

// -- Failing

check('a failed run is repeated', async (here) => {
  const queue = here.queue();
  const job = await queue.add('flaky', 1 as any, { attempts: 3, backoff: 50 });
  let runs = 0;
  const { seen } = await work(here, 1, () => {
    if (++runs < 3) throw new Error(`no ${runs}`);
    return 'well';
  });
  // The server has it before the worker has its answer.
  await until(async () => (await state(queue, job.id)) === 'completed' && seen.some((one) => one[0] === 'completed'));
  return [runs, seen.filter((one) => one[0] === 'completed'), (await queue.getJob(job.id))!.attemptsMade];
});
check('no attempt is left', async (here) => {
  const queue = here.queue();
  const job = await queue.add('bad', { n: 1 }, { attempts: 2, backoff: 20 });
  const { seen } = await work(here, 2, () => {
    throw new Error('broken');
  });
  await until(async () => (await state(queue, job.id)) === 'failed');
  const found = (await queue.getJob(job.id))!;
  return [seen.map((one) => [one[0], one[2]]), found.failedReason, found.attemptsMade, await found.isFailed(), (await queue.getJobCountsAsync()).failed];
});
check('an error that no repeat helps', async (here) => {
  const queue = here.queue();
  const job = await queue.add('bad', 1 as any, { attempts: 5 });
  let runs = 0;
  await work(here, 1, () => {
    runs++;
    throw new UnrecoverableError('never');
  });
  await until(async () => (await state(queue, job.id)) === 'failed');
  return [runs, (await queue.getDlqAsync())[0].reason];
});
check('where it failed', async (here) => {
  const queue = here.queue();
  const job = await queue.add('bad', 1 as any, { attempts: 1 });
  await work(here, 1, () => {
    throw new Error('with a stack');
  });
  await until(async () => (await state(queue, job.id)) === 'failed');
  const stack = (await queue.getJob(job.id))!.stacktrace;
  return [Array.isArray(stack), String(stack?.[0] ?? '').includes('with a stack')];
});
check('exponential backoff', async (here) => {
  const queue = here.queue();
  await queue.add('bad', 1 as any, { attempts: 3, backoff: { type: 'exponential', delay: 200 } });
  const runs: number[] = [];
  await work(here, 3, () => {
    runs.push(Date.now());
    throw new Error('x');
  });
  return [runs.length, runs[1] - runs[0] >= 190, runs[2] - runs[1] >= 190];
});
check('the dead letter queue', async (here) => {
  const queue = here.queue();
  const job = await queue.add('bad', { n: 7 }, { attempts: 1 });
  const { worker } = await work(here, 1, () => {
    throw new Error('broken');
  });
  await until(async () => (await queue.getDlqAsync()).length === 1);
  await worker.close();
  const [entry] = await queue.getDlqAsync();
  const stats = await queue.getDlqStatsAsync();
  const jobs = await queue.getDlqJobsAsync();
  const retried = await queue.retryDlqAsync(job.id);
  return [entry.reason, entry.error, entry.attempts.length, entry.job.data, entry.retryCount, stats.total, stats.byReason.max_attempts_exceeded, jobs.length, retried, await state(queue, job.id), (await queue.getDlqAsync()).length];
});
check('dead letters by filter', async (here) => {
  const queue = here.queue();
  await queue.add('a', 1 as any, { attempts: 1 });
  await queue.add('b', 1 as any, { attempts: 5 });
  const { worker } = await work(here, 2, (job) => {
    throw job.name === 'b' ? new UnrecoverableError('x') : new Error('x');
  });
  await until(async () => (await queue.getDlqAsync()).length === 2);
  await worker.close();
  const names = async (filter: any) => (await queue.getDlqAsync(filter)).map((entry) => entry.job.name).sort();
  const found = [await names({ reason: 'explicit_fail' }), await names({ reason: 'stalled' }), await names({ olderThan: 1000 }), await names({ newerThan: 1000 }), (await names({ limit: 1 })).length, (await names({ offset: 1 })).length];
  return [found, await queue.retryDlqByFilterAsync({ reason: 'explicit_fail' }), await names({})];
});
check('dead letters go', async (here) => {
  const queue = here.queue();
  const jobs = await queue.addBulk([1, 2, 3].map((n) => ({ name: 'x', data: n, opts: { attempts: 1 } })) as any);
  await work(here, 3, () => {
    throw new Error('x');
  });
  await until(async () => (await queue.getDlqAsync()).length === 3);
  return [await queue.removeDlqJobAsync(jobs[0].id), await queue.removeDlqJobAsync('none'), await queue.purgeDlqAsync(), (await queue.getDlqAsync()).length];
});
check('how dead letters are kept', async (here) => {
  const queue = here.queue();
  await queue.setDlqConfigAsync({ autoRetry: true, autoRetryInterval: 5000, maxAutoRetries: 2, maxEntries: 50 });
  return await queue.getDlqConfigAsync();
});
check('discarded', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any);
  (await queue.getJob(job.id))!.discard();
  await until(async () => (await state(queue, job.id)) === 'failed');
  return (await queue.getDlqAsync()).map((entry) => entry.reason);
});
check('a timeout', async (here) => {
  const queue = here.queue();
  const job = await queue.add('slow', 1 as any, { timeout: 300, attempts: 1 });
  here.worker(async () => await sleep(8000));
  await until(async () => (await state(queue, job.id)) === 'failed');
  return (await queue.getDlqAsync())[0].reason;
});
check('a completed job runs again', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any);
  const { worker } = await work(here, 1, () => 1);
  await until(async () => (await state(queue, job.id)) === 'completed');
  await worker.close();
  return [await queue.retryCompletedAsync(job.id), await state(queue, job.id)];
});
check('a failed job is retried', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any, { attempts: 1 });
  const { worker } = await work(here, 1, () => {
    throw new Error('x');
  });
  await until(async () => (await state(queue, job.id)) === 'failed');
  await worker.close();
  await queue.retryJob(job.id);
  return await state(queue, job.id);
});

// -- Changing jobs

check('promoted', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any, { delay: 60_000 });
  const before = await state(queue, job.id);
  await queue.promoteJob(job.id);
  return [before, await state(queue, job.id)];
});
check('all promoted', async (here) => {
  const queue = here.queue();
  for (let n = 0; n < 3; n++) await queue.add('x', 1 as any, { delay: 60_000 });
  return [await queue.promoteJobs({ count: 2 }), (await queue.getJobCountsAsync()).delayed];
});
check('other data', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', { a: 1 });
  await queue.updateJobData(job.id, { b: 2 });
  return (await queue.getJob(job.id))!.data;
});
check('another priority', async (here) => {
  const queue = here.queue();
  const first = await queue.add('a', 1 as any);
  const second = await queue.add('b', 1 as any);
  await queue.changeJobPriority(second.id, { priority: 10 });
  return [(await queue.getJob(second.id))!.priority, (await work(here, 2, () => null)).seen.map((one) => one[1]), first.name];
});
check('another delay', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any, { delay: 60_000 });
  await queue.changeJobDelay(job.id, 300);
  await until(async () => (await state(queue, job.id)) === 'waiting');
  return true;
});
check('removed', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any);
  await queue.removeAsync(job.id);
  return [await queue.getJob(job.id), await queue.countAsync()];
});
check('from the job itself', async (here) => {
  const queue = here.queue();
  const job = (await queue.getJob((await queue.add('x', { n: 1 }, { delay: 60_000 })).id))!;
  await job.updateData({ n: 2 });
  await job.promote();
  const after = [await job.getState(), await job.isWaiting(), await job.isDelayed()];
  await job.remove();
  return [after, await queue.getJob(job.id)];
});
check('a processor that puts its job off', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any);
  let runs = 0;
  here.worker(async (job) => {
    if (++runs === 1) await job.moveToDelayed(Date.now() + 400, job.token);
  });
  await until(async () => runs >= 2 && (await state(queue, job.id)) === 'completed');
  return runs;
});
check('removed when completed', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any, { removeOnComplete: true });
  await work(here, 1, () => 1);
  await until(async () => (await queue.getJob(job.id)) === null);
  return (await queue.getJobCountsAsync()).completed;
});
check('removed when failed', async (here) => {
  const queue = here.queue();
  const job = await queue.add('x', 1 as any, { removeOnFail: true, attempts: 1 });
  await work(here, 1, () => {
    throw new Error('x');
  });
  await until(async () => (await queue.getJob(job.id)) === null);
  return (await queue.getDlqAsync()).length;
});

// -- Events

check('what happens is told', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const told: string[] = [];
  const results: unknown[] = [];
  for (const name of ['waiting', 'active', 'completed', 'failed', 'progress'] as const) events.on(name as any, () => told.push(name));
  events.on('completed', (event: any) => results.push(event.returnvalue));
  events.on('failed', (event: any) => results.push(event.failedReason));
  await queue.add('good', 1 as any);
  await queue.add('bad', 1 as any, { attempts: 1 });
  await work(here, 2, async (job) => {
    if (job.name === 'bad') throw new Error('broken');
    await job.updateProgress(10);
    return { r: 1 };
  });
  await until(() => told.includes('failed') && told.includes('completed') && told.includes('progress'));
  await sleep(200);
  return [told.sort(), results.sort()];
});
check('only the events of its queue', async (here) => {
  const other = here.queue(`${here.name}-other`);
  const queue = here.queue();
  const events = await here.events();
  const told: string[] = [];
  events.on('waiting', (event: any) => told.push(event.jobId));
  await other.add('x', 1 as any);
  const job = await queue.add('y', 1 as any);
  await until(() => told.length >= 1);
  await sleep(200);
  return [told.length, told[0] === job.id];
});
check('delayed, removed and duplicated are told', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const told: string[] = [];
  for (const name of ['removed', 'delayed', 'duplicated', 'retried'] as const) events.on(name as any, () => told.push(name));
  const job = await queue.add('x', 1 as any, { jobId: `${here.name}-j` });
  await queue.add('x', 1 as any, { jobId: `${here.name}-j` });
  await queue.removeAsync(job.id);
  await until(() => told.includes('removed'));
  await sleep(200);
  return told.filter((name) => name !== 'delayed').sort();
});
check('waiting for a job', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const job = await queue.add('x', { n: 20 });
  here.worker((job) => job.data.n + 1);
  return await job.waitUntilFinished(events, 10_000);
});
check('waiting for a job that fails', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const job = await queue.add('x', 1 as any, { attempts: 1 });
  const waiting = refusal(() => job.waitUntilFinished(events, 10_000));
  await sleep(300);
  here.worker(() => {
    throw new Error('broken');
  });
  return await waiting;
});
check('waiting in vain', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const job = await queue.add('x', 1 as any);
  return (await refusal(() => job.waitUntilFinished(events, 300))).startsWith('error');
});
check('paused and resumed are told', async (here) => {
  const queue = here.queue();
  const events = await here.events();
  const told: string[] = [];
  for (const name of ['paused', 'resumed'] as const) events.on(name as any, () => told.push(name));
  await queue.add('x', 1 as any);
  await queue.pauseAsync();
  await queue.resumeAsync();
  await until(() => told.length >= 2).catch(() => null);
  return told;
});

// -- Whole queues

check('pause and resume', async (here) => {
  const queue = here.queue();
  await queue.pauseAsync();
  const paused = await queue.isPausedAsync();
  await queue.add('x', 1 as any);
  const { seen } = await work(here, 0, () => null);
  await sleep(400);
  const meanwhile = seen.length;
  await queue.resumeAsync();
  await until(() => seen.length === 1);
  return [paused, meanwhile, await queue.isPausedAsync()];
});
check('drain', async (here) => {
  const queue = here.queue();
  for (let n = 0; n < 5; n++) await queue.add('x', 1 as any);
  return [await queue.drainAsync(), await queue.countAsync()];
});
check('clean', async (here) => {
  const queue = here.queue();
  for (let n = 0; n < 3; n++) await queue.add('x', 1 as any);
  await work(here, 3, () => null);
  await until(async () => (await queue.getJobCountsAsync()).completed === 3);
  return [(await queue.cleanAsync(0, 2, 'completed')).length, (await queue.getJobCountsAsync()).completed];
});
check('obliterate', async (here) => {
  const queue = here.queue();
  for (let n = 0; n < 5; n++) await queue.add('x', 1 as any);
  await queue.obliterateAsync();
  return [await queue.countAsync(), (await queue.getWaitingAsync()).length];
});
check('at most one at once', async (here) => {
  const queue = here.queue();
  await queue.setGlobalConcurrencyAsync(1);
  await queue.addBulk(Array.from({ length: 6 }, (_, n) => ({ name: 'x', data: n })) as any);
  let now = 0;
  let most = 0;
  await work(here, 6, async () => {
    most = Math.max(most, ++now);
    await sleep(50);
    now--;
  }, { concurrency: 5 });
  const limit = await queue.getGlobalConcurrency();
  await queue.removeGlobalConcurrencyAsync();
  return [most, limit, await queue.getGlobalConcurrency()];
});
check('a rate limit', async (here) => {
  const queue = here.queue();
  await queue.setGlobalRateLimitAsync(2, 1000);
  const limit = await queue.getGlobalRateLimit();
  await queue.addBulk(Array.from({ length: 4 }, (_, n) => ({ name: 'x', data: n })) as any);
  const begun = Date.now();
  await work(here, 4, () => null, { concurrency: 4 });
  const took = Date.now() - begun;
  await queue.removeGlobalRateLimitAsync();
  return [limit, took >= 600, await queue.getGlobalRateLimit()];
});
check('stall settings', async (here) => {
  const queue = here.queue();
  await queue.setStallConfigAsync({ stallInterval: 12_000, maxStalls: 5 });
  return await queue.getStallConfigAsync();
});
check('figures of a queue by minute', async (here) => {
  const queue = here.queue();
  await queue.addBulk([1, 2, 3].map((n) => ({ name: n === 3 ? 'bad' : 'good', data: n, opts: { attempts: 1 } })) as any);
  await work(here, 3, (job) => {
    if (job.name === 'bad') throw new Error('x');
  });
  await until(async () => (await queue.getJobCountsAsync()).completed === 2);
  const completed = await queue.getMetrics('completed');
  const failed = await queue.getMetrics('failed', 0, 0);
  const sum = (counts: number[]) => counts.reduce((one, other) => one + other, 0);
  return [completed.meta.count, sum(completed.data), completed.count >= 1, failed.meta.count, failed.data.length, (await here.queue(`${here.name}-x`).getMetrics('completed')).meta];
});
check('trimming events', async (here) => {
  const queue = here.queue();
  for (let n = 0; n < 5; n++) await queue.add('x', 1 as any);
  return [typeof (await queue.trimEvents(2)), await queue.trimEvents(0).then(() => queue.trimEvents(0))];
});

// -- Unique jobs

check('the same key while one is unfinished', async (here) => {
  const queue = here.queue();
  const first = await queue.add('x', 1 as any, { deduplication: { id: 'k' } });
  const second = await queue.add('x', 2 as any, { deduplication: { id: 'k' } });
  return [first.id === second.id, (await queue.getDeduplicationJobId('k')) === first.id, await queue.removeDeduplicationKey('k'), (await queue.add('x', 3 as any, { deduplication: { id: 'k' } })).id === first.id];
});
check('a key for a time', async (here) => {
  const queue = here.queue();
  const first = await queue.add('x', 1 as any, { deduplication: { id: 'k', ttl: 600 } });
  const second = await queue.add('x', 2 as any, { deduplication: { id: 'k', ttl: 600 } });
  await sleep(900);
  const third = await queue.add('x', 3 as any, { deduplication: { id: 'k', ttl: 600 } });
  return [first.id === second.id, third.id === first.id];
});

// -- Crons

check('a scheduler', async (here) => {
  const queue = here.queue();
  const id = `${here.name}-s`;
  await queue.upsertJobScheduler(id, { every: 60_000 }, { name: 'tick', data: { a: 1 } } as any);
  const found = (await queue.getJobScheduler(id))!;
  const listed = (await queue.getJobSchedulers()).some((one) => (one as any).id === id || (one as any).name === id || (one as any).key === id);
  const removed = await queue.removeJobScheduler(id);
  return [(found as any).every, typeof found.next, listed, removed, await queue.getJobScheduler(id)];
});
check('a scheduler makes jobs', async (here) => {
  const queue = here.queue();
  const id = `${here.name}-s`;
  await queue.upsertJobScheduler(id, { every: 300 }, { name: 'tick', data: { a: 1 } } as any);
  const { seen } = await work(here, 2, (job) => job.data);
  await queue.removeJobScheduler(id);
  return seen[0];
});
check('a scheduler by pattern', async (here) => {
  const queue = here.queue();
  const id = `${here.name}-s`;
  await queue.upsertJobScheduler(id, { pattern: '0 3 * * *', tz: 'Europe/Rome' } as any, { name: 'tick', data: 1 } as any);
  const found: any = await queue.getJobScheduler(id);
  await queue.removeJobScheduler(id);
  return [found.pattern, typeof found.next];
});
check('a pattern that cannot be', async (here) => (await refusal(() => here.queue().upsertJobScheduler(`${here.name}-s`, { pattern: 'nonsense' } as any, { name: 'x', data: 1 } as any))).slice(0, 20) !== '');

// -- Groups

check('groups in numbers', async (here) => {
  const queue = here.queue();
  for (const id of ['a', 'a', 'b']) await queue.add('x', 1 as any, { group: { id } });
  return [await queue.getGroupJobsCount('a'), await queue.getGroupsJobsCount(), await queue.getGroupActiveCount('a')];
});
check('limits of a group', async (here) => {
  const queue = here.queue();
  await queue.setGroupConcurrency('g', 3);
  await queue.setGroupRateLimit('g', 5, 2000);
  const found = [await queue.getGroupConcurrency('g'), await queue.getGroupRateLimit('g'), await queue.getGroupRateLimitTtl('g')];
  return [found, await queue.removeGroupConcurrency('g'), await queue.removeGroupRateLimit('g'), await queue.removeGroupRateLimit('g'), await queue.getGroupRateLimit('g')];
});
check('a group that is paused', async (here) => {
  const queue = here.queue();
  const before = [await queue.pauseGroup('g'), await queue.pauseGroup('g'), await queue.isGroupPaused('g')];
  await queue.add('held', 1 as any, { group: { id: 'g' } });
  await queue.add('free', 1 as any, { group: { id: 'h' } });
  const { seen } = await work(here, 1, () => null);
  await sleep(300);
  const names = seen.map((one) => one[1]);
  return [before, names, await queue.resumeGroup('g'), await until(() => seen.length === 2)];
});
check('a rate limit of a group', async (here) => {
  const queue = here.queue();
  await queue.setGroupConcurrency('g', 10);
  await queue.setGroupRateLimit('g', 2, 1000);
  await queue.addBulk(Array.from({ length: 4 }, (_, n) => ({ name: 'x', data: n, opts: { group: { id: 'g' } } })) as any);
  const begun: number[] = [];
  await work(here, 4, () => void begun.push(Date.now()), { concurrency: 4, group: { limit: { max: 2, duration: 1000 }, concurrency: 10 } });
  return [begun.length, begun[2] - begun[0] >= 900];
});
check('a worker that has its group wait', async (here) => {
  const queue = here.queue();
  await queue.add('x', 1 as any, { group: { id: 'g' } });
  const begun: number[] = [];
  const worker = here.worker(async (job: any) => {
    begun.push(Date.now());
    if (begun.length === 1) await worker.rateLimitGroup(job, 700);
  });
  await until(() => begun.length >= 2);
  return begun[1] - begun[0] >= 650;
});
check('one of a group at a time', async (here) => {
  const queue = here.queue();
  await queue.addBulk(Array.from({ length: 4 }, (_, n) => ({ name: 'x', data: n, opts: { group: { id: 'g' } } })) as any);
  let now = 0;
  let most = 0;
  await work(here, 4, async () => {
    most = Math.max(most, ++now);
    await sleep(100);
    now--;
  }, { concurrency: 4, group: { concurrency: 1 } });
  return most;
});

// -- Flows

check('a parent waits for its children', async (here) => {
  const queue = here.queue();
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  const flow = await flows.add({
    name: 'parent',
    queueName: here.name,
    data: { p: 1 },
    children: [1, 2].map((n) => ({ name: `child ${n}`, queueName: here.name, data: { n } })),
  } as any);
  const before = await state(queue, flow.job.id);
  let values: any;
  const { seen } = await work(here, 3, async (job) => {
    if (job.name === 'parent') values = Object.values(await job.getChildrenValues()).sort();
    return job.name === 'parent' ? 'all' : job.data.n * 10;
  });
  const read = await flows.getFlow({ id: flow.job.id, queueName: here.name } as any);
  return [before, seen.map((one) => one[1]).sort(), seen.at(-1)[1], values, (read as any)?.children?.length];
});
check('a chain runs one after the other', async (here) => {
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  await flows.addChain(['a', 'b', 'c'].map((name) => ({ name, queueName: here.name, data: {} })) as any);
  return (await work(here, 3, () => null, { concurrency: 3 })).seen.map((one) => one[1]);
});
check('a child that fails fails its parent', async (here) => {
  const queue = here.queue();
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  const flow = await flows.add({
    name: 'parent',
    queueName: here.name,
    data: {},
    children: [{ name: 'child', queueName: here.name, data: {}, opts: { attempts: 1, failParentOnFailure: true } }],
  } as any);
  await work(here, 1, () => {
    throw new Error('x');
  });
  return await until(async () => ((await state(queue, flow.job.id)) === 'failed' ? 'failed' : null));
});

check('a tree over two queues, three levels deep', async (here) => {
  const other = `${here.name}-b`;
  const queue = here.queue();
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  const flow = await flows.add({
    name: 'root', queueName: here.name, data: {},
    children: [
      { name: 'mid', queueName: other, data: {}, children: [{ name: 'leaf', queueName: here.name, data: { n: 3 } }] },
      { name: 'side', queueName: other, data: { n: 4 } },
    ],
  } as any);
  const read: any = await flows.getFlow({ id: flow.job.id, queueName: here.name } as any);
  const shape = (node: any): any => [node.job.name, (node.children ?? []).map(shape)];
  const states = [await state(queue, flow.job.id), await here.queue(other).getJobState(flow.children![0].job.id)];
  const order: string[] = [];
  const run = async (job: any) => {
    order.push(job.name);
    return Object.values(await job.getChildrenValues()).length;
  };
  here.worker(run, {}, other);
  here.worker(run);
  await until(async () => (await state(queue, flow.job.id)) === 'completed');
  return [shape(flow), shape(read), states, order.indexOf('leaf') < order.indexOf('mid'), order.at(-1), (await queue.getJob(flow.job.id))!.returnvalue];
});
check('a tree that is read less deep, and one that there is not', async (here) => {
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  const flow = await flows.add({
    name: 'a', queueName: here.name, data: {},
    children: [{ name: 'b', queueName: here.name, data: {}, children: [{ name: 'c', queueName: here.name, data: {} }] }],
  } as any);
  const read: any = await flows.getFlow({ id: flow.job.id, queueName: here.name, depth: 1 } as any);
  return [read.job.name, (read.children ?? []).map((one: any) => [one.job.name, (one.children ?? []).length]), await flows.getFlow({ id: 'none', queueName: here.name } as any)];
});
check('several trees at once, and one id twice', async (here) => {
  const queue = here.queue();
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  const tree = (id: string) => ({ name: 'p', queueName: here.name, data: {}, opts: { jobId: `${here.name}-${id}` }, children: [{ name: 'k', queueName: here.name, data: {} }] });
  const made = await flows.addBulk([tree('one'), tree('two')] as any);
  const twice = await refusal(() => flows.addBulk([tree('three'), tree('one')] as any));
  return [made.length, twice.startsWith('error'), await queue.getJob(`${here.name}-three`), await queue.countAsync()];
});
for (const policy of ['ignoreDependencyOnFailure', 'continueParentOnFailure', 'removeDependencyOnFailure']) {
  check(`a child that fails: ${policy}`, async (here) => {
    const queue = here.queue();
    const flows = here.keep(new FlowProducer({ connection: here.connection }));
    const flow = await flows.add({
      name: 'parent', queueName: `${here.name}-p`, data: {},
      children: [{ name: 'child', queueName: here.name, data: {}, opts: { attempts: 1, [policy]: true } }],
    } as any);
    await work(here, 1, () => {
      throw new Error('x');
    });
    const parents = here.queue(`${here.name}-p`);
    await until(async () => (await parents.getJobState(flow.job.id)) !== 'waiting-children');
    return [await parents.getJobState(flow.job.id), await state(queue, flow.children![0].job.id)];
  });
}
check('side by side, and then one', async (here) => {
  const flows = here.keep(new FlowProducer({ connection: here.connection }));
  await flows.addBulkThen(['a', 'b'].map((name) => ({ name, queueName: here.name, data: {} })) as any, { name: 'last', queueName: here.name, data: {} } as any);
  const names = (await work(here, 3, () => null, { concurrency: 3 })).seen.map((one) => one[1]);
  return [names.slice(0, 2).sort(), names[2]];
});
check('a job that is added with a parent', async (here) => {
  const queue = here.queue();
  const parent = await queue.add('parent', {}, { delay: 60_000 });
  const child = await queue.add('child', {}, { parent: { id: parent.id, queue: here.name } } as any);
  await sleep(100);
  return [(await queue.getJob(child.id))!.parent?.id === parent.id, await state(queue, parent.id)];
});

// -- Simple mode

check('simple mode', async (here) => {
  const done: any[] = [];
  const app = here.keep(new Bunqueue(here.name, { connection: here.connection, processor: async (job: any) => ({ got: job.data }) } as any));
  app.on('completed', (job: any, result: any) => done.push([job.name, result]));
  app.on('error', () => undefined);
  await app.add('one', { n: 1 } as any);
  await until(() => done.length === 1);
  return done;
});
check('simple mode with routes and middleware', async (here) => {
  const done: any[] = [];
  const app = here.keep(
    new Bunqueue(here.name, {
      connection: here.connection,
      routes: { a: async () => 'from a', b: async () => 'from b' },
    } as any),
  );
  app.use(async (job: any, next: any) => `[${await next()}]` as any);
  app.on('completed', (job: any, result: any) => done.push([job.name, result]));
  app.on('error', () => undefined);
  await app.addBulk([{ name: 'a', data: 1 }, { name: 'b', data: 2 }] as any);
  await until(() => done.length === 2);
  return done.sort();
});
check('simple mode with a cron', async (here) => {
  const app = here.keep(new Bunqueue(here.name, { connection: here.connection, processor: async () => 1 } as any));
  app.on('error', () => undefined);
  const done: string[] = [];
  app.on('completed', (job: any) => done.push(job.name));
  await app.every(`${here.name}-tick`, 300, { x: 1 } as any);
  await until(() => done.length >= 2);
  const listed = (await app.listCrons()).length;
  await app.removeCron(`${here.name}-tick`);
  return [listed, (await app.listCrons()).length];
});

// -- Connections

check('what a server is asked first', async (here) => {
  const queue = here.queue();
  await queue.waitUntilReady();
  return true;
});
check('a wrong port', async (here) => {
  const queue = here.keep(new Queue('x', { connection: { host: '127.0.0.1', port: 1, commandTimeout: 500 } }));
  return (await refusal(() => Promise.race([queue.add('x', 1 as any), sleep(3000).then(() => Promise.reject(new Error('late')))]))).startsWith('error');
});
check('commands in great number over one connection', async (here) => {
  const queue = here.queue(here.name, { connection: { ...here.connection, poolSize: 1 } });
  const { id } = await queue.add('x', 1 as any);
  return (await Promise.all(Array.from({ length: 500 }, () => queue.getJobState(id)))).filter((one) => one === 'waiting').length;
});

async function main() {
  const todo = checks.map(([name, doing], number) => ({ name, doing, number })).filter((one) => !ONLY || ONLY.test(one.name));
  const run = async () => {
    for (let one = todo.shift(); one; one = todo.shift()) {
      const here = new Here(one.number);
      let line: object;
      try {
        const answer = await Promise.race([
          one.doing(here),
          sleep(60_000).then(() => Promise.reject(new Error('the check took longer than a minute'))),
        ]);
        line = { name: one.name, answer: answer === undefined ? null : answer };
      } catch (error) {
        line = { name: one.name, error: (error as Error).message };
      }
      console.log(JSON.stringify(line));
      await Promise.race([here.done().catch(() => undefined), sleep(5_000)]);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, run));
  await closeAllSharedPools?.();
  process.exit(0);
}

await main();
