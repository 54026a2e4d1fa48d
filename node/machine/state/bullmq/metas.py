"""Fields that BullMQ's clients keep with a queue: texts by name, some of which are settings that act at once.

`paused`, `concurrency`, `max` and `duration` are settings of the queue, whoever sets them; here lies what is no setting: other fields, and
those of them that say nothing by themselves (`max` without `duration`) or no number. `opts.maxLenEvents` bounds the queue's events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from quorumq.node.machine.state.bullmq.streams import EVENTS_MAX
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.queue import QueueSettings

FIELDS_MAX = 256
FIELDS_BYTES_MAX = 64 << 10
"""Of one queue: names and texts."""
BYTES_MAX = 64 << 20
"""Of all queues."""
FIELD_BYTES = 150
"""What a field weighs beside its name and text."""
MAX_LEN_EVENTS = "opts.maxLenEvents"
_DIGITS_MAX = 15

Fields = dict[str, str]


class Split(NamedTuple):
    """Fields of a queue by what they are: settings, how many events are kept, and the rest."""

    paused: bool
    concurrency: int | None
    window: Window | None
    events_max: int
    rest: Fields


class Metas:
    """The fields of all queues that are no settings. size: by weight."""

    __slots__ = ("by_queue", "size")

    def __init__(self) -> None:
        self.by_queue: dict[str, Fields] = {}
        self.size = 0

    def shown(self, queue: str, settings: QueueSettings | None) -> Fields:
        """Return all fields of a queue as clients see them, in order of their names."""
        fields = dict(self.by_queue.get(queue, ()))
        if settings is not None:
            if settings.paused:
                fields["paused"] = "1"
            if settings.concurrency is not None:
                fields["concurrency"] = str(settings.concurrency)
            if settings.window is not None:
                fields["max"] = str(settings.window.max)
                fields["duration"] = str(settings.window.duration_ms)
        return dict(sorted(fields.items()))

    def put(self, queue: str, fields: Fields) -> None:
        """Keep these fields of a queue, and no others."""
        self.forget(queue)
        if fields:
            self.by_queue[queue] = fields
            self.size += weight_of(fields)

    def forget(self, queue: str) -> None:
        """Let all fields of a queue go."""
        fields = self.by_queue.pop(queue, None)
        if fields is not None:
            self.size -= weight_of(fields)

    def has_room(self, queue: str, fields: Fields) -> bool:
        """Whether these may be the fields of a queue."""
        if len(fields) > FIELDS_MAX or weight_of(fields) > FIELDS_BYTES_MAX + FIELD_BYTES * FIELDS_MAX:
            return False
        return self.size - weight_of(self.by_queue.get(queue, {})) + weight_of(fields) <= BYTES_MAX

    def restore(self, metas: Iterable[tuple[str, Fields]]) -> None:
        """Add fields from an image, in its order."""
        for queue, fields in metas:
            self.put(queue, fields)


def split(fields: Fields) -> Split:
    """Tell settings from the rest of a queue's fields."""
    rest = dict(fields)
    paused = rest.pop("paused", None) is not None
    concurrency = _number(rest.get("concurrency"))
    if concurrency is not None:
        del rest["concurrency"]
    most, duration_ms = _number(rest.get("max")), _number(rest.get("duration"))
    window = None
    if most is not None and duration_ms:
        window = Window(most, duration_ms)
        del rest["max"], rest["duration"]
    events_max = _number(rest.get(MAX_LEN_EVENTS))
    return Split(paused, concurrency, window, EVENTS_MAX if events_max is None else events_max, rest)


def weight_of(fields: Fields) -> int:
    """Return the bytes that fields count for."""
    return sum(FIELD_BYTES + len(name) + len(text) for name, text in fields.items())


def _number(text: str | None) -> int | None:
    if text is None or len(text) > _DIGITS_MAX or not (text.isascii() and text.isdigit()):
        return None
    return int(text)
