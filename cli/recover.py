"""`quorumq recover`: what is said before a new cluster is made of one node's folder, and the making of it.

What is read and written is cluster/refounding.py's affair.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from quorumq.cli.storage import StorageTrouble
from quorumq.cluster import refounding
from quorumq.cluster.errors import ClusterError
from quorumq.cluster.membership import Membership
from quorumq.cluster.refounding import Survivor
from quorumq.cluster.terms import RUN_AWAY
from quorumq.node.machine.image import ImageDamaged
from quorumq.node.machine.machine import Machine
from quorumq.node.rewinding import rewound

PRICE = (
    "what it costs:",
    "  what other nodes acknowledged and this one never got is lost; if only a minority was lost, start that again instead",
    "  entries that no majority held may be among these: a client that was told 503 may find that its request was done",
    "  requests under way are answered by nobody, and one that is repeated is done again unless it has an Idempotency-Key",
    "  the folders of the other nodes are of the old cluster: never start a node with one of them again. Empty them, then "
    "add the nodes (`quorumq members add`, start, `quorumq members promote`)",
)


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Keep the folder to this process. Raises StorageTrouble when its node runs."""
    if not (data / "identity.json").is_file() and not refounding.interrupted(data):
        raise StorageTrouble(f"{data} holds no identity.json: it is not a node's data directory")
    try:
        handle = os.open(data / "lock", os.O_RDWR)
    except FileNotFoundError:
        yield  # no node of this version ever ran there, or somebody tidied up
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StorageTrouble(f"{data} is in use: stop its node first") from None
    try:
        yield
    finally:
        os.close(handle)


def interrupted(data: Path) -> bool:
    """Whether an earlier attempt did not come to its end."""
    return refounding.interrupted(data)


def read(data: Path) -> Survivor:
    """Read all that the folder holds. Raises StorageTrouble."""
    try:
        return refounding.read(data, Machine())
    except (ClusterError, ImageDamaged, OSError) as error:
        raise StorageTrouble(f"{data}: {error}") from None


def members(survivor: Survivor, given: dict[str, str]) -> Membership:
    """Return the members of the new cluster. Raises StorageTrouble."""
    try:
        return survivor.seats(given)
    except ClusterError as error:
        raise StorageTrouble(str(error)) from None


def plan(data: Path, survivor: Survivor, membership: Membership, now_ms: int) -> Iterator[str]:
    """Say what is there, what becomes of it and what that costs, line by line."""
    mine, state = survivor.identity, survivor.replica.machine.state  # type: ignore[attr-defined]
    yield f"{data}: node {mine.node_id} of cluster {mine.cluster_name!r} ({survivor.cluster_id or 'never founded'})"
    yield (
        f"  holds {len(state.jobs):,} jobs in {len(state.queues):,} queues after entry {survivor.last_index:,}, of which at "
        f"least {survivor.committed:,} are known to be committed"
    )
    if not mine.whole:
        yield "  THIS NODE HAD LOST ITS DISK, OR A PART OF IT, and had not caught up: another node's folder may hold more"
    if survivor.lacks:
        yield f"  A PART OF WHAT IT HELD IS MISSING: {survivor.lacks}"
    others = sorted(set(survivor.members) - {mine.node_id})
    if others:
        yield f"  the others of the old cluster were {', '.join(others)}"
    ran_away = " (it had run away)" if survivor.term >= RUN_AWAY else ""
    yield f"becomes a new cluster with an id of its own; its term begins anew, and was {survivor.term}{ran_away}"
    ahead_s = (survivor.now_ms - now_ms) / 1000
    if ahead_s > 0:
        yield (
            f"  its clock, {ahead_s:,.0f} s ahead of this machine's, is set back to {shown(now_ms)}; delays, locks and the like "
            "last as long from now on as they would have"
        )
    for node, seat in sorted(membership.seats.items()):
        rest = "votes" if seat.voter else "learns; start it with an empty folder, then `quorumq members promote` it"
        yield f"  {node} at {seat.address} {rest}"
    yield from PRICE


def shown(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def undo(data: Path) -> None:
    """Take back what an earlier attempt had begun. Raises StorageTrouble."""
    try:
        refounding.undo(data)
    except OSError as error:
        raise StorageTrouble(f"{data}: what an earlier attempt had begun cannot be undone: {error}") from None


def make(data: Path, survivor: Survivor, membership: Membership, now_ms: int) -> Path:
    """Make the new cluster's first folder; return where the old files are now. Raises StorageTrouble."""
    aside = f"before-recover-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    try:
        refounding.found(survivor, data, membership, now_ms, rewound, aside)
    except (ClusterError, OSError) as error:
        raise StorageTrouble(f"{data}: {error}; everything is as it was") from None
    return data / aside
