"""Groups: the queue's ready index holds only as many jobs of a group as may start; the others are parked beside it."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.state.group import Group, GroupSettings
from quorumq.node.machine.state.job import Job, rank_of
from quorumq.node.machine.state.queue import Queue
from quorumq.node.machine.state.state import State


def enter(state: State, queue: Queue, job: Job) -> None:
    """Put a waiting job of a group among the ready ones of its queue, or beside them when the group is full."""
    assert job.group_id is not None
    group = queue.group(job.group_id)
    rank = rank_of(job)
    if group.room <= 0:
        last = group.heads.last()
        if last is None or rank_of(last) < rank:
            group.parked.add(rank, job)
            queue.parked += 1
            return
        step_back(queue, group, last)
    group.heads.add(rank, job)
    queue.ready.add(rank, job)


def step_back(queue: Queue, group: Group, head: Job) -> None:
    """Take the last ready job of a group back among the parked ones."""
    rank = rank_of(head)
    group.heads.remove(rank)
    queue.ready.remove(rank)
    group.parked.add(rank, head)
    queue.parked += 1


def leave(state: State, queue: Queue, job: Job) -> None:
    """Take a waiting job of a group out of its index, and let the next one have its place."""
    assert job.group_id is not None
    group = queue.groups[job.group_id]
    rank = rank_of(job)
    if group.heads.holds(rank):
        group.heads.remove(rank)
        queue.ready.remove(rank)
    else:
        group.parked.remove(rank)
        queue.parked -= 1
    fill(state, queue, job.group_id, group)


def fill(state: State, queue: Queue, group_id: str, group: Group) -> None:
    """Let the next jobs of a group stand among the ready ones, or forget a group without jobs."""
    while group.room > 0 and len(group.parked):
        job = group.parked.pop_first(1)[0]
        queue.parked -= 1
        group.heads.add(rank_of(job), job)
        queue.ready.add(rank_of(job), job)
        state.woken[queue.name] = None
    if not group.active and not group.heads and not len(group.parked):
        del queue.groups[group_id]


def configure(state: State, queue: Queue, group_id: str, settings: GroupSettings) -> None:
    """Let more jobs of a group be active at once, or start, or fewer; those that are active go on."""
    queue.set_group(group_id, settings)
    fit(state, queue, group_id)
    state.mark += 109


def set_usual(state: State, queue: Queue, usual: GroupSettings | None) -> None:
    """Let something else hold for the groups of a queue, as far as they have no settings of their own."""
    queue.settings = msgspec.structs.replace(queue.settings, groups=usual)
    for group_id in list(queue.group_uses):
        own = queue.group_settings.get(group_id)
        if own is None or own.rate is None:
            # A window begins anew with its limit.
            state.group_limits.end_window(queue, group_id)
    for group_id in list(queue.groups):
        fit(state, queue, group_id)
    state.mark += 127


def fit(state: State, queue: Queue, group_id: str) -> None:
    """Have as many jobs of a group stand among the ready ones as may start, after a change of what holds it back."""
    group = queue.groups.get(group_id)
    if group is None:
        return
    settings = queue.settings_of(group_id)
    group.limit, group.left = settings.limit, settings.left(queue.group_uses.get(group_id))
    while group.room < 0 and (last := group.heads.last()) is not None:
        step_back(queue, group, last)
    fill(state, queue, group_id, group)


def count_starts(state: State, queue: Queue, group_id: str, count: int) -> None:
    """Count jobs that start against the rate limit of their group; a negative count takes starts back that were none."""
    state.group_limits.count_starts(queue, group_id, count, state.now_ms)
    group = queue.groups.get(group_id)
    if group is not None:
        group.left = queue.settings_of(group_id).left(queue.group_uses.get(group_id))


def take_start_back(state: State, queue: Queue, group_id: str, started_at: int) -> None:
    """Have a start that was none leave the window of its group, if that is still the one under way."""
    use = queue.group_uses.get(group_id)
    if use is not None and use.started and started_at >= use.window_at:
        count_starts(state, queue, group_id, -1)
        fit(state, queue, group_id)
