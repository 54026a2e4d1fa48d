"""Ways round a link that is cut: who passes what on, what is believed, and what ends a route; message by message."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest

from quorumq.cluster import messages
from quorumq.cluster.messages import Malformed
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.routes import ASK_S, FRESH_S, Routes

Message = dict[str, Any]
INNER = {"type": "read", "question": 7}


class Wires:
    """Links between members, each of which can be cut in one direction."""

    def __init__(self, *names: str) -> None:
        self.now = 100.0
        self.cuts: set[tuple[str, str]] = set()
        self.speaks_not: set[str] = set()
        # Those that carry nothing of a route, though they say whom they reach.
        self.idle: set[str] = set()
        self.nodes = {name: Member(self, name, names) for name in names}
        self.sent: list[tuple[str, str, Message]] = []
        self.count = itertools.count(1)

    def cut(self, source: str, target: str) -> None:
        self.cuts.add((source, target))
        self.nodes[source].routes.direct_down(target)

    def heal(self, source: str, target: str) -> None:
        self.cuts.discard((source, target))
        self.nodes[source].routes.direct_up(target)

    def settle(self, seconds: float = 3.0) -> None:
        """Let time pass: members tell what they reach, and look for ways."""
        ends = self.now + seconds
        while self.now < ends:
            self.now += 0.1
            for member in self.nodes.values():
                for other in member.others:
                    if member.connected(other) and member.name not in self.speaks_not:
                        speaks = member.routes.reaches(lambda peer: peer not in self.speaks_not)
                        self.nodes[other].routes.on_reaches(member.name, speaks, self.now)
                member.routes.drive(self.now)

    def carry(self, source: str, target: str, message: Message) -> None:
        messages.check(message, 1 << 20)
        self.sent.append((source, target, message))
        if message["type"].startswith("relay"):
            if target not in self.idle:
                self.nodes[target].routes.on_message(source, message)
        else:
            self.nodes[target].receive(source, message)


class Member:
    def __init__(self, wires: Wires, name: str, names: tuple[str, ...]) -> None:
        self.wires = wires
        self.name = name
        self.others = [each for each in names if each != name]
        self.addresses: dict[str, str] = {}
        self.got: list[tuple[str, Message]] = []
        self.happened: list[str] = []
        self.full: list[tuple[str, bool]] = []
        self.refuses = False
        self.metrics = ReplicationMetrics()
        self.routes = Routes(
            name,
            self,
            self.metrics,
            members=lambda: self.others,
            up=lambda peer: self.happened.append(f"up {peer}"),
            down=lambda peer: self.happened.append(f"down {peer}"),
            congested=lambda peer, full: self.full.append((peer, full)),
            receive=self.receive,
            vet=self.vet,
            introduce=lambda peer: self.happened.append(f"introduced to {peer}"),
            random_bits=lambda bits: next(wires.count),
        )

    def receive(self, peer: str, message: Message) -> None:
        if self.refuses:
            raise Malformed("something that is not so")
        self.got.append((peer, message))

    def vet(self, message: Message) -> None:
        messages.check(message, 1 << 20)

    def connected(self, peer: str) -> bool:
        return (self.name, peer) not in self.wires.cuts

    def send(self, peer: str, message: Message) -> bool:
        if not self.connected(peer):
            return False
        self.wires.carry(self.name, peer, message)
        return True

    def add_peer(self, peer: str, address: str) -> None: ...
    def drop_peer(self, peer: str) -> None: ...


def cut(*ways: tuple[str, str], names: tuple[str, ...] = ("n1", "n2", "n3")) -> Wires:
    wires = Wires(*names)
    wires.settle(1)
    for way in ways:
        wires.cut(*way)
    wires.settle()
    return wires


def test_nothing_goes_round_while_there_is_a_link() -> None:
    wires = cut()
    assert wires.nodes["n1"].routes.send("n3", INNER) is True
    assert [message["type"] for _, _, message in wires.sent] == ["read"]
    assert all(not member.happened for member in wires.nodes.values())


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_a_message_goes_round_a_cut_and_comes_as_its_senders(both: bool) -> None:
    wires = cut(("n1", "n3"), *([("n3", "n1")] if both else []))
    one, relay, three = wires.nodes.values()
    assert one.routes.via("n3") == "n2" and one.routes.connected("n3")
    assert one.routes.send("n3", INNER)
    assert three.got == [("n1", INNER)]
    assert three.routes.send("n1", INNER)
    assert (relay.metrics.relayed > 0) and relay.got == []
    assert "up n3" in one.happened and ("up n1" in three.happened) is both
    assert one.metrics.peers_by_relay == 1
    wires.heal("n1", "n3")
    assert one.routes.via("n3") is None and "down n3" not in one.happened


def test_a_member_of_a_version_that_knows_no_routes_is_neither_on_the_way_nor_at_its_end() -> None:
    for old in ("n2", "n3"):
        wires = Wires("n1", "n2", "n3")
        wires.speaks_not.add(old)
        wires.settle(1)
        wires.cut("n1", "n3")
        wires.settle()
        assert not wires.nodes["n1"].routes.connected("n3")
        assert not any(message["type"].startswith("relay") for _, _, message in wires.sent)


def test_another_way_is_taken_when_the_first_ends() -> None:
    wires = cut(("n1", "n4"), ("n4", "n1"), names=("n1", "n2", "n3", "n4"))
    one = wires.nodes["n1"]
    assert one.routes.via("n4") == "n2"
    wires.cut("n1", "n2")
    wires.settle(1)
    assert one.routes.via("n4") == "n3"
    assert [text for text in one.happened if text in ("up n4", "down n4")] == ["up n4", "down n4", "up n4"]
    # And what is said of a way counts for a while only.
    wires.cut("n1", "n3")
    wires.settle(FRESH_S + ASK_S)
    assert not one.routes.connected("n4") and not one.routes.send("n4", INNER)


def test_a_way_that_does_not_open_is_not_waited_for() -> None:
    wires = Wires("n1", "n2", "n3", "n4")
    wires.idle.add("n2")
    wires.settle(1)
    wires.cut("n1", "n4")
    wires.settle()
    one, four = wires.nodes["n1"], wires.nodes["n4"]
    assert one.routes.via("n4") == "n3"
    assert one.routes.send("n4", INNER) and four.got == [("n1", INNER)]


@pytest.mark.parametrize("late", [{"type": "relay_open", "nonce": 0, "token": 0}, {"type": "relay_closed", "token": 0}])
def test_what_answers_an_earlier_request_neither_opens_nor_closes(late: Message) -> None:
    wires = cut(("n1", "n3"), ("n3", "n1"))
    one, _, three = wires.nodes.values()
    one.routes.on_message("n2", late | {"to": "n1", "from": "n3"})
    assert one.routes.send("n3", INNER) and three.got == [("n1", INNER)]


def test_nobody_passes_on_what_is_not_the_senders_own() -> None:
    wires = cut(("n1", "n3"))
    relay = wires.nodes["n2"].routes
    forged = {"type": "relay", "to": "n3", "from": "n4", "token": 1, "message": INNER}
    with pytest.raises(Malformed, match="of another node than the one that sent it"):
        relay.on_message("n1", forged)
    # So the second member on a way never passes it on: nothing goes round in circles.
    passed = {"type": "relay", "to": "n1", "from": "n1", "token": 1, "message": INNER}
    with pytest.raises(Malformed):
        relay.on_message("n3", passed)


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "relay", "to": "n3", "from": "n1", "token": 1, "message": INNER},
        {"type": "relay_ask", "to": "n3", "from": "n1", "nonce": 1},
        {"question": 7},
        7,
    ],
)
def test_a_route_in_a_route_is_malformed(inner: Any) -> None:
    message = {"type": "relay", "to": "n3", "from": "n1", "token": 1, "message": inner}
    with pytest.raises(Malformed):
        messages.check(message, 1 << 20)


def test_what_is_broken_ends_at_the_link_of_its_sender() -> None:
    wires = cut(("n1", "n3"))
    broken = {"type": "relay", "to": "n3", "from": "n1", "token": 1, "message": {"type": "read", "question": "x"}}
    with pytest.raises(Malformed):
        wires.nodes["n2"].routes.on_message("n1", broken)


def test_what_cannot_be_so_ends_the_route_and_no_link(caplog: pytest.LogCaptureFixture) -> None:
    wires = cut(("n1", "n3"), ("n3", "n1"))
    one, _, three = wires.nodes.values()
    three.refuses = True
    assert one.routes.send("n3", INNER)
    assert three.metrics.peer_messages_refused == 1
    assert "closed the route from n1 through n2" in caplog.text
    three.refuses = False
    # The next one is answered that the route is closed, and it is opened anew.
    one.routes.send("n3", INNER)
    assert not one.routes.connected("n3") and three.got == []
    wires.settle()
    assert one.routes.send("n3", INNER) and three.got == [("n1", INNER)]


def test_a_token_of_before_opens_nothing() -> None:
    wires = cut(("n1", "n3"), ("n3", "n1"))
    three = wires.nodes["n3"].routes
    late = {"type": "relay", "to": "n3", "from": "n1", "token": three._granted["n1"], "message": INNER}
    three.on_introduction("n1")
    three.on_message("n2", late)
    assert wires.nodes["n3"].got == []
    wires.settle()
    late["token"] = three._granted["n1"]
    three.on_message("n2", late)
    assert len(wires.nodes["n3"].got) == 1


def test_strangers_get_no_route() -> None:
    wires = cut()
    wires.nodes["n3"].routes.on_message("n2", {"type": "relay_ask", "to": "n3", "from": "n9", "nonce": 1})
    assert "n9" not in wires.nodes["n3"].routes._granted
    wires.nodes["n2"].routes.on_message("n1", {"type": "relay_ask", "to": "n9", "from": "n1", "nonce": 1})
    assert wires.nodes["n2"].metrics.relay_drops == 1


def test_a_full_link_carries_nothing_for_others_and_fills_the_routes_through_it() -> None:
    wires = cut(("n1", "n3"), ("n3", "n1"))
    one, relay, three = wires.nodes.values()
    relay.routes.peer_congested("n3", True)
    one.routes.send("n3", INNER)
    assert three.got == [] and relay.metrics.relay_drops == 1
    relay.routes.peer_congested("n3", False)
    one.routes.send("n3", INNER)
    assert len(three.got) == 1
    one.routes.peer_congested("n2", True)
    assert one.full == [("n3", True)]
    wires.heal("n1", "n3")
    assert one.full == [("n3", True), ("n3", False)]


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="quorumq.peers")
    wires = cut(("n1", "n3"))
    for _ in range(5):
        wires.cut("n1", "n2")
        wires.settle(1)
        wires.heal("n1", "n2")
        wires.settle(1)
    wires.heal("n1", "n3")
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [
        "n3 cannot be reached directly: what this node tells it goes through n2",
        "n3 is reached directly again",
        "passes on what n1 and n3 tell each other: there is no link between them",
    ]


@pytest.mark.parametrize("silent", [False, True])
def test_what_a_member_said_long_ago_of_its_links_leads_nowhere(silent: bool) -> None:
    wires = Wires("n1", "n2", "n3")
    wires.settle(1)
    if silent:
        # Its link stays, and it says no more whom it reaches.
        wires.speaks_not.add("n2")
    wires.settle(FRESH_S + 1)
    wires.cut("n1", "n3")
    wires.settle()
    assert ("up n3" in wires.nodes["n1"].happened) == (not silent)
