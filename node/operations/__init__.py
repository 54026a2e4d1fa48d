"""Every operation and query of the product, in one module per subject; importing this package fills the catalogue."""

from node.operations import clock, jobs, queues

__all__ = ["clock", "jobs", "queues"]
