"""The replicated state: records, tables and sorted indexes, and the only code that changes them."""

from node.state.job import (
    DEFAULT,
    Backoff,
    Dedup,
    Job,
    JobSpec,
    Keep,
    Options,
    Repeat,
    job_spec,
    own_id,
    scoped_id,
)
from node.state.queue import DlqConfig, Queue, QueueSettings, RateLimit, StallConfig, Window
from node.state.state import State

__all__ = [
    "DEFAULT",
    "Backoff",
    "Dedup",
    "DlqConfig",
    "Job",
    "JobSpec",
    "Keep",
    "Options",
    "Queue",
    "QueueSettings",
    "RateLimit",
    "Repeat",
    "StallConfig",
    "State",
    "Window",
    "job_spec",
    "own_id",
    "scoped_id",
]
