"""Rate limits and holds of groups: how many jobs of a group have started in its window, and until when it gives out none.

A group that may start no job for now has none among the ready ones of its queue, so every way of taking jobs keeps to it. What opens
it again is time: each group in use has one timer, which the clock of the log fires (`lifecycle/clock.py`). Whether a window is under way
is what the record says, not the clock: so it is the same in a state that was restored from an image.
"""

from __future__ import annotations

from sortedcontainers import SortedList

from quorumq.node.machine.state.group import GroupUse
from quorumq.node.machine.state.queue import Queue

# Timers of groups that one entry fires; the others fire with the next.
FIRED_MAX = 2_000


class GroupLimits:
    """The timers of all groups that are held or have a window under way; the records are with their queues (`Queue.group_uses`)."""

    __slots__ = ("_timers",)

    def __init__(self) -> None:
        # (time, queue, group)
        self._timers: SortedList = SortedList()

    def next_due(self) -> int | None:
        """Return when the first timer fires; None without one."""
        return self._timers[0][0] if self._timers else None

    def count_starts(self, queue: Queue, group_id: str, count: int, now_ms: int) -> None:
        """Count jobs of a group with a rate limit that start; a negative count takes starts back that were none."""
        use = queue.group_uses.get(group_id)
        if use is None:
            use = queue.group_uses[group_id] = GroupUse()
        if not use.started:
            use.window_at = now_ms
        use.started = max(use.started + count, 0)
        self._arm(queue, group_id, use)

    def hold(self, queue: Queue, group_id: str, until_ms: int) -> None:
        """Let no job of a group start before a time, in the place of an earlier hold; 0 takes that away."""
        use = queue.group_uses.get(group_id)
        if use is None:
            use = queue.group_uses[group_id] = GroupUse()
        use.held_until = until_ms
        self._arm(queue, group_id, use)

    def end_window(self, queue: Queue, group_id: str) -> None:
        """Forget what started in a group's window."""
        use = queue.group_uses.get(group_id)
        if use is not None:
            use.started = 0
            self._arm(queue, group_id, use)

    def fire_due(self, queues: dict[str, Queue], now_ms: int) -> list[tuple[Queue, str]]:
        """End what is over, at most FIRED_MAX of it, the oldest first. Returns the groups that this concerns."""
        fired: list[tuple[Queue, str]] = []
        while self._timers and self._timers[0][0] <= now_ms and len(fired) < FIRED_MAX:
            _, name, group_id = self._timers[0]
            queue = queues[name]
            use = queue.group_uses[group_id]
            if 0 < use.held_until <= now_ms:
                use.held_until = 0
            if use.started and use.window_ends(queue.settings_of(group_id)) <= now_ms:
                use.started = 0
            self._arm(queue, group_id, use)
            fired.append((queue, group_id))
        return fired

    def forget(self, queue: Queue) -> None:
        """Take away the timers of a queue that is no more."""
        for group_id, use in queue.group_uses.items():
            self._timers.remove((use.look_at, queue.name, group_id))

    def restore(self, queue: Queue) -> None:
        """Set the timers of a queue that comes from an image."""
        self._timers.update((use.look_at, queue.name, group_id) for group_id, use in queue.group_uses.items())

    def timers(self) -> list[tuple[int, str, str]]:
        """Return all of them in order: time, queue, group."""
        return list(self._timers)

    def _arm(self, queue: Queue, group_id: str, use: GroupUse) -> None:
        """Set the timer for what ends first; forget a group that nothing holds back."""
        window_ends = use.window_ends(queue.settings_of(group_id))
        look_at = min(filter(None, (use.held_until, window_ends)), default=0)
        if look_at != use.look_at:
            if use.look_at:
                self._timers.remove((use.look_at, queue.name, group_id))
            if look_at:
                self._timers.add((look_at, queue.name, group_id))
            use.look_at = look_at
        if not look_at:
            del queue.group_uses[group_id]
