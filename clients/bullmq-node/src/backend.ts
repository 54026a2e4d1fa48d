import { EventEmitter } from 'node:events';
import { randomUUID } from 'node:crypto';
import type { IQueueBackend, JobJson, JobProgress, JobsOptions, JobState, JobType, KeepJobs, KeysMap, MinimalJob, ParentKeyOpts } from 'bullmq';
import { closed, QuorumqError, worded, type Facts } from './errors.js';
import { added, fields, keep, shown, splitKey, taken } from './jobs.js';
import { Link, Refused, type Waiting } from './link.js';
import { settingsOf, type QuorumqOptions } from './options.js';
import { forget, later } from './timers.js';
import { json, text } from './wire.js';

const KEYS = [
  '', 'active', 'wait', 'waiting-children', 'paused', 'id', 'delayed', 'prioritized', 'stalled-check', 'completed', 'failed', 'stalled',
  'repeat', 'limiter', 'meta', 'events', 'pc', 'marker', 'de',
];
const STATES = ['wait', 'waiting', 'active', 'paused', 'prioritized', 'completed', 'failed', 'delayed', 'waiting-children'];
const COMMAND: Record<string, string> = {
  addJobs: 'addJob',
  addFlow: 'addJob',
  moveToCompleted: 'moveToFinished',
  moveToFailed: 'moveToFinished',
  remove: 'removeJob',
  retryFinishedJob: 'reprocessJob',
};
/** How much longer than a wait itself its answer may take before it is over for us. */
const GRACE_MS = 5_000;
const LIMIT = 0x7fffffff;
/** Has a reading wait for nothing. */
const AT_ONCE = -1;

type Options = Record<string, any>;
type Raw = [streamName: string, entries: [id: string, fields: string[]][]][] | null;

/** What is not served yet: said when it is asked for, and not before. */
function notYet(what: string): Error {
  return new QuorumqError(`quorumq does not serve ${what} yet`, 4);
}

let warnedOfMetrics = false;

/** BullMQ's backend over a quorumq cluster: one queue as one Queue, Worker, QueueEvents or FlowProducer sees it. */
export class QuorumqBackend extends EventEmitter implements IQueueBackend {
  closing: Promise<void> | undefined;
  readonly minimumBlockTimeout = 0.001;
  readonly maximumBlockTimeout = 3_600;
  readonly qualifiedName: string;
  readonly keys: KeysMap;
  private readonly prefix: string;
  private readonly id = randomUUID();
  private readonly underWay = new Set<Promise<unknown>>();
  private waiting = new Set<Waiting>();
  private isBlockingEnded = false;
  private appears?: Promise<void>;
  private isReleased = false;
  private position?: string;
  private begun?: Promise<void>;

  /** owner: the backend whose connection it shares; closing this one leaves that alone. */
  constructor(
    private readonly link: Link,
    readonly name: string,
    private readonly opts: Options,
    private readonly kind: 'plain' | 'worker' | 'events',
    private readonly owner?: QuorumqBackend,
  ) {
    super();
    this.setMaxListeners(0);
    this.prefix = opts.prefix ?? 'bull';
    this.qualifiedName = `${this.prefix}:${name}`;
    this.keys = Object.fromEntries(KEYS.map(key => [key, this.toKey(key)]));
    if (owner) return;
    for (const event of ['ready', 'error', 'close'] as const) link.on(event, this.told[event]);
    if (opts.metrics && !warnedOfMetrics) {
      warnedOfMetrics = true;
      process.emitWarning('quorumq does not collect the metrics of workers yet', 'QuorumqWarning');
    }
  }

  private readonly told = {
    ready: (): void => void this.emit('ready'),
    error: (error: Error): void => void (this.listenerCount('error') && this.emit('error', error)),
    close: (): void => void this.emit('close'),
  };

  // -- Life

