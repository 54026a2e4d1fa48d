"""`quorumq members set-aside`: the data of a node that is no member any more makes way for an empty folder; nothing of it is deleted.

Whether the node is a member the cluster says, and not the disk: a node that was only scaled away and never removed keeps its data.
"""

from __future__ import annotations

import time
from pathlib import Path

from quorumq.cli import admin
from quorumq.cli.recover import held
from quorumq.cli.storage import StorageTrouble
from quorumq.cluster import identity
from quorumq.cluster.disk import Disk
from quorumq.cluster.errors import LogDamaged


def is_member(answer: object, node: str) -> bool:
    """Whether `node` is among the members of an answer of /admin/cluster/members. Raises NoAnswer."""
    try:
        return any(one["id"] == node for one in answer["members"])  # type: ignore[index]
    except (KeyError, TypeError):
        raise admin.NoAnswer("the answer is not one about members") from None


def set_aside(data: Path, node: str, *, member: bool) -> str:
    """Give the folder another name, beside where it is, and say so; leave it where a member's or nobody's data is.

    Raises StorageTrouble when it is another node's or in use, or cannot be renamed.
    """
    if member:
        return f"{node} is a member: its data stays"
    try:
        if not data.is_dir():
            return f"{node} has no data"
        owner = identity.read(Disk(data))
    except FileNotFoundError:
        return f"{node} has no data"
    except (LogDamaged, OSError) as error:
        raise StorageTrouble(f"{data}: {error}; look at it, and move it out of the way by hand") from None
    if owner.node_id != node:
        raise StorageTrouble(f"{data} is the data of {owner.node_id}, not of {node}: it stays")
    aside = data.with_name(f"{data.name}-removed-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    with held(data):
        try:
            data.rename(aside)
        except OSError as error:
            raise StorageTrouble(f"{data} cannot become {aside}: {error.strerror}") from None
    return f"{node} was removed from its cluster: its data is set aside as {aside}, and stays there until somebody deletes it"
