"""How a bound is shared when it is reached: who holds less than an equal share keeps all of it, and no one keeps more than a share."""

from __future__ import annotations

from collections.abc import Iterable


def share_of(sizes: Iterable[int], room: int) -> int:
    """Return the share with which `sizes` fit into `room`, where each that is larger is cut down to it."""
    rising = sorted(sizes)
    left, share = len(rising), 0
    for size in rising:
        share = room // left
        if size > share:
            break
        room -= size
        left -= 1
    return share
