"""One member of three, message by message: what it believes, what it refuses, and what it keeps back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quorumq.cluster.seams
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.log import MEMBERSHIP, Log
from quorumq.cluster.membership import Membership, Seat, configured
from quorumq.cluster.raft import CANDIDATE, FOLLOWER, Raft
from quorumq.cluster.replica import encode_members
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
        self.applied: list[int] = []
        self.told_before: list[list[tuple[str, int]]] = []
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
            apply=self._apply,
            wanted_snapshot=self.wanted.append,
            role_changed=lambda old, new: None,
        )
        self.log.on_durable = self.raft.durable_advanced
        for peer in ("n2", "n3"):
            self.raft.peer_up(peer)

    def _apply(self, index: int, command: bytes) -> None:
        """What the engine applies, and which commit indices had been sent to whom by then."""
        sent = [(peer, one["commit_index"]) for peer, one in self.wires.sent if one["type"] == "append_entries"]
        self.applied.append(index)
        self.told_before.append(sent)

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
    monkeypatch.setattr(quorumq.cluster.seams.Clock, "now", time)
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


def test_the_way_to_an_election_is_told_once(_clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="quorumq.raft")
    member = Member(term=1)

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "quorumq.raft"]
        caplog.clear()
        return lines

    _clock.now += 5
    member.raft.tick()
    assert told() == ["asks who would vote for it in term 2: no leader is known"]
    member.append(prev=(1, 0), term=1, commit=1)
    for _ in range(3):
        _clock.now += 2.5
        member.raft.tick()
    assert told() == ["asks who would vote for it in term 2: nothing was heard of its leader n2 for 2500 ms"]
    member.raft.receive("n3", {"type": "pre_vote_granted", "term": 2})
    assert told() == ["stands in term 2, 5000 ms and 3 tries after it asked first"]
    member.append(prev=(1, 0), term=3, commit=1)
    member.raft.peer_reset("n2")
    _clock.now += 0.11
    member.raft.tick()
    assert told() == ["asks who would vote for it in term 4: its leader n2 cut the connection or stepped down"]
    member.raft.receive("n2", {"type": "timeout_now", "term": 3})
    member.raft.tick()
    assert told() == ["stands in term 4"]


def test_a_vote_counts_once() -> None:
    five = {f"n{i}": f"n{i}:1" for i in range(1, 6)}
    member = Member(term=1)
    member.raft.membership = configured(five)
    member.raft._seat(member.raft.membership)
    quorumq.cluster.seams.Clock.now.now += 5  # type: ignore[attr-defined]
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
    quorumq.cluster.seams.Clock.now.now += 5  # type: ignore[attr-defined]
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


def test_the_others_hear_of_a_commit_before_it_is_applied() -> None:
    """A client of another node waits for that node's apply, and not for the leader's."""
    member = a_leader()
    member.raft.propose(b"\x01 first")
    member.raft.tick()
    member.log.flush()
    member.wires.sent.clear()
    index = member.log.last_index
    member.raft.receive("n3", acknowledgement(index + 1))
    member.raft.tick()
    assert member.applied[-1] == index and {("n2", index), ("n3", index)} <= set(member.told_before[-1])


def test_a_commit_goes_out_with_the_next_entry() -> None:
    member = a_leader()
    member.raft.propose(b"\x01 first")
    member.raft.tick()
    member.log.flush()
    member.wires.sent.clear()
    index = member.log.last_index
    member.raft.receive("n3", acknowledgement(index + 1))
    member.raft.propose(b"\x01 second")
    member.raft.tick()
    sent = [(peer, one["commit_index"], len(one["entries"])) for peer, one in member.wires.take("append_entries")]
    assert sorted(sent) == [("n2", index, 1), ("n3", index, 1)]


def test_the_same_acknowledgement_is_not_sent_twice_at_once(_clock: Time) -> None:
    """What tells of a commit holds no entries: the leader has just been told how far this log reaches."""
    member = Member(term=1)

    def answers() -> list[tuple[str, int]]:
        return [(peer, one["next_node_idx"]) for peer, one in member.wires.take("next_node_idx")]

    member.append((2, 1), prev=(1, 0), term=1, commit=1)
    assert answers() == [("n2", 3)]
    member.append(prev=(2, 1), term=1, commit=2)
    assert answers() == [] and member.raft.commit_index == 2
    _clock.now += 0.1
    member.append(prev=(2, 1), term=1, commit=2)
    assert answers() == [("n2", 3)], "a heartbeat is answered: else the leader would take this node for dead"
    member.append((3, 1), prev=(2, 1), term=1, commit=2)
    assert answers() == [("n2", 4)]
    member.append(prev=(3, 1), term=2, commit=2, peer="n3")
    assert answers() == [("n3", 4)], "another leader has been told nothing"


def test_what_is_lacking_is_said_as_often_as_it_is_asked() -> None:
    member = Member(term=1)
    for _ in range(2):
        member.append((5, 1), prev=(4, 1), term=1, commit=1)
        [(peer, answer)] = member.wires.take("next_node_idx")
        assert (peer, answer["next_node_idx"], answer["reset"]) == ("n2", 2, True)


def test_the_end_of_probation_is_told_at_once() -> None:
    member = Member(term=1)
    member.raft.whole = False
    member.append((2, 1), prev=(1, 0), term=1, commit=1)
    member.raft.whole = True
    member.append(prev=(2, 1), term=1, commit=2)
    assert [one["whole"] for _, one in member.wires.take("next_node_idx")] == [False, True]


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
    quorumq.cluster.seams.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    assert [message["type"] for _, message in member.wires.sent] == []
    assert member.raft.term == 1


def test_a_contradiction_is_resolved_though_other_messages_were_under_way() -> None:
    """The follower answers each: one that begins behind its log's end asks for that end, and led the leader back there for ever."""
    leader = a_leader((2, 1), (3, 1), (4, 1), (5, 1))
    follower = Member((2, 1), (3, 0), (4, 0), term=2)
    leader.raft.propose(b"a" * 50)
    for _ in range(4):
        quorumq.cluster.seams.Clock.now.now += 0.2  # type: ignore[attr-defined]
        leader.wires.sent.clear()
        leader.raft.tick()
        leader.log.flush()
        under_way = [message for peer, message in leader.wires.take("append_entries") if peer == "n3"]
        # Two at once: the first contradicts what the follower holds, the second begins behind all that it holds.
        under_way.append({**under_way[-1], "prevLogIdx": 6, "prevLogTerm": 2, "entries": []})
        for message in under_way:
            follower.raft.receive("n2", dict(message))
        follower.log.flush()
        for _, answer in follower.wires.take("next_node_idx"):
            leader.raft.receive("n3", answer)
    assert follower.held == leader.held
    leader.raft.tick()
    assert leader.raft.commit_index == leader.log.last_index


