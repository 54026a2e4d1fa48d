"""What can go wrong between a caller and the replicated log, said in terms a caller can act on."""

from __future__ import annotations


class ClusterError(Exception):
    """Base of every error that cluster/ raises to its callers."""


class Unavailable(ClusterError):
    """The cluster could not answer in time.

    code: a stable word for programs.  retry_after_s: seconds after which a repeat is worth it.
    """

    code = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotApplied(Unavailable):
    """The write was never handed to any leader: it did not happen and will not."""

    code = "not_applied"


class OutcomeUnknown(Unavailable):
    """The write was handed to a leader and nothing was heard: it may or may not have happened."""

    code = "outcome_unknown"


class EntryTooLarge(ClusterError):
    """A batch is larger than a log entry may be."""


class LogDamaged(ClusterError):
    """A file of the log or a snapshot is damaged where no crash can have damaged it; says file and offset."""


class NotUnderstood(ClusterError):
    """What this node has read, or has been told, belongs to a newer version: going on would make its state another one."""

    exit_code = 4


class NodeRemoved(ClusterError):
    """This node was removed from its cluster, and has come back with its old data."""

    exit_code = 3
