"""Every operation and query of the product, in one module per subject; importing this package fills the catalogue."""

from node.operations import (
    adding,
    clock,
    groups,
    jobs,
    keys,
    overview,
    pushers,
    queues,
    repeatables,
    requests,
    schedules,
    streams,
    webhooks,
    workers,
)

__all__ = [
    "adding",
    "clock",
    "groups",
    "jobs",
    "keys",
    "overview",
    "pushers",
    "queues",
    "repeatables",
    "requests",
    "schedules",
    "streams",
    "webhooks",
    "workers",
]
