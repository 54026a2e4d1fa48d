"""What a node gets from the machine it runs on: disks, links, clocks and chance.

Everything that is not decided inside cluster/ comes from here, so that the simulation can replace all of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from quorumq.cluster import discovery, snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.disk import Disk, make_private
from quorumq.cluster.handshake import LinkListener
from quorumq.cluster.links import Links

log = logging.getLogger("quorumq.cluster")


_OWNED = re.compile(
    r"((identity\.json|held)(\.tmp)?|process\.(json|part)|lock|log|snapshots|recovering|before-recover-.*|lost\+found)\Z"
).match


class NodeEnvironment:
    """The real ones. The simulation gives a node disks, links and clocks of its own."""

    tick_s = 0.02
    slice_s = 0.005
    """How long work that can be done in steps may take at once; 0: one step."""

    def pause_s(self) -> float:
        """How long such work then waits."""
        return 0.001

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that everything runs on."""
        return asyncio.get_running_loop()

    def disk(self, directory: Path) -> Disk:
        """Files below `directory`."""
        return Disk(directory)

    def make_private(self, directory: Path) -> None:
        """Let nobody else read a data directory; says loudly what stays open."""
        for part in (directory / "log", directory / "snapshots", directory):
            if trouble := make_private(part, _OWNED if part == directory else lambda name: True):
                log.warning("%s", trouble)

    def lock(self, directory: Path) -> int | None:
        """Take the directory for this process alone; returns a handle to close. Raises OSError when another has it."""
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise OSError(f"{directory} is in use by another process") from None
        return handle

    def links(self, config: ClusterConfig, listener: LinkListener) -> Links:
        """Connections to the peers."""
        return Links(config, listener)

    def snapshot_writer(self) -> snapshots.SnapshotWriter:
        """Writes snapshots beside the event loop."""
        return snapshots.Forked()

    async def resolve(self, names: Iterable[str]) -> list[str]:
        """The `host:port` of all addresses that `names` stand for."""
        return await discovery.resolve(names)

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        return time.time_ns() // 1_000_000

    def asleep_s(self) -> float:
        """Seconds for which the machine has been suspended so far: they are not in the monotonic clock. 0 where nobody counts them."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        if boottime is None:
            return 0.0
        return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def random_bits(self, bits: int) -> int:
        """A number that nobody can guess."""
        return secrets.randbits(bits)
