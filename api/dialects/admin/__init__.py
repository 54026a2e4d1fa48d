"""quorumq's own routes, under /admin: what this node knows of the cluster, who belongs to it, what queues keep."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from quorumq.api.auth import Access, Grant, bearer_or_bare
from quorumq.api.reply import JSON, Reply
from quorumq.api.request import CONSISTENCY, Answer, Call, Route
from quorumq.api.rows import Octets, grouped, plain
from quorumq.node.machine.refusals import IdempotencyKeyReused, KeyForgotten, Refusal, ReplyForgotten

from . import backup, members, retention


class ClusterShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """The cluster as this node sees it.

    digest: of the entries and their outcomes, equal on all nodes at equal applied_index.  ready_reason: why the node is not ready,
    empty when it is.  write_failed_since_ms: since when this node cannot write its log, None while it can.
    apart: how this node's state differs from that of a majority which agrees, empty when it does not.  differing: members whose state
    differs from this node's.  agreed_index: the newest entry at which all that could be compared were equal, 0 for none.
    version: of this node's program.  level: the feature level in force.  level_known: the highest that this node knows.
    log_clock_ms: the log's clock, by which delays, locks and crons go; None while this node does not know it.
    """

    ok: Literal[True] = True
    node_id: str
    cluster_name: str
    cluster_id: str
    role: str
    leader: str | None
    term: int
    has_quorum: bool
    ready: bool
    ready_reason: str
    commit_index: int
    applied_index: int
    last_index: int
    durable_index: int
    first_index: int
    snapshot_index: int
    log_bytes: int
    write_failed_since_ms: int | None
    log_clock_ms: int | None = None
    digest: str
    apart: str
    differing: list[str]
    agreed_index: int
    version: str
    level: int
    level_known: int
    members: list[members.MemberShown]


class ContentsShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """digest: of all that the asked node's state holds after the entry `index`; equal on all nodes that run the same program."""

    ok: Literal[True] = True
    node_id: str
    index: int
    digest: str


async def cluster(call: Call) -> Reply:
    """Answer from this node alone, so that it answers without a leader too."""
    status = call.node.status()
    shown = ClusterShown(
        node_id=status.node_id,
        cluster_name=status.cluster_name,
        cluster_id=status.cluster_id,
        role=status.role,
        leader=status.leader,
        term=status.term,
        has_quorum=status.has_quorum,
        ready=status.ready,
        ready_reason=status.ready_reason,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        last_index=status.last_index,
        durable_index=status.durable_index,
        first_index=status.first_index,
        snapshot_index=status.snapshot_index,
        log_bytes=status.log_bytes,
        write_failed_since_ms=status.write_failed_since_ms,
        log_clock_ms=status.log_clock_ms,
        digest=status.digest,
        apart=status.apart,
        differing=status.differing,
        agreed_index=status.agreed_index,
        version=status.version,
        level=status.level,
        level_known=status.level_known,
        members=members.shown(status.members),
    )
    return Reply(200, msgspec.json.encode(shown))


async def contents(call: Call) -> Reply:
    """Answer from this node alone, whatever the others hold."""
    index, digest = await call.node.contents_digest()
    return Reply(200, msgspec.json.encode(ContentsShown(node_id=call.node.id, index=index, digest=digest)))


# What a refusal is that has a status of its own.
STATUSES: dict[type[Refusal], int] = {IdempotencyKeyReused: 422, ReplyForgotten: 409, KeyForgotten: 409}


class Admin:
    """The dialect: errors carry a code."""

    name = "admin"
    undecoded: frozenset[str] = frozenset()
    may_be_empty: frozenset[str] = frozenset()
    content_type = JSON
    hides_paths = True
    private = True
    routes: tuple[Route, ...] = (
        *grouped(
            "Administration",
            plain("GET", "/cluster", cluster, reply=ClusterShown, right="admin",
                  about="The cluster as this node sees it; answers without a leader too."),
            plain("GET", "/contents", contents, reply=ContentsShown, right="admin",
                  about="A digest of all that this node holds, to be compared with the other nodes' while nothing is written."),
        ),
        *members.ROUTES,
        *retention.ROUTES,
        *grouped(
            "Administration",
            plain("GET", "/backup", backup.handle, reply=Octets, right="admin", asks=(CONSISTENCY,),
                  about="An image of the whole state, which `quorumq restore` takes."),
        ),
    )  # fmt: skip

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        return bearer_or_bare(access, request)

    def weigh(self, route: Route, body: bytes) -> None:
        """Nothing here takes a body with lists."""

    def refusal(self, refusal: Refusal) -> Answer:
        return STATUSES.get(type(refusal), 400), refusal.message

    def error(self, status: int, text: str, code: str) -> bytes:
        body: dict[str, Any] = {"ok": False, "error": text, "code": code}
        return msgspec.json.encode(body)
