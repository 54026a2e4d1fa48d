"""The recorded cases, replayed against three real nodes: a leader, a follower, all in turn, and while nodes are killed.

The short form of `scripts/conformance`. The cases are in tests/conformance; QUORUMQ_CONFORMANCE may name another folder.
"""

from __future__ import annotations

import asyncio
import types
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from scripts.tools.conformance import (
    FOLDER,
    HASTE_S,
    OPEN,
    Access,
    Choose,
    Suite,
    arguments,
    below,
    calm,
    came_too_late,
    closed,
    in_turn,
    killing,
    main,
    patient,
    suites_of,
    the_leader,
    the_leader_but,
    traces,
    unhurried,
    usable,
)
from tests.support.balancer import Balancer
from tests.support.local_cluster import HOST, LocalCluster

# Kills come closer together than in the long form, so that a short run has some.
KILL_EVERY_S = 4.0

# A thousand cases take a minute on a quiet machine.
pytestmark = pytest.mark.timeout(600)


def suites() -> list[Suite]:
    found = suites_of(FOLDER)
    assert sum(len(suite.specs) for suite in found) > 400
    return found


def suites_for_kills() -> list[Suite]:
    """Return those suites whose jobs are not held for half a minute when their node dies."""
    return [suite for suite in suites() if not suite.needs_token]


async def test_cases_pass_on_the_leader_a_follower_and_all_in_turn() -> None:
    async with LocalCluster(3) as cluster:
        result = await calm(cluster, suites(), OPEN)
    assert result.failed == [] and result.cases > 700


async def test_cases_of_all_dialects_pass_with_a_token(tmp_path: Path) -> None:
    access = closed(tmp_path)
    async with LocalCluster(3, **access.settings) as cluster:
        result = await calm(cluster, suites(), access)
    assert result.failed == [] and result.cases > 1_500


@pytest.mark.parametrize("choose", [the_leader, in_turn], ids=lambda choose: choose.__name__)
async def test_cases_pass_while_nodes_are_killed(choose: Choose) -> None:
    """The balancer repeats what was lost with a node, under the same key: nothing may happen twice."""
    async with LocalCluster(3) as cluster:
        result = await killing(cluster, suites_for_kills(), OPEN, "", choose, 0, every_s=KILL_EVERY_S)
    assert result.failed == [] and result.kills >= 3
    assert result.repeated > 0


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


def test_only_a_case_that_needs_haste_comes_too_late() -> None:
    spec = {"id": "cron-deleted-stops", "steps": [{"sleep": 0.7}, {"method": "GET", "path": "/"}]}
    assert not came_too_late(spec, 0.95, "step 1 (GET /)")
    assert came_too_late(spec, 1.05, "step 1 (GET /)")
    assert came_too_late(spec, 1.05, "a socket or stream ended long before the case")
    assert not came_too_late({**spec, "id": "push-minimal"}, 100.0, "step 1 (GET /)")


def test_a_case_that_ends_early_has_not_slept_what_comes_after() -> None:
    beat = {"method": "POST", "path": "/"}
    spec = {"id": "stall-heartbeat-keeps-active", "steps": [beat, *([{"sleep": 0.7}, beat] * 18)]}
    assert not came_too_late(spec, 2 * 0.7 + 0.4, "step 4 (POST /)")
    assert came_too_late(spec, 2 * 0.7 + 0.6, "step 4 (POST /)")


def test_cases_that_need_haste_are_cases() -> None:
    assert set(HASTE_S) <= {spec["id"] for suite in suites() for spec in suite.specs}


@pytest.mark.parametrize("case, runs", [("delayed-job-waits", 2), ("job-fields", 1)])
async def test_only_what_came_too_late_is_run_anew(case: str, runs: int) -> None:
    """Also while no node is killed: one slow write of a disk makes a case meaningless."""
    outcomes = [["step 4"], []]

    class Endpoint:
        def __init__(self, target: Any) -> None:
            self.runner = self

        async def start(self) -> None: ...
        async def cleanup(self) -> None: ...

    async def run_case(*given: Any) -> list[str]:
        await asyncio.sleep(1.01 * HASTE_S["delayed-job-waits"])
        return outcomes.pop(0)

    runner = types.ModuleType("replay_proxy")
    runner.__dict__.update(Endpoint=Endpoint, run_case=run_case, Target=lambda *given: types.SimpleNamespace(send=None))
    suite = Suite("proxy", runner, [{"id": case, "group": "g", "steps": []}], needs_token=True)
    failed = await suite.run(f"http://{HOST}", Access(token="t"))
    assert len(outcomes) == 2 - runs and (failed == []) == (runs == 2)


