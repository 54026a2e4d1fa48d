// A node as the client sees one: it speaks the protocol, and answers what a test tells it to.
import { createRequire } from 'node:module';
import { WebSocketServer } from 'ws';

const { pack, unpack } = createRequire(import.meta.url)('../dist/cjs/wire.js');

export class FakeNode {
  /** answer(call, node) gives [code, result], or undefined for no answer; call: { number, name, queue, args, now? }. */
  constructor(answer = () => [0, null], { token, welcome = {} } = {}) {
    this.reply = answer;
    this.messages = [];
    this.acknowledged = [];
    this.hellos = [];
    this.sockets = new Set();
    this.token = token;
    this.welcome = welcome;
  }

  async start(port = 0) {
    this.server = new WebSocketServer({ port, host: '127.0.0.1', path: '/bullmq/v1/socket' });
    await new Promise(resolve => this.server.on('listening', resolve));
    this.port = this.server.address().port;
    this.server.on('connection', (socket, request) => this.serve(socket, request));
    return this;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  get calls() {
    return this.messages.flat();
  }

  serve(socket, request) {
    this.sockets.add(socket);
    socket.on('close', () => this.sockets.delete(socket));
    let isIn = false;
    socket.on('message', data => {
      const message = unpack(data);
      if (!isIn) {
        this.hellos.push(message);
        if (this.token && request.headers.authorization !== `Bearer ${this.token}`) return socket.close(4401, 'the token is not known');
        isIn = true;
        return socket.send(
          pack({
            protocol: 1, server: 'fake', node: 'n1', nodes: [], clock: 'server', maxMessage: 1 << 20,
            window: { calls: 1024, bytes: 8 << 20 }, level: 1, ...this.welcome,
          }),
        );
      }
      const [acknowledged, calls] = message;
      const made = calls.map(([number, name, queue, args, now]) => ({ number, name, queue, args, now }));
      this.acknowledged.push(acknowledged);
      this.messages.push(made);
      const answers = made.map(call => [call.number, this.reply(call, this)]).filter(([, answer]) => answer);
      if (answers.length) socket.send(pack(answers.map(([number, [code, result]]) => [number, code, result ?? null])));
    });
  }

  answer(number, code, result) {
    for (const socket of this.sockets) socket.send(pack([[number, code, result]]));
  }

  together(answers) {
    for (const socket of this.sockets) socket.send(pack(answers));
  }

  drop() {
    for (const socket of this.sockets) socket.terminate();
  }

  async stop() {
    this.drop();
    await new Promise(resolve => this.server.close(resolve));
  }
}

export async function until(check, ms = 15000) {
  const ends = Date.now() + ms;
  while (!check()) {
    if (Date.now() > ends) throw new Error(`it did not come to be: ${check}`);
    await new Promise(resolve => setTimeout(resolve, 5));
  }
}
