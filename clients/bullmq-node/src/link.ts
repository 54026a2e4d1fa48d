import { EventEmitter } from 'node:events';
import { randomUUID } from 'node:crypto';
import WebSocket from 'ws';
import { closed, QuorumqError, type Refusal } from './errors.js';
import { base, type Settings } from './options.js';
import { forget, later, now, sleep, soon } from './timers.js';
import { AGAIN, BAD_MESSAGE, BAD_SESSION, BAD_TOKEN, DONE, FORGOTTEN, PATH, PROTOCOL, head, pack, unpack, type Answer, type Welcome } from './wire.js';

/** A node that says nothing for so long is left; it is asked for a sign in half of that. */
const DEAD_MS = 10_000;
const PING_MS = 5_000;
const HANDSHAKE_MS = 2_000;
/** Between two tries, at random, so that all clients of a node that went do not come to the next one at once. */
const JITTER_MS = 100;
/** Between two rounds of all nodes, and after a refusal that is not worth repeating often. */
const ROUND_MS = 100;
const REFUSED_MS = 5_000;
/** How soon a call is sent again that a node could not do, and for how long that goes on before another node is asked. */
const AGAIN_MS = 50;
const AGAIN_AT_ONE_NODE_MS = 2_000;
const SWEEP_MS = 250;
const MESSAGE_BYTES = 1 << 20;
const MESSAGE_CALLS = 1_024;
const BUFFERED_BYTES = 8 << 20;
const EMPTY = Buffer.alloc(0);

type Kind = 'write' | 'read' | 'wait';

/** Number, name, queue, arguments, and what time it is here. */
type Said = [number, string, string, unknown[], number];

interface Call {
  number: number;
  kind: Kind;
  packed: Buffer;
  /** What is to be packed once a node has told whether the time goes with it. */
  unpacked?: Said;
  deadline: number;
  isSent: boolean;
  takes: boolean;
  resolve(result: any): void;
  reject(error: Error): void;
}

/** A call that waits. cancel: have it settle with null now. */
export interface Waiting {
  promise: Promise<any>;
  cancel(): void;
}

/** A refusal, as `call` rejects with it: whoever called knows the words. */
export class Refused extends Error implements Refusal {
  constructor(
    readonly code: number,
    readonly text: string,
  ) {
    super(text);
  }
}

const links = new Map<string, Link>();

/**
 * The connection of this process to one cluster, shared by all queues and workers with the same nodes and token.
 *
 * What is called in one turn of the loop travels in one message. When a node goes, the next one is asked, and calls that were
 * not answered are sent again in their order, under their numbers. Emits `ready`, `error` and `close`.
 */
export class Link extends EventEmitter {
  private readonly session = randomUUID();
  private readonly known: string[];
  private users = 0;
  private ended = false;
  private number = 0;
  private other = 0;
  private readonly writes = new Map<number, Call>();
  private readonly others = new Map<number, Call>();
  private unsent: Call[] = [];
  private inFlight = 0;
  private bytesInFlight = 0;
  private isFlushing = false;
  private socket?: WebSocket;
  private welcome?: Welcome;
  /** Whose time holds, once a node has told. */
  private clock?: string;
  private againSince = 0;
  private againTimer?: NodeJS.Timeout;
  private sweeper?: NodeJS.Timeout;
  private fatal?: Error;
  private whenReady: Array<{ resolve(): void; reject(error: Error): void }> = [];
  private readonly present = new Map<string, { queue: string; name: string }>();

  private constructor(
    private readonly key: string,
    private readonly settings: Settings,
  ) {
    super();
    this.setMaxListeners(0);
    this.known = [...settings.nodes];
    void this.run();
  }

  /** Gives the process' connection with these settings, a new one if there is none; whoever takes it releases it. */
  static take(settings: Settings): Link {
    const key = JSON.stringify([[...settings.nodes].sort(), settings.token, settings.commandTimeout, settings.tls]);
    let link = links.get(key);
    if (!link) links.set(key, (link = new Link(key, settings)));
    link.users += 1;
    return link;
  }

