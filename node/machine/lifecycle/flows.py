"""Flows: ties between jobs that are made and cut because somebody asks for it; parents.py has what follows from them."""

from __future__ import annotations

from quorumq.node.machine.lifecycle import finishing, indexes, parents
from quorumq.node.machine.refusals import FlowCycle, FlowTooDeep, FlowTooLarge, ParentNotReplaceable
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    NO_CHILDREN,
    NO_NAMES,
    NO_VALUES,
    UNSUCCESSFUL,
    WAIT,
    WAITING,
    WAITING_CHILDREN,
    FlowLinks,
    Job,
    OnChildFailure,
    TiedDependencies,
)
from quorumq.node.machine.state.state import State

JOBS_MAX = 10_000
"""Jobs of a flow that one entry adds or removes."""
LEVELS_MAX = 100
"""Ancestors that a job of a flow may have, itself counted."""


def check_free(state: State, child: Job, parent: Job | None) -> None:
    """Refuse another parent than the one that a job has, while that one is there; None for a new one. Raises ParentNotReplaceable."""
    links = child.flow
    if links is not None and links.parent in state.jobs and (parent is None or links.parent != parent.id):
        raise ParentNotReplaceable(child.id, str(links.parent))


def check_depth(state: State, parent: Job, child: Job | None = None, *, below: int = 1) -> None:
    """Refuse to put `below` levels under a parent, or the parent's own ancestor. Raises FlowCycle, FlowTooDeep."""
    levels, above = below, parent
    while True:
        levels += 1
        if child is not None and above is child:
            raise FlowCycle(child.id, parent.id)
        if levels > LEVELS_MAX:
            raise FlowTooDeep(LEVELS_MAX)
        links = above.flow
        found = state.jobs.get(links.parent) if links is not None and links.parent is not None else None
        if found is None:
            return
        above = found


def attach(
    state: State, child: Job, parent: Job, on_failure: OnChildFailure | None = None, prefix: str | None = None
) -> None:
    """Let a job wait for another one, however that ended or will. on_failure, prefix (of FlowLinks): None leaves it as it is.

    The parent stays in its state, and goes on from `waiting-children` when that was the last child it waited for.
    """
    links, flow = child.tied(), parent.tied()
    links.parent, links.parent_queue = parent.id, parent.queue
    if on_failure is not None:
        links.on_failure = on_failure
    if prefix is not None:
        flow.prefix = prefix
    children, child_id = flow.children, child.id
    if child_id in children:
        end = children[child_id]
        if end is None or child.finished:
            return
        # What it knows is of an earlier job of that id.
        flow.failed -= end.how == UNSUCCESSFUL
    flow.add_pending(child_id)
    if child.state == COMPLETED:
        parents.completed(state, child)
    elif child.state == FAILED:
        finishing.child_failed(state, child)


def attach_new(child: Job, parent: Job, on_failure: OnChildFailure, prefix: str) -> None:
    """The same of two jobs that were just created, of which neither has its place."""
    flow = parent.tied()
    links = FlowLinks(parent.id, parent.queue, on_failure, NO_CHILDREN)
    child.dependencies = TiedDependencies((), NO_NAMES, NO_VALUES, 0, links)
    flow.prefix = prefix
    flow.add_pending(child.id)


def tie(
    state: State, job: Job, parent_id: str | None, children_ids: tuple[str, ...], on_failure: OnChildFailure
) -> None:
    """Tie a job that was just pushed to others that are there; what cannot be tied is left as it is.

    That is: a job that is not there, a child of another parent, one at which the flow would be too deep or a circle, and a parent
    that somebody works on or that has ended, which would wait for nothing it knows of.
    """
    if on_failure != WAIT:
        job.tied().on_failure = on_failure
    for child_id in children_ids:
        child = state.jobs.get(child_id)
        if child is not None and _can_tie(state, child, job):
            attach(state, child, job)
    wait_for_children(state, job)
    parent = state.jobs.get(parent_id) if parent_id is not None else None
    if parent is not None and parent.state in (WAITING, DELAYED, WAITING_CHILDREN) and _can_tie(state, job, parent):
        attach(state, job, parent, on_failure)
        wait_for_children(state, parent)


def _can_tie(state: State, child: Job, parent: Job) -> bool:
    try:
        check_free(state, child, parent)
        check_depth(state, parent, child)
    except (ParentNotReplaceable, FlowCycle, FlowTooDeep):
        return False
    return True


def wait_for_children(state: State, parent: Job) -> None:
    """Let a job that nobody has taken wait, if children of it are pending."""
    if parent.pending_children and parent.state in (WAITING, DELAYED):
        indexes.leave(state, state.queues[parent.queue], parent)
        parents.park(state, parent)


def detach(state: State, child: Job) -> bool:
    """Let a parent wait for a pending child no more, and that be nobody's child; say whether it was one."""
    links, parent = child.flow, parents.parent_of(state, child)
    if links is None or parent is None or not parents.is_pending(parent, child.id):
        return False
    links.parent = None
    parents.drop_child(state, child.id, parent)
    return True


def descendants(state: State, parent: Job, *, unprocessed: bool = False) -> list[Job]:
    """Return all below a parent, each after its own parent. Raises FlowTooLarge.

    unprocessed: only those that neither ended nor are being worked on, and what is below these.
    """
    found: list[Job] = []
    above = [parent]
    while above:
        top = above.pop()
        for child_id, end in top.flow.children.items() if top.flow is not None else ():
            child = state.jobs.get(child_id)
            if child is None or child.flow is None or child.flow.parent != top.id:
                # It is gone, or another job has its id, or a new parent.
                continue
            if unprocessed and (end is not None or child.finished or child.state == ACTIVE):
                continue
            found.append(child)
            above.append(child)
            if len(found) > JOBS_MAX:
                raise FlowTooLarge(JOBS_MAX)
    return found