  async waitUntilReady(): Promise<void> {
    await this.link.ready();
    if (this.kind === 'worker' && !this.owner) {
      const suffix = this.opts.name ? `:w:${this.opts.name}` : '';
      await (this.appears ??= this.appear(this.clientName(suffix)));
    }
    // Whoever is told that a reader of events is ready misses none from then on, whatever becomes of nodes.
    await this.begun;
  }

  private async appear(name: string): Promise<void> {
    if (this.closing || this.isReleased) return;
    // Who is there is told to whoever asks; nothing depends on it.
    await this.link.appear(this.id, this.qualifiedName, name).catch(() => undefined);
  }

  async setName(name: string): Promise<void> {
    if (this.kind === 'events' && (this.opts.lastEventId ?? '$') === '$') void this.beginReading();
    await this.link.ready();
    await (this.appears = this.appear(name));
  }

  close(force = false): Promise<void> {
    if (this.owner) return Promise.resolve();
    return (this.closing ??= this.end(force));
  }

  async disconnect(): Promise<void> {
    this.isBlockingEnded = true;
    this.endWaits();
    if (!this.owner && this.kind === 'plain') await this.close(true);
  }

  private async end(force: boolean): Promise<void> {
    this.isBlockingEnded = true;
    this.endWaits();
    if (!force) await Promise.allSettled([...this.underWay]);
    if (this.appears) {
      await this.appears;
      await this.link.disappear(this.id);
    }
    this.isReleased = true;
    for (const event of ['ready', 'error', 'close'] as const) this.link.off(event, this.told[event]);
    this.link.release();
    this.emit('close');
  }

  private endWaits(): void {
    for (const one of [...this.waiting]) one.cancel();
  }

  forQueue(queueName: string, prefix: string = this.prefix): IQueueBackend {
    return new QuorumqBackend(this.link, queueName, { ...this.opts, prefix }, 'plain', this.owner ?? this);
  }

  // -- Names

  toKey(type: string): string {
    return `${this.qualifiedName}:${type}`;
  }

  parseNodeKey(key: string): { prefix: string; queueName: string; id: string } {
    const { queue, id } = splitKey(key);
    const at = queue.lastIndexOf(':');
    return { prefix: queue.slice(0, at), queueName: queue.slice(at + 1), id };
  }

  clientName(suffix = ''): string {
    return `${this.prefix}:${Buffer.from(this.name).toString('base64')}${suffix}`;
  }

  // -- Calls

  private get isReleasedNow(): boolean {
    return (this.owner ?? this).isReleased;
  }

  private track<T>(doing: Promise<T>, facts: Facts): Promise<T> {
    const root = this.owner ?? this;
    const made = doing.catch((error: unknown) => {
      throw error instanceof Refused ? worded(error, facts) : error;
    });
    root.underWay.add(made);
    const done = (): void => void root.underWay.delete(made);
    made.then(done, done);
    return made;
  }

  private write<T = any>(method: string, args: unknown[], facts: Omit<Facts, 'command'> = {}): Promise<T> {
    if (this.isReleasedNow) return Promise.reject(closed('the queue is closed'));
    return this.track(this.link.write(method, this.qualifiedName, args), { command: COMMAND[method] ?? method, ...facts });
  }

  private read<T = any>(method: string, args: unknown[], facts: Omit<Facts, 'command'> = {}): Promise<T> {
    if (this.isReleasedNow) return Promise.reject(closed('the queue is closed'));
    return this.track(this.link.read(method, this.qualifiedName, args), { command: COMMAND[method] ?? method, ...facts });
  }

  /** Waits for what the cluster tells in ms at most; null when that is over, or was ended. */
  private async blocked(method: string, args: unknown[], ms: number): Promise<any> {
    if (this.isBlockingEnded || this.isReleasedNow) return null;
    const one = this.link.wait(method, this.qualifiedName, args);
    this.waiting.add(one);
    const timer = later(() => one.cancel(), Math.min(ms + GRACE_MS, LIMIT));
    try {
      return await one.promise;
    } catch (error) {
      throw error instanceof Refused ? worded(error, { command: method }) : error;
    } finally {
      forget(timer);
      this.waiting.delete(one);
    }
  }

