"""Who belongs to the cluster: voters, learners that are still catching up, and those that were removed.

A membership is one log entry, in force from the moment it is in a node's log (Raft thesis 4.1), one member's difference at a
time. Before the first leader has put one into the log, the configured peers stand for it. How messages reach the members is
transport.py's business.
"""

from __future__ import annotations

import msgspec

from quorumq.cluster.errors import ClusterError


class ChangeRefused(ClusterError):
    """A change of the membership that cannot be made now; says why."""


class Seat(msgspec.Struct, array_like=True, frozen=True):
    """One member: where its peer listener is, and whether its vote counts."""

    address: str
    voter: bool


class Membership(msgspec.Struct, frozen=True):
    """All members by id. removed: ids that were members once and are refused until they are added anew."""

    seats: dict[str, Seat]
    removed: list[str] = []

    @property
    def voters(self) -> list[str]:
        """Ids whose votes count, sorted."""
        return sorted(node for node, seat in self.seats.items() if seat.voter)

    def encode(self) -> bytes:
        """As it lies in the log."""
        return msgspec.msgpack.encode(self)

    # Each change returns the membership after it, or raises ChangeRefused.

    def adding(self, node: str, address: str) -> Membership:
        """With `node` as a learner; promoted once it has caught up."""
        if node in self.seats:
            raise ChangeRefused(f"{node} is a member already")
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ChangeRefused(f"{address!r} is not host:port")
        if any(seat.address == address for seat in self.seats.values()):
            raise ChangeRefused(f"{address} is the address of another member")
        return Membership({**self.seats, node: Seat(address, False)}, [each for each in self.removed if each != node])

    def promoting(self, node: str) -> Membership:
        """With `node` as a voter."""
        seat = self.seats.get(node)
        if seat is None:
            raise ChangeRefused(f"{node} is not a member")
        if seat.voter:
            raise ChangeRefused(f"{node} votes already")
        return Membership({**self.seats, node: Seat(seat.address, True)}, self.removed)

    def removing(self, node: str, reachable: set[str]) -> Membership:
        """Without `node`; refused when those of the rest that can be reached would not be a quorum of it."""
        if node not in self.seats:
            raise ChangeRefused(f"{node} is not a member")
        left = Membership(
            {each: seat for each, seat in self.seats.items() if each != node}, sorted({*self.removed, node})
        )
        voters = left.voters
        present = sum(voter in reachable for voter in voters)
        if present < len(voters) // 2 + 1:
            raise ChangeRefused(
                f"only {present} of the {len(voters)} voters left can be reached: no quorum would remain. "
                "If they are well, try again in a moment"
            )
        return left


def decode(data: bytes) -> Membership:
    """The opposite of `encode`. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(data, type=Membership)


def configured(peers: dict[str, str]) -> Membership:
    """What the configuration says: everybody votes."""
    return Membership({node: Seat(address, True) for node, address in peers.items()})
