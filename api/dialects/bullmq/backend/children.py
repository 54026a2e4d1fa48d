"""The children of a job: counted, listed, page by page, and what they left to their parent. A child is called by `prefix:name:id`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.children import EVERYTHING, CountChildren, ListChildren, PageOfChildren
from quorumq.node.machine.operations.flows import KINDS, Child, ChildrenByKind, Kind
from quorumq.node.machine.state.job import Job, unscoped

from . import names
from .records import shown as job_shown
from .rows import Args, Asked, OfJob, Row, Word, read

ALL: tuple[Kind, ...] = tuple(KINDS.values())
# What BullMQ calls the kinds that have pages by place.
PAGED: dict[str, Kind] = {"processed": "processed", "dependencies": "unprocessed"}


class OfKinds(Args):
    job: Word
    types: Annotated[list[Word], Meta(max_length=len(ALL))]


class ChildPages(Args):
    job: Word
    pages: Annotated[dict[Word, tuple[int, int]], Meta(max_length=len(ALL))] | None = None


class ChildRange(Args):
    job: Word
    kind: Word
    start: int = 0
    end: int = -1
    jobs: bool = False


def kind_of(name: str) -> Kind:
    """Return a kind of children as it came. Raises Invalid."""
    for kind in ALL:
        if kind == name:
            return kind
    raise Invalid(f"Unknown kind of children: {name[:40]}")


def count(asked: Asked, args: OfKinds) -> CountChildren:
    return CountChildren(asked.queue, args.job, tuple(map(kind_of, args.types)))


def listed(asked: Asked, args: ChildPages) -> ListChildren:
    pages = args.pages
    if pages is None:
        return ListChildren(asked.queue, args.job)
    wanted = {kind_of(name): (max(start, 0), max(length, 0)) for name, (start, length) in pages.items()}
    return ListChildren(asked.queue, args.job, wanted)


def one_kind(kind: Kind) -> Any:
    def decode(asked: Asked, args: OfJob) -> ListChildren:
        return ListChildren(asked.queue, args.job, {kind: (0, EVERYTHING)})

    return decode


def page(asked: Asked, args: ChildRange) -> PageOfChildren:
    kind = PAGED.get(args.kind)
    if kind is None:
        raise Invalid(f"Unknown kind of children: {args.kind[:40]}")
    return PageOfChildren(asked.queue, args.job, kind, args.start, args.end, args.jobs)


def key_of(child: Child, prefix: str) -> str:
    return f"{names.qualified_of(child.queue, prefix)}:{unscoped(child.queue, child.job_id)}"


def left_of(child: Child) -> bytes | str | None:
    """Return what a child left: its result, or why it failed; None while it is pending."""
    end = child.end
    if end is None:
        return None
    if end.how == "processed":
        return b"null" if end.result is None else end.result
    return end.reason or ""


def by_key(children: Sequence[Child], prefix: str) -> dict[str, Any]:
    return {key_of(child, prefix): left_of(child) for child in children}


def shown(dependencies: ChildrenByKind, prefix: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for kind, children in dependencies.pages.items():
        told[kind] = by_key(children, prefix)
        if kind in ("unprocessed", "failed"):
            told[kind] = list(told[kind])
    return told | {"next": dependencies.next}


def values(dependencies: ChildrenByKind, prefix: str) -> dict[str, Any]:
    (children,) = dependencies.pages.values()
    return by_key(children, prefix)


def page_shown(found: tuple[int, list[Child], list[Job] | None], prefix: str) -> list[Any]:
    total, children, jobs = found
    items = [[key_of(child, prefix), left_of(child)] for child in children]
    return [total, items, None if jobs is None else [job_shown(job, prefix) for job in jobs]]


ROWS: tuple[Row, ...] = (
    read("getDependencyCounts", CountChildren, count, takes=OfKinds),
    read("getDependencies", ListChildren, listed, shown, takes=ChildPages, prefixed=True),
    read("getProcessedChildrenValues", ListChildren, one_kind("processed"), values, takes=OfJob, prefixed=True),
    read("getIgnoredChildrenFailures", ListChildren, one_kind("ignored"), values, takes=OfJob, prefixed=True),
    read("paginate", PageOfChildren, page, page_shown, takes=ChildRange, prefixed=True),
)
