"""The members of the cluster over HTTP: who belongs to it, and adding, promoting, removing and handing over."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from quorumq.api.errors import Invalid
from quorumq.api.reply import Reply
from quorumq.api.request import Call
from quorumq.api.rows import grouped, plain
from quorumq.cluster.addresses import split_address
from quorumq.cluster.membership import ChangeRefused
from quorumq.cluster.status import Member

from ...settings.values import NODE_ID, NODE_ID_CHARS_MAX
from .reading import read

LEVEL_MAX = 1_000_000
# A name of the DNS, a colon and a port.
ADDRESS_CHARS_MAX = 259
REFUSED = "The change cannot be made now; `error` says why. Nothing was changed."
ENCODE = msgspec.json.Encoder().encode


class MemberShown(Struct, forbid_unknown_fields=True):
    """One node. voter: whether its vote counts; a learner only copies the log.

    match_index: the last log index known to be on it, and lag: entries it misses; known to the leader only.
    version: of its program, empty for one before 0.2.0, and level: the highest feature level it knows; null while it is not connected.
    clock_offset_ms: its wall clock less the log's clock, null while it is not known.
    via: the member through which it is reached, null when it is reached directly or not at all.
    """

    id: str
    address: str
    role: str
    voter: bool
    connected: bool
    match_index: int | None
    lag: int | None
    self: bool
    version: str | None
    level: int | None
    clock_offset_ms: int | None = None
    via: str | None = None


class Members(Struct, forbid_unknown_fields=True, kw_only=True):
    ok: Literal[True] = True
    leader: str | None
    members: list[MemberShown]


class AddBody(Struct):
    """A node that is to join."""

    id: Annotated[
        str,
        Meta(
            description="Its NODE_ID.",
            max_length=NODE_ID_CHARS_MAX,
            extra_json_schema={"pattern": f"^{NODE_ID.pattern}$"},
        ),
    ]
    address: Annotated[
        str,
        Meta(
            description="host:port of its peer listener.",
            max_length=ADDRESS_CHARS_MAX,
            extra_json_schema={"pattern": "^.+:[0-9]{1,5}$"},
        ),
    ]


class TransferBody(Struct):
    to: Annotated[
        Annotated[str, Meta(max_length=NODE_ID_CHARS_MAX)] | None,
        Meta(description="Who is to lead; left out, the voter that is furthest ahead."),
    ] = None


class LevelBody(Struct):
    """The feature level to reach."""

    level: Annotated[
        Annotated[int, Meta(ge=0, le=LEVEL_MAX)] | None,
        Meta(description="Left out, the highest that the asked node knows."),
    ] = None


class LevelShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """level: the feature level in force.  level_known: the highest that the asked node knows."""

    ok: Literal[True] = True
    level: int
    level_known: int
    members: list[MemberShown]


ADD = msgspec.json.Decoder(AddBody)
RAISE = msgspec.json.Decoder(LevelBody)
TRANSFER = msgspec.json.Decoder(TransferBody)


def shown(members: list[Member]) -> list[MemberShown]:
    return [
        MemberShown(
            one.id,
            one.address,
            one.role,
            one.voter,
            one.connected,
            one.match_index,
            one.lag,
            one.self,
            one.version,
            one.level,
            one.clock_offset_ms,
            one.via,
        )
        for one in members
    ]


async def list_members(call: Call) -> Reply:
    """Answer from this node alone, so that it answers without a leader too."""
    status = call.node.status()
    return Reply(200, ENCODE(Members(leader=status.leader, members=shown(status.members))))


async def change(call: Call, action: str, node: str, address: str = "") -> Reply:
    """Have the leader make a change; answer with the members after it. Raises Invalid, Unavailable."""
    try:
        await call.node.change_members(action, node, address)
    except ChangeRefused as error:
        raise Invalid(str(error), HTTPStatus.CONFLICT, "change_refused") from None
    return await list_members(call)


async def add(call: Call) -> Reply:
    body = read(call, ADD)
    if not NODE_ID.fullmatch(body.id):
        raise Invalid("id must be 1 to 63 letters, digits, '.', '_' or '-', and begin with a letter or digit")
    try:
        split_address(body.address)
    except ValueError:
        raise Invalid("address must be host:port") from None
    return await change(call, "add", body.id, body.address)


async def promote(call: Call) -> Reply:
    return await change(call, "promote", call.path["member"])


async def remove(call: Call) -> Reply:
    return await change(call, "remove", call.path["member"])


async def transfer(call: Call) -> Reply:
    to = read(call, TRANSFER).to if call.body else None
    return await change(call, "transfer", to or best(call))


def best(call: Call) -> str:
    """Return the voter to hand over to, as far as this node can tell. Raises Invalid when there is none."""
    status = call.node.status()
    present = [one for one in status.members if one.voter and one.id != status.leader and (one.connected or one.self)]
    if not present:
        raise Invalid("no other voter can be reached", HTTPStatus.CONFLICT, "change_refused")
    return max(present, key=lambda one: (one.match_index or 0, one.id)).id


async def show_level(call: Call) -> Reply:
    """Answer from this node alone."""
    status = call.node.status()
    return Reply(
        200,
        ENCODE(LevelShown(level=status.level, level_known=status.level_known, members=shown(status.members))),
    )


async def raise_level(call: Call) -> Reply:
    wanted = read(call, RAISE).level if call.body else None
    await change(call, "level", str(call.node.status().level_known if wanted is None else wanted))
    return await show_level(call)


CHANGES = {409: REFUSED}
ROUTES = grouped(
    "Administration",
    plain("GET", "/cluster/members", list_members, reply=Members, right="admin",
          about="The members as this node sees them; answers without a leader too."),
    plain("POST", "/cluster/members", add, takes=AddBody, reply=Members, right="admin", answers=CHANGES,
          about="Add a node as a learner, which copies the log and does not vote; then start it, then promote it."),
    plain("POST", "/cluster/members/{member}/promote", promote, reply=Members, right="admin", answers=CHANGES,
          about="Let a learner that has caught up vote."),
    plain("DELETE", "/cluster/members/{member}", remove, reply=Members, right="admin", answers=CHANGES,
          about="Remove a node, unless those that are left could then not decide anything."),
    plain("POST", "/cluster/transfer", transfer, takes=TransferBody, reply=Members, right="admin", answers=CHANGES,
          about="Hand leadership to another voter."),
    plain("GET", "/cluster/level", show_level, reply=LevelShown, right="admin",
          about="The feature level in force, and what each member knows; answers without a leader too."),
    plain("POST", "/cluster/level", raise_level, takes=LevelBody, reply=LevelShown, right="admin", answers=CHANGES,
          about="Raise the feature level, once all members know it. It never goes back: older versions can then not serve any more."),
)  # fmt: skip
