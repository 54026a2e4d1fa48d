"""What each listener serves, and under which prefix. Every server has dialects of its own."""

from __future__ import annotations

from .dashboard import Pages
from .dialects.admin import Admin
from .dialects.bullmq.backend.socket import BullmqBackend
from .dialects.bullmq.dialect import Bullmq
from .dialects.bunqueue.dialect import Bunqueue, Events, Probes
from .dialects.openarchiver import OpenArchiver
from .router import Dialect

Mounts = list[tuple[Dialect, str]]


def main_dialects() -> Mounts:
    """Return what HTTP_PORT serves; the first is whose words answer what no other is asked for."""
    mounts: Mounts = [
        (Bunqueue(), ""),
        (Events(), ""),
        (Admin(), "/admin"),
        (Bullmq(), "/bullmq"),
        (BullmqBackend(), "/bullmq"),
        (OpenArchiver(), "/v1/jobs"),
    ]
    mounts.insert(3, (Pages(mounts, front=True), ""))
    return mounts


def bullmq_dialects() -> Mounts:
    """Return what BULLMQ_PORT serves."""
    mounts: Mounts = [
        (Bullmq(), ""),
        (BullmqBackend(), ""),
        (BullmqBackend(), "/bullmq"),
        (Probes(), ""),
        (OpenArchiver(), "/v1/jobs"),
    ]
    mounts.insert(4, (Pages(mounts, front=False), ""))
    return mounts
