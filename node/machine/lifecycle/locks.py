"""Locks and tokens of runs that are over."""

from __future__ import annotations

from quorumq.node.machine.state.job import Job
from quorumq.node.machine.state.state import State


def spend(state: State, job: Job) -> None:
    """Remember the token of a delivery that is over, so that it ends no later one."""
    if state.level >= 1 and job.token is not None:
        state.spent.add(job.id, job.token)


def unlock(state: State, job: Job) -> None:
    spend(state, job)
    job.token = job.owner = None
    job.lock_until = 0
