"""BullMQ's backend protocol: `GET /socket`, a WebSocket over which adapters drive queues as BullMQ's `IQueueBackend` asks it.

`table.py` has the calls and the shapes of their arguments; `docs/bullmq-protocol.md` the protocol.
"""
