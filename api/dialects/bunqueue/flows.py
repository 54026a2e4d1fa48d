"""Flows of the bunqueue dialect: what clients send, the rules for it, and the rows.

The documented server has them as commands only (`PUSHF` and its siblings, of its protocol and WebSocket); the paths are ours. Its clients
plan a whole graph, with ids of their own, and write each edge several times: in `childrenIds`, `dependsOn` and `parentId`, and in the
data. All of them have to agree; the texts are those of the documented server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from quorumq.api.errors import Invalid
from quorumq.api.limits import DATA_BYTES_MAX, LARGE_BYTES
from quorumq.api.reply import Pieced, Reply
from quorumq.api.request import Call, Command, Route, Wording
from quorumq.api.rows import ask, grouped, plain, write
from quorumq.api.rules import says
from quorumq.api.scopes import its_child, its_descendants, its_flow
from quorumq.api.steps import copies_of, with_commas
from quorumq.api.values import BAD_JSON, KEY_CHARS_MAX, as_text, check_text, decoded, members
from quorumq.node.machine.bounds import QUEUE_NAME_CHARS_MAX
from quorumq.node.machine.lifecycle.flows import JOBS_MAX
from quorumq.node.machine.operations.flows import (
    AddFlow,
    AttachChild,
    AwaitChildren,
    Awaits,
    DetachChild,
    FlowJob,
    GetChildrenFailures,
    RemoveUnprocessedChildren,
)
from quorumq.node.machine.operations.jobs import Counted
from quorumq.node.machine.refusals import JobInWrongState, JobNotActive, JobNotFound, ParentNotReplaceable
from quorumq.node.machine.state.job import OnChildFailure

from . import job_object, pushing, replies
from .ties import policies_of
from .values import Token, check_queue, checked_data, key, loosened, of_job, of_known_job, read

T = TypeVar("T")

CANONICAL = "does not match the canonical flow topology"


class JobsAdded(Struct, forbid_unknown_fields=True):
    jobs: list[job_object.JobShown]


class FlowAdded(replies.Success):
    data: Annotated[JobsAdded, Meta(description="The jobs, each after its parent.")]


class ChildRemoved(replies.Success):
    removed: Annotated[bool, Meta(description="Whether it was pending for its parent.")]


class ChildrenFailures(replies.Success):
    values: Annotated[dict[str, str], Meta(description="Errors by `queue:id` of the children.")]


class MovedData(Struct, forbid_unknown_fields=True):
    moved: bool


class Awaiting(replies.Success):
    data: Annotated[MovedData, Meta(description="Whether it waits now: not when no child is pending.")]


class FlowInput(pushing.PushBody, gc=False, rename="camel"):
    """A job of a flow: what a push takes, and its edges."""

    parent_id: Annotated[str | None, says("Id of the job of this flow that waits for it.", max_chars=KEY_CHARS_MAX)] = (
        None
    )
    children_ids: Annotated[
        list[str] | None, says("Ids of its children, as its data has them in `__childrenIds`.", max_items=JOBS_MAX)
    ] = None
    dedup: Annotated[dict[str, Any] | None, says("Not in a flow.", bound=0)] = None
    debounce_id: Annotated[Raw | UnsetType, says("Not in a flow.", bound=0)] = UNSET
    debounce_ttl: Annotated[Raw | UnsetType, says("Not in a flow.", bound=0)] = UNSET


class FlowNode(Struct, gc=False):
    """A job of a flow with the id that the client chose for it."""

    id: Annotated[str | None, says("Its id: new, and without a colon.", required=True, max_chars=KEY_CHARS_MAX)] = None
    queue: Annotated[str | None, says("Its queue.", required=True, bound=QUEUE_NAME_CHARS_MAX)] = None
    input: Annotated[FlowInput | None, says("The job.", required=True)] = None


class FlowBody(Struct, gc=False):
    """A graph of jobs: all are added, or none."""

    jobs: Annotated[list[FlowNode] | None, says("The jobs, in any order.", required=True, max_items=JOBS_MAX)] = None


class LooseFlowBody(Struct):
    jobs: Annotated[list[Raw] | None, says(bound=JOBS_MAX)] = None


class Edges(Struct, rename={"children": "__childrenIds", "parent": "__parentId", "queue": "__parentQueue"}):
    """What the data of a job of a flow says of its place."""

    # Compared with what the flow says, and not kept.
    children: Annotated[Any, says(bound=DATA_BYTES_MAX)] = None
    parent: Annotated[Any, says(bound=DATA_BYTES_MAX)] = None
    queue: Annotated[Any, says(bound=DATA_BYTES_MAX)] = None


class ParentBody(Struct, gc=False, rename="camel"):
    """The job that is to wait for another one."""

    parent_id: Annotated[str | None, key("Its id.", required=True)] = None


class AwaitBody(Struct, gc=False):
    """Whose run it is."""

    token: Token = None


FLOW = msgspec.json.Decoder(FlowBody)
LOOSE_FLOW = msgspec.json.Decoder(LooseFlowBody)
PARENT = msgspec.json.Decoder(ParentBody)
AWAIT = msgspec.json.Decoder(AwaitBody)
EDGES = msgspec.json.Decoder(Edges)


# -- Adding a whole graph


def add(call: Call) -> AddFlow:
    if not call.body:
        raise Invalid(BAD_JSON)
    check_text(call.body)
    nodes = decoded(call.body, FLOW.decode, loose_flow).jobs
    if nodes is None:
        raise Invalid("flow jobs must be an array")
    return planned(nodes)


def planned(nodes: list[FlowNode]) -> AddFlow:
    """Check a flow, and say how it is added. Raises Invalid."""
    if len(nodes) > JOBS_MAX:
        raise Invalid(f"flow exceeds the {JOBS_MAX} job limit")
    by_id: dict[str, FlowNode] = {}
    for node in nodes:
        check_node(node)
        if node.id in by_id:
            raise Invalid(f"duplicate flow job id: {node.id}")
        by_id[str(node.id)] = node
    # As sets: of 10,000 children each is looked for among all of them.
    owned = {job_id: frozenset(cast(FlowInput, node.input).children_ids or ()) for job_id, node in by_id.items()}
    for node in nodes:
        check_edges(node, by_id, owned)
    check_acyclic(by_id)
    return AddFlow(in_order(nodes, by_id))


def loose_flow(body: bytes) -> FlowBody:
    """Decode a flow that does not fit the types, job by job. Raises Invalid."""
    try:
        items = LOOSE_FLOW.decode(body).jobs
    except msgspec.ValidationError:
        members(body)
        raise Invalid("flow jobs must be an array") from None
    if items is None:
        return FlowBody()
    nodes = []
    for position, item in enumerate(items[: JOBS_MAX + 1]):
        try:
            node = cast(FlowNode, loosened(FlowNode, members(item)))
            if isinstance(node.input, dict):
                node.input = cast(FlowInput, loosened(FlowInput, members(members(item)["input"])))
        except Invalid:
            raise Invalid(f"flow jobs[{position}] must be an object") from None
        nodes.append(node)
    return FlowBody(nodes)


def check_node(node: FlowNode) -> None:
    """Check what a job of a flow says of itself. Raises Invalid."""
    if not isinstance(node.id, str):
        raise Invalid("flow job id must be a string")
    if not node.id or len(node.id) > KEY_CHARS_MAX:
        raise Invalid("flow job id is invalid or is not well-formed Unicode")
    if ":" in node.id:
        raise Invalid("flow job id cannot contain a colon")
    try:
        check_queue(as_text(node.queue) or "")
    except Invalid:
        raise Invalid(f"invalid flow queue: {node.queue}") from None
    given = node.input
    if not isinstance(given, FlowInput):
        raise Invalid(f"flow job input is invalid: {node.id}")
    custom = given.custom_id if given.custom_id is not None else given.job_id
    if custom is not None and custom != node.id:
        raise Invalid(f"custom id does not match planned id: {node.id}")
    if given.parent_id is not None and not (isinstance(given.parent_id, str) and given.parent_id):
        raise Invalid(f"flow parent id is invalid: {node.id}")
    for name, ids in (("dependsOn", given.depends_on), ("childrenIds", given.children_ids)):
        if ids is not None and not (isinstance(ids, list) and all(isinstance(one, str) and one for one in ids)):
            raise Invalid(f"{name} must be an array of valid string job ids")
    if given.repeat is not None:
        raise Invalid("repeat is not supported inside an atomic flow")
    if given.unique_key is not None or given.dedup is not None:
        raise Invalid("deduplication is not supported inside an atomic flow")
    if given.debounce_id is not UNSET or given.debounce_ttl is not UNSET:
        raise Invalid("debounce is not supported inside an atomic flow")
    policy_of(given)


def policy_of(given: FlowInput) -> OnChildFailure:
    """Return the policy that a job has for its parent. Raises Invalid."""
    chosen = policies_of(given)
    if len(chosen) > 1:
        raise Invalid("flow failure policies are mutually exclusive")
    if chosen and not given.parent_id:
        raise Invalid("a flow failure policy requires a parent")
    return chosen[0] if chosen else "wait"


def check_edges(node: FlowNode, by_id: dict[str, FlowNode], owned: Mapping[str, Set[str]]) -> None:
    """Check that all that is said of a job's edges agrees. owned: the children of each job. Raises Invalid."""
    given = cast(FlowInput, node.input)
    depends, children = given.depends_on or [], given.children_ids or []
    wanted = set(depends)
    if len(wanted) != len(depends):
        raise Invalid(f"duplicate dependency in flow job: {node.id}")
    if len(owned[str(node.id)]) != len(children):
        raise Invalid(f"duplicate child in flow job: {node.id}")
    for other in depends:
        if other not in by_id:
            raise Invalid(f"flow dependency not found: {other}")
        if other == node.id:
            raise Invalid(f"flow job cannot depend on itself: {node.id}")
    for child in children:
        if child not in wanted:
            raise Invalid(f"flow child is missing from dependencies: {child}")
        if cast(FlowInput, by_id[child].input).parent_id != node.id:
            raise Invalid(f"flow child {child} does not point back to parent {node.id}")
    edges = edges_of(given)
    if given.parent_id:
        parent = by_id.get(given.parent_id)
        if parent is None:
            raise Invalid(f"flow parent not found: {given.parent_id}")
        if node.id not in owned[given.parent_id]:
            raise Invalid(f"flow parent {given.parent_id} does not own child {node.id}")
        if edges.parent != given.parent_id or edges.queue != parent.queue:
            raise Invalid(f"flow child {node.id} metadata does not match parent {given.parent_id}")
    if children and edges.children != children:
        raise Invalid(f"flow parent {node.id} children {CANONICAL}")


