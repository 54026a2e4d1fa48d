"""The comparison of digests between members: who is apart, who only says that something differs, and what is not compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import messages
from quorumq.cluster.agreement import REMEMBERED, SEND_S, SENT_AT_ONCE, Agreement
from quorumq.cluster.membership import Membership, Seat

WHEEL = next((Path(__file__).parents[1] / "versions").glob("quorumq-0.1.0-*.whl"))
GOOD, BAD, ODD = (b"good", b"c"), (b"good", b"x"), (b"odd", b"c")


class Links:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        # As a peer reads it.
        messages.check({**message, "points": tuple(message["points"])}, 1 << 20)
        self.sent.append((peer, message))
        return True


class Raft:
    """As much of it as is asked."""

    def __init__(self, voters: int, learners: tuple[str, ...] = ()) -> None:
        self.id = "n1"
        self.links = Links()
        seats = {f"n{i + 1}": Seat("h:1", True) for i in range(voters)} | {
            each: Seat("h:1", False) for each in learners
        }
        self.membership = Membership(seats)

    @property
    def peers(self) -> list[str]:
        return [node for node in self.membership.voters if node != self.id]


class Machine:
    shape = "s"

    def __init__(self) -> None:
        self.points: dict[int, tuple[bytes, bytes]] = {}


class Member:
    """The agreement of n1, and what it was told."""

    def __init__(self, voters: int = 3, learners: tuple[str, ...] = ()) -> None:
        self.machine, self.raft, self.changes = Machine(), Raft(voters, learners), 0
        self.agreement = Agreement(self.raft, self.machine, "life", self._changed)  # type: ignore[arg-type]
        self.now = 0.0

    def _changed(self) -> None:
        self.changes += 1

    def comes_to(self, index: int, point: tuple[bytes, bytes]) -> None:
        self.machine.points[index] = point
        self.now += SEND_S
        self.agreement.drive(self.now)

    def hears(
        self, peer: str, index: int, point: tuple[bytes, bytes], *, shape: str = "s", life: str = "their life"
    ) -> None:
        self.agreement.on_digests(peer, {"shape": shape, "life": life, "points": ((index, *point),)})

    @property
    def found(self) -> tuple[bool, list[str]]:
        return bool(self.agreement.apart), self.agreement.differing


@pytest.mark.parametrize("first", [True, False], ids=["told first", "told later"])
@pytest.mark.parametrize("theirs", [BAD, ODD], ids=["contents", "answers"])
def test_one_against_two_is_apart(first: bool, theirs: tuple[bytes, bytes]) -> None:
    member = Member()
    if first:
        member.comes_to(5, GOOD)
    member.hears("n2", 5, theirs)
    assert member.found == (False, ["n2"] if first else [])
    member.hears("n3", 5, theirs)
    if not first:
        assert member.found == (False, [])
        member.comes_to(5, GOOD)
    assert member.found == (True, ["n2", "n3"])
    assert (member.changes, member.agreement.suspects, member.agreement.agreed) == (1, [], 0)
    # What comes later does not make up for it.
    for peer in ("n2", "n3"):
        member.hears(peer, 6, GOOD)
    member.comes_to(6, GOOD)
    assert member.found[0]


def test_two_against_one_go_on(caplog: pytest.LogCaptureFixture) -> None:
    member = Member()
    member.comes_to(5, GOOD)
    member.hears("n2", 5, GOOD)
    assert member.agreement.agreed == 5
    member.hears("n3", 5, BAD)
    for index in range(6, 9):
        member.comes_to(index, GOOD)
        member.hears("n2", index, GOOD)
        member.hears("n3", index, BAD)
    assert (member.found, member.agreement.suspects, member.changes) == ((False, ["n3"]), ["n3"], 0)
    assert member.agreement.agreed == 0
    assert [record.getMessage() for record in caplog.records] == [
        "the contents of n3 differ from those of n1, n2 at entry 5"
    ]


@pytest.mark.parametrize("voters", [2, 4])
def test_halves_that_differ_say_so_and_go_on(voters: int, caplog: pytest.LogCaptureFixture) -> None:
    member = Member(voters)
    member.comes_to(5, GOOD)
    for number in range(1, voters):
        member.hears(f"n{number + 1}", 5, BAD if number >= voters // 2 else GOOD)
    assert member.found == (False, [f"n{number + 1}" for number in range(voters // 2, voters)])
    assert member.agreement.suspects == []
    assert "no majority is known" in caplog.text


def test_learners_are_compared_and_do_not_count() -> None:
    member = Member(3, ("n4", "n5"))
    member.comes_to(5, GOOD)
    for peer in ("n4", "n5"):
        member.hears(peer, 5, BAD)
    assert member.found == (False, ["n4", "n5"])
    member.hears("n2", 5, BAD)
    assert member.found == (False, ["n2", "n4", "n5"])
    member.hears("n3", 5, BAD)
    assert member.found[0]


def test_strangers_and_other_shapes_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    member = Member()
    member.comes_to(5, GOOD)
    for peer in ("n2", "n3"):
        member.hears(peer, 5, BAD, shape="other")
    for peer in ("n7", "n8", "n9"):
        member.hears(peer, 5, BAD)
    assert (member.found, caplog.records) == ((False, []), [])


def test_a_new_life_is_believed_anew() -> None:
    member = Member()
    member.comes_to(5, GOOD)
    member.hears("n2", 5, BAD)
    member.hears("n2", 6, GOOD, life="the next one")
    assert member.found == (False, [])
    for peer in ("n2", "n3"):
        member.hears(peer, 5, BAD)
    assert member.found[0]
    member.machine.points = {}
    before = member.agreement._life
    member.agreement.peer_up("n2")
    assert member.raft.links.sent[-1] == ("n2", {"type": "digests", "shape": "s", "life": before, "points": []})
    member.agreement.on_digests("n2", {"shape": "s", "life": "a third one", "points": ()})
    assert member.agreement.differing == ["n3"]
    member.agreement.replaced()
    assert (member.found, member.changes) == ((False, []), 2)
    assert member.agreement._life != before


def test_what_is_told_and_kept_is_bounded() -> None:
    member = Member()
    member.machine.points = dict.fromkeys(range(1, 500), GOOD)
    member.agreement.drive(0.0)
    assert {peer for peer, _ in member.raft.links.sent} == {"n2", "n3"}
    points = member.raft.links.sent[0][1]["points"]
    assert [point[0] for point in points] == list(range(500 - SENT_AT_ONCE, 500))
    member.raft.links.sent.clear()
    member.comes_to(500, GOOD)
    assert [len(message["points"]) for _, message in member.raft.links.sent] == [1, 1]
    member.machine.points[501] = GOOD
    member.agreement.drive(member.now + SEND_S / 2)
    assert len(member.raft.links.sent) == 2
    member.agreement.peer_up("n3")
    assert len(member.raft.links.sent[-1][1]["points"]) == SENT_AT_ONCE
    for index in range(1000, 1000 + 2 * REMEMBERED):
        member.hears("n2", index, GOOD)
    assert len(member.agreement._peers["n2"].points) == REMEMBERED


def test_the_version_before_ignores_the_message() -> None:
    member = Member()
    member.comes_to(5, GOOD)
    old = f"""
import sys
sys.path.insert(0, {str(WHEEL)!r})
from cluster import messages
from cluster.raft import Raft
message = {member.raft.links.sent[0][1]!r}
messages.check(message, 1 << 20)
assert message["type"] not in messages.FIELDS and not hasattr(Raft, "_on_" + message["type"])
"""
    subprocess.run([sys.executable, "-c", old], check=True, cwd="/")
