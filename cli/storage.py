"""What can be done with a node's files: check them, take a backup of a cluster, make data directories from one.

The formats are cluster/'s; here is what is asked, where it is written and what is said.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from quorumq.api.settings.values import NODE_ID
from quorumq.cli import admin
from quorumq.cluster import backup, held, identity, log, messages, replica, snapshots
from quorumq.cluster.disk import Disk, private_file
from quorumq.cluster.errors import ClusterError, LogDamaged
from quorumq.cluster.identity import Identity
from quorumq.cluster.log import Log
from quorumq.cluster.snapshots import Head
from quorumq.cluster.version import VERSION
from quorumq.node.machine.levels import KNOWN
from quorumq.node.rewinding import rewound

READ_BYTES = 1 << 20
DATE_MAX_MS = 1 << 48
TIMEOUT_S = 120.0


class StorageTrouble(Exception):
    """A file is damaged, or something is not where it should be; says which, where and why."""


def verify(directory: Path) -> Iterator[str]:
    """Read everything in a node's data directory; yield what it holds, line by line.

    Raises StorageTrouble at damage, and when something is missing that it has held.
    """
    parts = [directory / "log", directory / "snapshots"]
    if not any(part.is_dir() for part in parts) and not (directory / identity.FILE).is_file():
        raise StorageTrouble(f"{directory} holds no identity, log or snapshots: it is not a node's data directory")
    owner: Identity | None = None
    try:
        owner = identity.read(Disk(directory))
    except FileNotFoundError:
        pass
    except LogDamaged as error:
        raise StorageTrouble(f"{directory}: {error}") from None
    yield from describe_owner(owner)
    newest, ids = yield from verify_snapshots(Disk(parts[1]) if parts[1].is_dir() else None)
    journal = yield from verify_log(Disk(parts[0]) if parts[0].is_dir() else None)
    commands = (messages.replicated(entry[0]) for entry in journal.entries_from(journal.base_index + 1, None, None))
    named = (replica.cluster_named_by(command) for command in commands if command is not None)
    # The first name is the one that counts, as it is when they are applied.
    ids.add(next(filter(None, named), ""))
    if owner is not None and owner.cluster_id and (others := sorted(ids - {"", owner.cluster_id})):
        raise StorageTrouble(
            f"{directory}: {identity.FILE} is of cluster {owner.cluster_id}, and what lies beside it of cluster {', '.join(others)}"
        )
    lost = journal.doubt
    if owner is not None:
        lost = held.lacking(Disk(directory), owner, journal, newest, alone=owner.noted) or lost
    if lost:
        raise StorageTrouble(
            f"{directory}: {lost}; a start puts the node on probation, until it has got what is missing from the others"
        )


def describe_owner(owner: Identity | None) -> Iterator[str]:
    if owner is None:
        yield "no identity: a start begins as a node that is new or was wiped"
        return
    cluster = (
        f"cluster {owner.cluster_id} ({owner.cluster_name})"
        if owner.cluster_id
        else f"no cluster yet ({owner.cluster_name})"
    )
    state = "whole" if owner.whole else "on probation: its vote and its word count for nothing until it has caught up"
    yield f"identity: node {owner.node_id} of {cluster}, {state}"


def verify_snapshots(disk: Disk | None) -> Generator[str, None, tuple[int, set[str]]]:
    """Yield a line for each; returns the index of the newest, 0 without any, and the ids of the clusters that they are of."""
    names = [] if disk is None else snapshots.newest(disk)
    newest, ids = 0, set[str]()
    for name in names:
        assert disk is not None
        try:
            head = snapshots.verify(disk, name)
        except LogDamaged as error:
            raise StorageTrouble(f"{disk.directory}: {error}") from None
        newest = max(newest, head.index)
        level = level_of(head)
        ids.add(replica.cluster_of(head.replica))
        if level > KNOWN:
            raise StorageTrouble(f"{disk.directory}: {name} {too_new(level)}")
        at = f"the state after entry {head.index:,} of term {head.term}, at feature level {level}"
        yield f"{name}: sound, {disk.size(name):,} bytes, {at}"
    if not names:
        yield "no snapshots"
    return newest, ids


def level_of(head: Head) -> int:
    try:
        return replica.level_of(head.replica)
    except msgspec.MsgspecError as error:
        raise StorageTrouble(f"the head of the snapshot cannot be read: {error}") from None


def too_new(level: int) -> str:
    return f"is of feature level {level}, and version {VERSION} knows levels up to {KNOWN}: use a newer version"


def verify_log(disk: Disk | None) -> Generator[str, None, Log]:
    """Yield what it holds; returns it."""
    try:
        journal = log.read_only(disk)
    except LogDamaged as error:
        raise StorageTrouble(f"{disk.directory if disk else ''}: {error}") from None
    found = log.describe(journal)
    first, last = found["first_index"], found["last_index"]
    entries = f"entries {first:,} to {last:,}" if last >= first else f"no entries after {last:,}"
    yield f"log: {'IN DOUBT' if journal.doubt else 'sound'}, {found['segments']} segments, {entries}, last of term {found['last_term']}"
    if found["format"] > 1:
        yield f"written at feature level {found['format'] - 1} or above: versions before 0.2.0 cannot read it"
    yield f"promised: term {found['term']}, vote {found['voted_for'] or 'for nobody'}, at least {found['commit_index']:,} committed"
    if found["unfinished_bytes"]:
        what = "that cannot be read" if journal.doubt else "of an unfinished write"
        yield f"{found['unfinished_bytes']:,} bytes {what} at the end, which the next start cuts off"
    return journal


def take_backup(url: str, output: Path, token: str | None, *, stale: bool = False, ca: Path | None = None) -> Head:
    """Fetch an image of the state from a running node and check it. Raises StorageTrouble; then `output` is as it was.

    stale: of that node's own copy, without asking the others, so that it also works when they are gone.  ca: of the authority that
    signed the node's certificate, instead of what the system trusts.
    """
    try:
        url = admin.checked(url)
        opener = admin.opener(admin.trust(ca))
    except admin.NoAnswer as error:
        raise StorageTrouble(str(error)) from None
    path = "/admin/backup?consistency=stale" if stale else "/admin/backup"
    request = urllib.request.Request(url.rstrip("/") + path)  # noqa: S310 - the caller's own address
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    unchecked = output.with_name(f".{output.name}.part")
    try:
        with opener.open(request, timeout=TIMEOUT_S) as reply, private_file(unchecked) as file:
            while piece := reply.read(READ_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        head = snapshots.verify(Disk(output.parent), unchecked.name)
        unchecked.replace(output)
        Disk(output.parent).sync_directory()
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode("utf-8", "replace")
        hint = "" if stale or error.code != 503 else " (if a majority is lost for good: --stale)"
        raise StorageTrouble(f"{url} answered {error.code}: {said}{hint}") from None
    except LogDamaged:
        raise StorageTrouble(f"what {url} sent is not whole: the connection ended, or it is not a node") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # An error of a file names it, one of a connection does not.
        where = f" in {output}" if getattr(error, "filename", None) else ""
        raise StorageTrouble(f"no backup from {url}{where}: {admin.why(error)}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    return head


def shown(at_ms: int) -> str:
    """A time as an ISO date, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def moment(text: str) -> int:
    """Read a time: milliseconds since the epoch, or an ISO date, UTC where it names no zone. Raises StorageTrouble."""
    try:
        if text.isdecimal():
            at_ms = int(text)
        else:
            at = datetime.fromisoformat(text)
            at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        at_ms = 0
    if not 0 < at_ms < DATE_MAX_MS:
        raise StorageTrouble(f"{text!r} is not a time: 2026-01-31T12:00:00Z, or milliseconds since the epoch")
    return at_ms


def restore(
    source: Path, data: Path, node_id: str, cluster_name: str, at: str | None = None
) -> tuple[Head, int | None]:
    """Make a node's data directory from a backup. Raises StorageTrouble.

    at: the time at which the cluster is to begin, as `moment` reads it. Returns what the data begins with, and the time in
    milliseconds to which it was moved back, or None.
    """
    if not NODE_ID.fullmatch(node_id):
        # No node could use the directory: it belongs to this id for good.
        raise StorageTrouble(f"{node_id!r} is not a node id: letters, digits, '.', '_' and '-', at most 63")
    try:
        if (
            source.is_file()
            and (level := level_of(snapshots.SnapshotReader(Disk(source.parent), source.name).head)) > KNOWN
        ):
            raise StorageTrouble(f"{source} {too_new(level)}")
        at_ms = backup.begins_at(source, time.time_ns() // 1_000_000, None if at is None else moment(at))
        head = backup.restore(source, data, node_id, cluster_name, at_ms=at_ms, rewind=rewound)
        return head, at_ms
    except (ClusterError, OSError) as error:
        raise StorageTrouble(str(error)) from None