def edges_of(given: FlowInput) -> Edges:
    """Read the edges that a job's data tells. Raises Invalid."""
    try:
        return EDGES.decode(checked_data(given.data))
    except msgspec.ValidationError:
        raise Invalid("flow job data must be an object") from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(BAD_JSON) from None


def check_acyclic(by_id: dict[str, FlowNode]) -> None:
    """Refuse a graph in which a job waits for itself. Raises Invalid."""
    waiting: dict[str, list[str]] = {}
    left: dict[str, int] = {}
    for job_id, node in by_id.items():
        depends = cast(FlowInput, node.input).depends_on or []
        left[job_id] = len(depends)
        for other in depends:
            waiting.setdefault(other, []).append(job_id)
    ready = [job_id for job_id, count in left.items() if not count]
    seen = 0
    while ready:
        seen += 1
        for job_id in waiting.get(ready.pop(), ()):
            left[job_id] -= 1
            if not left[job_id]:
                ready.append(job_id)
    if seen != len(by_id):
        raise Invalid("flow contains a dependency cycle")


def in_order(nodes: list[FlowNode], by_id: dict[str, FlowNode]) -> list[FlowJob]:
    """Return the jobs, each after its parent. Raises Invalid."""
    places: dict[str, int] = {}
    made: list[FlowJob] = []
    ahead = deque(node for node in nodes if not cast(FlowInput, node.input).parent_id)
    while ahead:
        node = ahead.popleft()
        given, job_id = cast(FlowInput, node.input), str(node.id)
        children = given.children_ids or []
        others = set(given.depends_on or ()).difference(children)
        place = -1 if given.parent_id is None else places[given.parent_id]
        depends = [one for one in given.depends_on or () if one in others]
        is_custom = given.custom_id is not None or given.job_id is not None
        given.custom_id = given.job_id = None
        given.depends_on = depends or None
        spec = pushing.checked_spec(given, job_id, checked_data(given.data))
        places[job_id] = len(made)
        made.append(
            FlowJob(str(node.queue), msgspec.structs.replace(spec, custom=is_custom), place, None, policy_of(given))
        )
        ahead.extend(by_id[child] for child in children)
    return made


