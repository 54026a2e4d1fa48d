"""Charts of a run as SVG text: lines, bars and bands over one axis of time. Colours are the page's (page.py), as classes.

Times in seconds since the run began. A chart is as wide as the page lets it be, and no narrower than can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LEFT, RIGHT = 1000, 84, 12
PLOT = WIDTH - LEFT - RIGHT


class Axis(NamedTuple):
    """Time from left to right. marks: moments with a line through every chart, each with its class and its title."""

    seconds: float
    marks: Sequence[tuple[float, str, str]] = ()

    def x(self, at: float) -> float:
        return LEFT + PLOT * min(max(at / self.seconds, 0.0), 1.0)


class Bar(NamedTuple):
    """A piece of a band."""

    start: float
    end: float
    style: str
    title: str


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 to `most`, about so many."""
    if most <= 0:
        return [0.0]
    step = 10 ** math.floor(math.log10(most / count))
    step = next(step * each for each in (1, 2, 5, 10) if most / (step * each) <= count)
    return [number * step for number in range(int(most / step) + 1)]


def times(seconds: float) -> list[float]:
    """Where time is written on the axis."""
    step = next((each for each in (5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600) if seconds / each <= 12), 7200)
    return [number * step for number in range(int(seconds / step) + 1)]


def frame(axis: Axis, height: float, inside: Iterable[str], label: str) -> str:
    """A chart of a height with the axis of time below it."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {height + 22:.0f}" role="img" aria-label="{escape(label)}">']
    for at in times(axis.seconds):
        x = axis.x(at)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{clock(at)}</text>')
    for at, style, title in axis.marks:
        x = axis.x(at)
        parts.append(
            f'<line class="mark {style}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"><title>{escape(title)}</title></line>'
        )
    return "".join([*parts, *inside, "</svg>"])


def lines(
    axis: Axis, width_s: float, series: dict[str, Sequence[float | None]], label: str, *, log: bool = False
) -> str:
    """Lines of figures, one a bucket of `width_s`; None is a gap. log: the scale goes by powers of ten, from 1."""
    height = 150.0
    most = max((value for values in series.values() for value in values if value is not None), default=1.0) or 1.0
    most = 10 ** math.ceil(math.log10(max(most, 10))) if log else most * 1.05

    def y(value: float) -> float:
        share = math.log10(max(value, 1)) / math.log10(most) if log else value / most
        return height - (height - 8) * share

    parts = []
    marks = [10.0**power for power in range(round(math.log10(most)) + 1)] if log else ticks(most, 4)
    for value in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    for number, (name, values) in enumerate(series.items()):
        path, pen = [], "M"
        for bucket, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{axis.x((bucket + 0.5) * width_s):.1f},{y(value):.1f}")
            pen = "L"
        parts.append(f'<path class="line s{number}" d="{"".join(path)}"><title>{escape(name)}</title></path>')
    return frame(axis, height, parts, label)


def columns(axis: Axis, width_s: float, series: dict[str, Sequence[int]], label: str) -> str:
    """Columns of counts, one on top of the other."""
    height = 110.0
    sums = [sum(values) for values in zip(*series.values(), strict=True)]
    most = max(sums, default=0) or 1
    parts = []
    for value in ticks(most, 3):
        y = height - (height - 8) * value / most
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    wide = max(PLOT * width_s / axis.seconds - 0.5, 0.8)
    for bucket in range(len(sums)):
        below = 0
        for number, (name, values) in enumerate(series.items()):
            if values[bucket]:
                y = height - (height - 8) * (below + values[bucket]) / most
                tall = (height - 8) * values[bucket] / most
                parts.append(
                    f'<rect class="e{number}" x="{axis.x(bucket * width_s):.1f}" y="{y:.1f}" width="{wide:.1f}" '
                    f'height="{tall:.1f}"><title>{clock(bucket * width_s)}: {values[bucket]} {escape(name)}</title></rect>'
                )
                below += values[bucket]
    return frame(axis, height, parts, label)


def bands(axis: Axis, rows: dict[str, Sequence[Bar]], label: str, *, row_px: float = 20) -> str:
    """A row for each name, with pieces from start to end."""
    parts = []
    for number, (name, bars) in enumerate(rows.items()):
        y = number * row_px
        parts.append(f'<text x="{LEFT - 6}" y="{y + row_px * 0.7:.1f}" text-anchor="end">{escape(name)}</text>')
        for bar in bars:
            x = axis.x(bar.start)
            wide = max(axis.x(bar.end) - x, 1.5)
            parts.append(
                f'<rect class="{bar.style}" x="{x:.1f}" y="{y + 2:.1f}" width="{wide:.1f}" height="{row_px - 4:.1f}" rx="1.5">'
                f"<title>{escape(bar.title)}</title></rect>"
            )
    return frame(axis, max(len(rows), 1) * row_px, parts, label)


def buckets(
    count: int, width_s: float, items: Iterable[tuple[float, float]], fold: Callable[[list[float]], float | None]
) -> list[float | None]:
    """Fold what falls into each bucket: items are moments with a figure."""
    held: list[list[float]] = [[] for _ in range(count)]
    for at, value in items:
        held[min(int(at / width_s), count - 1)].append(value)
    return [fold(values) for values in held]


def quantile(part: float) -> Callable[[list[float]], float | None]:
    """What gives the value below which a part of all lie; None of none."""

    def fold(values: list[float]) -> float | None:
        return sorted(values)[min(int(len(values) * part), len(values) - 1)] if values else None

    return fold
