"""Seats: what each change gives, and what is refused."""

from __future__ import annotations

import pytest

from quorumq.cluster.membership import ChangeRefused, Membership, configured, decode

THREE = configured({node: f"{node}:7790" for node in ("n1", "n2", "n3")})


def test_add_promote_remove() -> None:
    learner = THREE.adding("n4", "n4:7790")
    assert learner.voters == ["n1", "n2", "n3"] and not learner.seats["n4"].voter
    four = learner.promoting("n4")
    assert four.voters == ["n1", "n2", "n3", "n4"]
    left = four.removing("n2", {"n1", "n3", "n4"})
    assert left.voters == ["n1", "n3", "n4"] and left.removed == ["n2"]
    # Whatever else changes.
    assert left.adding("n5", "n5:7790").promoting("n5").removing("n4", {"n1", "n3", "n5"}).removed == ["n2", "n4"]
    back = left.adding("n2", "n2:7790")
    assert back.removed == []
    assert decode(back.encode()) == back


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.adding("n1", "x:1"), "n1 is a member already"),
        (lambda m: m.adding("n4", "n2:7790"), "address of another member"),
        (lambda m: m.adding("n4", "nowhere"), "not host:port"),
        (lambda m: m.adding("n4", ":7790"), "not host:port"),
        (lambda m: m.promoting("n1"), "votes already"),
        (lambda m: m.promoting("n9"), "not a member"),
        (lambda m: m.removing("n9", {"n1"}), "not a member"),
        (lambda m: m.removing("n3", {"n1"}), "only 1 of the 2 voters left can be reached"),
    ],
)
def test_refusals_say_why(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(ChangeRefused, match=reason):
        change(THREE)


def test_removing_a_learner_needs_no_more_than_a_quorum_of_voters() -> None:
    with_learner: Membership = THREE.adding("n4", "n4:7790")
    assert with_learner.removing("n4", {"n1", "n2"}).voters == THREE.voters
