/** Where a cluster answers, and how it is asked. */
export interface QuorumqOptions {
  /** Addresses of its nodes, such as `http://queue-1:8080`; more of them are learned from the nodes. */
  nodes: string | string[];
  /** The token that requests carry, where the cluster asks for one. */
  token?: string;
  /** Milliseconds that a call may wait for a node that does it, elections included. 30,000 by default. */
  commandTimeout?: number;
  /** Passed to the TLS of `https` nodes: a certificate authority of one's own, for example. */
  tls?: Record<string, unknown>;
}

export interface Settings {
  nodes: string[];
  token?: string;
  commandTimeout: number;
  tls?: Record<string, unknown>;
}

const COMMAND_TIMEOUT_MS = 30_000;
let defaults: Settings | undefined;

/** Sets what holds where a connection names no nodes. */
export function setDefaults(options: QuorumqOptions): void {
  defaults = settled(options);
}

/** Gives the settings of a connection as users name it; what is no connection of ours (left-over options of Redis) names no nodes. */
export function settingsOf(connection: unknown): Settings {
  if (typeof connection === 'string' && /^(https?|wss?):/.test(connection)) return settled({ nodes: connection });
  if (typeof connection === 'object' && connection !== null && 'nodes' in connection) {
    const { nodes } = connection as QuorumqOptions;
    if (typeof nodes === 'string' || Array.isArray(nodes)) return settled(connection as QuorumqOptions);
  }
  if (defaults) return defaults;
  const { QUORUMQ_NODES, QUORUMQ_TOKEN } = process.env;
  if (QUORUMQ_NODES) return settled({ nodes: QUORUMQ_NODES.split(','), token: QUORUMQ_TOKEN });
  throw new Error(
    "quorumq: no nodes are named. Call use({ nodes: ['http://…:8080'] }) first, pass connection: { nodes: […] }, or set QUORUMQ_NODES",
  );
}

function settled(options: QuorumqOptions): Settings {
  const nodes = (typeof options.nodes === 'string' ? options.nodes.split(',') : options.nodes).map(base);
  if (!nodes.length) throw new Error('quorumq: nodes must name at least one node');
  const commandTimeout = options.commandTimeout ?? COMMAND_TIMEOUT_MS;
  if (!(commandTimeout > 0)) throw new Error('quorumq: commandTimeout must be a number of milliseconds');
  return { nodes, token: options.token, commandTimeout, tls: options.tls };
}

/** Gives a node's address without anything behind host and port. Throws for what is none. */
export function base(node: string): string {
  let url: URL;
  try {
    url = new URL(/^[a-z]+:\/\//.test(node.trim()) ? node.trim() : `http://${node.trim()}`);
  } catch {
    throw new Error(`quorumq: ${node} is no address of a node`);
  }
  const scheme = { 'http:': 'http', 'ws:': 'http', 'https:': 'https', 'wss:': 'https' }[url.protocol];
  if (!scheme) throw new Error(`quorumq: ${node} is no address of a node`);
  return `${scheme}://${url.host}`;
}