@pytest.mark.parametrize("kind", ["pre_vote", "standing"])
def test_a_vote_that_waits_for_the_disk_is_not_made_void(kind: str, _clock: Time) -> None:
    """Each further election would put another vote behind it: with a slow disk none would ever be counted."""
    member = Member(immediate=False, term=1)
    while member.disk.step():
        pass
    member.raft.receive("n3", vote_request(2, (1, 0)))
    member.log.flush()
    assert member.wires.take("response_vote") == []
    _clock.now += 5
    if kind == "pre_vote":
        member.raft.receive("n3", {"type": "pre_vote", "term": 3, "last_log_index": 1, "last_log_term": 0})
    else:
        member.raft.tick()
    assert member.wires.take("pre_vote_granted") == member.wires.take("pre_vote") == []
    while member.disk.step():
        pass
    assert [peer for peer, _ in member.wires.take("response_vote")] == ["n3"]
    member.raft.receive("n3", {"type": "pre_vote", "term": 3, "last_log_index": 1, "last_log_term": 0})
    assert [peer for peer, _ in member.wires.take("pre_vote_granted")] == ["n3"]


def a_candidate(*peers: str, learners: tuple[str, ...] = ()) -> Member:
    """n1 of n1 and `peers`, all of which vote but `learners`; it stands in term 2."""
    member = Member(term=1)
    seats = {node: Seat(f"{node}:1", node not in learners) for node in ("n1", *peers)}
    member.raft._seat(Membership(seats))
    quorumq.cluster.seams.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    for peer in peers:
        if peer not in learners:
            member.raft.receive(peer, {"type": "pre_vote_granted", "term": 2})
    assert (member.raft.role, member.raft.term) == (CANDIDATE, 2)
    return member


@pytest.mark.parametrize("who", ["n9", "n4"], ids=["stranger", "learner"])
def test_votes_of_those_without_one_count_for_nothing(who: str) -> None:
    member = a_candidate("n2", "n3", "n4", learners=("n4",))
    member.raft.receive(who, {"type": "response_vote", "term": 2})
    assert member.raft.role == CANDIDATE
    member.raft.receive("n2", {"type": "response_vote", "term": 2})
    assert member.raft.is_leader


