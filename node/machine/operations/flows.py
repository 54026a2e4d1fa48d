"""Flows: trees of jobs over queues, of which a parent runs when its children are done (rules: node/machine/lifecycle/parents.py)."""

from __future__ import annotations

from typing import Literal

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, Key, LockToken, QueueName
from quorumq.node.machine.lifecycle import creation, finishing, flows, removal, runs
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import DIES, GOES_ON, Changed, Counted
from quorumq.node.machine.refusals import (
    ChildrenFailed,
    FlowCycle,
    FlowTooDeep,
    FlowTooLarge,
    JobExists,
    JobInWrongState,
    JobNotActive,
    JobNotFound,
    LockLost,
    LockRequired,
    NoParent,
    ParentNotFound,
    ParentNotReplaceable,
    TooManyQueues,
)
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import (
    CONTINUED,
    DELAYED,
    IGNORED,
    PROCESSED,
    QUEUE_PREFIX,
    UNSUCCESSFUL,
    WAIT,
    WAITING,
    WAITING_CHILDREN,
    ChildEnd,
    FlowLinks,
    Job,
    JobSpec,
    OnChildFailure,
    child_key,
    scoped_id,
)
from quorumq.node.machine.state.queue import Queue


class FlowJob(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One job of a flow. parent: position in the flow of the job that waits for it, which comes before it; -1 for a root.

    parent_id: of a root, the id of a job that is there already and waits for it from now on.  on_failure: what becomes of either
    when this one fails for good.
    """

    queue: QueueName
    job: JobSpec
    parent: int = -1
    parent_id: JobId | None = None
    on_failure: OnChildFailure = WAIT


class AddedFlow(msgspec.Struct, frozen=True, gc=False):
    """The jobs of the flow in its order; for a duplicate the job that stands for it. duplicates: beside jobs.  at_ms: when."""

    jobs: list[Job]
    duplicates: list[bool]
    at_ms: int

    def brief(self) -> tuple[list[str], list[bool], int]:
        """The same with ids for jobs."""
        return [job.id for job in self.jobs], self.duplicates, self.at_ms


@operation(
    emits=(
        *GOES_ON,
        *DIES,
        happened.QueueCreated,
        happened.JobPushed,
        happened.JobDuplicated,
        happened.JobWaitingChildren,
        happened.JobExpired,
    ),
    refuses=(FlowCycle, FlowTooDeep, FlowTooLarge, JobExists, ParentNotFound, ParentNotReplaceable, TooManyQueues),
    since=1,
)
class AddFlow(Operation, frozen=True, tag="flow.add"):
    """Add trees of jobs to their queues, all of them or none; nobody takes one of them before all are there.

    numbered: ids are those of BullMQ, a queue's next number or a name within the queue, and a job that is there already becomes a
    child of its new parent unless another one lives; else ids are the cluster's own, and none may be taken.  prefix: what BullMQ's words
    for a job have before its queue.
    """

    jobs: list[FlowJob]
    numbered: bool = False
    prefix: Key = QUEUE_PREFIX

    def apply(self, state: State, entry: Entry) -> AddedFlow:
        self.check_size(state)
        present = self.checked_ids(state)
        state.check_room_for(*{each.queue for each in self.jobs})
        jobs: list[Job] = []
        # Who waits for others of the flow gets its place last, and so does whoever one of them may make wait, or go.
        parents = {each.parent for each in self.jobs}
        last: list[int] = []
        queues, numbered, prefix = state.queues, self.numbered, self.prefix
        with finishing.failing_parents_later(state):
            for position, each in enumerate(self.jobs):
                spec, above = each.job, each.parent
                queue = queues.get(each.queue) or state.queue(each.queue)
                if numbered:
                    queue.number += 1
                is_new = position not in present
                if is_new:
                    job_id = self.numbered_id(state, queue, each) if numbered else spec.id
                    job = creation.create_record(state, queue, job_id, spec)
                else:
                    job = present[position]
                    state.emit(happened.JobDuplicated(job.queue, job.id))
                jobs.append(job)
                parent = jobs[above] if above >= 0 else outside(state, each)
                if parent is not None:
                    if is_new and above >= 0 and above not in present:
                        flows.attach_new(job, parent, each.on_failure, prefix)
                    else:
                        flows.attach(state, job, parent, each.on_failure, prefix)
                if not is_new:
                    continue
                if position in parents or spec.depends_on or spec.opts.ttl_ms is not None:
                    last.append(position)
                else:
                    creation.settle(state, queue, job, spec)
            for position in last:
                each = self.jobs[position]
                creation.settle(state, queues[each.queue], jobs[position], each.job)
        entry.added_flow = True
        return AddedFlow(jobs, [position in present for position in range(len(jobs))], state.now_ms)

    def check_size(self, state: State) -> None:
        """Refuse more jobs than an entry may add, too many levels, and a parent that is not there."""
        if len(self.jobs) > flows.JOBS_MAX:
            raise FlowTooLarge(flows.JOBS_MAX)
        levels: list[int] = []
        # The jobs that are there already and wait for roots, by position of what is below them.
        above: dict[int, Job] = {}
        for position, each in enumerate(self.jobs):
            parent = each.parent
            if parent < 0:
                levels.append(1)
                top = outside(state, each)
            else:
                levels.append(levels[parent] + 1)
                top = above.get(parent) if above else None
            if top is not None:
                above[position] = top
        if max(levels, default=0) > flows.LEVELS_MAX:
            raise FlowTooDeep(flows.LEVELS_MAX)
        deepest: dict[str, int] = {}
        for position, top in above.items():
            deepest[top.id] = max(levels[position], deepest.get(top.id, 0))
        for job_id, level in deepest.items():
            flows.check_depth(state, state.jobs[job_id], below=level)

    def checked_ids(self, state: State) -> dict[int, Job]:
        """Return the jobs that are there already, by position; refuse those that cannot be part of the flow."""
        if not self.numbered:
            chosen = [each.job.id for each in self.jobs]
            if len(set(chosen)) == len(chosen) and state.jobs.keys().isdisjoint(chosen):
                return {}
        present: dict[int, Job] = {}
        planned: set[str] = set()
        for position, each in enumerate(self.jobs):
            job_id = self.chosen_id(position)
            if not job_id:
                continue
            job = state.jobs.get(job_id)
            if job_id in planned or (job is not None and not self.numbered):
                raise JobExists(each.job.id)
            planned.add(job_id)
            if job is None:
                continue
            present[position] = job
            parent = present.get(each.parent) if each.parent >= 0 else outside(state, each)
            if each.parent >= 0 or parent is not None:
                flows.check_free(state, job, parent)
                self.check_above(state, job, position)
        return present

    def check_above(self, state: State, job: Job, position: int) -> None:
        """Refuse to put a job below itself, by way of a job of the flow that is there already, or of the parent of a root."""
        while self.jobs[position].parent >= 0:
            position = self.jobs[position].parent
            above = state.jobs.get(self.chosen_id(position))
            if above is not None:
                flows.check_depth(state, above, job)
        top = outside(state, self.jobs[position])
        if top is not None:
            flows.check_depth(state, top, job)

    def chosen_id(self, position: int) -> str:
        """Return the id that the client chose for a job of the flow; empty when it chose none."""
        each = self.jobs[position]
        return scoped_id(each.queue, each.job.id) if self.numbered and each.job.id else each.job.id

    def numbered_id(self, state: State, queue: Queue, each: FlowJob) -> str:
        """Return the id of a new job of BullMQ: its own, or the queue's number."""
        if each.job.id:
            return scoped_id(each.queue, each.job.id)
        while (job_id := scoped_id(each.queue, str(queue.number))) in state.jobs:
            # Somebody chose this very id.
            queue.number += 1
        return job_id


def outside(state: State, each: FlowJob) -> Job | None:
    """Return the job that is there already and waits for a root. Raises ParentNotFound."""
    if each.parent_id is None:
        return None
    parent = state.jobs.get(each.parent_id)
    if parent is None:
        raise ParentNotFound(each.parent_id)
    return parent


@operation(
    emits=(*GOES_ON, *DIES, happened.JobWaitingChildren),
    refuses=(JobNotFound, ParentNotFound, ParentNotReplaceable, JobInWrongState, FlowCycle, FlowTooDeep),
    since=1,
)
class AttachChild(Operation, frozen=True, tag="flow.attach"):
    """Let a job that nobody has taken wait for another one, however that one ended or will."""

    child_id: JobId
    parent_id: JobId

    def apply(self, state: State, entry: Entry) -> Changed:
        child = state.job(self.child_id)
        parent = state.jobs.get(self.parent_id)
        if parent is None:
            raise ParentNotFound(self.parent_id)
        flows.check_free(state, child, parent)
        flows.check_depth(state, parent, child)
        if parent.state not in (WAITING, DELAYED, WAITING_CHILDREN):
            raise JobInWrongState(parent.id, parent.shown_state, "not taken yet")
        with finishing.failing_parents_later(state):
            flows.attach(state, child, parent)
        flows.wait_for_children(state, parent)
        return Changed(child)


@operation(emits=GOES_ON, refuses=(JobNotFound, NoParent), since=1)
class DetachChild(Operation, frozen=True, tag="flow.detach"):
    """Let a parent wait for a job no more that is its child; says how many it was: none when the job is not pending."""

    child_id: JobId

    def apply(self, state: State, entry: Entry) -> Counted:
        child = state.job(self.child_id)
        if child.flow is None or child.flow.parent is None:
            raise NoParent(child.id)
        return Counted(int(flows.detach(state, child)))


@operation(emits=(*GOES_ON, happened.JobRemoved), refuses=(FlowTooLarge, JobNotFound), since=1)
class RemoveUnprocessedChildren(Operation, frozen=True, tag="flow.remove_unprocessed"):
    """Remove the jobs below a job that neither ended nor are being worked on; it waits for them no more. Says how many.

    known: refused for an unknown job.
    """

    job_id: JobId
    known: bool = False

    def apply(self, state: State, entry: Entry) -> Counted:
        if self.known:
            state.job(self.job_id)
        job = state.jobs.get(self.job_id)
        found = [] if job is None else flows.descendants(state, job, unprocessed=True)
        for child in reversed(found):
            removal.remove(state, child)
        return Counted(len(found))


class Awaits(msgspec.Struct, frozen=True, gc=False):
    """The job, and whether it waits for children now."""

    job: Job
    moved: bool


@operation(
    emits=(happened.JobWaitingChildren,),
    refuses=(JobNotFound, JobNotActive, LockRequired, LockLost, ChildrenFailed),
    since=1,
)
class AwaitChildren(Operation, frozen=True, tag="flow.await_children"):
    """Let an active job wait for its children; its run counts for nothing. Nothing happens when none is pending.

    child_id: only when this one is.  must_hold: a token that holds no lock is refused, also where the run has none.
    """

    job_id: JobId
    token: LockToken | None = None
    child_id: JobId | None = None
    must_hold: bool = False

    def apply(self, state: State, entry: Entry) -> Awaits:
        job = state.active_job(self.job_id)
        state.check_token(job, self.token, must_hold=self.must_hold)
        links = job.flow
        if links is not None and links.failed:
            raise ChildrenFailed(job.id)
        waited_for = links is not None and (self.child_id is None or links.children.get(self.child_id, links) is None)
        if links is None or not links.pending or not waited_for:
            return Awaits(job, moved=False)
        runs.suspend(state, job)
        return Awaits(job, moved=True)


# -- Queries


@query
class GetChildrenFailures(Query, frozen=True):
    """Why children failed that did not keep their parent from going on, by key; empty for an unknown job.

    how: with the policy continue, or ignore; None for both.  known: refused for an unknown job.
    """

    job_id: JobId
    how: Literal["continued", "ignored"] | None = None
    known: bool = False

    def answer(self, state: State) -> dict[str, str]:
        job = state.job(self.job_id) if self.known else state.jobs.get(self.job_id)
        if job is None or job.flow is None:
            return {}
        wanted = (CONTINUED, IGNORED) if self.how is None else (self.how,)
        return {
            child_key(end.queue, child_id): end.reason or ""
            for child_id, end in job.flow.children.items()
            if end is not None and end.how in wanted
        }


class Child(msgspec.Struct, frozen=True, gc=False):
    """A child of a job, and how it ended; None while it is pending."""

    job_id: str
    queue: str
    end: ChildEnd | None


Kind = Literal["processed", "unprocessed", "ignored", "failed"]
KINDS: dict[str | None, Kind] = {
    None: "unprocessed",
    PROCESSED: "processed",
    CONTINUED: "ignored",
    IGNORED: "ignored",
    UNSUCCESSFUL: "failed",
}


class ChildrenByKind(msgspec.Struct, frozen=True, gc=False):
    """Children of a job by what became of them: how many there are of each kind, and a page of each that was asked for.

    next: where the page after that begins; 0 when there is none.
    """

    counts: dict[Kind, int]
    pages: dict[Kind, list[Child]]
    next: dict[Kind, int]


@query
class ListDependencies(Query, frozen=True):
    """The children of a job. pages: of which kinds, from which one on, and how many."""

    job_id: JobId
    pages: dict[Kind, tuple[int, int]]

    def answer(self, state: State) -> ChildrenByKind:
        links = state.job(self.job_id).flow or FlowLinks()
        counts: dict[Kind, int] = dict.fromkeys(KINDS.values(), 0)
        pages: dict[Kind, list[Child]] = {kind: [] for kind in self.pages}
        for child_id, end in links.children.items():
            kind = KINDS[None if end is None else end.how]
            start, count = self.pages.get(kind, (0, 0))
            if start <= counts[kind] < start + count:
                queue = state.jobs[child_id].queue if end is None else end.queue
                pages[kind].append(Child(child_id, queue, end))
            counts[kind] += 1
        following = {kind: start + count for kind, (start, count) in self.pages.items()}
        return ChildrenByKind(counts, pages, {kind: at if at < counts[kind] else 0 for kind, at in following.items()})
