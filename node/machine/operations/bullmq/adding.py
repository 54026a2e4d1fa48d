"""Adding jobs over the backend protocol: to one queue, or trees of jobs to many. `lifecycle/bullmq/adding.py` has the rules."""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.lifecycle import flows, parents
from quorumq.node.machine.lifecycle.bullmq import adding
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.jobs import GOES_ON
from quorumq.node.machine.refusals import FlowTooLarge, TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.job import Job

ADDS = (
    happened.QueueCreated,
    happened.JobPushed,
    happened.JobDuplicated,
    happened.JobRemoved,
    happened.JobExpired,
    happened.JobWaitingChildren,
    *GOES_ON,
)
"""What an added job emits, and what one does that it takes the place of or for whose parent it stands."""


class AddedNamed(msgspec.Struct, frozen=True, gc=False):
    """Ids within the queues, in the order of the jobs; for a duplicate the id of the job that stands for it, empty for an error.

    errors: beside ids, 0 or the number of BullMQ's error.
    """

    ids: list[str]
    errors: list[int]


@operation(emits=ADDS, refuses=(TooManyQueues,), since=1)
class AddNamedJobs(Operation, frozen=True, tag="bullmq.add"):
    """Add jobs to a queue, each for itself: an error of one does not keep the others away."""

    queue: QueueName
    jobs: list[NamedJob]

    def apply(self, state: State, entry: Entry) -> AddedNamed:
        found = [adding.add(state, self.queue, job) for job in self.jobs]
        return AddedNamed([own for own, _, _ in found], [error for _, error, _ in found])


class FlowPart(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One job of a tree, and its queue. above: position of its parent in the list, which comes before it; -1 for a root."""

    queue: QueueName
    job: NamedJob
    above: int = -1


@operation(emits=ADDS, refuses=(FlowTooLarge, TooManyQueues), since=1)
class AddNamedFlow(Operation, frozen=True, tag="bullmq.add_flow"):
    """Add trees of jobs to their queues in one step, parents before their children; nobody takes one of them before all are there.

    A tree whose root's own parent is not there is not added at all, and each of its parts is answered by that error; the others are
    added. A part below that cannot become its parent's child is answered by its error, and its parent waits.
    """

    parts: list[FlowPart]

    def apply(self, state: State, entry: Entry) -> AddedNamed:
        if len(self.parts) > flows.JOBS_MAX:
            raise FlowTooLarge(flows.JOBS_MAX)
        state.check_room_for(*{part.queue for part in self.parts})
        ids: list[str] = []
        errors: list[int] = []
        held: dict[str, Job] = {}
        disowned: set[str] = set()
        for part in self.parts:
            named = part.job
            if part.above >= 0:
                if not ids[part.above]:
                    ids.append("")
                    errors.append(adding.MISSING_PARENT)
                    continue
                # The parent's id may be one that it has only now.
                named = msgspec.structs.replace(named, parent=(self.parts[part.above].queue, ids[part.above]))
            own, error, job = adding.add(state, part.queue, named)
            ids.append(own)
            errors.append(error)
            if error:
                above = find(state, *named.parent) if named.parent is not None else None
                if above is not None:
                    disowned.add(above.id)
            elif job is not None and named.to_children:
                # One more to wait for, until all of its children are there.
                job.tied().pending += 1
                held[job.id] = job
        for job in held.values():
            job.tied().pending -= 1
            if job.id not in disowned:
                parents.release_if_ready(state, job)
        return AddedNamed(ids, errors)
