"""Figures in the text format that Prometheus scrapes, and the histograms that the edge itself keeps.

What is counted and what it is called is said by whoever writes a page of figures; here is only how it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["gauge", "counter", "histogram"]
Labels = Mapping[str, str]
NO_LABELS: Labels = {}


class DurationHistogram:
    """Counts of durations in buckets that double, so that finding a bucket is one instruction.

    Bucket n holds durations of less than 2 to the nth microseconds, down to half of that.
    """

    __slots__ = ("counts", "micros")

    def __init__(self) -> None:
        # The last bucket holds what takes longer than half an hour.
        self.counts = [0] * 32
        self.micros = 0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        micros = int(seconds * 1_000_000)
        self.micros += micros
        self.counts[min(micros.bit_length(), 31)] += 1

    def average_ms(self) -> float:
        """Return how long the durations took on average, in milliseconds; 0 without any."""
        count = sum(self.counts)
        return self.micros / count / 1000 if count else 0.0

    def percentile_ms(self, share: float) -> float:
        """Return within how many milliseconds a share of the durations were over, at most: the end of a bucket."""
        count = sum(self.counts)
        below = 0
        for bucket, held in enumerate(self.counts):
            below += held
            if held and below >= share * count:
                return float(2**bucket) / 1000
        return 0.0


class MetricsPage:
    """A page of figures in the making."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def write(self, name: str, kind: Kind, text: str, values: Iterable[tuple[Labels, float]]) -> None:
        """Write one figure with a value for each set of labels."""
        self._open(name, kind, text)
        self._lines += [f"{name}{labelled(labels)} {number(value)}" for labels, value in values]
        self._lines.append("")

    def gauge(self, name: str, text: str, value: float) -> None:
        self.write(name, "gauge", text, [(NO_LABELS, value)])

    def counter(self, name: str, text: str, value: float) -> None:
        self.write(name, "counter", text, [(NO_LABELS, value)])

    def histogram(self, name: str, text: str, found: DurationHistogram, *, first: int = 6, last: int = 24) -> None:
        """Write a histogram in seconds, with the buckets from number `first` to number `last`."""
        self._open(name, "histogram", text)
        below = 0
        for bucket, count in enumerate(found.counts):
            below += count
            if first <= bucket <= last:
                self._lines.append(f'{name}_bucket{{le="{number(2**bucket / 1_000_000)}"}} {below}')
        self._lines.append(f'{name}_bucket{{le="+Inf"}} {below}')
        self._lines.append(f"{name}_sum {number(found.micros / 1_000_000)}")
        self._lines.append(f"{name}_count {below}")
        self._lines.append("")

    def buckets(self, name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> None:
        """Write a histogram that somebody else keeps. counts: one for each bound, and one for what is beyond all of them."""
        self._open(name, "histogram", text)
        below = 0
        for bound, count in zip([*map(number, bounds), "+Inf"], counts, strict=True):
            below += count
            self._lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        self._lines.append(f"{name}_sum {number(total)}")
        self._lines.append(f"{name}_count {below}")
        self._lines.append("")

    def series(
        self, name: str, text: str, bounds: Sequence[float], found: Iterable[tuple[Labels, Sequence[int], float]]
    ) -> None:
        """Write one histogram for each set of labels: counts up to each bound (all of them last), and the sum."""
        self._open(name, "histogram", text)
        written = [*map(number, bounds), "+Inf"]
        for labels, below, total in found:
            shown = labelled(labels)
            self._lines += [
                f"{name}_bucket{labelled({**labels, 'le': bound})} {count}"
                for bound, count in zip(written, below, strict=True)
            ]
            self._lines.append(f"{name}_sum{shown} {number(total)}")
            self._lines.append(f"{name}_count{shown} {below[-1]}")
        self._lines.append("")

    def _open(self, name: str, kind: Kind, text: str) -> None:
        self._lines.append(f"# HELP {name} {text}")
        self._lines.append(f"# TYPE {name} {kind}")

    def text(self) -> bytes:
        return "\n".join(self._lines).encode("utf-8", "replace")


def labelled(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """Write a number, whole ones without a fraction."""
    whole = int(value)
    return str(whole) if whole == value else repr(value)
