"""Finding the other nodes by a name instead of a list, and founding a cluster exactly once from those that are found.

A name is resolved, whoever answers at its addresses says who it is (transport.py, after both sides have proved the secret), and `decide`
says what follows. A cluster is founded only when all of its founders have the same set of founders on their disks, and a node
has only one such set in the life of its disk: so no node can be counted for two clusters. Where a node has data its log says
who the members are; then a name only helps to find addresses that have changed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import msgspec

from quorumq.cluster.addresses import join_address, parted

LOOK_S = 1.0
"""Between two looks while this node belongs to no cluster, or some member cannot be reached."""
ADDRESSES_MAX = 64


class Who(msgspec.Struct, frozen=True):
    """What a node says of itself.

    instance: random, of this process.  seated: its log knows the members.  history: it holds entries or a snapshot.
    joins: it is to become a member of the cluster `cluster_id`, and has learnt nothing of it yet.
    founders: ids of the set it is bound to, empty when there is none.  sees: ids that it would found a cluster of.
    members: addresses by id, when it is seated.
    """

    id: str
    instance: str
    address: str
    cluster_id: str = ""
    seated: bool = False
    history: bool = False
    joins: bool = False
    founders: list[str] = []
    sees: list[str] = []
    members: dict[str, str] = {}


class Decision(msgspec.Struct, frozen=True):
    """What to do next.

    waits_for: words for `/ready` while this node can do nothing more itself.  sees: the set to propose, sorted.
    bind: that set is to be written to the disk.  found: take part as one of its founders.
    join: addresses by id of the cluster `cluster_id`, to be learnt from.
    """

    waits_for: str = ""
    sees: list[str] = []
    bind: bool = False
    found: bool = False
    join: dict[str, str] = {}
    cluster_id: str = ""


def decide(me: Who, answers: Iterable[Who], size: int) -> Decision:
    """What follows from what the others say.

    size: how many nodes found a cluster together; 0 when this node may only join one.
    """
    others: dict[str, Who] = {}
    for each in answers:
        if each.instance == me.instance:
            continue
        if each.id == me.id or others.get(each.id, each).instance != each.instance:
            return Decision(f"two nodes call themselves {each.id}: each needs a NODE_ID of its own")
        others[each.id] = each
    present = sorted({me.id, *others})
    seated = [each for each in others.values() if each.seated and each.cluster_id]
    if seated:
        return _joining(me, seated)
    if me.joins:
        return Decision(f"looking for a member of its cluster among {', '.join(present)}")
    founders = me.founders or _bound(me, others)
    if not founders:
        if size == 0:
            return Decision(f"looking for a cluster to join, and CLUSTER_SIZE is not set (found {', '.join(present)})")
        if len(present) < size:
            return Decision(f"found {len(present)} of {size} nodes: {', '.join(present)}")
        if len(present) > size:
            return Decision(
                f"found {len(present)} nodes, and CLUSTER_SIZE says {size}: {', '.join(present)}; none is left out by chance"
            )
        founders = present
    rest = [node for node in founders if node != me.id]
    missing = [node for node in rest if node not in others]
    if missing:
        return Decision(f"waiting for {', '.join(missing)}", sees=founders)
    elsewhere = [node for node in rest if others[node].founders not in ([], founders)]
    if elsewhere:
        return Decision(f"{', '.join(elsewhere)}: bound to other founders than {', '.join(founders)}", sees=founders)
    if me.founders:
        late = [node for node in rest if others[node].founders != founders]
        return Decision(f"waiting for {', '.join(late)} to agree" if late else "", sees=founders, found=not late)
    unlike = [node for node in rest if not others[node].founders and _past(others[node]) != _past(me)]
    if unlike:
        return Decision(f"{', '.join(unlike)}: not of the same past as this node", sees=founders)
    agreed = all(others[node].founders == founders or others[node].sees == founders for node in rest)
    return Decision("waiting for the others to agree", sees=founders, bind=agreed)


def _joining(me: Who, seated: list[Who]) -> Decision:
    ids = sorted({each.cluster_id for each in seated} | ({me.cluster_id} - {""}))
    if len(ids) > 1:
        return Decision(f"nodes of different clusters answer: {', '.join(ids)}")
    join: dict[str, str] = {}
    for each in seated:
        join |= each.members
    join |= {each.id: each.address for each in seated}
    member = any(me.id in each.members for each in seated)
    waits = "" if member else f"not a member yet: `quorumq members add {me.id} {me.address}` makes it one"
    return Decision(waits, join=join | {me.id: me.address}, cluster_id=ids[0])


def _bound(me: Who, others: dict[str, Who]) -> list[str]:
    """A set with this node in it to which another is bound already."""
    return next((each.founders for _, each in sorted(others.items()) if me.id in each.founders), [])


def _past(each: Who) -> tuple[str, bool, bool]:
    return each.cluster_id, each.history, each.joins


async def resolve(names: Iterable[str]) -> list[str]:
    """The `host:port` of every address that `names`, given as `host:port`, stand for now; what cannot be resolved is left out."""
    loop = asyncio.get_running_loop()
    found: dict[str, None] = {}
    for name in names:
        host, port = parted(name)
        try:
            rows = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            continue
        for row in rows:
            address: Any = row[4][0]
            found[join_address(address, int(port))] = None
    return list(found)[:ADDRESSES_MAX]
