"""What members tell each other of clock and disk, and what a node makes of it; the others are played by the test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from quorumq.cluster import messages
from quorumq.cluster.health import DiskHealth
from quorumq.cluster.logclock import LogClock
from quorumq.cluster.seams import Clock
from quorumq.cluster.vitals import Vitals

EPOCH_MS, HOUR_MS = 1_700_000_000_000, 3_600_000


class Raft:
    """What vitals ask of consensus: n1 of n1, n2, n3."""

    id = "n1"
    quorum = 2
    voter = True

    def __init__(self) -> None:
        self.peers = ["n2", "n3"]
        self.leader: str | None = "n1"
        self.membership = SimpleNamespace(seats=dict.fromkeys(("n1", "n2", "n3")), voters={"n1", "n2", "n3"})
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.up = {"n2", "n3"}
        self.links = SimpleNamespace(send=self._send, connected=lambda peer: peer in self.up)

    @property
    def is_leader(self) -> bool:
        return self.leader == self.id

    def _send(self, peer: str, message: dict[str, Any]) -> bool:
        messages.check(message, 1 << 20)
        self.sent.append((peer, message))
        return True


class Played:
    """A node's vitals, at a time that the test decides."""

    def __init__(self) -> None:
        self.now = 50.0
        self.off_ms = 0
        self.asleep_s = 0.0
        self.old: set[str] = set()
        self.raft = Raft()
        self.clock = LogClock(self.now, 0.0)
        self.disk = DiskHealth(1.8, 0.6)
        self.vitals = Vitals(
            self.raft,  # type: ignore[arg-type]
            self.clock,
            self.disk,
            wall_ms=lambda: self.true_ms + self.off_ms,
            asleep_s=lambda: self.asleep_s,
            alarm_ms=2000,
            tells_nothing=lambda peer: peer in self.old,
            reaches=lambda: ("n3",),
            on_reaches=lambda peer, reached: None,
        )
        for peer in self.raft.peers:
            self.vitals.peer_up(peer)

    @property
    def true_ms(self) -> int:
        return EPOCH_MS + int(self.now * 1000)

    @property
    def off(self) -> int:
        """How far the log's clock is from the truth."""
        return self.clock.read(self.now) - self.true_ms

    def told(self, peer: str, off_ms: int = 0, disk_ms: int = 0, log_ms: int | None = None) -> None:
        message = {"type": "vitals", "wall_ms": self.true_ms + off_ms, "log_ms": log_ms, "disk_ms": disk_ms}
        messages.check(message, 1 << 20)
        self.vitals.on_vitals(peer, message)

    def run(self, seconds: float, *peers: str, off_ms: int = 0) -> None:
        """Let time pass; these peers tell every half second."""
        for step in range(round(seconds / 0.05)):
            self.now += 0.05
            if step % 10 == 0:
                for peer in peers:
                    self.told(peer, off_ms)
            self.vitals.drive(0, self.now)


@pytest.fixture
def played() -> Iterator[Played]:
    clock, node = Clock.now, None
    Clock.now = lambda: node.now if node is not None else 50.0
    try:
        node = Played()
        yield node
    finally:
        Clock.now = clock


def test_a_leader_waits_for_a_majoritys_clocks_and_tells_its_own(played: Played) -> None:
    played.run(1.0)
    assert not played.clock.settled
    played.told("n2")
    played.run(0.1)
    assert played.clock.settled
    assert abs(played.off) <= 1
    assert [(peer, message["log_ms"]) for peer, message in played.raft.sent[:2]] == [("n2", None), ("n3", None)]
    played.run(1.0, "n2")
    assert played.raft.sent[-1][1]["log_ms"] is not None


def test_a_message_from_far_in_the_past_or_future_is_sent_by_nobody(played: Played) -> None:
    for off_ms in (-2 * EPOCH_MS, 1 << 60):
        played.off_ms = off_ms
        played.run(1.0, "n2", "n3")  # the links check each message


def test_beside_members_that_tell_nothing_the_leaders_own_clock_counts(played: Played) -> None:
    played.run(2.5)
    assert not played.clock.settled
    played.run(1.0)
    assert played.clock.settled
    assert abs(played.off) <= 1
    played.off_ms = HOUR_MS
    played.run(10.0)
    assert played.off == pytest.approx(500, abs=20), "slowly, like any clock"