  // -- Adding

  async addJob(job: JobJson, jobId: string, parentKeyOpts?: ParentKeyOpts): Promise<string> {
    return this.write('addJob', [added(job, jobId, parentKeyOpts)], { job: jobId, parent: parentKeyOpts?.parentKey ?? job.parentKey });
  }

  async addJobs(entries: { job: JobJson; jobId: string; parentKeyOpts?: ParentKeyOpts }[]): Promise<string[]> {
    if (!entries.length) return [];
    // All parents are one where there are some; with several, the first stands for them in the words of an error.
    const parent = entries.map(one => one.parentKeyOpts?.parentKey).find(Boolean);
    return this.write('addJobs', [entries.map(one => added(one.job, one.jobId, one.parentKeyOpts))], { parent });
  }

  async addFlow(
    entries: { jobData: JobJson; jobId: string; parentKeyOpts: ParentKeyOpts; prefix: string; queueName: string }[],
  ): Promise<[Error | null, string | number][]> {
    if (!entries.length) return [];
    const jobs = entries.map(one => ({
      ...added(one.jobData, one.jobId, one.parentKeyOpts),
      queue: `${one.prefix ?? this.prefix}:${one.queueName}`,
    }));
    const first = entries[0];
    const queue = `${first.prefix ?? this.prefix}:${first.queueName}`;
    if (this.isReleasedNow) throw closed('the queue is closed');
    const found = await this.track(this.link.write('addFlow', queue, [jobs]), { command: 'addJob', parent: first.parentKeyOpts?.parentKey });
    return found.map(([code, value]: [number, string]) => [null, code ? code : value]);
  }

  // -- What workers do

  private get taking(): Record<string, unknown> {
    const { lockDuration, limiter, name } = this.opts;
    return {
      lock: lockDuration ?? 30_000,
      ...(name ? { name } : {}),
      ...(limiter ? { limiter: [limiter.max, limiter.duration] } : {}),
    };
  }

  private fetch(fetchNext: boolean | undefined): Record<string, unknown> | null {
    return fetchNext && !this.closing ? this.taking : null;
  }

  async moveToActive(token: string, name?: string): Promise<any[]> {
    return taken(await this.write('moveToActive', [token, { ...this.taking, ...(name ? { name } : {}) }]));
  }

  async moveToCompleted<T = any, R = any, N extends string = string>(
    job: MinimalJob<T, R, N>,
    returnValue: R,
    removeOnComplete: boolean | number | KeepJobs,
    token: string,
    fetchNext: boolean,
  ): Promise<{ result: void | any[]; finishedOn: number }> {
    const rule = keep(removeOnComplete, this.opts.removeOnComplete);
    const args = [job.id, token, json(returnValue), rule, this.fetch(fetchNext)];
    const [finishedOn, next] = await this.write('moveToCompleted', args, { job: job.id, state: 'active' });
    return { result: taken(next), finishedOn };
  }

  async moveToFailed<T = any, R = any, N extends string = string>(
    job: MinimalJob<T, R, N>,
    failedReason: string,
    removeOnFail: boolean | number | KeepJobs,
    token: string,
    fetchNext: boolean,
    fieldsToUpdate?: Record<string, any>,
  ): Promise<{ result: void | any[]; finishedOn: number }> {
    const rule = keep(removeOnFail, this.opts.removeOnFail);
    const reason = failedReason === undefined || failedReason === null ? 'null' : String(failedReason);
    const args = [job.id, token, reason, rule, this.fetch(fetchNext), fields(fieldsToUpdate), job.opts?.attempts ?? null];
    const [finishedOn, next] = await this.write('moveToFailed', args, { job: job.id, state: 'active' });
    return { result: taken(next), finishedOn };
  }