def test_an_open_cluster_is_asked_without_a_token(tmp_path: Path) -> None:
    assert Access() == OPEN
    access = closed(tmp_path)
    assert access.token and access.given["user_token"] not in ("", access.token)
    assert Path(access.settings["AUTH_TOKENS_FILE"]).is_file()


# -- What is run, and what counts as failed ----------------------------------------------------------------------------


def test_only_cases_of_the_client_are_run() -> None:
    specs: list[dict[str, Any]] = [
        {"id": "any"},
        {"id": "with", "needs": ["token"]},
        {"id": "none", "needs": ["no-token"]},
    ]
    plain = Suite("bunqueue", types.ModuleType("replay"), specs)
    proxy = Suite(
        "bullmq", types.ModuleType("replay"), [{"id": "any"}, {"id": "other", "needs": ["x"]}], needs_token=True
    )
    known, knowing = Access("t"), Access("t", {"x": "y"})
    assert [spec["id"] for spec in plain.cases(OPEN)] == ["any", "none"]
    assert [spec["id"] for spec in plain.cases(known)] == ["any", "with"]
    assert [spec["id"] for spec in proxy.cases(known)] == ["any"]
    assert [spec["id"] for spec in proxy.cases(knowing)] == ["any", "other"]
    assert usable([plain, proxy], OPEN) == [plain] and usable([proxy], OPEN) == []


async def test_only_open_archivers_paths_are_the_same_below_a_prefix() -> None:
    sent: list[dict[str, Any]] = []

    async def send(step: dict[str, Any]) -> int:
        sent.append(step)
        return 200

    for path in ("/workers/a", "/v1/jobs/queues"):
        assert await below("/bullmq", send, {"method": "GET", "path": path}) == 200
    assert [step["path"] for step in sent] == ["/bullmq/workers/a", "/v1/jobs/queues"]
    assert all(step["method"] == "GET" for step in sent)


async def test_names_that_no_case_has_start_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "replay.py").touch()
    (tmp_path / "bunqueue.jsonl").write_text('{"id": "push", "group": "jobs", "steps": []}\n', "utf-8")
    for more in (["--only", "bullmq"], ["--case", "pull"]):
        assert await main(arguments(["--cases", str(tmp_path), *more])) == 2
        assert "no case of this name" in capsys.readouterr().out


async def test_a_server_s_own_trouble_fails_a_run_whose_cases_pass() -> None:
    """503 is no such trouble: it asks to come again."""

    class Case:
        def __init__(self, spec: dict[str, Any], session: aiohttp.ClientSession, base: str, token: str | None) -> None:
            self.spec, self.url, self.session = spec, base + spec["path"], session
            self.readers: list[Any] = []

        async def run(self) -> None:
            async with self.session.get(self.url) as answer:
                await answer.read()

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(status=int(request.path[1:]))

    runner = types.ModuleType("replay")
    runner.__dict__.update(Case=Case, Mismatch=AssertionError)
    specs = [{"id": path, "group": "g", "path": path, "steps": []} for path in ("/200", "/404", "/500", "/503")]
    server = web.ServerRunner(web.Server(handle))
    await server.setup()
    try:
        await web.TCPSite(server, HOST, 0).start()
        failed = await Suite("s", runner, specs).run(f"http://{HOST}:{server.addresses[0][1]}", OPEN)
    finally:
        await server.cleanup()
    assert failed == ["s: GET /500 was answered with 500"]


def test_tracebacks_that_came_meanwhile_are_found(tmp_path: Path) -> None:
    cluster = LocalCluster(1, tmp_path)
    [node] = cluster.nodes
    trace = "ERROR n1 here: failed\nTraceback (most recent call last):\n  line\nValueError: no\n"
    node.log.write_text(trace, "utf-8")
    before = len(trace)
    assert traces(cluster, [before]) == []
    node.log.write_text(trace + "INFO fine\n" + trace.replace("here", "there"), "utf-8")
    [found] = traces(cluster, [before])
    assert "there: failed" in found and "ValueError" in found and "fine" not in found


def test_a_request_is_not_repeated_at_the_node_that_failed_it(tmp_path: Path) -> None:
    """Others take their turns meanwhile, so that the next turn may be that node's again."""
    balancer = Balancer(LocalCluster(3, tmp_path).nodes)
    first = balancer.next_node()
    others = {balancer.next_node().id, balancer.next_node().id}
    assert first.id not in others
    assert balancer.next_node(failed=first).id in others
