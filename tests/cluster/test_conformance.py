"""The recorded cases, replayed against three real nodes: a leader, a follower, all in turn, and while nodes are killed.

The short form of `scripts/conformance`. The cases are not part of this repository: QUORUMQ_CONFORMANCE names their folder, else
one beside it is tried, and without either these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tools.conformance import (
    FOLDER,
    OPEN,
    Access,
    Choose,
    Suite,
    calm,
    closed,
    in_turn,
    killing,
    patient,
    suites_of,
    the_leader,
    the_leader_but,
    unhurried,
)
from scripts.tools.local_cluster import LocalCluster

# Kills come closer together than in the long form, so that a short run has some.
KILL_EVERY_S = 4.0

recorded = pytest.mark.skipif(not (FOLDER / "replay.py").exists(), reason="the recorded cases are not there")


def suites() -> list[Suite]:
    found = suites_of(FOLDER)
    assert sum(len(suite.specs) for suite in found) > 400
    return found


def suites_for_kills() -> list[Suite]:
    """Return those suites whose jobs are not held for half a minute when their node dies."""
    return [suite for suite in suites() if not suite.needs_token]


@recorded
async def test_cases_pass_on_the_leader_a_follower_and_all_in_turn() -> None:
    async with LocalCluster(3) as cluster:
        result = await calm(cluster, suites(), OPEN)
    assert result.failed == [] and result.cases > 700


@recorded
async def test_cases_of_all_dialects_pass_with_a_token(tmp_path: Path) -> None:
    access = closed(tmp_path)
    async with LocalCluster(3, **access.settings) as cluster:
        result = await calm(cluster, suites(), access)
    assert result.failed == [] and result.cases > 1_500


@recorded
@pytest.mark.parametrize("choose", [the_leader, in_turn], ids=lambda choose: choose.__name__)
async def test_cases_pass_while_nodes_are_killed(choose: Choose) -> None:
    """The balancer repeats what was lost with a node, under the same key: nothing may happen twice."""
    async with LocalCluster(3) as cluster:
        result = await killing(cluster, suites_for_kills(), OPEN, "", choose, 0, every_s=KILL_EVERY_S)
    assert result.failed == [] and result.kills >= 3
    assert result.repeated > 0


@recorded
async def test_cases_pass_on_a_node_that_sees_its_leaders_killed() -> None:
    """The client repeats nothing: the node waits for the next leader in its place."""
    async with LocalCluster(3) as cluster:
        spared = cluster.nodes[0]
        kept = suites_for_kills()
        result = await killing(cluster, kept, OPEN, "", the_leader_but(spared), 0, spared, KILL_EVERY_S)
    assert result.failed == [] and result.kills >= 3


# -- What is done to cases ---------------------------------------------------------------------------------------------


def test_only_upper_bounds_on_times_are_taken_away() -> None:
    spec = {
        "steps": [
            {"method": "GET", "expect": {"ms": [50, 400], "status": 200}, "retry": 2},
            {"ws_recv": "a", "match": {"ms": 5}},
            {"ws_none": "a", "match": {}, "timeout": 0.4},
            {"calls": {"count": 2}, "within_ms": 500},
        ]
    }
    first, second, third, fourth = unhurried(spec)["steps"]
    assert first["expect"]["ms"][0] == 50 and first["expect"]["ms"][1] > 10_000 and first["retry"] > 2
    assert second["timeout"] > 3 and second["match"] == {"ms": 5}
    assert third == spec["steps"][2]
    assert fourth["calls"] == {"count": 2} and fourth["within_ms"] > 500


def test_a_look_at_the_state_is_repeated_and_nothing_else() -> None:
    steps = [{"method": "GET", "path": "/x"}, {"method": "POST", "path": "/x"}, {"method": "GET", "within_ms": 1}]
    first, second, third = patient({"steps": steps})["steps"]
    assert first["within_ms"] > 10_000 and "within_ms" not in second and third["within_ms"] == 1


def test_an_open_cluster_is_asked_without_a_token(tmp_path: Path) -> None:
    assert Access() == OPEN
    access = closed(tmp_path)
    assert access.token and access.given["user_token"] not in ("", access.token)
    assert Path(access.settings["AUTH_TOKENS_FILE"]).is_file()