  async moveToDelayed(
    jobId: string,
    timestamp: number,
    delay: number,
    token = '0',
    opts: { skipAttempt?: boolean; fieldsToUpdate?: Record<string, any>; fetchNext?: boolean } = {},
  ): Promise<void | any[]> {
    const args = [jobId, token, timestamp, Math.max(0, Math.floor(delay)), opts.skipAttempt ?? false, fields(opts.fieldsToUpdate), this.fetch(opts.fetchNext)];
    const next = await this.write('moveToDelayed', args, { job: jobId, state: 'active' });
    return next?.[0] ? taken(next) : [];
  }

  async retryJob(jobId: string, lifo: boolean, token = '0', opts: { fieldsToUpdate?: Record<string, any> } = {}): Promise<void> {
    await this.write('retryJob', [jobId, token, Boolean(lifo), fields(opts.fieldsToUpdate)], { job: jobId, state: 'active' });
  }

  async moveToWaitingChildren(jobId: string, token: string, opts: { child?: { id: string; queue: string } } = {}): Promise<boolean> {
    const child = opts.child ? `${opts.child.queue}:${opts.child.id}` : null;
    return this.write('moveToWaitingChildren', [jobId, token, child], { job: jobId, state: 'active' });
  }

  async moveJobFromActiveToWait(jobId: string, token = '0'): Promise<number> {
    return this.write('moveJobFromActiveToWait', [jobId, token], { job: jobId, state: 'active' });
  }

  async moveStalledJobsToWait(): Promise<string[]> {
    return this.write('moveStalledJobsToWait', [this.opts.maxStalledCount ?? 1, this.opts.stalledInterval ?? 30_000]);
  }

  async extendLock(jobId: string, token: string, duration: number): Promise<number> {
    return this.write('extendLock', [jobId, token, duration], { job: jobId });
  }

  async extendLocks(jobIds: string[], tokens: string[], duration: number): Promise<string[]> {
    return jobIds.length ? this.write('extendLocks', [jobIds, tokens, duration]) : [];
  }

  // -- Jobs

  async retryFinishedJob<T = any, R = any, N extends string = string>(
    job: MinimalJob<T, R, N>,
    state: 'failed' | 'completed',
    opts: { resetAttemptsMade?: boolean; resetAttemptsStarted?: boolean } = {},
  ): Promise<void> {
    const args = [job.id, state, Boolean(job.opts?.lifo), opts.resetAttemptsMade ?? false, opts.resetAttemptsStarted ?? false];
    await this.write('retryFinishedJob', args, { job: job.id, state });
  }

  async promote(jobId: string): Promise<void> {
    await this.write('promote', [jobId], { job: jobId, state: 'delayed' });
  }

  async updateData<T = any, R = any, N extends string = string>(job: MinimalJob<T, R, N>, data: T): Promise<void> {
    await this.write('updateData', [job.id, json(data)], { job: job.id });
  }

  async updateProgress(jobId: string, progress: JobProgress): Promise<void> {
    await this.write('updateProgress', [jobId, json(progress)], { job: jobId });
  }

  async addLog(jobId: string, logRow: string, keepLogs?: number): Promise<number> {
    return this.write('addLog', [jobId, String(logRow), keepLogs || null], { job: jobId });
  }

  async clearLogs(jobId: string, keepLogs?: number): Promise<void> {
    await this.write('clearLogs', [jobId, keepLogs ?? null], { job: jobId });
  }

  async changeDelay(jobId: string, delay: number): Promise<void> {
    await this.write('changeDelay', [jobId, delay], { job: jobId, state: 'delayed' });
  }

  async changePriority(jobId: string, priority = 0, lifo = false): Promise<void> {
    await this.write('changePriority', [jobId, priority, Boolean(lifo)], { job: jobId });
  }

  async remove(jobId: string, removeChildren: boolean): Promise<number> {
    return this.write('remove', [jobId, Boolean(removeChildren)], { job: jobId });
  }

  async removeUnprocessedChildren(jobId: string): Promise<void> {
    await this.write('removeUnprocessedChildren', [jobId], { job: jobId });
  }

  async removeChildDependency(jobId: string, parentKey: string): Promise<boolean> {
    return this.write('removeChildDependency', [jobId, parentKey], { job: jobId, parent: parentKey });
  }

