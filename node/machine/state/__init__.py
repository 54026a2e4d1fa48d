"""The replicated state: records, tables and sorted indexes. What moves a job from one to another is in ../lifecycle."""

from quorumq.node.machine.state.job import (
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
from quorumq.node.machine.state.limits import RateLimit, Window
from quorumq.node.machine.state.queue import DlqConfig, Queue, QueueSettings, StallConfig
from quorumq.node.machine.state.state import State

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
