"""When a node may serve: caught up once, a leader heard of lately, and no further behind than a bound; with patience in both directions."""

from __future__ import annotations

from typing import Any

from quorumq.cluster.membership import Membership, Seat
from quorumq.cluster.status import FAR, NEAR, Readiness

PATIENCE_S = 3.0


class Raft:
    """What is asked of the consensus."""

    def __init__(self) -> None:
        self.id, self.peers, self.leader = "n1", ["n2"], "n2"
        self.membership = Membership({"n1": Seat("h:1", True), "n2": Seat("h:2", True)})
        self.membership_known = True
        self.alive = True
        self.behind = 0

    def leader_alive(self) -> bool:
        return self.alive

    def caught_up(self) -> bool:
        return self.behind == 0


class Watched:
    """A node that is looked at ten times a second."""

    def __init__(self) -> None:
        self.raft: Any = Raft()
        self.readiness = Readiness(PATIENCE_S)
        self.cluster_id = "c" * 32
        self.now = 100.0

    def wait(self, seconds: float) -> str:
        """Let time pass; return why it is not ready."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.readiness.look(self.raft, self.cluster_id, self.now)
        return self.readiness.missing(self.raft, None, (), "", self.now)


def test_it_is_ready_once_it_has_caught_up_and_no_election_changes_that() -> None:
    node = Watched()
    node.raft.behind = 5
    assert node.wait(60) == "catching up"
    node.raft.behind = 0
    assert node.wait(0.1) == ""
    node.raft.alive, node.raft.leader = False, None
    assert node.wait(PATIENCE_S - 0.2) == ""
    node.raft.alive, node.raft.leader = True, "n2"
    assert node.wait(0.1) == ""


def test_a_new_cluster_has_its_id_before_any_node_of_it_is_ready() -> None:
    """Whoever waits for a node to be ready, and asks whose it is, gets an answer."""
    node = Watched()
    node.cluster_id = ""
    assert node.wait(60) == "catching up"
    node.cluster_id = "c" * 32
    assert node.wait(0.1) == ""


def test_it_is_not_ready_without_a_leader_and_comes_back_with_one() -> None:
    node = Watched()
    assert node.wait(0.1) == ""
    node.raft.alive = False
    assert node.wait(PATIENCE_S + 0.2) == "no leader"
    node.raft.alive = True
    assert node.wait(0.1) == ""


def test_who_comes_back_to_the_cluster_gets_first_what_it_missed() -> None:
    node = Watched()
    assert node.wait(0.1) == ""
    node.raft.alive = False
    node.wait(60)
    node.raft.alive, node.raft.behind = True, NEAR + 1
    assert node.wait(10) == f"catching up: {NEAR + 1} entries behind"
    node.raft.behind = NEAR
    assert node.wait(0.1) == ""


def test_being_far_behind_counts_when_it_lasts_and_until_it_is_over() -> None:
    node = Watched()
    assert node.wait(0.1) == ""
    node.raft.behind = FAR + 1
    assert node.wait(PATIENCE_S - 0.2) == ""
    node.raft.behind = FAR
    # It keeps up again: time is counted anew.
    assert node.wait(0.1) == ""
    node.raft.behind = FAR + 1
    assert node.wait(PATIENCE_S - 0.2) == ""
    assert node.wait(1) == "catching up: 10,001 entries behind"
    # Not to and fro at the bound.
    node.raft.behind = FAR
    assert "catching up" in node.wait(10)
    node.raft.behind = NEAR
    assert node.wait(0.1) == ""
    # Within the bound it may stay for as long as it likes.
    node.raft.behind = FAR
    assert node.wait(600) == ""
