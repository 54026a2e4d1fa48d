"""One member of three, message by message: what it believes, what it refuses, and what it keeps back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cluster.raft
from cluster.config import ClusterConfig
from cluster.log import Log
from cluster.raft import CANDIDATE, FOLLOWER, Raft
from tests.consensus.disks import MemoryDisk

Message = dict[str, Any]


class Wires:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []

    def send(self, peer: str, message: Message) -> bool:
        self.sent.append((peer, dict(message)))
        return True

    def add_peer(self, peer: str, address: str) -> None: ...
    def drop_peer(self, peer: str) -> None: ...
    def connected(self, peer: str) -> bool:
        return True

    def take(self, kind: str) -> list[tuple[str, Message]]:
        """What was sent of one type since the last look."""
        found = [item for item in self.sent if item[1]["type"] == kind]
        self.sent = [item for item in self.sent if item[1]["type"] != kind]
        return found


class Member:
    """A follower with a log of `entries` as (index, term)."""

    def __init__(self, *entries: tuple[int, int], immediate: bool = True, term: int = 0) -> None:
        self.disk = MemoryDisk()
        self.log = Log(self.disk, 1 << 20)
        for index, entry_term in entries:
            self.log.add(b"\x01", index, entry_term)
        if term:
            self.log.setCurrentTerm(term, None)
        self.log.flush()
        self.disk.immediate = immediate
        self.wires = Wires()
        self.wanted: list[str] = []
        self.raft = Raft(
            ClusterConfig(
                node_id="n1",
                peers={node: f"{node}:1" for node in ("n1", "n2", "n3")},
                listen="n1:1",
                data_dir=Path("unused"),
            ),
            self.log,
            self.wires,
            applied_index=1,
            membership=b"",
            apply=lambda index, command: None,
            wanted_snapshot=self.wanted.append,
            role_changed=lambda old, new: None,
        )
        self.log.on_durable = self.raft.durable_advanced
        for peer in ("n2", "n3"):
            self.raft.peer_up(peer)

    def append(
        self, *entries: tuple[int, int], prev: tuple[int, int], term: int, commit: int, peer: str = "n2"
    ) -> None:
        self.raft.receive(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "entries": [(b"\x01", index, entry_term) for index, entry_term in entries],
                "prevLogIdx": prev[0],
                "prevLogTerm": prev[1],
            },
        )
        self.log.flush()

    @property
    def held(self) -> list[tuple[int, int]]:
        return [(index, term) for _, index, term in self.log[1:]]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(cluster.raft.Clock, "now", time)
    return time


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_late_message_deletes_nothing() -> None:
    """Finding 1."""
    member = Member((2, 1), (3, 1), (4, 1), term=1)
    member.append((2, 1), prev=(1, 0), term=1, commit=1)
    member.append(prev=(2, 1), term=1, commit=1)
    assert member.held == [(2, 1), (3, 1), (4, 1)]


def test_a_contradiction_truncates_from_where_it_begins() -> None:
    member = Member((2, 1), (3, 1), (4, 1), term=1)
    member.append((3, 1), (4, 2), prev=(2, 1), term=2, commit=1)
    assert member.held == [(2, 1), (3, 1), (4, 2)]


def test_a_contradiction_of_what_is_committed_stops_the_node() -> None:
    member = Member((2, 1), (3, 1), term=1)
    member.append(prev=(3, 1), term=1, commit=3)
    assert member.raft.commit_index == 3
    with pytest.raises(AssertionError, match="contradicts committed entry 3"):
        member.append((3, 2), prev=(2, 1), term=2, commit=3)


def test_the_commit_index_stops_at_what_the_message_vouches_for() -> None:
    member = Member((2, 1), (3, 1), (4, 1), term=1)
    member.append(prev=(2, 1), term=2, commit=9)
    assert member.raft.commit_index == 2


def test_a_heartbeat_before_a_snapshot_commits_nothing() -> None:
    """Finding 16: the engine would commit whatever the log holds up to the leader's commit index."""
    member = Member((2, 1), (3, 1), term=1)
    member.raft.receive("n2", {"type": "append_entries", "term": 2, "commit_index": 3, "serialized": None})
    assert member.raft.commit_index == 1 and member.raft.leader == "n2"


