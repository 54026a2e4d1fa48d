"""Operations and queries of BullMQ's backend protocol, in one module per subject. All of feature level 1.

A job is named by its queue and its id there, as clients of the protocol know it; a queue by its name here (`state/bullmq/names.py`). What
BullMQ numbers as an error is refused as `BullmqError`. Job schedulers and metrics are not there yet.
"""

from quorumq.node.machine.operations.bullmq import (
    adding,
    changing,
    children,
    limits,
    lists,
    logs,
    metas,
    presence,
    removing,
    running,
    sessions,
    streams,
)

__all__ = [
    "adding",
    "changing",
    "children",
    "limits",
    "lists",
    "logs",
    "metas",
    "presence",
    "removing",
    "running",
    "sessions",
    "streams",
]