  async removeDeduplicationKey(deduplicationId: string, jobId: string): Promise<number> {
    return this.write('removeDeduplicationKey', [deduplicationId, jobId]);
  }

  async deleteDeduplicationKey(deduplicationId: string): Promise<number> {
    return this.write('deleteDeduplicationKey', [deduplicationId]);
  }

  // -- The queue as a whole

  async pause(pause: boolean): Promise<void> {
    await this.write('pause', [pause]);
  }

  async drain(delayed: boolean): Promise<void> {
    await this.write('drain', [Boolean(delayed)]);
  }

  async cleanJobsByState(state: string, timestamp: number, limit = 0): Promise<string[]> {
    return this.write('cleanJobsByState', [state, timestamp, Math.min(limit, LIMIT)]);
  }

  async obliterate(opts: { force: boolean; count: number }): Promise<number> {
    try {
      return await this.write('obliterate', [Boolean(opts.force), Math.min(opts.count, LIMIT)]);
    } catch (error) {
      // As BullMQ throws it: a plain error with these words.
      if (error instanceof QuorumqError && error.code === 2) throw new Error(error.message);
      throw error;
    }
  }

  async retryFinishedJobs(state: 'failed' | 'completed' = 'failed', count = 1000, timestamp?: number): Promise<number> {
    return this.write('retryFinishedJobs', [state, count, timestamp]);
  }

  async promoteJobs(count = 1000): Promise<number> {
    return this.write('promoteJobs', [count]);
  }

  async removeOrphanedJobs(_count?: number, _limit?: number): Promise<number> {
    return 0;
  }

  async removeDeprecatedPriorityKey(): Promise<number> {
    return 0;
  }

  async setRateLimit(expireTimeMs: number): Promise<void> {
    await this.write('setRateLimit', [expireTimeMs]);
  }

  async removeRateLimitKey(): Promise<number> {
    return this.write('removeRateLimitKey', []);
  }

  async setQueueMeta(values: Record<string, string | number>): Promise<number> {
    return this.write('setQueueMeta', [Object.fromEntries(Object.entries(values).map(([field, value]) => [field, String(value)]))]);
  }

  async removeQueueMetaFields(names: string[]): Promise<number> {
    return this.write('removeQueueMetaFields', [names]);
  }

  async getQueueMeta(): Promise<Record<string, string>> {
    return this.read('getQueueMeta', []);
  }

  async getQueueMetaFields(names: string[]): Promise<(string | null)[]> {
    return this.read('getQueueMetaFields', [names]);
  }

  async getQueueMetaField(field: string): Promise<string | null> {
    return (await this.getQueueMetaFields([field]))[0];
  }

  async hasQueueMetaField(field: string): Promise<boolean> {
    return (await this.getQueueMetaField(field)) !== null;
  }

  // -- Queries

  async getState(jobId: string): Promise<JobState | 'unknown'> {
    return this.read('getState', [jobId]);
  }

  async isFinished(jobId: string, returnValue = false): Promise<number | [number, string]> {
    const [status, value] = await this.read('isFinished', [jobId]);
    if (!returnValue) return status;
    if (status === -1) return [-1, `Missing key for job ${this.toKey(jobId)}. isFinished`];
    return [status, value == null ? '' : text(value)];
  }

  async isMaxed(): Promise<boolean> {
    return this.read('isMaxed', []);
  }

  async isJobInState(state: string, jobId: string): Promise<boolean> {
    if (!STATES.includes(state)) throw new Error(`Unknown job state: ${state}`);
    return this.read('isJobInState', [state, jobId]);
  }

  async getJobData(jobId: string): Promise<JobJson | undefined> {
    const found = await this.read('getJobData', [jobId]);
    return found ? shown(found) : undefined;
  }

  async getDeduplicationJobId(deduplicationId: string): Promise<string | null> {
    return this.read('getDeduplicationJobId', [deduplicationId]);
  }

