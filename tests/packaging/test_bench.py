"""How the bench compares: what was measured side by side, and nothing else."""

from __future__ import annotations

from scripts.tools.bench_snapshots import Pair, Window, pairs


def test_a_stretch_with_a_snapshot_is_compared_with_the_quiet_ones_around_it() -> None:
    said = [(100, True), (200, False), (220, False), (1, None), (190, True), (170, True), (240, False), (90, True)]
    assert pairs([Window(rate, writing) for rate, writing in said]) == [Pair(220, 180)]
    assert Pair(200, 190).ratio == 0.95
    assert pairs([Window(1, True), Window(2, False), Window(3, True)]) == []
