"""Figures over HTTP: Prometheus, memory, disk."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.api import disk
from quorumq.api.dialects.bunqueue import prometheus
from quorumq.api.metrics import DurationHistogram, MetricsPage
from quorumq.cluster.version import VERSION
from quorumq.node.machine.state.queue import QueueCounters
from tests.api.conftest import Client, Serve

SAMPLE = re.compile(r'([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+\})? (-?[0-9.e+-]+|\+Inf)')


def parse(page: str) -> tuple[dict[str, float], dict[str, str]]:
    """Read a page as a scraper does: values by name and labels, types by name."""
    values: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in types
            types[name] = kind
        elif line and not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found, line
            key = found[1] + (found[2] or "")
            assert key not in values, key
            values[key] = float(found[3])
            base = re.sub(r"_(bucket|sum|count)$", "", found[1])
            assert found[1] in types or types[base] == "histogram"
    return values, types


async def scrape(client: Client, **more: Any) -> dict[str, float]:
    answer = await client.get("/prometheus", **more)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.body.decode())[0]


async def test_prometheus(client: Client) -> None:
    before = await scrape(client)
    assert before["bunqueue_jobs_waiting"] == before["quorumq_queues"] == 0
    await client.push("a")
    await client.push("a", priority=3)
    await client.push("b", delay=60_000)
    await client.pull("a")
    await client.post("/queues/b/pause")
    found = await scrape(client)
    assert found["bunqueue_jobs_waiting"] == found["bunqueue_jobs_active"] == found["bunqueue_jobs_delayed"] == 1
    assert (found["bunqueue_jobs_pushed_total"], found["bunqueue_jobs_pulled_total"]) == (3, 1)
    assert found['bunqueue_queue_jobs_waiting{queue="a"}'] == 1
    assert found['bunqueue_queue_jobs_delayed{queue="b"}'] == 1
    assert (found['quorumq_queue_paused{queue="a"}'], found['quorumq_queue_paused{queue="b"}']) == (0, 1)
    assert found['quorumq_queue_jobs_pushed_total{queue="a"}'] == 2
    assert found['quorumq_queue_oldest_claimable_age_seconds{queue="b"}'] == 0
    assert found["quorumq_write_seconds_count"] == 4
    assert found['quorumq_write_seconds_bucket{le="+Inf"}'] == 4
    assert found["quorumq_leader"] == found["quorumq_ready"] == found["quorumq_quorum"] == 1
    assert found["quorumq_applied_index"] >= 5
    assert found['quorumq_http_replies_total{status="2xx"}'] >= 6
    assert found["quorumq_memory_resident_bytes"] > 1 << 20


async def test_waits_and_runs_of_a_queue(client: Client) -> None:
    now_ms = time.time_ns() // 1_000_000
    client.engine.clock = lambda: now_ms - 20_000
    await client.push("a")
    await client.push("a")
    client.engine.clock = lambda: now_ms - 19_000
    job = await client.pull("a")
    client.engine.clock = lambda: now_ms
    found = await scrape(client)
    assert 20 <= found['quorumq_queue_oldest_claimable_age_seconds{queue="a"}'] < 40
    assert found['quorumq_queue_run_seconds_count{queue="a"}'] == 0
    client.engine.clock = lambda: now_ms - 18_500
    assert (await client.post(f"/jobs/{job['id']}/ack")).status == 200
    found = await scrape(client)
    name = "quorumq_queue_wait_seconds"
    assert found[f'{name}_sum{{queue="a"}}'] == found[f'{name}_count{{queue="a"}}'] == 1
    assert found[f'{name}_bucket{{queue="a",le="0.255"}}'] == 0
    assert found[f'{name}_bucket{{queue="a",le="1.023"}}'] == found[f'{name}_bucket{{queue="a",le="+Inf"}}'] == 1
    name = "quorumq_queue_run_seconds"
    assert (found[f'{name}_sum{{queue="a"}}'], found[f'{name}_count{{queue="a"}}']) == (0.5, 1)
    assert found[f'{name}_bucket{{queue="a",le="0.255"}}'] == 0
    assert found[f'{name}_bucket{{queue="a",le="1.023"}}'] == 1


def test_every_duration_is_within_the_bound_of_its_bucket() -> None:
    for ms in (0, 1, 2, 3, 4, 5, 255, 256, 1 << 20, 1 << 50):
        counters = QueueCounters()
        counters.ran(ms)
        below = prometheus.shown_buckets(counters.runs)
        assert below == [*(int(ms / 1000 <= bound) for bound in prometheus.BOUNDS), 1]


async def test_what_the_replication_measures_is_shown(client: Client) -> None:
    before = await client.get("/prometheus")
    page_before = before.body.decode()
    _, types = parse(page_before)
    assert "quorumq_snapshot_age_seconds" not in types
    kept = client.engine.metrics
    client.engine.clock_offset_ms = -250
    for seconds in (0.0002, 0.003, 10.0):
        kept.commit_seconds.observe(seconds)
    kept.entry_bytes.observe(1000)
    counters = (
        "elections",
        "leader_changes",
        "batches_resent",
        "loop_stalls",
        "log_failures",
        "disk_hangs",
        "snapshots",
        "snapshot_failures",
        "snapshot_stalls",
        "peers_refused",
        "peer_messages_refused",
    )
    for i, field in enumerate(counters, 1):
        setattr(kept, field, i)
    kept.clock_jumps, kept.disk_waiting_seconds = 20, 1.5
    kept.snapshot_bytes, kept.snapshot_fork_seconds = 8, 0.25
    kept.snapshot_at = time.time() - 30
    assert parse(page_before)[0]["quorumq_whole"] == 1
    kept.whole = False
    page = await client.get("/prometheus")
    found, types = parse(page.body.decode())
    histograms = ("log_sync_seconds", "commit_seconds", "apply_seconds", "entry_bytes", "entry_batches")
    assert {types[f"quorumq_{name}"] for name in histograms} == {"histogram"}
    assert found["quorumq_commit_seconds_count"] == found['quorumq_commit_seconds_bucket{le="+Inf"}'] == 3
    assert found['quorumq_commit_seconds_bucket{le="0.005"}'] == found['quorumq_commit_seconds_bucket{le="2.5"}'] == 2
    assert found["quorumq_commit_seconds_sum"] == pytest.approx(10.0032)
    assert found['quorumq_entry_bytes_bucket{le="256"}'] == 0
    assert found['quorumq_entry_bytes_bucket{le="1024"}'] == found["quorumq_entry_bytes_count"] == 1
    assert {types[f"quorumq_{name}_total"] for name in counters} == {"counter"}
    assert [found[f"quorumq_{name}_total"] for name in counters] == list(range(1, 12))
    assert (found["quorumq_log_clock_jumps_total"], found["quorumq_disk_waiting_seconds"]) == (20, 1.5)
    assert found['quorumq_clock_offset_seconds{node="n1"}'] == -0.25
    assert (found["quorumq_snapshot_bytes"], found["quorumq_snapshot_fork_seconds"]) == (8, 0.25)
    assert 30 <= found["quorumq_snapshot_age_seconds"] < 60
    assert found["quorumq_whole"] == 0
    assert found["quorumq_log_unwritten_bytes"] >= 0 and types["quorumq_log_unwritten_bytes"] == "gauge"
    assert types["quorumq_snapshot_age_seconds"] == types["quorumq_log_bytes"] == "gauge"
    assert types["quorumq_replication_lag_entries"] == "gauge"


async def test_that_states_differ_is_shown(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await scrape(client)
    assert (found["quorumq_apart"], found["quorumq_members_differing"], found["quorumq_agreed_index"]) == (0, 0, 0)
    status = client.engine.status
    differs = {"apart": "its state differs", "differing": ["n2", "n3"], "agreed_index": 7}
    monkeypatch.setattr(client.engine, "status", lambda: msgspec.structs.replace(status(), **differs))
    found = await scrape(client)
    assert (found["quorumq_apart"], found["quorumq_members_differing"], found["quorumq_agreed_index"]) == (1, 2, 7)
    body = (await client.get("/admin/cluster")).json
    assert {name: body[name] for name in differs} == differs


async def test_lag_is_shown_by_peer(client: Client) -> None:
    await client.engine.change_members("add", "n2", "127.0.0.1:7791")
    found = await scrape(client)
    assert found['quorumq_replication_lag_entries{peer="n2"}'] == 0
    assert found['quorumq_peer_connected{peer="n2"}'] == 1


async def test_prometheus_answers_without_a_quorum(client: Client) -> None:
    client.engine.available = False
    found = await scrape(client)
    assert found["quorumq_quorum"] == found["quorumq_ready"] == 0


async def test_prometheus_is_open_unless_it_shall_not(serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    await scrape(client)
    client = await serve(auth_tokens=("secret",), metrics_auth=True)
    assert (await client.get("/prometheus")).status == 401
    await scrape(client, headers={"Authorization": "Bearer secret"})


def test_labels_are_escaped() -> None:
    page = MetricsPage()
    page.write("x", "gauge", "text", [({"queue": 'a"b\\c\nd'}, 1)])
    assert b'x{queue="a\\"b\\\\c\\nd"} 1' in page.text()


def test_a_histogram_counts_up() -> None:
    found = DurationHistogram()
    for seconds in (0.0, 0.00005, 0.001, 0.5, 100_000.0):
        found.observe(seconds)
    page = MetricsPage()
    page.histogram("x", "text", found)
    values, _ = parse(page.text().decode())
    buckets = [value for key, value in values.items() if key.startswith("x_bucket")]
    assert buckets == sorted(buckets)
    assert values['x_bucket{le="6.4e-05"}'] == 2
    assert values['x_bucket{le="0.001024"}'] == 3
    assert values['x_bucket{le="+Inf"}'] == values["x_count"] == 5
    assert values["x_sum"] == pytest.approx(100_000.50105)


async def test_collecting_garbage(client: Client) -> None:
    body = (await client.post("/gc")).json
    for when in ("before", "after"):
        assert 0 < body[when]["heapUsed"] <= body[when]["rss"]
    assert (await client.get("/gc")).status == 404


async def test_heap_statistics(client: Client) -> None:
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(50)]})
    body = (await client.get("/heapstats")).json
    assert body["collections"]["jobIndex"] == body["collections"]["queuedTotal"] == 50
    assert body["heap"]["objectCount"] > 10_000
    counts = [kind["count"] for kind in body["topObjectTypes"]]
    assert len(counts) == 20 and counts == sorted(counts, reverse=True)
    assert {"dict", "function"} <= {kind["type"] for kind in body["topObjectTypes"]}


class TestStorage:
    async def test_all_is_well(self, client: Client) -> None:
        body = (await client.get("/storage")).json
        assert body["diskFull"] is body["data"]["diskFull"] is False
        assert body["data"]["freeBytes"] > 0

    async def test_no_room(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "FREE_BYTES_MIN", 1 << 62)
        body = (await client.get("/storage")).json
        assert body["diskFull"] is body["data"]["diskFull"] is True
        assert "bytes are free" in body["data"]["error"]
        assert (await client.get("/storage")).json["data"]["since"] == body["data"]["since"] > 1.7e12
        assert (await scrape(client))["quorumq_disk_full"] == 1
        monkeypatch.undo()
        assert (await client.get("/storage")).json["data"]["since"] is None

    async def test_a_log_that_cannot_be_written(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        status = client.engine.status
        reason = "the log cannot be written: [Errno 28] No space left on device"
        monkeypatch.setattr(
            client.engine, "status", lambda: msgspec.structs.replace(status(), ready=False, ready_reason=reason)
        )
        body = (await client.get("/storage")).json
        assert (body["diskFull"], body["data"]["error"]) == (True, reason)
        assert (await client.get("/health")).json["status"] == "degraded"

    async def test_a_folder_that_is_not_there_yet(self, serve: Serve, tmp_path: Path) -> None:
        client = await serve(data_path=tmp_path / "not" / "yet")
        assert (await client.get("/storage")).json["data"]["freeBytes"] > 0


async def test_health_tells_of_the_cluster(client: Client) -> None:
    cluster = (await client.get("/health")).json["cluster"]
    assert (cluster["members"], cluster["connected"], cluster["role"]) == (1, 1, "leader")
    assert cluster["appliedIndex"] >= 0


async def test_the_version_that_clients_compare_with_theirs(serve: Serve, client: Client) -> None:
    assert (await client.get("/health")).json["version"] == VERSION
    other = await serve(bunqueue_version="2.9.5")
    health = (await other.get("/health")).json
    assert (health["version"], health["cluster"]["version"]) == ("2.9.5", VERSION)
    async with other.session.ws_connect(other.base + "/ws") as socket:
        await socket.send_json({"cmd": "Hello", "reqId": "r"})
        while (hello := await socket.receive_json()).get("reqId") != "r":
            pass
        assert (hello["server"], hello["version"]) == ("quorumq", "2.9.5")
