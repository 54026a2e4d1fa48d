"""Flows of the BullMQ dialect: trees of jobs over queues, a parent in an add, and what a parent knows of its children.

BullMQ Proxy has none of it; names, rules and errors are BullMQ's (FlowProducer, `job.getDependencies`, `job.moveToWaitingChildren`),
paths are in the style of the document's.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.limits import DATA_BYTES_MAX, LARGE_BYTES
from quorumq.api.reply import Pieced, Reply
from quorumq.api.request import CONSISTENCY, Call, Parameter
from quorumq.api.rows import grouped, plain, success
from quorumq.api.rules import says
from quorumq.api.scopes import needs
from quorumq.api.steps import copies_of
from quorumq.api.values import BAD_JSON, KEY_CHARS_MAX, check_text, decoded, value_of
from quorumq.node.machine.lifecycle.flows import JOBS_MAX, LEVELS_MAX
from quorumq.node.machine.operations.adding import Added, FindJob
from quorumq.node.machine.operations.flows import (
    AddedFlow,
    AddFlow,
    AwaitChildren,
    Awaits,
    ChildrenByKind,
    FlowJob,
    Kind,
    ListDependencies,
)
from quorumq.node.machine.refusals import JobNotFound
from quorumq.node.machine.state.job import scoped_id, unscoped

from . import adding, errors, job_object, manual, replies
from .lookup import canonical, job_of, prefix_of
from .values import EMPTY_BODY, Body, check_name, page, read, shown, text

NODE_KEYS = frozenset({"name", "queueName", "data", "opts", "children", "prefix"})
KINDS: tuple[Kind, ...] = ("processed", "unprocessed", "ignored", "failed")
TYPES = Parameter("types", "Kinds with commas between them: processed, unprocessed, ignored, failed; left out, all.",
                  {"type": "string"})  # fmt: skip
START = Parameter("start", "Children to skip, of each kind.", {"type": "integer", "minimum": 0, "default": 0})
LENGTH = Parameter(
    "length",
    "Children, at most, of each kind; 0 for all.",
    {"type": "integer", "minimum": 0, "maximum": 100, "default": 10},
)


class FlowNode(Struct, rename="camel"):
    """A job, and the jobs that it waits for."""

    name: Annotated[str | None, says("For its worker.", required=True, max_chars=adding.NAME_CHARS_MAX)] = None
    queue_name: Annotated[str | None, says("Its queue.", required=True, max_chars=100)] = None
    data: Annotated[Raw | UnsetType, says("What the worker gets; left out, {}.", bound=DATA_BYTES_MAX)] = UNSET
    opts: Annotated[adding.JobOpts | None, says("How it is to be worked on; without deduplication and repeat.")] = None
    children: Annotated[list[FlowNode] | None, says("What it waits for.", default=[], max_items=JOBS_MAX)] = None
    prefix: Annotated[str | None, says("Taken, and of no account.", max_chars=KEY_CHARS_MAX)] = None


class ChildBody(Struct):
    """A child by its id and its queue."""

    id: Annotated[str | None, says("Its id.", required=True, max_chars=KEY_CHARS_MAX)] = None
    queue: Annotated[str | None, says("Its queue, with or without the prefix.", required=True, bound=KEY_CHARS_MAX)] = (
        None
    )


class AwaitBody(Body):
    """Who holds the job, and for which child it waits."""

    token: manual.Token = None
    child: Annotated[ChildBody | None, says("Only when this one is pending; left out, any.")] = None


class FlowShown(replies.BullShown):
    """A job of a flow with its children."""

    job: job_object.JobJson
    children: list[FlowShown] | UnsetType = UNSET


Flow = FlowShown | list[FlowShown]


class DependencyCounts(replies.BullShown):
    """How many children there are of each kind that was asked for."""

    processed: int | UnsetType = UNSET
    unprocessed: int | UnsetType = UNSET
    ignored: int | UnsetType = UNSET
    failed: int | UnsetType = UNSET


class DependenciesShown(replies.BullShown, kw_only=True):
    """Children by key, `bull:queue:id`: results of those that completed, reasons of those whose failure was ignored."""

    counts: DependencyCounts
    processed: dict[str, Any] | UnsetType = UNSET
    unprocessed: list[str] | UnsetType = UNSET
    ignored: dict[str, str] | UnsetType = UNSET
    failed: list[str] | UnsetType = UNSET
    start: int
    length: int


class Awaiting(replies.BullShown):
    """moved: whether the job waits for children now; not when none is pending."""

    moved: bool


class Planned(NamedTuple):
    """A checked node. named: the parent that it has by its own word, by id and queue."""

    job: FlowJob
    named: tuple[str, str] | None


AWAIT = msgspec.json.Decoder(AwaitBody)


# -- Adding


def plan(call: Call) -> tuple[list[Planned], bool]:
    """Check trees, all of them, before anything is stored; say whether the body was a list of them. Raises Invalid."""
    if not call.body:
        raise Invalid(EMPTY_BODY)
    check_text(call.body)
    # As the only item of a list, so that what is more than one value cannot pass for one.
    found = decoded(b"[%b]" % call.body, adding.RAW_ITEMS.decode, adding.RAW_ITEMS.decode)
    if len(found) != 1:
        raise Invalid(BAD_JSON)
    is_list = bytes(found[0]).lstrip()[:1] == b"["
    roots = adding.RAW_ITEMS.decode(found[0]) if is_list else found
    planned: list[Planned] = []
    ahead = deque((root, -1, 1) for root in roots)
    while ahead:
        raw, parent, level = ahead.popleft()
        if len(planned) >= JOBS_MAX:
            raise Invalid(f"A flow must have at most {JOBS_MAX} jobs")
        if level > LEVELS_MAX:
            raise Invalid(f"A flow must have at most {LEVELS_MAX} levels")
        node, children = checked_node(raw, call, parent)
        ahead.extend((child, len(planned), level + 1) for child in children)
        planned.append(node)
    return planned, is_list


def checked_node(raw: Raw, call: Call, parent: int) -> tuple[Planned, list[Raw]]:
    """Check one job of a tree, and return it with its children as they came. Raises Invalid."""
    try:
        found = adding.MEMBERS.decode(raw)
    except msgspec.ValidationError:
        raise Invalid("A flow must be an object with name and queueName") from None
    for key in found:
        if key not in NODE_KEYS:
            raise Invalid(f"Unexpected field: {shown(key)}")
    name = text("name", value_of(found["name"])) if "name" in found else ""
    queue = text("queueName", value_of(found["queueName"])) if "queueName" in found else ""
    if not queue:
        raise Invalid("queueName is required")
    item = adding.AddItem(name, found.get("data", Raw(b"{}")), found.get("opts"))
    wanted = adding.checked_item(item, call.node.now_ms)
    if wanted.dedup_id is not None or wanted.repeat is not None:
        raise Invalid("deduplication and repeat cannot be used in a flow")
    if parent >= 0 and wanted.parent is not None:
        raise Invalid("parent cannot be used for a child of a flow")
    queue = check_name(queue)
    children: list[Raw] = []
    if "children" in found and found["children"] != b"null":
        try:
            children = adding.RAW_ITEMS.decode(found["children"])
        except msgspec.ValidationError:
            raise Invalid("children must be an array") from None
    return part_of(queue, item, wanted, parent), children


def part_of(queue: str, item: adding.AddItem, wanted: adding.Wanted, parent: int = -1) -> Planned:
    """Say how a job is added. parent: the place of its parent; -1 for a root."""
    return Planned(FlowJob(queue, adding.spec(item, wanted), parent, None, wanted.on_failure), wanted.parent)


async def parent_of(call: Call, named: tuple[str, str]) -> str:
    """Return the canonical id of the parent that a job is to have. Raises Forbidden, Invalid, Unavailable."""
    job_id, queue = named[0], unqualified(call, named[1])
    if not call.grant.every_queue:
        needs(call.grant, queue)
    try:
        return await call.node.ask(FindJob(queue, job_id), canonical, stale=True)
    except JobNotFound:
        return scoped_id(queue, job_id)


def unqualified(call: Call, queue: str) -> str:
    """Return the name of a queue that may have come with its prefix. Raises Invalid."""
    return check_name(queue.removeprefix(f"{prefix_of(call)}:").removeprefix("bull:"))


async def flow_of(call: Call, planned: list[Planned]) -> AddFlow:
    """Make what goes into the log of trees, or of an add with parents. Raises Forbidden, Invalid, Unavailable."""
    if not call.grant.every_queue:
        needs(call.grant, *dict.fromkeys(node.job.queue for node in planned))
    jobs = [
        node.job
        if node.named is None
        else msgspec.structs.replace(node.job, parent_id=await parent_of(call, node.named))
        for node in planned
    ]
    return AddFlow(jobs, numbered=True, prefix=prefix_of(call))


async def add_flow(call: Call) -> Reply:
    """Add a tree of jobs, or several, all of them or none."""
    planned, is_list = plan(call) if len(call.body) <= LARGE_BYTES else await call.decoded(plan)
    if not planned:
        return Reply(200, b"[]")
    copies = await call.write(await flow_of(call, planned), copies_of)
    texts = await copies.texts(partial(job_object.job_text, prefix=prefix_of(call)))
    shown = with_children(texts, [node.job.parent for node in planned])
    return Pieced(200, [b"[", *shown, b"]"] if is_list else shown)


def with_children(jobs: list[bytes], parents: list[int]) -> list[bytes]:
    """Write trees of jobs as FlowProducer answers them: each job with its children. parents: places, -1 for a root."""
    children: dict[int, list[int]] = {}
    for place, parent in enumerate(parents):
        children.setdefault(parent, []).append(place)
    pieces: list[bytes] = []
    # What is still to be written, the next at the end: the places of jobs, and what is to be said as it is.
    left: list[int | bytes] = []

    def list_of(parent: int) -> None:
        for place in reversed(children[parent]):
            left.extend((place, b","))
        left.pop()

    list_of(-1)
    while left:
        each = left.pop()
        if isinstance(each, bytes):
            pieces.append(each)
            continue
        pieces += (b'{"job":', jobs[each])
        if each in children:
            pieces.append(b',"children":[')
            left.append(b"]}")
            list_of(each)
        else:
            pieces.append(b"}")
    return pieces


async def add_children(call: Call, wanted: adding.Adding) -> Reply:
    """Add jobs of which some have parents that are there already."""
    both = list(zip(wanted.items, wanted.wanted, strict=True))
    if any(one.repeat is not None or one.dedup_id is not None for _, one in both):
        raise Invalid("Deduplication and parent options cannot be used together")
    operation = await flow_of(call, [part_of(wanted.queue, item, one) for item, one in both])

    def view(reply: AddedFlow) -> Added:
        ids = [unscoped(wanted.queue, job.id) for job in reply.jobs]
        return Added(ids, reply.duplicates, reply.at_ms)

    return await adding.answered(wanted, prefix_of(call), await call.write(operation, view))


# -- What a parent knows, and waits for


def kinds_of(call: Call) -> list[Kind]:
    """Return the kinds asked for, each once. Raises Invalid."""
    asked = list(dict.fromkeys(kind for kind in call.query.get("types", "").split(",") if kind))
    for kind in asked:
        if kind not in KINDS:
            raise Invalid(f"Invalid type: {kind[:100]}")
    return [kind for kind in KINDS if kind in asked] if asked else list(KINDS)


async def show_dependencies(call: Call) -> Reply:
    """Read what became of a job's children, a page of each kind."""
    kinds, (start, length) = kinds_of(call), page(call)
    job_id = await job_of(call)
    query = ListDependencies(job_id, dict.fromkeys(kinds, (start, length or JOBS_MAX)))
    view = partial(dependencies, prefix_of(call), kinds, start, length)
    return success(await call.node.ask(query, view, stale=call.stale))


