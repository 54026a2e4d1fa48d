"""What PySyncObj looks up in its own module when it is constructed, and what it finds there: no files, no threads, no pickle, our clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as engine_module
from pysyncobj.config import SERIALIZER_STATE
from pysyncobj.node import Node

from quorumq.cluster import codec


class Clock:
    """Monotonic seconds. One for the process, as the engine reads time through a name of its module."""

    now: Callable[[], float] = time.monotonic


class Peer(str, Node):  # type: ignore[misc]
    """A member as the engine knows it, equal where its id is: the engine's own class compares in Python at every look into a table."""

    __hash__ = str.__hash__
    __eq__ = str.__eq__
    __ne__ = str.__ne__

    def __init__(self, node: str) -> None:
        self.__dict__["_id"] = node


class _NoSerializer:
    """Takes the place of the engine's snapshot writer: snapshots are made and sent by cluster/snapshots.py.

    The engine asks it for data when a follower needs entries that the log no longer holds; the wish is passed on.
    """

    def __init__(self, *unused: Any) -> None:
        self.wanted: Callable[[str], None] = lambda peer: None

    def checkSerializing(self) -> tuple[int, None]:
        return SERIALIZER_STATE.NOT_SERIALIZING, None

    def getTransmissionData(self, node: Node) -> None:
        self.wanted(node.id)

    def cancelTransmisstion(self, node: Node) -> None:
        pass


class _NoPoller:
    """The event loop polls; the engine does not."""

    def poll(self, timeout: float) -> None:
        pass


def _not_false_alarm(record: logging.LogRecord) -> bool:
    # The engine says so for every message that ends before the log does; nothing is truncated then, see below.
    return not str(record.msg).startswith("truncating already-applied log entries")


logging.getLogger("pysyncobj.syncobj").addFilter(_not_false_alarm)

# The seams that the engine looks up in its own module when it is constructed.
engine_module.createJournal = lambda journal: journal
engine_module.Serializer = _NoSerializer
engine_module.pickle = codec
engine_module.PIPE_NOTIFIER_ENABLED = False
engine_module.createPoller = lambda kind: _NoPoller()
engine_module.monotonicTime = lambda: Clock.now()