async def add_flow(call: Call) -> Reply:
    """Add a graph of jobs, and show all of them."""
    operation = add(call) if len(call.body) <= LARGE_BYTES else await call.decoded(add)
    if not call.grant.every_queue:
        await its_flow(call, operation)
    texts = await (await call.write(operation, copies_of)).texts(job_object.full_text)
    return Pieced(200, [b'{"ok":true,"data":{"jobs":[', *with_commas(texts), b"]}}"])


# -- Changing and asking


def attach(call: Call) -> AttachChild:
    parent_id = read(PARENT, call.body, required=True).parent_id
    if parent_id is None:
        raise Invalid("parentId is required")
    return AttachChild(call.path["id"], parent_id)


def detached(reply: Counted) -> bytes:
    return b'{"ok":true,"removed":%b}' % (b"true" if reply.count else b"false")


def await_children(call: Call) -> AwaitChildren:
    return AwaitChildren(call.path["id"], read(AWAIT, call.body).token)


def awaits(reply: Awaits) -> bytes:
    return b'{"ok":true,"data":{"moved":%b}}' % (b"true" if reply.moved else b"false")


def failures(values: dict[str, str]) -> bytes:
    return b'{"ok":true,"values":%b}' % replies.ENCODE(values)


def failed_of(how: Literal["continued", "ignored"]) -> Any:
    return lambda call: GetChildrenFailures(call.path["id"], how, call.over_http)