def dependencies(prefix: str, kinds: list[Kind], start: int, length: int, found: ChildrenByKind) -> bytes:
    """Render children by kind: of those that completed their results, of those that were ignored why they failed."""
    parts = [b'"counts":%b' % replies.ENCODE({kind: found.counts[kind] for kind in kinds})]
    parts += [b'"%b":%b' % (kind.encode(), _kind(prefix, found, kind)) for kind in kinds]
    return b'{%b,"start":%d,"length":%d}' % (b",".join(parts), start, length)


def _kind(prefix: str, found: ChildrenByKind, kind: Kind) -> bytes:
    children = [(f"{prefix}:{one.queue}:{unscoped(one.queue, one.job_id)}", one.end) for one in found.pages[kind]]
    if kind == "processed":
        values = [
            b"%b:%b" % (replies.ENCODE(key), replies.NULL if end is None or end.result is None else end.result)
            for key, end in children
        ]
        return b"{%b}" % b",".join(values)
    if kind == "ignored":
        return replies.ENCODE({key: end.reason or "" for key, end in children if end is not None})
    return replies.ENCODE([key for key, _ in children])


async def move_to_waiting_children(call: Call) -> Reply:
    """Let an active job wait for its children; its run counts for nothing."""
    body = read(AWAIT, call.body)
    what = AwaitChildren(await job_of(call), body.token, await child_of(call, body.child), must_hold=True)
    return success(await call.write(what, awaits))


