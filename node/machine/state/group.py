"""A group of a queue: jobs that are worked on one at a time, or as its settings say. What opens it again with time: group_limits.py."""

from __future__ import annotations

import msgspec

from quorumq.node.machine.state.limits import UNLIMITED, Window
from quorumq.node.machine.state.ranked import Ranked


class GroupSettings(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an operator can set on a group. concurrency: its jobs that may be active at once.

    rate: its jobs that may start in a window; from feature level 1 on.
    """

    concurrency: int = 1
    paused: bool = False
    rate: Window | None = None

    @property
    def limit(self) -> int:
        return 0 if self.paused else self.concurrency

    @property
    def is_shut(self) -> bool:
        """Whether a limit of none lets no job of it start, whatever ends."""
        return self.concurrency <= 0 or (self.rate is not None and self.rate.max <= 0)

    def over(self, usual: GroupSettings) -> GroupSettings:
        """Return what holds for a group that has this of its own, where groups of its queue usually have the other."""
        if usual is USUAL:
            return self
        return GroupSettings(
            usual.concurrency if self.concurrency == USUAL.concurrency else self.concurrency,
            self.paused,
            usual.rate if self.rate is None else self.rate,
        )

    def left(self, use: GroupUse | None) -> int:
        """Return how many jobs of the group may start before time brings more."""
        if use is not None and use.held_until:
            return 0
        if self.rate is None:
            return UNLIMITED
        return self.rate.max if use is None else max(self.rate.max - use.started, 0)


USUAL = GroupSettings()


class GroupUse(msgspec.Struct, gc=False, omit_defaults=True):
    """What holds a group back at present. Times in milliseconds since the epoch.

    started: jobs that started in the window under way, 0 when there is none.  window_at: its begin.  held_until: nothing starts
    before; 0 when nothing is held.  look_at: when the first of the two ends.
    """

    window_at: int = 0
    started: int = 0
    held_until: int = 0
    look_at: int = 0

    def window_ends(self, settings: GroupSettings) -> int:
        """Return when the window under way ends; 0 when there is none."""
        return self.window_at + settings.rate.duration_ms if self.started and settings.rate is not None else 0


class Group:
    """The jobs of one queue with the same group id: at most `limit` of them are worked on at once.

    heads: waiting jobs of the group that stand in the queue's ready index.  parked: the others that wait, in order.
    The heads are always those of the lowest ranks, and as many as may start.  left: how many its rate limit lets start
    before time brings more.
    """

    __slots__ = ("active", "heads", "left", "limit", "parked")

    def __init__(self, limit: int = 1, left: int = UNLIMITED) -> None:
        self.limit = limit
        self.left = left
        self.active = 0
        self.heads = Ranked()
        self.parked = Ranked()

    @property
    def room(self) -> int:
        """How many more heads there may be."""
        return min(self.limit - self.active, self.left) - len(self.heads)
