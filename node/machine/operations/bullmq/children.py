"""The children of a job as BullMQ's getters ask for them."""

from __future__ import annotations

from quorumq.node.machine.bounds import JobId, QueueName
from quorumq.node.machine.operation import Query, query
from quorumq.node.machine.operations.bullmq.lists import found
from quorumq.node.machine.operations.flows import KINDS, Child, ChildrenByKind, Kind, ListDependencies
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import Job

EVERYTHING = 1 << 60


@query
class CountChildren(Query, frozen=True):
    """How many children of a job are of each kind, in the order asked; none of a job that is not there."""

    queue: QueueName
    own: JobId
    kinds: tuple[Kind, ...]

    def answer(self, state: State) -> list[int]:
        counts = ListChildren(self.queue, self.own, {}).answer(state).counts
        return [counts[kind] for kind in self.kinds]


@query
class ListChildren(Query, frozen=True):
    """The children of a job; none of one that is not there. pages: of which kinds, from which one on and how many; None for all."""

    queue: QueueName
    own: JobId
    pages: dict[Kind, tuple[int, int]] | None = None

    def answer(self, state: State) -> ChildrenByKind:
        pages = dict.fromkeys(KINDS.values(), (0, EVERYTHING)) if self.pages is None else self.pages
        job = found(state, self.queue, self.own)
        if job is None:
            return ChildrenByKind(
                dict.fromkeys(KINDS.values(), 0), {kind: [] for kind in pages}, dict.fromkeys(pages, 0)
            )
        return ListDependencies(job.id, pages).answer(state)


@query
class PageOfChildren(Query, frozen=True):
    """Children of a kind from place `start` to `end`, both included, -1 for the last; how many there are; and their jobs, if asked for.

    Without the job of a child that is not there any more.
    """

    queue: QueueName
    own: JobId
    kind: Kind
    start: int = 0
    end: int = -1
    jobs: bool = False

    def answer(self, state: State) -> tuple[int, list[Child], list[Job] | None]:
        start = max(self.start, 0)
        count = EVERYTHING if self.end < 0 else max(self.end - start + 1, 0)
        children = ListChildren(self.queue, self.own, {self.kind: (start, count)}).answer(state)
        page = children.pages[self.kind]
        there = [job for child in page if (job := state.jobs.get(child.job_id)) is not None] if self.jobs else None
        return children.counts[self.kind], page, there
