"""How the bench compares: what was measured side by side, and nothing else; and its trees, which are as large as they may be."""

from __future__ import annotations

import json

from quorumq.api.dialects.bunqueue.flows import FLOW, planned
from quorumq.node.machine.lifecycle.flows import JOBS_MAX
from scripts.tools.bench_snapshots import Pair, Window, pairs
from scripts.tools.bench_trees import bullmq_tree, bunqueue_tree


def test_a_stretch_with_a_snapshot_is_compared_with_the_quiet_ones_around_it() -> None:
    said = [(100, True), (200, False), (220, False), (1, None), (190, True), (170, True), (240, False), (90, True)]
    assert pairs([Window(rate, writing) for rate, writing in said]) == [Pair(220, 180)]
    assert Pair(200, 190).ratio == 0.95
    assert pairs([Window(1, True), Window(2, False), Window(3, True)]) == []


def test_its_trees_are_as_large_as_they_may_be() -> None:
    nodes = FLOW.decode(json.dumps(bunqueue_tree("tree"))).jobs
    assert nodes is not None
    assert len(planned(nodes).jobs) == JOBS_MAX
    assert len(bullmq_tree("tree")["children"]) == JOBS_MAX - 1
