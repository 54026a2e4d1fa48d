"""Whose turn it is to write a snapshot, and how fast it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster.membership import Membership, Seat
from quorumq.cluster.snapshots import Policy, WriteThrottle
from quorumq.cluster.turns import EXPIRES_S, RENEW_S, SETTLE_S, Turns

WHEEL = next((Path(__file__).parents[1] / "versions").glob("quorumq-0.1.0-*.whl"))


class Net:
    """Members that hear each other at once, unless somebody is deaf or dead."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.deaf: set[str] = set()
        self.turns = {name: Turns(Raft(self, name)) for name in names}  # type: ignore[arg-type]
        self.now = 0.0

    def mine(self, name: str) -> bool:
        return self.turns[name].mine(self.now)

    def wait(self, seconds: float, *alive: str) -> None:
        """Let time pass; those alive do what they do at every step."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.05
            for name in alive:
                self.turns[name].drive(self.now)


class Raft:
    def __init__(self, net: Net, name: str) -> None:
        self.net, self.id, self.links = net, name, self
        self.membership = Membership({each: Seat("h:1", True) for each in net.names})

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        if peer not in self.net.deaf:
            self.net.turns[peer].on_turn(self.id, message, self.net.now)
        return True


def test_one_after_another() -> None:
    net = Net("n1", "n2", "n3")
    assert not net.mine("n2")
    net.wait(SETTLE_S, "n2")
    assert net.mine("n2")
    assert not net.mine("n1") and not net.mine("n3")
    net.wait(10 * EXPIRES_S, "n2")
    assert not net.mine("n1") and not net.mine("n3")
    net.turns["n2"].over(net.now)
    assert not net.mine("n3")
    net.wait(SETTLE_S, "n3")
    assert net.mine("n3") and not net.mine("n1")


def test_of_two_that_want_to_at_once_the_lower_id_has_the_right_of_way() -> None:
    net = Net("n1", "n2", "n3")
    net.deaf = {"n1", "n2", "n3"}
    for name in net.names:
        net.mine(name)
    net.deaf = set()
    net.wait(RENEW_S / 4, *net.names)
    for name in net.names:
        net.turns[name]._say(net.now, taken=True)
    assert [net.mine(name) for name in reversed(net.names)] == [False] * 3
    net.wait(SETTLE_S, *net.names)
    assert [net.mine(name) for name in reversed(net.names)] == [False, False, True]


def test_one_that_is_gone_holds_nobody_up() -> None:
    net = Net("n1", "n2")
    net.mine("n1")
    net.wait(EXPIRES_S / 2, "n2")
    assert not net.mine("n2")
    net.wait(EXPIRES_S / 2, "n2")
    net.mine("n2")
    net.wait(SETTLE_S, "n2")
    assert net.mine("n2")
    net.turns["n1"].over(net.now)
    net.turns["n2"].over(net.now)
    net.mine("n1")
    net.turns["n2"].peer_down("n1")
    net.mine("n2")
    net.wait(SETTLE_S, "n2")
    assert net.mine("n2")


def test_what_cannot_wait_does_not() -> None:
    net = Net("n1", "n2", "n3")
    net.mine("n2")
    net.wait(SETTLE_S, "n2")
    assert net.mine("n2")
    net.turns["n1"].take(net.now)
    net.turns["n2"].over(net.now)
    assert not net.mine("n3")


@pytest.mark.parametrize("field", ["bytes", "entries"])
def test_a_log_that_grows_faster_than_turns_come(field: str) -> None:
    policy = Policy(1000, 10, 1.0, 1.0)
    policy.taken(5, 500)

    def grown(part: float) -> tuple[int, int]:
        return (500 + int(1000 * part), 5) if field == "bytes" else (500, 5 + int(10 * part))

    assert [policy.overdue(*grown(part)) for part in (1.0, 1.9, 2.0)] == [False, False, True]


def test_a_writer_in_no_hurry_takes_a_fifth() -> None:
    calm, hurried = WriteThrottle(hurried=False), WriteThrottle(hurried=True)
    assert calm.pause_s(1.0) == hurried.pause_s(1.0) == 0.01
    assert calm.pause_s(1.01 + 0.02) == pytest.approx(0.08)
    assert calm.pause_s(1.01 + 0.02 + 0.08 + 0.001) == 0.01
    assert calm.pause_s(9.0) == 0.25
    assert hurried.pause_s(9.0) == 0.01


def test_the_version_before_ignores_the_message() -> None:
    old = f"""
import sys
sys.path.insert(0, {str(WHEEL)!r})
from cluster import messages
from cluster.raft import Raft
messages.check({{"type": "snapshot_turn", "taken": True}}, 1 << 20)
assert "snapshot_turn" not in messages.FIELDS and not hasattr(Raft, "_on_snapshot_turn")
"""
    subprocess.run([sys.executable, "-c", old], check=True, cwd="/")
