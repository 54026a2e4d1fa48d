"""What a leader must know before it changes the members, and what it says when it does not, or ceases to lead meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from quorumq.cluster.changes import Changes
from quorumq.cluster.errors import ClusterError, OutcomeUnknown
from quorumq.cluster.membership import ChangeRefused, Membership, Seat

THREE = Membership({"n1": Seat("n1:1", True), "n2": Seat("n2:1", True), "n3": Seat("n3:1", True)})
WITH_A_LEARNER = Membership({**THREE.seats, "n4": Seat("n4:1", False)})


class Leader:
    """n1, which leads, and what it knows of the others: all is well until a test says otherwise."""

    def __init__(self, membership: Membership = THREE) -> None:
        self.whole = {"n2", "n3", "n4"}
        self.silent: set[str] = set()
        self.unconnected: set[str] = set()
        self.matches = {"n2": 100, "n3": 100, "n4": 100}
        self.may_propose = True
        self.proposed: list[Membership] = []
        self.raft: Any = SimpleNamespace(
            id="n1",
            is_leader=True,
            membership=membership,
            membership_settled=True,
            commit_index=100,
            peers=[node for node in membership.voters if node != "n1"],
            match_index=self.matches.__getitem__,
            answers=lambda peer: peer not in self.silent,
            links=SimpleNamespace(connected=lambda peer: peer not in self.unconnected),
        )
        self.changes = Changes(
            self.raft,
            SimpleNamespace(poke=lambda: None),  # type: ignore[arg-type]
            whole=self.whole,
            may_propose=lambda: self.may_propose,
            propose=self.proposed.append,
            hand_over=lambda peer: None,  # type: ignore[arg-type, return-value]
            raise_level=lambda level: None,
        )

    def ask(self, action: str, node: str) -> list[ClusterError | None]:
        """Ask for a change; returns the list that the answer will be in."""
        answers: list[ClusterError | None] = []
        self.changes._change(action, node, f"{node}:1", answers.append)
        return answers


def refused(leader: Leader, action: str, node: str) -> str:
    (answer,) = leader.ask(action, node)
    assert isinstance(answer, ChangeRefused) and not leader.proposed
    return str(answer)


def test_a_change_is_proposed_and_answered_when_it_is_applied() -> None:
    leader = Leader()
    answers = leader.ask("add", "n4")
    assert leader.proposed == [WITH_A_LEARNER] and answers == []
    leader.changes.applied(THREE.encode(), 1)
    assert answers == []
    leader.changes.applied(WITH_A_LEARNER.encode(), 1)
    assert answers == [None]


def test_a_change_waits_for_the_one_before_it() -> None:
    leader = Leader()
    leader.raft.membership_settled = False
    assert refused(leader, "add", "n4").startswith("another change is under way")
    leader.raft.membership_settled, leader.may_propose = True, False
    assert refused(leader, "add", "n4").startswith("another change is under way")


@pytest.mark.parametrize(
    ("match", "whole", "taken"),
    [(100, True, True), (84, True, True), (83, True, False), (0, True, False), (100, False, False)],
)
def test_a_learner_is_promoted_when_it_has_caught_up_and_holds_all_it_promised(
    match: int, whole: bool, taken: bool
) -> None:
    leader = Leader(WITH_A_LEARNER)
    leader.matches["n4"] = match
    if not whole:
        leader.whole.discard("n4")
    if taken:
        assert leader.ask("promote", "n4") == [] and leader.proposed[0].seats["n4"].voter
    else:
        assert "must catch up first" in refused(leader, "promote", "n4")


def test_a_learner_that_never_acknowledged_anything_is_not_promoted_in_a_short_log() -> None:
    leader = Leader(WITH_A_LEARNER)
    leader.raft.commit_index, leader.matches["n4"] = 3, 0
    assert "must catch up first" in refused(leader, "promote", "n4")


@pytest.mark.parametrize("how", ["unconnected", "silent", "wiped"])
def test_a_removal_counts_on_nobody_who_cannot_help(how: str) -> None:
    leader = Leader()
    if how == "wiped":
        leader.whole.discard("n2")
    else:
        getattr(leader, how).add("n2")
    said = refused(leader, "remove", "n3")
    assert said.startswith("only 1 of the 2 voters left can be reached")
    # Who repeats what may pass, as `members resize` does, has to see that this may: a leader can be held up for a moment.
    assert "try again" in said
    assert leader.ask("remove", "n2") == [], "the one that cannot help may go"


def test_a_leader_does_not_remove_itself() -> None:
    assert refused(Leader(), "remove", "n1") == "n1 leads: hand leadership over first"


def test_what_was_under_way_when_it_ceased_to_lead_may_or_may_not_happen() -> None:
    leader = Leader()
    answers = leader.ask("add", "n4")
    leader.changes.ceased_to_lead()
    assert [type(answer) for answer in answers] == [OutcomeUnknown]
    leader.changes.applied(WITH_A_LEARNER.encode(), 1)
    assert len(answers) == 1, "nobody is answered twice"