def test_members_of_which_it_is_known_that_they_tell_nothing_are_not_waited_for(played: Played) -> None:
    played.old = {"n2", "n3"}
    played.run(0.05)
    assert played.clock.settled


def test_one_that_tells_and_one_that_does_not_are_a_majority_with_this_node(played: Played) -> None:
    played.old = {"n3"}
    played.off_ms = HOUR_MS
    played.run(5.5, "n2")
    assert abs(played.off) <= 1


def test_a_message_that_came_late_does_not_pull_the_clock_back(played: Played) -> None:
    played.run(1.0, "n2", "n3")
    for _ in range(2):
        played.told("n2", -3000)
        played.told("n3", -3000)
    played.run(0.5)
    assert abs(played.off) <= 1


def test_a_suspended_machine_hears_a_majority_before_it_goes_on(played: Played) -> None:
    played.run(1.0, "n2", "n3")
    played.asleep_s = 7200.0
    played.run(0.1)
    assert not played.clock.settled
    played.off_ms = 2 * HOUR_MS
    played.told("n2", 2 * HOUR_MS)
    played.run(0.1)
    assert played.clock.settled
    assert played.off == pytest.approx(2 * HOUR_MS, abs=1)


def test_a_node_that_follows_takes_the_leaders_clock_and_nobody_elses(played: Played) -> None:
    played.raft.leader = "n2"
    played.told("n3", log_ms=7_000)
    assert played.clock.read(played.now) == 7_000, "one that knows it is better than none"
    played.told("n2", log_ms=9_000)
    assert played.clock.read(played.now) == 9_000
    played.told("n3", log_ms=99_000)
    assert played.clock.read(played.now) == 9_000


def test_the_alarm_is_raised_once_and_taken_back(played: Played, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quorumq.clock")
    played.run(2.0, "n2", "n3")
    assert played.vitals.offsets() == pytest.approx({"n1": 0, "n2": 0, "n3": 0}, abs=2)
    caplog.clear()
    for _ in range(10):
        played.told("n3")
        played.run(0.5, "n2", off_ms=HOUR_MS)
    assert [record.getMessage() for record in caplog.records] == [
        "the clock of n2 is 3600.0 s ahead of the log's clock"
    ]
    assert played.vitals.offsets()["n2"] == pytest.approx(HOUR_MS, abs=2)
    caplog.clear()
    played.run(3.0, "n2", "n3")
    assert [record.getMessage() for record in caplog.records] == ["the clock of n2 agrees with the log's clock again"]


@pytest.mark.parametrize(
    ("disks", "up", "old", "could"),
    [
        ({"n2": 0, "n3": 0}, "n2 n3", "", True),
        ({"n2": 0, "n3": 1500}, "n2 n3", "", False),
        ({"n2": 1500, "n3": 1500}, "n2 n3", "", False),
        ({"n2": 0, "n3": 0}, "n2", "", False),
        ({"n2": 0}, "n2 n3", "n3", True),
        ({}, "n2 n3", "n2 n3", False),
    ],
)
def test_who_could_go_on_without_a_leader_whose_disk_hangs(
    played: Played, disks: dict[str, int], up: str, old: str, could: bool
) -> None:
    played.old = set(old.split())
    played.raft.up = set(up.split())
    for peer, disk_ms in disks.items():
        played.told(peer, disk_ms=disk_ms)
    assert played.vitals.could_go_on() is could


def test_what_was_said_of_a_disk_long_ago_says_nothing(played: Played) -> None:
    played.told("n2")
    played.told("n3")
    played.run(2.0)
    assert not played.vitals.could_go_on()


@pytest.mark.parametrize(
    ("field", "value"), [("wall_ms", 1 << 48), ("log_ms", -1), ("disk_ms", None), ("wall_ms", 1.5)]
)
def test_a_message_that_no_member_sends_is_refused(field: str, value: Any) -> None:
    message = {"type": "vitals", "wall_ms": 1, "log_ms": None, "disk_ms": 0}
    messages.check(message, 1 << 20)
    with pytest.raises(messages.Malformed):
        messages.check({**message, field: value}, 1 << 20)