def no_child(refusal: JobNotFound) -> tuple[int, str]:
    return 404, f"Child job not found: {refusal.job_id}"


def no_job(refusal: JobNotFound) -> tuple[int, str]:
    return 404, f"Job not found: {refusal.job_id}"


def not_linkable(refusal: JobInWrongState) -> tuple[int, str]:
    return 400, f"Parent job {refusal.job_id} is not linkable"


def other_parent(refusal: ParentNotReplaceable) -> tuple[int, str]:
    return 400, f"Job {refusal.job_id} already belongs to parent {refusal.parent_id}"


ATTACHING: Wording = {JobNotFound: no_child, JobInWrongState: not_linkable, ParentNotReplaceable: other_parent}
AWAITING: Wording = {JobNotFound: (404, "Job is not active"), JobNotActive: (400, "Job is not active")}

ROUTES: tuple[Route, ...] = grouped(
    "Flows",
    plain("POST", "/flows", add_flow, what=AddFlow, takes=FlowBody, reply=FlowAdded, right="produce", body="data",
          scope="checked", command="PUSHF"),
    write("PUT", "/jobs/{id}/parent", AttachChild, attach, replies.ok, takes=ParentBody, reply=replies.Ok,
          right="produce", refusals=ATTACHING, check=its_child, command=Command("UpdateParent", {"id": "childId"})),
    write("DELETE", "/jobs/{id}/parent", DetachChild, of_job(DetachChild), detached, reply=ChildRemoved,
          right="produce", refusals={JobNotFound: no_job}, command="RemoveChildDependency"),
    write("DELETE", "/jobs/{id}/children", RemoveUnprocessedChildren, of_known_job(RemoveUnprocessedChildren), replies.ok,
          reply=replies.Ok, right="produce", check=its_descendants,
          about="Remove the jobs below a job that nobody works on and that have not ended.",
          command="RemoveUnprocessedChildren"),
    ask("GET", "/jobs/{id}/children/failed", GetChildrenFailures, failed_of("continued"), failures,
        reply=ChildrenFailures, about="Why children failed whose parent went on at once (`continueParentOnFailure`).",
        command="GetFailedChildrenValues"),
    ask("GET", "/jobs/{id}/children/ignored", GetChildrenFailures, failed_of("ignored"), failures,
        reply=ChildrenFailures, about="Why children failed that were ignored (`ignoreDependencyOnFailure`).",
        command="GetIgnoredChildrenFailures"),
    write("POST", "/jobs/{id}/move-to-waiting-children", AwaitChildren, await_children, awaits, takes=AwaitBody,
          reply=Awaiting, right="consume", refusals=AWAITING, command="MoveToWaitingChildren"),
)  # fmt: skip
