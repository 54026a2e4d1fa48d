// BullMQ's own tests on quorumq: what their harness asks of a backend (QUORUMQ_BACKEND). Nodes: QUORUMQ_NODES.
export { createQuorumqBackend as createBackend } from './dist/esm/index.js';
