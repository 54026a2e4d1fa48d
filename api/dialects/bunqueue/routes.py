"""The table of the dialect: the rows of all its subjects."""

from __future__ import annotations

from quorumq.api.request import Route

from . import (
    configuration,
    crons,
    dead_letters,
    finishing,
    flows,
    groups,
    jobs,
    limits,
    locking,
    logs,
    monitoring,
    overview,
    pulling,
    pushing,
    queues,
    webhooks,
    workers,
)

ROUTES: tuple[Route, ...] = (
    *pushing.ROUTES,
    *pulling.ROUTES,
    *finishing.ROUTES,
    *jobs.ROUTES,
    *locking.ROUTES,
    *logs.ROUTES,
    *queues.ROUTES,
    *dead_letters.ROUTES,
    *limits.ROUTES,
    *configuration.ROUTES,
    *crons.ROUTES,
    *webhooks.ROUTES,
    *workers.ROUTES,
    *monitoring.ROUTES,
    *overview.ROUTES,
    *groups.ROUTES,
    *flows.ROUTES,
)