  /** Ends the connection when nobody uses it any more. */
  release(): void {
    this.users -= 1;
    if (this.users > 0 || this.ended) return;
    this.ended = true;
    links.delete(this.key);
    const error = closed('the connection was closed');
    for (const call of this.all()) this.settle(call, () => call.reject(error));
    for (const one of this.whenReady.splice(0)) one.reject(error);
    if (this.againTimer) forget(this.againTimer);
    if (this.sweeper) forget(this.sweeper);
    this.socket?.close(1000);
  }

  /** Resolves once a node has let us in; rejects when none will. */
  ready(): Promise<void> {
    if (this.welcome) return Promise.resolve();
    if (this.fatal) return Promise.reject(this.fatal);
    return new Promise((resolve, reject) => this.whenReady.push({ resolve, reject }));
  }

  get isOpen(): boolean {
    return this.welcome !== undefined;
  }

  /** Changes something: done once, however often it has to be sent. */
  write(name: string, queue: string, args: unknown[]): Promise<any> {
    return this.begin('write', name, queue, args).promise;
  }

  read(name: string, queue: string, args: unknown[]): Promise<any> {
    return this.begin('read', name, queue, args).promise;
  }

  /** Waits for something to happen, across nodes; an unknown end of that is the caller's affair. */
  wait(name: string, queue: string, args: unknown[]): Waiting {
    const { call, promise } = this.begin('wait', name, queue, args);
    return {
      promise,
      cancel: () => {
        if (!call || !this.others.has(call.number)) return;
        if (call.isSent && this.welcome) this.read('cancel', '', [call.number]).catch(() => undefined);
        this.settle(call, () => call.resolve(null));
      },
    };
  }

  /** Says that somebody is there, now and at every node that we come to. id: one's own. */
  async appear(id: string, queue: string, name: string): Promise<void> {
    this.present.set(id, { queue, name });
    await this.read('register', queue, [id, name]);
  }

  async disappear(id: string): Promise<void> {
    const one = this.present.get(id);
    if (!one) return;
    this.present.delete(id);
    if (this.welcome) await this.read('unregister', one.queue, [id]).catch(() => undefined);
  }

  // -- Calls

  private *all(): Iterable<Call> {
    yield* [...this.writes.values()];
    yield* [...this.others.values()];
  }

  private begin(kind: Kind, name: string, queue: string, args: unknown[]): { promise: Promise<any>; call?: Call } {
    if (this.ended) return { promise: Promise.reject(closed('the connection was closed')) };
    if (this.fatal) return { promise: Promise.reject(closed(this.fatal.message)) };
    const number = kind === 'write' ? (this.number += 1) : (this.other -= 1);
    const said: Said = [number, name, queue, args, Date.now()];
    const packed = this.clock ? this.packed(said) : EMPTY;
    const most = this.welcome?.maxMessage ?? Infinity;
    if (packed.length + 32 > most) {
      return { promise: Promise.reject(new QuorumqError(`The call is larger than a message may be (${most} bytes)`, 2)) };
    }
    let call!: Call;
    const promise = new Promise<any>((resolve, reject) => {
      const deadline = kind === 'wait' ? Infinity : now() + this.settings.commandTimeout;
      call = { number, kind, packed, unpacked: this.clock ? undefined : said, deadline, isSent: false, takes: name === 'moveToActive', resolve, reject };
    });
    (kind === 'write' ? this.writes : this.others).set(number, call);
    this.unsent.push(call);
    this.flushSoon();
    this.sweepLater();
    return { promise, call };
  }

  private packed(said: Said): Buffer {
    return pack(this.clock === 'client' ? said : said.slice(0, 4));
  }

  private settle(call: Call, how: () => void): void {
    const calls = call.kind === 'write' ? this.writes : this.others;
    if (!calls.delete(call.number)) return;
    this.unmark(call);
    how();
  }

  private mark(call: Call): void {
    call.isSent = true;
    if (call.kind === 'wait') return;
    this.inFlight += 1;
    this.bytesInFlight += call.packed.length;
  }

  private unmark(call: Call): void {
    if (!call.isSent) return;
    call.isSent = false;
    if (call.kind === 'wait') return;
    this.inFlight -= 1;
    this.bytesInFlight -= call.packed.length;
  }