  async getJobLogs(jobId: string, start: number, end: number, asc: boolean): Promise<{ logs: string[]; count: number }> {
    const [logs, count] = await this.read('getJobLogs', [jobId, start, end, Boolean(asc)]);
    return { logs, count };
  }

  async getRateLimitTtl(maxJobs?: number): Promise<number> {
    return this.read('getRateLimitTtl', [maxJobs ?? null]);
  }

  async getCounts(types: JobType[], delayedTimestamp?: number): Promise<number[]> {
    return this.read('getCounts', [types, delayedTimestamp ?? null]);
  }

  async getCountsPerPriority(priorities: number[]): Promise<number[]> {
    return this.read('getCountsPerPriority', [priorities]);
  }

  async getRanges(types: JobType[], start = 0, end = 1, asc = false): Promise<[string][]> {
    return this.read('getRanges', [types, start, end, Boolean(asc)]);
  }

  async getDependencyCounts(jobId: string, types: string[]): Promise<number[]> {
    return this.read('getDependencyCounts', [jobId, types]);
  }

  async getDependencies(jobId: string, opts: Record<string, any> = {}): Promise<any> {
    const types = ['processed', 'unprocessed', 'ignored', 'failed'];
    const asked = types.filter(type => opts[type]);
    const pages = asked.length ? Object.fromEntries(asked.map(type => [type, [opts[type].cursor ?? 0, opts[type].count ?? 20]])) : null;
    const found = await this.read('getDependencies', [jobId, pages]);
    const made: Record<string, any> = {};
    for (const type of asked.length ? asked : types) {
      if (type === 'processed') made.processed = parsed(found.processed ?? {});
      else if (type === 'ignored') made.ignored = found.ignored ?? {};
      else made[type] = found[type] ?? [];
      if (asked.length) made[`next${type[0].toUpperCase()}${type.slice(1)}Cursor`] = found.next?.[type] ?? 0;
    }
    return made;
  }

  async getProcessedChildrenValues(jobId: string): Promise<Record<string, string>> {
    const found: Record<string, Uint8Array> = await this.read('getProcessedChildrenValues', [jobId]);
    return Object.fromEntries(Object.entries(found).map(([key, value]) => [key, text(value)]));
  }

  async getIgnoredChildrenFailures(jobId: string): Promise<Record<string, string>> {
    return this.read('getIgnoredChildrenFailures', [jobId]);
  }

  async paginate(key: string, opts: { start: number; end: number; fetchJobs?: boolean }): Promise<any> {
    const within = key.startsWith(`${this.qualifiedName}:`) ? key.slice(this.qualifiedName.length + 1) : key;
    const at = within.lastIndexOf(':');
    const [job, what] = [within.slice(0, at), within.slice(at + 1)];
    const type = what === 'processed' ? 'processed' : 'unprocessed';
    const length = opts.end < 0 ? LIMIT : Math.max(opts.end - opts.start + 1, 0);
    const [[total], found] = await Promise.all([
      this.getDependencyCounts(job, [type]),
      this.read('getDependencies', [job, { [type]: [opts.start, length] }]),
    ]);
    const values: Record<string, Uint8Array> = type === 'processed' ? (found.processed ?? {}) : {};
    const keys: string[] = type === 'processed' ? Object.keys(values) : (found.unprocessed ?? []);
    const jobs = opts.fetchJobs ? await Promise.all(keys.map(key => this.jobOfKey(key))) : [];
    return {
      cursor: '0',
      items: keys.map(id => (type === 'processed' ? parsedItem(id, values[id]) : { id })),
      total,
      jobs: jobs.filter(Boolean),
    };
  }

  private async jobOfKey(key: string): Promise<JobJson | undefined> {
    const { queue, id } = splitKey(key);
    const found = await this.track(this.link.read('getJobData', queue, [id]), { command: 'getJobData', job: id });
    return found ? shown(found) : undefined;
  }

  async getClientList(): Promise<string[]> {
    // BullMQ takes each text for the list of one server, and believes the longest.
    return [(await this.read<string[]>('getClientList', [])).join('')];
  }