def test_a_stale_leader_is_told_the_term() -> None:
    member = Member((2, 3), term=3)
    member.append((3, 2), prev=(2, 2), term=2, commit=1)
    assert member.wires.take("stale_term") == [("n2", {"type": "stale_term", "term": 3})]
    assert member.held == [(2, 3)]


def test_a_mismatch_is_answered_with_where_to_go_on() -> None:
    member = Member((2, 1), (3, 2), (4, 2), (5, 2), term=2)
    member.append(prev=(5, 4), term=4, commit=1)
    ((peer, answer),) = member.wires.take("next_node_idx")
    assert (peer, answer["reset"], answer["next_node_idx"]) == ("n2", True, 3), (
        "the first entry of the term that differs"
    )


def test_an_acknowledgement_waits_for_the_disk() -> None:
    """Finding 4."""
    member = Member(immediate=False)
    member.append((2, 1), prev=(1, 0), term=1, commit=1)
    assert member.wires.take("next_node_idx") == []
    while member.disk.step():
        pass
    ((_, answer),) = member.wires.take("next_node_idx")
    assert answer["success"] and answer["next_node_idx"] == 3 and answer["term"] == 1


def test_a_promise_of_a_term_that_is_over_is_dropped() -> None:
    member = Member(immediate=False)
    member.append((2, 1), prev=(1, 0), term=1, commit=1)
    member.raft.receive("n3", {"type": "stale_term", "term": 5})
    member.log.flush()
    while member.disk.step():
        pass
    assert member.wires.take("next_node_idx") == []


def vote_request(term: int, last: tuple[int, int], **more: Any) -> Message:
    return {"type": "request_vote", "term": term, "last_log_index": last[0], "last_log_term": last[1], **more}


def test_a_vote_waits_for_the_disk_and_is_given_once() -> None:
    member = Member(immediate=False)
    member.raft.receive("n3", vote_request(1, (1, 0)))
    member.log.flush()
    assert member.wires.take("response_vote") == []
    while member.disk.step():
        pass
    assert [peer for peer, _ in member.wires.take("response_vote")] == ["n3"]
    member.raft.receive("n2", vote_request(1, (1, 0)))
    assert member.wires.take("response_vote") == []
    again = Log(member.disk, 1 << 20)
    assert (again.term, again.voted_for) == (1, "n3")


def test_no_vote_against_a_live_leader_except_in_a_hand_over(_clock: Time) -> None:
    member = Member()
    member.append(prev=(1, 0), term=1, commit=1)
    member.raft.receive("n3", vote_request(2, (1, 0)))
    assert member.raft.term == 1 and member.wires.take("response_vote") == []
    member.raft.receive("n3", vote_request(2, (1, 0), transfer=True))
    member.log.flush()
    assert member.raft.term == 2 and len(member.wires.take("response_vote")) == 1


def test_a_reset_connection_ends_the_leaders_life(_clock: Time) -> None:
    member = Member()
    member.append(prev=(1, 0), term=1, commit=1)
    assert member.raft.leader_alive()
    member.raft.peer_reset("n2")
    assert not member.raft.leader_alive()
    _clock.now += 0.11
    member.raft.tick()
    assert {peer for peer, _ in member.wires.take("pre_vote")} == {"n2", "n3"}


def test_an_election_needs_pre_votes_first(_clock: Time) -> None:
    member = Member(term=1)
    _clock.now += 5
    member.raft.tick()
    assert member.raft.role == FOLLOWER and member.raft.term == 1, "no term is raised for a question"
    member.raft.receive("n3", {"type": "pre_vote_granted", "term": 2})
    member.log.flush()
    assert member.raft.role == CANDIDATE and member.raft.term == 2
    assert {peer for peer, _ in member.wires.take("request_vote")} == {"n2", "n3"}
    member.raft.receive("n3", {"type": "response_vote", "term": 2})
    assert member.raft.is_leader


