"""How room is shared where there is too little of it: whoever has less than a share keeps all, and nobody keeps more than one."""

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
