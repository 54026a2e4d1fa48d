"""Groups once more, as plainly as they can be written: each with its limits, and what it has started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class ModelGroup:
    concurrency: int = 1
    paused: bool = False
    rate: tuple[int, int] | None = None
    window_at: int = 0
    started: int = 0
    held_until: int = 0

    def window_ends(self) -> int:
        return self.window_at + self.rate[1] if self.rate is not None and self.started else 0

    def may_start(self, active: int, now: int) -> bool:
        if self.paused or active >= self.concurrency or now < self.held_until:
            return False
        return self.rate is None or (self.started if now < self.window_ends() else 0) < self.rate[0]

    def count_start(self, now: int) -> None:
        if self.rate is not None:
            if now >= self.window_ends():
                self.window_at, self.started = now, 0
            self.started += 1

    def take_back(self, started_at: int, now: int) -> None:
        if now < self.window_ends() and started_at >= self.window_at:
            self.started -= 1

    def set_rate(self, rate: tuple[int, int] | None) -> bool:
        is_change = rate != self.rate
        self.rate, self.started = rate, 0
        return is_change

    def ends(self, now: int) -> Iterator[int]:
        """When time alone changes something."""
        yield from (at for at in (self.held_until, self.window_ends()) if at > now)


class ModelGroups:
    def __init__(self) -> None:
        self.known: dict[tuple[str, str], ModelGroup] = {}

    def of(self, queue: str, group_id: str) -> ModelGroup:
        return self.known.setdefault((queue, group_id), ModelGroup())

    def forget(self, queue: str) -> None:
        self.known = {key: group for key, group in self.known.items() if key[0] != queue}

    def ends(self, now: int) -> list[int]:
        return [at for group in self.known.values() for at in group.ends(now)]