  private flushSoon(): void {
    if (this.isFlushing || !this.welcome) return;
    this.isFlushing = true;
    soon(() => {
      this.isFlushing = false;
      this.flush();
    });
  }

  /** Sends what there is, as far as the window goes. */
  private flush(): void {
    const { socket, welcome } = this;
    if (!socket || !welcome || socket.readyState !== WebSocket.OPEN) return;
    let at = 0;
    while (at < this.unsent.length) {
      if (socket.bufferedAmount > BUFFERED_BYTES) {
        later(() => this.flushSoon(), 5);
        break;
      }
      const parts: Buffer[] = [];
      let size = 0;
      for (; at < this.unsent.length && parts.length < MESSAGE_CALLS; at += 1) {
        const call = this.unsent[at];
        if (!this.writes.has(call.number) && !this.others.has(call.number)) continue;
        const length = call.packed.length;
        if (call.kind !== 'wait') {
          const isFull = this.inFlight >= welcome.window.calls || (this.inFlight > 0 && this.bytesInFlight + length > welcome.window.bytes);
          if (isFull) break;
        }
        if (parts.length && size + length + 32 > Math.min(welcome.maxMessage, MESSAGE_BYTES)) break;
        this.mark(call);
        parts.push(call.packed);
        size += length;
      }
      if (!parts.length) break;
      socket.send(Buffer.concat([head(this.acknowledged(), parts.length), ...parts]));
    }
    if (at) this.unsent = this.unsent.slice(at);
  }

  /** The number up to which every write was answered. */
  private acknowledged(): number {
    for (const number of this.writes.keys()) return number - 1;
    return this.number;
  }

  private answer([number, code, result]: Answer): void {
    const call = number > 0 ? this.writes.get(number) : this.others.get(number);
    if (!call) return;
    if (code === AGAIN) return this.again(call);
    this.againSince = 0;
    if (code === DONE) this.settle(call, () => call.resolve(result));
    else if (code === FORGOTTEN) this.settle(call, () => call.reject(closed(result)));
    else this.settle(call, () => call.reject(new Refused(code, result)));
  }

  /** The node could not do it: send it again before long, in its order, and elsewhere when that goes on. */
  private again(call: Call): void {
    this.unmark(call);
    const time = now();
    if (!this.againSince) this.againSince = time;
    if (this.againTimer) return;
    this.againTimer = later(() => {
      this.againTimer = undefined;
      if (this.againSince && now() - this.againSince > AGAIN_AT_ONE_NODE_MS && this.known.length > 1) {
        this.againSince = 0;
        this.socket?.terminate();
        return;
      }
      this.queueUnsent();
      this.flushSoon();
    }, AGAIN_MS);
  }

  /** Puts whatever is not under way into the order of its numbers. */
  private queueUnsent(): void {
    this.unsent = [...this.all()].filter(call => !call.isSent);
  }

  /** Rejects what has waited too long for a node. */
  private sweepLater(): void {
    if (this.sweeper || this.ended) return;
    this.sweeper = later(() => {
      this.sweeper = undefined;
      const time = now();
      for (const call of this.all()) {
        if (call.deadline <= time) this.settle(call, () => call.reject(closed('no node did it in time')));
      }
      if (this.writes.size || this.others.size) this.sweepLater();
    }, SWEEP_MS);
    this.sweeper.unref();
  }

  // -- Nodes

  private async run(): Promise<void> {
    let at = Math.floor(Math.random() * this.known.length);
    let failures = 0;
    while (!this.ended) {
      const node = this.known[at % this.known.length];
      at += 1;
      try {
        await this.visit(node);
        failures = 0;
        if (!this.ended && this.known.length > 1) await sleep(Math.random() * JITTER_MS);
      } catch (error) {
        failures += 1;
        if (this.fatal) {
          await sleep(REFUSED_MS);
          this.fatal = undefined;
        } else if (failures % this.known.length === 0) {
          if (failures === this.known.length) this.report(error as Error);
          await sleep(ROUND_MS + Math.random() * JITTER_MS);
        }
      }
    }
  }