@pytest.mark.parametrize("who", ["n9", "n4"], ids=["stranger", "learner"])
def test_pre_votes_of_those_without_a_vote_count_for_nothing(who: str) -> None:
    member = Member(term=1)
    member.raft._seat(Membership({node: Seat(f"{node}:1", node != "n4") for node in ("n1", "n2", "n3", "n4")}))
    quorumq.cluster.seams.Clock.now.now += 5  # type: ignore[attr-defined]
    member.raft.tick()
    member.raft.receive(who, {"type": "pre_vote_granted", "term": 2})
    assert (member.raft.role, member.raft.term) == (FOLLOWER, 1)


def test_a_vote_of_an_earlier_term_counts_for_nothing() -> None:
    member = a_candidate("n2", "n3")
    member.raft.receive("n2", {"type": "response_vote", "term": 1})
    assert member.raft.role == CANDIDATE
    member.raft.receive("n2", {"type": "response_vote", "term": 2})
    assert member.raft.is_leader, "and does not stand in for the one of this term"


def test_a_request_for_votes_waits_for_the_disk(_clock: Time) -> None:
    """It says that this node votes for itself in that term: after a crash it would vote for another."""
    member = Member(immediate=False, term=1)
    while member.disk.step():
        pass
    _clock.now += 5
    member.raft.tick()
    member.raft.receive("n3", {"type": "pre_vote_granted", "term": 2})
    member.log.flush()
    assert (member.raft.role, member.raft.term) == (CANDIDATE, 2)
    assert member.wires.take("request_vote") == []
    while member.disk.step():
        pass
    assert {peer for peer, _ in member.wires.take("request_vote")} == {"n2", "n3"}


def test_a_pre_vote_for_another_term_counts_for_nothing(_clock: Time) -> None:
    member = Member(term=1)
    _clock.now += 5
    member.raft.tick()
    member.raft.receive("n2", {"type": "pre_vote_granted", "term": 1})
    member.raft.receive("n3", {"type": "pre_vote_granted", "term": 3})
    assert (member.raft.role, member.raft.term) == (FOLLOWER, 1)


@pytest.mark.parametrize("who", ["n9", "n4"], ids=["stranger", "learner"])
def test_acknowledgements_of_those_without_a_vote_commit_nothing(who: str) -> None:
    member = a_candidate("n2", "n3", "n4", learners=("n4",))
    member.raft.receive("n2", {"type": "response_vote", "term": 2})
    member.log.flush()
    assert member.raft.is_leader
    member.raft.receive(who, acknowledgement(3))
    member.raft.tick()
    assert member.raft.commit_index == 1


def test_acknowledgements_of_one_that_is_not_whole_commit_nothing_until_it_is() -> None:
    member = a_leader()
    member.raft.receive("n3", {**acknowledgement(3), "whole": False})
    member.raft.tick()
    assert (member.raft.commit_index, member.raft.counts("n3")) == (1, False)
    member.raft.receive("n3", {**acknowledgement(3), "whole": True})
    member.raft.tick()
    assert (member.raft.commit_index, member.raft.counts("n3")) == (2, True)


def test_one_that_is_not_whole_keeps_no_leader_in_office(_clock: Time) -> None:
    member = a_leader()
    for _ in range(10):
        _clock.now += 0.2
        member.raft.receive("n3", {**acknowledgement(2), "whole": False})
        member.raft.tick()
    assert not member.raft.is_leader


def test_what_a_node_is_not_leads_to_no_acknowledgement_beyond_its_log() -> None:
    member = a_leader()
    member.raft.receive("n3", acknowledgement(99))
    member.raft.tick()
    assert (member.raft.match_index("n3"), member.raft.commit_index) == (0, 1)


def test_no_vote_for_a_log_that_is_behind() -> None:
    for last in ((2, 1), (9, 1), (2, 2)):
        member = Member((2, 1), (3, 2), term=2)
        member.raft.receive("n3", vote_request(3, last))
        member.raft.receive("n2", {"type": "pre_vote", "term": 4, "last_log_index": last[0], "last_log_term": last[1]})
        member.log.flush()
        assert member.wires.take("response_vote") == member.wires.take("pre_vote_granted") == [], last
    for last in ((3, 2), (2, 3)):
        member = Member((2, 1), (3, 2), term=2)
        member.raft.receive("n3", {"type": "pre_vote", "term": 3, "last_log_index": last[0], "last_log_term": last[1]})
        member.raft.receive("n3", vote_request(3, last))
        member.log.flush()
        assert len(member.wires.take("response_vote")) == len(member.wires.take("pre_vote_granted")) == 1, last


