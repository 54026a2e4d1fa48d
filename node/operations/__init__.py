"""Every operation and query of the product, in one module per subject; importing this package fills the catalogue."""

from node.operations import clock, jobs, queues, requests, schedules, streams, webhooks, workers

__all__ = ["clock", "jobs", "queues", "requests", "schedules", "streams", "webhooks", "workers"]
