"""How far the digests of the state have come: replicated, so that every node looks at the same part after the same entry.

What they are made of is the affair of `node.contents` and of the machine.
"""

from __future__ import annotations

import msgspec

EMPTY = bytes(16)


class Place(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where reading the state goes on. after: a rank or a position, as text because ranks have more than 64 bits."""

    part: int = 0
    number: int = 0
    stage: int = 0
    after: str = ""


START = Place()


class Digests(msgspec.Struct, gc=False):
    """The round under way.

    shape: of the records that its digests are made of (`contents.shape`).  began_ms: log time of its begin.
    contents: of all that was read in it.  read_ms: log time of the last step.  entries: applied since that.
    place: where the next step goes on.
    """

    shape: bytes = b""
    began_ms: int = 0
    contents: bytes = EMPTY
    read_ms: int = 0
    entries: int = 0
    place: Place = START