def test_a_vote_counts_once() -> None:
    five = {f"n{i}": f"n{i}:1" for i in range(1, 6)}
    member = Member(term=1)
    member.raft.membership = cluster.raft.configured(five)
    member.raft._seat(member.raft.membership)
    cluster.raft.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    for peer in ("n2", "n3"):
        member.raft.receive(peer, {"type": "pre_vote_granted", "term": 2})
    for _ in range(3):
        member.raft.receive("n2", {"type": "response_vote", "term": 2})
    assert member.raft.role == CANDIDATE
    member.raft.receive("n3", {"type": "response_vote", "term": 2})
    assert member.raft.is_leader


def a_leader(*entries: tuple[int, int], immediate: bool = True) -> Member:
    member = Member(*entries, term=1)
    cluster.raft.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    member.raft.receive("n3", {"type": "pre_vote_granted", "term": 2})
    member.log.flush()
    member.raft.receive("n3", {"type": "response_vote", "term": 2})
    member.disk.immediate = immediate
    member.log.flush()
    assert member.raft.is_leader
    return member


def acknowledgement(following: int, term: int = 2, *, success: bool = True) -> Message:
    return {"type": "next_node_idx", "next_node_idx": following, "reset": not success, "success": success, "term": term}


def test_the_leaders_own_copy_counts_when_it_is_durable() -> None:
    """Finding 4, the other half."""
    member = a_leader(immediate=False)
    member.raft.receive("n3", acknowledgement(3))
    member.raft.tick()
    assert member.raft.commit_index == 1
    while member.disk.step():
        pass
    member.raft.tick()
    assert member.raft.commit_index == 2


def test_an_acknowledgement_of_another_term_counts_for_nothing() -> None:
    member = a_leader()
    member.raft.receive("n3", acknowledgement(3, term=1))
    member.raft.tick()
    assert member.raft.commit_index == 1


def test_an_acknowledgement_does_not_send_again_what_is_under_way() -> None:
    member = a_leader()
    member.raft.propose(b"a")
    member.raft.tick()
    member.wires.sent.clear()
    member.raft.receive("n3", acknowledgement(3))
    member.raft.tick()
    to_n3 = [message for peer, message in member.wires.take("append_entries") if peer == "n3"]
    assert all(message["entries"] == [] for message in to_n3)


def test_a_peer_that_lacks_what_it_acknowledged_counts_anew() -> None:
    """Finding 15: its disk was wiped."""
    member = a_leader()
    member.raft.receive("n3", acknowledgement(3))
    assert member.raft.match_index("n3") == 2
    member.raft.receive("n3", acknowledgement(2, success=False))
    assert member.raft.match_index("n3") == 0


def test_a_follower_beyond_the_log_wants_a_snapshot_and_does_not_stop_the_loop() -> None:
    member = a_leader((2, 1), (3, 1), (4, 1))
    member.raft.receive("n3", acknowledgement(6))
    member.raft.tick()
    member.log.compact(4)
    member.raft.receive("n2", acknowledgement(2, success=False))
    member.raft.propose(b"a")
    member.raft.tick()
    assert member.wanted == ["n2"] or set(member.wanted) == {"n2"}
    assert "n2" in {node.id for node in member.raft._SyncObj__connectedNodes}


def test_stepping_down_is_told() -> None:
    member = a_leader()
    member.wires.sent.clear()
    member.raft.step_down()
    assert not member.raft.is_leader
    assert {peer for peer, _ in member.wires.take("stepped_down")} == {"n2", "n3"}


def test_nobody_votes_while_it_may_not() -> None:
    member = Member(term=1)
    member.raft.may_vote = False
    member.raft.receive("n3", vote_request(2, (1, 0)))
    member.raft.receive("n3", {"type": "pre_vote", "term": 2, "last_log_index": 1, "last_log_term": 0})
    member.raft.receive("n3", {"type": "timeout_now", "term": 1})
    cluster.raft.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    assert [message["type"] for _, message in member.wires.sent] == []
    assert member.raft.term == 1