  private report(error: Error): void {
    if (this.listenerCount('error')) this.emit('error', error);
  }

  /** Is connected with a node for as long as that lasts. Rejects when it was not let in. */
  private visit(node: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const headers = this.settings.token ? { Authorization: `Bearer ${this.settings.token}` } : {};
      const socket = new WebSocket(node.replace(/^http/, 'ws') + PATH, {
        ...this.settings.tls,
        headers,
        handshakeTimeout: HANDSHAKE_MS,
        perMessageDeflate: false,
        skipUTF8Validation: true,
      });
      this.socket = socket;
      let heard = now();
      let failure: Error | undefined;
      const started = heard;
      const beat = (): NodeJS.Timeout =>
        later(() => {
          const silent = now() - heard;
          if (silent > DEAD_MS || (!this.welcome && now() - started > HANDSHAKE_MS * 2)) socket.terminate();
          else if (silent > PING_MS / 2 && socket.readyState === WebSocket.OPEN) socket.ping();
          timer = beat();
        }, PING_MS / 2);
      let timer = beat();
      socket.on('open', () => socket.send(pack({ protocol: PROTOCOL, session: this.session, client: `quorumq-bullmq node/${process.versions.node}` })));
      socket.on('pong', () => (heard = now()));
      socket.on('ping', () => (heard = now()));
      socket.on('message', (message: Buffer) => {
        heard = now();
        const found = unpack(message);
        if (!this.welcome) return this.enter(found as Welcome);
        const taken: Answer[] = [];
        for (const answer of found as Answer[]) {
          // Whoever added a job hears of that before a worker of the same process begins it.
          if (found.length > 1 && Array.isArray(answer[2]) && this.writes.get(answer[0])?.takes) taken.push(answer);
          else this.answer(answer);
        }
        if (taken.length) soon(() => taken.forEach(answer => this.answer(answer)));
        if (this.unsent.length) this.flushSoon();
      });
      socket.on('unexpected-response', (request, response) => {
        failure = new Error(`quorumq: ${node} answered ${response.statusCode}`);
        if (response.statusCode === 401 || response.statusCode === 403) this.refuse(failure);
        response.resume();
        request.destroy();
        socket.terminate();
      });
      socket.on('error', error => (failure ??= error));
      socket.on('close', (code: number, reason: Buffer) => {
        forget(timer);
        const wasIn = this.welcome !== undefined;
        this.leave();
        if (this.ended) return resolve();
        if (code === BAD_TOKEN || code === BAD_MESSAGE || code === BAD_SESSION) {
          failure = new Error(`quorumq: ${node} refused the connection: ${reason.toString()}`);
          this.refuse(failure);
          return reject(failure);
        }
        if (wasIn) {
          this.emit('close');
          return resolve();
        }
        reject(failure ?? new Error(`quorumq: ${node} closed the connection (${code})`));
      });
    });
  }

  private enter(welcome: Welcome): void {
    this.welcome = welcome;
    this.clock = welcome.clock;
    for (const call of this.all()) {
      if (call.unpacked) call.packed = this.packed(call.unpacked);
      call.unpacked = undefined;
    }
    this.againSince = 0;
    for (const node of welcome.nodes) {
      const found = base(node);
      if (!this.known.includes(found)) this.known.push(found);
    }
    for (const [id, one] of this.present) this.begin('read', 'register', one.queue, [id, one.name]).promise.catch(() => undefined);
    this.queueUnsent();
    this.flush();
    for (const one of this.whenReady.splice(0)) one.resolve();
    this.emit('ready');
  }

  /** The node is gone: whatever it did not answer waits for the next one. */
  private leave(): void {
    this.welcome = undefined;
    this.socket = undefined;
    for (const call of this.all()) this.unmark(call);
    this.inFlight = this.bytesInFlight = 0;
  }

  /** No node will let us in as we are: what is called is rejected until one does. */
  private refuse(error: Error): void {
    this.fatal = error;
    for (const call of this.all()) this.settle(call, () => call.reject(closed(error.message)));
    for (const one of this.whenReady.splice(0)) one.reject(error);
    this.report(error);
  }
}