def test_no_pre_vote_against_a_live_leader(_clock: Time) -> None:
    member = Member()
    member.append(prev=(1, 0), term=1, commit=1)
    question = {"type": "pre_vote", "term": 2, "last_log_index": 1, "last_log_term": 0}
    member.raft.receive("n3", dict(question))
    assert member.wires.take("pre_vote_granted") == []
    _clock.now += 0.61
    member.raft.receive("n3", dict(question))
    assert len(member.wires.take("pre_vote_granted")) == 1


def test_of_two_that_ask_at_once_the_lower_id_has_the_right_of_way(_clock: Time) -> None:
    member = Member(term=1)
    _clock.now += 5
    member.raft.tick()
    question = {"type": "pre_vote", "term": 2, "last_log_index": 1, "last_log_term": 0}
    member.raft.receive("n2", dict(question))
    assert member.wires.take("pre_vote_granted") == [], "n1 asks itself"
    _clock.now += 0.07
    member.raft.receive("n2", dict(question))
    assert len(member.wires.take("pre_vote_granted")) == 1


@pytest.mark.parametrize("voted", [None, "n3"])
def test_after_a_probation_no_vote_is_given_in_a_term_that_was_seen(voted: str | None) -> None:
    member = Member(term=3)
    if voted is not None:
        member.log.setCurrentTerm(3, voted)
    member.raft.forbid_votes(3 if voted is None else 5)
    term = member.raft.term
    assert term == (3 if voted is None else 5)
    member.raft.receive("n2", vote_request(term, (9, term), transfer=True))
    member.log.flush()
    assert member.wires.take("response_vote") == []
    assert Log(member.disk, 1 << 20).term == term, "and after a restart neither"
    member.raft.receive("n2", vote_request(term + 1, (9, term), transfer=True))
    member.log.flush()
    assert len(member.wires.take("response_vote")) == 1


def test_a_snapshot_takes_the_place_of_a_log_that_contradicts_it_and_leaves_one_that_agrees() -> None:
    for term, held in ((2, [(4, 2)]), (3, [])):
        member = Member((2, 1), (3, 2), (4, 2), term=3)
        member.raft.install(3, term, b"")
        assert member.held[-1:] == held, "what lies behind an entry that agrees may have been promised"
        assert member.log.term_at(3) == term and member.log.last_index == (4 if held else 3)
        assert (member.raft.applied_index, member.raft.commit_index) == (3, 3)


def test_a_leader_hands_over_only_to_one_that_holds_its_whole_log_and_counts() -> None:
    member = a_leader()
    assert not member.raft.transfer("n3")
    member.raft.receive("n3", {**acknowledgement(3), "whole": False})
    assert not member.raft.transfer("n3")
    member.raft.receive("n3", acknowledgement(3))
    assert member.raft.transfer("n3")
    assert member.wires.take("timeout_now") == [("n3", {"type": "timeout_now", "term": 2})]


def test_members_do_not_change_before_an_entry_of_the_own_term_is_committed_nor_twice_at_once() -> None:
    member = a_leader()
    assert not member.raft.membership_settled
    member.raft.receive("n3", acknowledgement(3))
    member.raft.tick()
    assert member.raft.membership_settled
    seats = {node: Seat(f"{node}:1", True) for node in ("n1", "n2", "n3", "n4")}
    member.raft.propose_membership(encode_members(1, Membership(seats).encode()))
    assert not member.raft.membership_settled, "nor before the next tick, where several messages come together"
    member.raft.tick()
    member.log.flush()
    assert "n4" in member.raft.membership.seats, "in force at once"
    assert not member.raft.membership_settled
    for peer in ("n2", "n3"):
        member.raft.receive(peer, acknowledgement(4))
    member.raft.tick()
    assert member.raft.membership_settled


def test_a_membership_that_was_cut_off_is_not_in_force_any_more() -> None:
    member = Member((2, 1), term=1)
    seats = {node: Seat(f"{node}:1", True) for node in ("n1", "n2", "n3", "n4")}
    member.log.add(MEMBERSHIP + encode_members(1, Membership(seats).encode()), 3, 1)
    member.raft.follow_membership()
    assert member.raft.quorum == 3
    member.append((3, 2), prev=(2, 1), term=2, commit=1)
    assert (member.raft.peers, member.raft.quorum) == (["n2", "n3"], 2)


def test_only_a_leader_whose_commit_index_is_of_its_own_term_verifies_a_log() -> None:
    member = Member((2, 1), (3, 2), term=3)
    member.append(prev=(3, 2), term=3, commit=2)
    assert member.raft.verified_term == 0
    member.append((4, 3), prev=(3, 2), term=3, commit=4)
    assert member.raft.verified_term == 3
    member.append(prev=(4, 3), term=4, commit=9)
    assert member.raft.verified_term == 3, "its commit index is beyond what the message vouches for"
