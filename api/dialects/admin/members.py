"""The members of the cluster over HTTP: who belongs to it, and adding, promoting, removing and handing over."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from api.http import Call, Invalid, Reply, grouped, plain
from cluster.membership import ChangeRefused
from cluster.status import Member
from node.config import NODE_ID, split_address

from .reading import read

REFUSED = "The change cannot be made now; `error` says why. Nothing was changed."
ENCODE = msgspec.json.Encoder().encode


class MemberShown(Struct, forbid_unknown_fields=True):
    """One node. voter: whether its vote counts; a learner only copies the log.

    match_index: the last log index known to be on it, and lag: entries it misses; known to the leader only.
    """

    id: str
    address: str
    role: str
    voter: bool
    connected: bool
    match_index: int | None
    lag: int | None
    self: bool


class Members(Struct, forbid_unknown_fields=True, kw_only=True):
    ok: Literal[True] = True
    leader: str | None
    members: list[MemberShown]


class AddBody(Struct):
    """A node that is to join."""

    id: Annotated[str, Meta(description="Its NODE_ID.", extra_json_schema={"pattern": f"^{NODE_ID.pattern}$"})]
    address: Annotated[
        str, Meta(description="host:port of its peer listener.", extra_json_schema={"pattern": "^.+:[0-9]{1,5}$"})
    ]


class TransferBody(Struct):
    to: Annotated[str | None, Meta(description="Who is to lead; left out, the voter that is furthest ahead.")] = None


ADD = msgspec.json.Decoder(AddBody)
TRANSFER = msgspec.json.Decoder(TransferBody)


def shown(members: list[Member]) -> list[MemberShown]:
    return [
        MemberShown(one.id, one.address, one.role, one.voter, one.connected, one.match_index, one.lag, one.self)
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
)  # fmt: skip
