"""The replicated state: records, tables and sorted indexes, and the only code that changes them."""

from node.state.job import DEFAULT, Backoff, Job, JobSpec, Options, Repeat, job_spec
from node.state.queue import DlqConfig, Queue, QueueSettings, RateLimit, StallConfig
from node.state.state import State

__all__ = [
    "DEFAULT",
    "Backoff",
    "DlqConfig",
    "Job",
    "JobSpec",
    "Options",
    "Queue",
    "QueueSettings",
    "RateLimit",
    "Repeat",
    "StallConfig",
    "State",
    "job_spec",
]