async def child_of(call: Call, child: Any) -> str | None:
    """Return the canonical id of the child that a body names. Raises Invalid."""
    if child is None:
        return None
    if isinstance(child, dict):
        child = ChildBody(child.get("id"), child.get("queue"))
    if not isinstance(child, ChildBody) or not child.id or not child.queue:
        raise Invalid("child must be an object with id and queue")
    queue, job_id = unqualified(call, text("child.queue", child.queue)), text("child.id", child.id)
    try:
        return await call.node.ask(FindJob(queue, job_id), canonical, stale=True)
    except JobNotFound:
        return scoped_id(queue, job_id)


def awaits(reply: Awaits) -> bytes:
    return b'{"moved":%b}' % (b"true" if reply.moved else b"false")


ROUTES = grouped(
    "BullMQ: flows",
    plain("POST", "/flows", add_flow, what=AddFlow, takes=FlowNode | list[FlowNode], body="data", reply=Flow,
          right="produce", scope="checked", refusals=errors.ADDING_FLOWS, answers=errors.CONFLICTS,
          about="Add a tree of jobs over queues, or several, all or none; a job waits for its children."),
    plain("GET", "/queues/{queue}/jobs/{id}/dependencies", show_dependencies, what=ListDependencies,
          asks=(TYPES, START, LENGTH, CONSISTENCY), reply=DependenciesShown, right="read",
          about="The children of a job by what became of them, in pages; keys are `bull:queue:id`."),
    manual.on_lock("move-to-waiting-children", move_to_waiting_children, AwaitChildren, "moveToWaitingChildren",
                   takes=AwaitBody, reply=Awaiting,
                   about="Let a job wait for its children; its run counts for nothing. Not when none is pending."),
)  # fmt: skip