  async getMetrics(_type: 'completed' | 'failed', _start = 0, _end = -1): Promise<[string[], string[], number]> {
    return [['0', '0', '0'], [], 0];
  }

  // -- Schedulers: not served yet. There are none, and none can be made.

  async addJobScheduler(): Promise<[string, number]> {
    throw notYet('job schedulers');
  }

  async updateJobSchedulerNextMillis(
    _id: string,
    _next: number,
    _data: string,
    _opts: JobsOptions,
    _producerId?: string,
  ): Promise<string | null> {
    throw notYet('job schedulers');
  }

  async removeJobScheduler(_id: string): Promise<number> {
    return 1;
  }

  async getJobScheduler(_id: string): Promise<[any, string | null]> {
    return [null, null];
  }

  async isJobScheduler(_id: string): Promise<boolean> {
    return false;
  }

  async getJobSchedulerData(_key: string): Promise<Record<string, string>> {
    return {};
  }

  async getJobSchedulersRange(_start: number, _end: number, _asc: boolean): Promise<string[]> {
    return [];
  }

  async getJobSchedulersCount(): Promise<number> {
    return 0;
  }

  // -- Events

  async trimEvents(maxLength: number): Promise<number> {
    return this.write('trimEvents', [maxLength]);
  }

  async publishEvent(values: Record<string, string | number>, maxEvents: number): Promise<string> {
    const told = Object.fromEntries(Object.entries(values).map(([field, value]) => [field, String(value)]));
    return this.write('publishEvent', [told, maxEvents]);
  }

  /** Learns which id `$` is: had a long reading begun with it, the next node would begin that at a later moment. */
  private beginReading(): Promise<void> {
    return (this.begun ??= this.link.read('readEvents', this.qualifiedName, ['$', AT_ONCE]).then(
      ([position]) => void (this.position ??= position),
      () => void (this.begun = undefined),
    ));
  }

  async readEvents(id: string, blockTimeout: number): Promise<Raw> {
    // `$` is the moment of the first reading: what happens between two of them is not lost.
    if (id === '$' && this.position === undefined) await this.beginReading();
    const from = id === '$' ? (this.position ?? '$') : id;
    const ms = blockTimeout > 0 ? blockTimeout : LIMIT;
    const answer = await this.blocked('readEvents', [from, ms], ms);
    if (!answer) return null;
    const [next, entries] = answer as [string, [string, string[]][]];
    this.position = next;
    return entries.length ? [[this.toKey('events'), entries]] : null;
  }

  // -- Waiting for jobs

  async waitForJob(blockTimeout: number): Promise<{ member: string; score: number } | null> {
    const ms = Math.max(blockTimeout * 1000, 1);
    const answer: number | null = await this.blocked('wait', [ms], ms);
    return answer === null ? null : { member: answer ? '1' : '0', score: answer };
  }

  async disconnectBlocking(_wait?: boolean): Promise<void> {
    this.isBlockingEnded = true;
    this.endWaits();
  }

  async reconnectBlocking(): Promise<void> {
    if (!this.closing) this.isBlockingEnded = false;
  }
}

function parsed(values: Record<string, Uint8Array>): Record<string, any> {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [key, JSON.parse(text(value))]));
}

function parsedItem(id: string, value: Uint8Array | null): { id: string; v?: any; err?: string } {
  try {
    return { id, v: value === null ? null : JSON.parse(text(value)) };
  } catch (error) {
    return { id, err: (error as Error).message };
  }
}

/** BullMQ's backend factory: for one instance as its last constructor argument, for all as the default one. */
export function createQuorumqBackend(
  name: string,
  opts: { connection?: unknown; prefix?: string } & Record<string, any>,
  options: { blocking?: boolean; withBlockingConnection?: boolean } = {},
): QuorumqBackend {
  const link = Link.take(settingsOf(opts?.connection));
  return new QuorumqBackend(link, name, opts ?? {}, options.withBlockingConnection ? 'worker' : options.blocking ? 'events' : 'plain');
}

export type { QuorumqOptions };
