"""quorumq's own routes, under /admin: what this node knows of the cluster, who belongs to it, what queues keep."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from api.auth import Access, Grant, bearer_or_bare
from api.http import CONSISTENCY, JSON, Answer, Call, Octets, Reply, Route, grouped, plain
from node.refusals import Refusal

from . import backup, members, retention


class ClusterShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """The cluster as this node sees it.

    digest: equal on all nodes at equal applied_index.  ready_reason: why the node is not ready, empty when it is.
    write_failed_since_ms: since when this node cannot write its log, None while it can.
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
    digest: str
    members: list[members.MemberShown]


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
        digest=status.digest,
        members=members.shown(status.members),
    )
    return Reply(200, msgspec.json.encode(shown))


class Admin:
    """The dialect: errors carry a code."""

    name = "admin"
    undecoded: frozenset[str] = frozenset()
    content_type = JSON
    hides_paths = True
    routes: tuple[Route, ...] = (
        *grouped(
            "Administration",
            plain("GET", "/cluster", cluster, reply=ClusterShown, right="admin",
                  about="The cluster as this node sees it; answers without a leader too."),
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

    def refusal(self, refusal: Refusal) -> Answer:
        return 400, refusal.message

    def error(self, status: int, text: str, code: str) -> bytes:
        body: dict[str, Any] = {"ok": False, "error": text, "code": code}
        return msgspec.json.encode(body)
