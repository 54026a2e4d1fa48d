"""What a peer can make of a node's term, and of its other numbers: as much as an honest one, and no more."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import codec, messages, snapshots
from quorumq.cluster.agreement import Agreement
from quorumq.cluster.disk import Disk
from quorumq.cluster.messages import FIELDS, Malformed
from quorumq.cluster.replica import Replica
from quorumq.cluster.snapshots import Head
from quorumq.cluster.terms import LEAP, LEAP_EVERY_S, STEP, Terms
from tests.consensus.counting import Recorder
from tests.consensus.test_engine import PATIENCE, Cluster, fresh, running, until
from tests.consensus.test_fuzz import Dialler, Driven, two_of_three
from tests.consensus.test_snapshotting import leading

LAST = 2**62 - 1
WITH_A_TERM = sorted(kind for kind, fields in FIELDS.items() if "term" in fields)
REST: dict[str, Any] = {
    "commit_index": 1,
    "next_node_idx": 1,
    "reset": True,
    "success": False,
    "last_log_index": 1 << 40,
    "last_log_term": 0,
    "transfer": True,
    "history": True,
    "whole": True,
    "number": 1,
}


def told(term: int, kind: str = "stale_term") -> dict[str, Any]:
    return {"type": kind, **{field: REST.get(field, term) for field in FIELDS[kind]}}


@pytest.mark.parametrize("kind", WITH_A_TERM)
async def test_no_message_raises_the_term_beyond_what_elections_can(tmp_path: Path, kind: str) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        for term in (LAST, LEAP + 2):
            assert not driven.receive("n2", told(term, kind))
            driven.engine._driver.drive()
        assert driven.raft.term < 2
        assert driven.receive("n2", told(LEAP, kind))
        # Nor by two after each other, from whomever.
        assert not driven.receive("n3", told(2 * LEAP, kind))
        assert driven.raft.term <= LEAP
    finally:
        await driven.engine.stop(transfer=False)


def test_the_bound_of_terms_is_a_thousand_years_of_lies_away() -> None:
    terms, mine, now, seconds = Terms(), 0, 0.0, 3600.0
    while now < seconds:
        for jump in (LAST, LEAP, STEP):
            try:
                terms.check(told(mine + jump), mine, now)
            except Malformed:
                continue
            mine += jump
        now += 0.01
    assert mine / seconds * 3600 * 24 * 365 * 300 < 2**62
    assert mine >= LEAP * (seconds / LEAP_EVERY_S - 2)


def test_a_term_that_was_told_before_is_no_second_leap() -> None:
    terms = Terms()
    terms.check(told(5_000, "present"), 0, 0.0)
    terms.check(told(5_000, "append_entries"), 0, 0.1)
    terms.check(told(5_000 + STEP), 0, 0.2)
    with pytest.raises(Malformed, match="right after another"):
        terms.check(told(5_001 + STEP), 0, 0.3)
    terms.check(told(5_001 + STEP), 0, LEAP_EVERY_S + 0.1)
    terms.check({"type": "of a newer version", "term": "spring"}, 0, 0.0)


async def test_a_message_with_the_last_term_ends_its_connection_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_of_three(tmp_path, **PATIENCE) as cluster:
        leader, term = await cluster.led(), (await cluster.led())._raft.term
        with caplog.at_level(logging.ERROR):
            for node, engine in cluster.engines.items():
                dialler = Dialler(cluster, node)
                await dialler.prove()
                dialler.send(codec.dumps(told(LAST)))
                assert await dialler.closed()
                dialler.close()
                assert engine.metrics.peer_messages_refused == 1
        assert "n3 at" in caplog.text and f"a term that is {LAST - term} above this node's" in caplog.text
        assert await cluster.write("n2", b"third")
        assert (await cluster.led(), leader._raft.term) == (leader, term)


async def test_a_node_that_was_away_for_years_of_elections_comes_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with running(cluster):
        await cluster.write("n1", b"first")
        await cluster.stop("n3", transfer=True)
        for engine in cluster.engines.values():
            engine._raft.step_down()
            engine._raft.forbid_votes(LEAP - 1_000_000)
        await cluster.write("n1", b"second")
        await cluster.start("n3")
        await fresh(cluster.engines["n3"])
        assert cluster.engines["n3"]._raft.term >= LEAP - 1_000_000
        # And one that begins with an empty disk, which is told the term before the entries.
        await cluster.stop("n3", transfer=True)
        cluster.directory.joinpath("n3").rename(tmp_path / "old")
        await cluster.start("n3")
        await fresh(cluster.engines["n3"])
        await until(lambda: cluster.engines["n3"]._raft.may_vote)


def a_snapshot(directory: Path, driven: Driven, index: int, term: int) -> tuple[str, bytes]:
    replica = Replica(Recorder(), lambda batch, outcome: None)
    replica.cluster_id = driven.engine.cluster_id()
    head = Head(1, index, term, replica.head())
    name = snapshots.write(Disk(directory), "part", head, replica.machine.image(), lambda: None)
    return name, (directory / name).read_bytes()


@pytest.mark.parametrize(
    ("index", "term", "named", "good"),
    [
        (50, 1, (50, 1), True),
        (50, LAST, (50, LAST), False),
        (LAST, 1, (LAST, 1), False),
        (50, 1, (51, 1), False),
        (50, 0, (50, 1), False),
    ],
)
async def test_a_snapshot_brings_no_term_and_no_index_that_cannot_be(
    tmp_path: Path, index: int, term: int, named: tuple[int, int], good: bool
) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.receive("n2", {**told(1, "append_entries"), "commit_index": 1})
        assert driven.raft.term == 1
        _, data = a_snapshot(tmp_path / "made", driven, index, term)
        name = snapshots.file_name(*named)
        assert driven.receive("n2", {"type": "snapshot_begin", "name": name, "size": len(data)})
        driven.around.sent.clear()
        assert driven.receive("n2", {"type": "snapshot_piece", "name": name, "offset": 0, "data": data})
        for _ in range(5):
            driven.engine._driver.drive()
        await until(lambda: not driven.engine._snapshots._receiver._busy)
        answers = [message for _, message in driven.around.sent if message["type"] == "snapshot_installed"]
        # What is not taken is not acknowledged either: the leader would count this node for every entry up to there.
        assert answers == ([{"type": "snapshot_installed", "index": index}] if good else [])
        assert (driven.raft.applied_index, driven.raft.journal.last_term) == ((index, term) if good else (1, 0))
        assert driven.raft.term == 1 and not driven.engine.failed.done()
    finally:
        await driven.engine.stop(transfer=False)


@pytest.mark.parametrize(("owner", "index"), [("f", 50), ("e", 1)], ids=["its own", "another"])
async def test_a_snapshot_is_of_this_cluster(tmp_path: Path, owner: str, index: int) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        driven.acknowledge()
        applied, term = driven.raft.applied_index, driven.raft.term + 1
        driven.receive("n2", {**told(term, "append_entries"), "commit_index": 1})
        assert (driven.engine.cluster_id(), driven.raft.is_leader) == ("f" * 32, False)
        replica = Replica(Recorder(), lambda batch, outcome: None)
        replica.cluster_id = owner * 32
        disk = Disk(tmp_path / "made")
        name = snapshots.write(disk, "part", Head(1, 50, 1, replica.head()), iter(()), lambda: None)
        data = disk.read(name)
        driven.receive("n2", {"type": "snapshot_begin", "name": name, "size": len(data)})
        driven.receive("n2", {"type": "snapshot_piece", "name": name, "offset": 0, "data": data})
        await until(lambda: not driven.engine._snapshots._receiver._busy)
        assert driven.raft.applied_index == max(applied, index) and not driven.engine.failed.done()
    finally:
        await driven.engine.stop(transfer=False)


async def test_one_whose_connection_was_gone_helps_nobody_before_it_says_where_it_stands(tmp_path: Path) -> None:
    """It may have lost its disk meanwhile; a removal that counted on it would leave no majority."""
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        assert driven.engine._changes._reachable() == {"n1", "n2", "n3"}
        driven.engine.peer_down("n3")
        driven.engine.peer_up("n3")
        driven.acknowledge()
        assert driven.engine._changes._reachable() == {"n1", "n2"}
        driven.receive("n3", {"type": "present", "term": driven.raft.term, "history": True, "whole": True})
        driven.acknowledge()
        assert driven.engine._changes._reachable() == {"n1", "n2", "n3"}
    finally:
        await driven.engine.stop(transfer=False)


async def test_a_snapshot_is_acknowledged_as_far_as_it_was_sent(tmp_path: Path) -> None:
    async with leading(tmp_path) as (driven, slow):
        snapshot = asyncio.create_task(driven.engine.snapshot(30.0))
        await until(lambda: slow.done)
        slow.done(None)
        await snapshot
        driven.engine._snapshots.want("n3")
        driven.engine._driver.drive()
        senders, last = driven.engine._snapshots._senders, driven.raft.journal.last_index
        index = senders["n3"].index
        driven.receive("n3", {"type": "snapshot_installed", "index": LAST})
        assert driven.raft.match_index("n3") <= last and "n3" in senders
        driven.receive("n3", {"type": "snapshot_installed", "index": index})
        assert "n3" not in senders


@pytest.mark.parametrize(
    ("seq", "floor", "good"), [(5, 5, True), (5, 1, True), (5, 6, False), (LAST, 1, False), (LAST, LAST - 9, True)]
)
def test_a_batch_has_a_floor_that_its_origin_can_have(seq: int, floor: int, good: bool) -> None:
    message = {"type": "batch", "batch": ("n3", LAST, seq, floor, b"x")}
    if good:
        messages.check(message, 1 << 20)
    else:
        with pytest.raises(Malformed, match="without a valid batch"):
            messages.check(message, 1 << 20)


async def test_a_batch_comes_from_its_origin(tmp_path: Path) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        assert not driven.receive("n2", {"type": "batch", "batch": ("made up", 1, 1, 1, b"x")})
        assert driven.receive("n2", {"type": "batch", "batch": ("n2", 1, 1, 1, b"x")})
    finally:
        await driven.engine.stop(transfer=False)


async def test_what_this_node_cannot_read_does_not_get_into_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        monkeypatch.setattr(Recorder, "understands", lambda self, payload: payload == b"known")
        for seq, payload in ((1, b"new"), (2, b"known")):
            # The connection stands: a newer version does so before it knows better.
            assert driven.receive("n2", {"type": "batch", "batch": ("n2", 1, seq, 1, payload)})
        driven.acknowledge()
        machine = driven.engine.machine
        assert isinstance(machine, Recorder) and machine.applied == [b"known"]
    finally:
        await driven.engine.stop(transfer=False)


@pytest.mark.parametrize("kind", ["request_vote", "pre_vote"])
def test_a_log_is_not_of_a_later_term_than_its_node(kind: str) -> None:
    message = told(7, kind)
    messages.check({**message, "last_log_term": 7}, 1 << 20)
    with pytest.raises(Malformed, match="a log of a later term"):
        messages.check({**message, "last_log_term": 8}, 1 << 20)


@pytest.mark.parametrize(("who", "behind"), [("n9", 0), ("n2", 1)], ids=["a stranger", "an older term"])
async def test_a_leader_is_confirmed_by_voters_of_its_term(tmp_path: Path, who: str, behind: int) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        driven.around.sent.clear()
        read = asyncio.create_task(driven.engine.read_index(asyncio.get_running_loop().time() + 600))
        await until(lambda: any(message["type"] == "round" for _, message in driven.around.sent))
        number = next(message["number"] for _, message in driven.around.sent if message["type"] == "round")
        word = {"type": "round_ok", "number": number, "term": driven.raft.term}
        driven.receive(who, {**word, "term": driven.raft.term - behind})
        for _ in range(5):
            driven.engine._driver.drive()
            await asyncio.sleep(0)
        assert not read.done()
        driven.receive("n3", word)
        driven.engine._driver.drive()
        await read
    finally:
        await driven.engine.stop(transfer=False)


def handing_over(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have each hand-over succeed at once; return to whom they were, as they come."""
    asked: list[str] = []

    def transfer(peer: str) -> bool:
        asked.append(peer)
        driven.raft.step_down()
        return True

    monkeypatch.setattr(driven.raft, "transfer", transfer)
    return asked


