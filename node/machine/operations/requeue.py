"""Letting a job wait again, whatever it does at present: what bunqueue's clients do with a job that they do not want, or want once more."""

from __future__ import annotations

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import JobId, LockToken
from quorumq.node.machine.lifecycle import indexes, revival, runs
from quorumq.node.machine.operation import Entry, Operation, operation
from quorumq.node.machine.operations.jobs import Changed
from quorumq.node.machine.refusals import JobInWrongState, JobNotFound, LockLost, LockRequired
from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import ACTIVE, DELAYED, FAILED, WAITING


@operation(
    emits=(happened.JobWaiting, happened.JobPromoted, happened.DlqRetried),
    refuses=(JobNotFound, JobInWrongState, LockRequired, LockLost),
    since=1,
)
class RequeueJob(Operation, frozen=True, tag="job.requeue"):
    """Put an active job back in front of its equals, end a delay, or take a job out of the dead letter queue.

    One that waits already stays where it is. token: of the lock of an active job; its run counts for nothing.
    forced: as somebody who watches asks for it, who has no token: without one a locked run ends, too, and a job that waits is refused.
    """

    job_id: JobId
    token: LockToken | None = None
    forced: bool = False

    def apply(self, state: State, entry: Entry) -> Changed:
        job = state.job(self.job_id)
        if job.state == ACTIVE:
            if self.token is not None or not self.forced:
                state.check_token(job, self.token)
            runs.put_first(state, job)
        elif job.state == DELAYED:
            indexes.promote(state, job)
        elif job.state == FAILED:
            revival.revive(state, job)
            state.emit(happened.DlqRetried(job.queue, job.id))
        elif job.state != WAITING or self.forced:
            raise JobInWrongState(job.id, job.shown_state, "active, waiting, delayed or failed")
        return Changed(job)
