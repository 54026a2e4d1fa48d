"""Counts, lists and states of jobs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.lists import (
    TYPES,
    CountPriorities,
    CountTypes,
    GetEnd,
    GetType,
    IsMaxed,
    IsOfType,
    ListRanges,
)

from .rows import Args, Asked, NoArgs, OfJob, Row, Word, read

# Types, or priorities, of one call.
ASKED_MAX = 1_000
Names = Annotated[list[Word], Meta(max_length=ASKED_MAX)]


class Types(Args):
    types: Names
    before: int | None = None


class Priorities(Args):
    priorities: Annotated[list[int], Meta(max_length=ASKED_MAX)]


class Ranges(Args):
    types: Names
    start: int = 0
    end: int = 1
    asc: bool = False


class InState(Args):
    state: Word
    job: Word


def checked(types: list[str]) -> tuple[str, ...]:
    """Return types of jobs as they came. Raises Invalid for one that there is not."""
    for name in types:
        if name not in TYPES:
            raise Invalid(f"Unknown type of jobs: {name[:40]}")
    return tuple(types)


def get_counts(asked: Asked, args: Types) -> CountTypes:
    return CountTypes(asked.queue, checked(args.types), args.before)


def get_priorities(asked: Asked, args: Priorities) -> CountPriorities:
    return CountPriorities(asked.queue, tuple(args.priorities))


def get_ranges(asked: Asked, args: Ranges) -> ListRanges:
    return ListRanges(asked.queue, checked(args.types), args.start, args.end, args.asc)


def in_state(asked: Asked, args: InState) -> IsOfType:
    if args.state not in TYPES:
        # In BullMQ's own words.
        raise Invalid(f"Unknown job state: {args.state[:40]}")
    return IsOfType(asked.queue, args.job, args.state)


def ended(found: tuple[int, Any]) -> list[Any]:
    return list(found)


ROWS: tuple[Row, ...] = (
    read("getCounts", CountTypes, get_counts, takes=Types),
    read("getCountsPerPriority", CountPriorities, get_priorities, takes=Priorities),
    read("getRanges", ListRanges, get_ranges, takes=Ranges),
    read("getState", GetType, lambda asked, args: GetType(asked.queue, args.job), takes=OfJob),
    read("isJobInState", IsOfType, in_state, takes=InState),
    read("isFinished", GetEnd, lambda asked, args: GetEnd(asked.queue, args.job), ended, takes=OfJob),
    read("isMaxed", IsMaxed, lambda asked, args: IsMaxed(asked.queue), takes=NoArgs),
)