async def test_leadership_goes_to_nobody_whose_state_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        asked = handing_over(driven, monkeypatch)
        # n3 would be chosen: of those that are equally far the one whose name comes last.
        monkeypatch.setattr(Agreement, "suspects", property(lambda self: ["n3"]))
        assert await driven.engine.transfer_leadership()
        assert asked == ["n2"]
    finally:
        await driven.engine.stop(transfer=False)


async def test_a_leader_whose_state_differs_gives_up_to_those_that_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        asked = handing_over(driven, monkeypatch)
        driven.engine._agreement._conclude(["n2"], 4)
        driven.engine._driver.drive()
        await until(lambda: asked)
        assert asked == ["n2"]
    finally:
        await driven.engine.stop(transfer=False)


@pytest.mark.parametrize("index", [LAST, 1, None])
async def test_a_read_is_answered_by_the_node_that_was_asked(tmp_path: Path, index: int | None) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.receive("n2", {**told(1, "append_entries"), "commit_index": 1})
        read = asyncio.create_task(driven.engine.read_index(asyncio.get_running_loop().time() + 10))
        await until(lambda: any(message["type"] == "read" for _, message in driven.around.sent))
        ((asked, question),) = [(peer, each) for peer, each in driven.around.sent if each["type"] == "read"]
        assert asked == "n2"
        answer = {"type": "read_index", "question": question["question"]}
        driven.receive("n3", {**answer, "index": index})
        driven.engine._driver.drive()
        assert not read.done() and driven.engine._exchange.readers.asked == "n2"
        driven.receive("n2", {**answer, "index": 1})
        await read
    finally:
        await driven.engine.stop(transfer=False)
