"""What can be done with a node's files: check them, take a backup of a cluster, make data directories from one.

The formats are cluster/'s; here is what is asked, where it is written and what is said.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cli import admin
from cluster import backup, log, snapshots
from cluster.disk import Disk
from cluster.errors import ClusterError, LogDamaged
from cluster.snapshots import Head
from node.config import NODE_ID

READ_BYTES = 1 << 20
TIMEOUT_S = 120.0


class StorageTrouble(Exception):
    """A file is damaged, or something is not where it should be; says which, where and why."""


def verify(directory: Path) -> Iterator[str]:
    """Read everything in a node's data directory; yield what it holds, line by line. Raises StorageTrouble at damage."""
    parts = [directory / "log", directory / "snapshots"]
    if not any(part.is_dir() for part in parts):
        raise StorageTrouble(f"{directory} holds neither a log nor snapshots: it is not a node's data directory")
    if parts[1].is_dir():
        yield from verify_snapshots(Disk(parts[1]))
    if parts[0].is_dir():
        yield from verify_log(Disk(parts[0]))


def verify_snapshots(disk: Disk) -> Iterator[str]:
    names = snapshots.newest(disk)
    for name in names:
        try:
            head = snapshots.verify(disk, name)
        except LogDamaged as error:
            raise StorageTrouble(f"{disk.directory}: {error}") from None
        yield f"{name}: sound, {disk.size(name):,} bytes, the state after entry {head.index:,} of term {head.term}"
    if not names:
        yield "no snapshots"


def verify_log(disk: Disk) -> Iterator[str]:
    try:
        held = log.describe(disk)
    except LogDamaged as error:
        raise StorageTrouble(f"{disk.directory}: {error}") from None
    first, last = held["first_index"], held["last_index"]
    entries = f"entries {first:,} to {last:,}" if last >= first else f"no entries after {last:,}"
    yield f"log: sound, {held['segments']} segments, {entries}, last of term {held['last_term']}"
    yield f"promised: term {held['term']}, vote {held['voted_for'] or 'for nobody'}, at least {held['commit_index']:,} committed"
    if held["unfinished_bytes"]:
        yield f"{held['unfinished_bytes']:,} bytes of an unfinished write at the end, which the next start cuts off"


def take_backup(url: str, output: Path, token: str | None) -> Head:
    """Fetch an image of the state from a running node and check it. Raises StorageTrouble; then `output` is as it was."""
    try:
        url = admin.checked(url)
    except admin.NoAnswer as error:
        raise StorageTrouble(str(error)) from None
    request = urllib.request.Request(url.rstrip("/") + "/admin/backup")  # noqa: S310 - the caller's own address
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    unchecked = output.with_name(f".{output.name}.part")
    try:
        with opener.open(request, timeout=TIMEOUT_S) as reply, unchecked.open("wb") as file:
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
        raise StorageTrouble(f"{url} answered {error.code}: {said}") from None
    except LogDamaged:
        raise StorageTrouble(f"what {url} sent is not whole: the connection ended, or it is not a node") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # An error of a file names it, one of a connection does not.
        where = f" in {output}" if getattr(error, "filename", None) else ""
        raise StorageTrouble(f"no backup from {url}{where}: {admin.why(error)}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    return head


def restore(source: Path, data: Path, node_id: str, cluster_name: str) -> Head:
    """Make a node's data directory from a backup. Raises StorageTrouble."""
    if not NODE_ID.fullmatch(node_id):
        # No node could use the directory: it belongs to this id for good.
        raise StorageTrouble(f"{node_id!r} is not a node id: letters, digits, '.', '_' and '-', at most 63")
    try:
        return backup.restore(source, data, node_id, cluster_name)
    except (ClusterError, OSError) as error:
        raise StorageTrouble(str(error)) from None
