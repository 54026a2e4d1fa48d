"""How the backend protocol words what went wrong: a number, and a text for people.

Negative numbers are BullMQ's own (`finishedErrors`); an adapter words them with the command and the state that it knows:

    -1  no such job                          -6  another's lock
    -2  no lock, or one that ran out         -7  the child has another parent
    -3  the job is in another state          -8  the job belongs to a scheduler
    -4  the job's children are pending       -9  a child of the job has failed
    -5  no such parent                       -10, -11  a scheduler's next id is taken, its slots are busy

    0   the result follows
    1   it was not done, or it is not known whether it was: send it again under its number, here later or at another node
    2   refused: the arguments, or what they ask, are not possible; sending it again does not help
    3   the token does not have the right, or is not for the queue
    4   no such call here: an older node, or something that quorumq does not have
    5   what it would have been answered is not known any more: its session was forgotten
    100 more of what a call that goes on is told
"""

from __future__ import annotations

from quorumq.api.auth import Forbidden
from quorumq.api.errors import Hidden, Invalid
from quorumq.cluster.errors import ClusterError, EntryTooLarge
from quorumq.node.machine.refusals import (
    AnswerForgotten,
    BullmqError,
    ChildrenFailed,
    ChildrenPending,
    JobInWrongState,
    JobNotActive,
    JobNotFound,
    JobNotLocked,
    LevelTooLow,
    LockLost,
    LockRequired,
    ParentNotFound,
    ParentNotReplaceable,
    Refusal,
    ReplyForgotten,
    TooManySessions,
)

UNEXPECTED = "Internal server error"
DONE, AGAIN, REFUSED, FORBIDDEN, UNKNOWN, FORGOTTEN, MORE = 0, 1, 2, 3, 4, 5, 100

# What BullMQ has a number for.
BULLMQ: dict[type[Refusal], int] = {
    JobNotFound: -1,
    JobNotLocked: -2,
    LockRequired: -6,
    LockLost: -6,
    JobNotActive: -3,
    JobInWrongState: -3,
    ChildrenPending: -4,
    ParentNotFound: -5,
    ParentNotReplaceable: -7,
    ChildrenFailed: -9,
}


def coded(error: Exception) -> tuple[int, str]:
    """Return number and text for what went wrong; the number of what nobody expected is REFUSED, and the text says no more."""
    match error:
        case LevelTooLow() | TooManySessions():
            return AGAIN, error.message
        case AnswerForgotten() | ReplyForgotten():
            return FORGOTTEN, error.message
        case BullmqError():
            return error.number, error.message
        case Refusal():
            return BULLMQ.get(type(error), REFUSED), error.message
        case Hidden():
            return coded(error.refusal)
        case Forbidden():
            return FORBIDDEN, str(error)
        case Invalid():
            return (AGAIN if error.status in (429, 503) else REFUSED), str(error)
        case EntryTooLarge():
            return REFUSED, "Call too large for one log entry"
        case ClusterError():
            return AGAIN, str(error)
    return REFUSED, UNEXPECTED
