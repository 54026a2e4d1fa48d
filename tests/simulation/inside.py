"""What holds inside of the nodes at every step, whatever their clients see: Raft's own invariants, and that time goes on.

A client notices a broken promise only when several things come together; the step that broke it is noticed here. Everything is
judged by what the nodes did, sent and have on their disks, and nothing by what the code under test says of itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from quorumq.cluster import replica as replicated
from quorumq.cluster import snapshots
from quorumq.cluster.engine import Engine
from quorumq.cluster.log import MEMBERSHIP, Log
from quorumq.cluster.membership import decode
from quorumq.node.machine.machine import Machine
from tests.simulation.checks import Checks

PACE, PACE_MS = 0.06, 1000.0
"""How much faster or slower than time the log's clock may go, and how far off it may be besides."""
KNOWS_S = 3.0
"""After so long whoever applies what a leader stamped has been told the log's clock, too."""
OVERDUE_MS = 2500
"""So late, by the log's clock, nothing is that a leader has to do while all is well."""


class Inside:
    """Told of every step inside of every node. `checks` takes the violations."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self.highest = 1
        """The highest entry that was applied anywhere."""
        self.answered = 1
        """The highest entry whose outcome somebody was told."""
        self._terms: dict[int, int] = {}  # of entries that were applied
        self._committed_in: dict[int, int] = {}
        self._written: dict[tuple[int, int], int] = {}
        self._digests: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self.cast: list[tuple[str, str, int]] = []
        """Votes as they were given: voter, candidate, term."""
        self._ballots: dict[tuple[int, str], set[str]] = {}
        self._lives: dict[str, list[tuple[Engine, Log]]] = {}
        self._lost: dict[str, int] = {}
        self._cut: dict[str, tuple[int, int]] = {}
        self._began: tuple[float, int] | None = None
        self._jumps: dict[str, int] = {}
        self._knows: set[str] = set()

    def lost(self, name: str) -> None:
        """Its disk was lost, or a part of it: it may have promised all that is committed by now."""
        self._lost[name] = self.highest

    # -- what is watched ---------------------------------------------------------------------------------------------

    def watch(self, name: str, engine: Engine) -> None:
        """A process that has read its disk."""
        journal = engine._log
        self._lives.setdefault(name, []).append((engine, journal))
        self._cut.pop(name, None)
        self._watch_log(name, engine, journal)
        ask = engine._exchange.rounds.ask

        def asked(reply: Callable[[int | None], None]) -> None:
            floor = self.answered

            def answer(index: int | None) -> None:
                if index is not None and index < floor:
                    self._checks.fail(
                        "a read index covers what was answered before",
                        f"{name} answers {index} to a question that came when entry {floor} was answered",
                    )
                reply(index)

            ask(answer)

        install = engine._raft.install

        def installed(index: int, term: int, membership: bytes) -> None:
            install(index, term, membership)
            held = journal.term_at(index)
            if held != term:
                self._checks.fail(
                    "a log goes with its state", f"{name} has a snapshot at {index} of term {term}, and a log of {held}"
                )

        write = engine._identity.write

        def written(done: Callable[[Exception | None], None], **changes: Any) -> None:
            index = self._lost.get(name, 0)
            if changes.get("whole") and journal.durable_index < index:
                self._checks.fail(
                    "who is whole again holds what it promised",
                    f"{name} lost its disk when {index} was committed, and {journal.durable_index} is on it again",
                )
            write(done, **changes)

        engine._identity.write = written  # type: ignore[method-assign]
        engine._exchange.rounds.ask = asked  # type: ignore[method-assign]
        engine._raft.install = installed  # type: ignore[method-assign]

    def watch_clock(
        self, name: str, engine: Engine, now: Callable[[], float], *, steady: bool, true_ms: Callable[[], int]
    ) -> None:
        """The log's clock goes with time.

        steady: nobody starts anew in this run, so it goes on at the pace of time, whatever all wall clocks say; and who has followed
        a leader for a while has no reason to set it anew.
        true_ms: what a majority's wall clocks say at time 0, and the log's clock is never ahead of that; 0 when they do not.
        """
        stamp = engine._now_ms

        def stamped() -> int:
            ms = stamp()
            if not engine.is_leader:
                return ms
            knows = steady and name in self._knows
            if self._began is None or (self._jumps.get(name) != engine._clock.jumps and not knows):
                # Who leads for the first time since all began, and was told no time by a leader before, takes a majority's at once.
                self._began = (now(), ms)
            self._jumps[name] = engine._clock.jumps
            passed_ms = (now() - self._began[0]) * 1000
            off_ms = ms - self._began[1] - passed_ms
            if steady and abs(off_ms) > PACE * passed_ms + PACE_MS:
                self._checks.fail(
                    "the log's clock keeps pace", f"{name} stamps {off_ms:.0f} ms off after {passed_ms:.0f}"
                )
            ahead_ms = ms - true_ms() - now() * 1000
            if true_ms() and ahead_ms > PACE_MS:
                self._checks.fail("the log's clock follows a majority", f"{name} stamps {ahead_ms:.0f} ms ahead of it")
            return ms

        applied = engine._replica.apply

        def noted(index: int, command: bytes) -> None:
            if self._began is not None and now() - self._began[0] > KNOWS_S:
                self._knows.add(name)
            applied(index, command)

        engine._now_ms = stamped  # type: ignore[method-assign]
        engine._replica.apply = noted  # type: ignore[method-assign]

    def _watch_log(self, name: str, engine: Engine, journal: Log) -> None:
        add, delete, reset = journal.add, journal.deleteEntriesFrom, journal.reset

        def added(command: bytes, idx: int, term: int) -> None:
            before = journal.memberships[-1] if journal.memberships else None
            add(command, idx, term)
            digest = zlib.crc32(command)
            if self._written.setdefault((idx, term), digest) != digest:
                self._checks.fail("logs match", f"{name} has another entry {idx} of term {term} than others")
            cut = self._cut.pop(name, None)
            if cut == (idx, term):
                self._checks.fail(
                    "only a contradiction truncates", f"{name} cut entry {idx} of term {term}, and has it again"
                )
            if command[:1] == MEMBERSHIP and engine._raft.is_leader and term == engine._raft.term:
                self._changes(name, engine, before, command)

        def deleted(position: int) -> None:
            entry = journal[position] if position < len(journal) else None
            delete(position)
            if entry is not None:
                if self._terms.get(entry[1]) == entry[2] and entry[1] <= engine.applied_index:
                    self._checks.fail("what was applied stays in the log", f"{name} cut entry {entry[1]}")
                self._cut[name] = entry[1], entry[2]

        def begun_anew(index: int, term: int) -> None:
            self._cut.pop(name, None)
            reset(index, term)

        journal.add, journal.deleteEntriesFrom, journal.reset = added, deleted, begun_anew  # type: ignore[method-assign]

    def _changes(self, name: str, engine: Engine, before: Any, command: bytes) -> None:
        """A leader has put a membership into its log (Raft thesis 4.1, and the correction of 2015)."""
        raft = engine._raft
        if before is not None and before[1] > raft.commit_index:
            self._checks.fail("one change at a time", f"{name} changes the members, and entry {before[1]} is open")
        if raft.journal.term_at(raft.commit_index) != raft.term:
            self._checks.fail("a new leader commits before it changes", f"{name} has committed nothing in {raft.term}")
        held = engine._replica.membership if before is None else replicated.members_of(before[0][1:])
        if held:
            was, now = set(decode(held).voters), set(decode(replicated.members_of(command[1:])).voters)
            if len(was ^ now) > 1:
                self._checks.fail("one voter at a time", f"{name} makes {sorted(now)} of {sorted(was)}")

    # -- what happens ------------------------------------------------------------------------------------------------

    def applied(self, name: str, engine: Engine, index: int) -> None:
        """It is about to apply entry `index`."""
        journal, raft = engine._log, engine._raft
        term = journal.term_at(index)
        known = self._terms.setdefault(index, -1 if term is None else term)
        if known != term:
            self._checks.fail("committed prefixes agree", f"{name} applies {index} of term {term}, others of {known}")
        self._committed_in.setdefault(index, raft.term)
        if index > self.highest:
            self.highest = index
            if raft.is_leader:
                voters = raft.membership.voters
                holders = [voter for voter in voters if self._holds(voter, index, known)]
                if len(holders) < len(voters) // 2 + 1:
                    self._checks.fail(
                        "what is committed is on the disks of a majority",
                        f"{name} commits {index} of term {known}, and of {', '.join(voters)} those that count and hold it are {holders}",
                    )

    def _holds(self, voter: str, index: int, term: int) -> bool:
        """Whether its disk holds an entry, or did before it was lost, and its word counts."""
        for engine, journal in self._lives.get(voter, ()):
            counts = engine._probations.probation is None and journal.durable_index >= index
            if counts and (journal.base_index > index or journal.term_at(index) == term):
                return True
        return False

    def answers(self, name: str, origin: str, index: int) -> None:
        """A batch was applied; its origin tells whoever waits for it."""
        if name == origin:
            self.answered = max(self.answered, index)

    def digest(self, name: str, machine: Any, index: int) -> None:
        """Entry `index` was applied."""
        assert isinstance(machine, Machine)
        digest = machine.digest()
        if self._digests.setdefault(index, digest) != digest:
            self._checks.fail("replicas are identical", f"{name} has another digest at {index} than the others")

    def leads(self, name: str, engine: Engine) -> None:
        """It has just become the leader."""
        raft = engine._raft
        voters = set(raft.membership.voters)
        votes = {name} | self._ballots.get((raft.term, name), set())
        if len(votes & voters) < len(voters) // 2 + 1:
            self._checks.fail(
                "a majority of the voters elects", f"{name} leads {sorted(voters)} by the votes of {sorted(votes)}"
            )
        index = self.highest
        while index > 1 and self._committed_in.get(index, raft.term) >= raft.term:
            index -= 1
        journal = raft.journal
        if index > max(journal.base_index, 1) and journal.term_at(index) != self._terms.get(index):
            self._checks.fail(
                "a leader has all that is committed", f"{name} leads in {raft.term} without entry {index}"
            )

    def sent(self, name: str, peer: str, message: dict[str, Any]) -> None:
        """A message leaves; one that goes round a cut is its sender's, and not that of whoever passes it on."""
        kind = message["type"]
        if kind == "relay":
            if message["from"] == name:
                self.sent(name, message["to"], message["message"])
        elif kind == "response_vote":
            term = message["term"]
            known = self._votes.setdefault((name, term), peer)
            if known != peer:
                self._checks.fail(
                    "one vote a term, whatever was lost", f"{name} voted for {known} and {peer} in {term}"
                )
            self._ballots.setdefault((term, peer), set()).add(name)
            self.cast.append((name, peer, term))
        elif kind == "next_node_idx" and message["success"] and name in self._lives:
            _, journal = self._lives[name][-1]
            if message["next_node_idx"] - 1 > journal.durable_index:
                self._checks.fail(
                    "no promise leaves before it is durable",
                    f"{name} acknowledges {message['next_node_idx'] - 1}, and {journal.durable_index} is durable",
                )

    # -- how things stand --------------------------------------------------------------------------------------------

    def look(self, name: str, engine: Engine) -> None:
        """Once in a while, between two steps."""
        journal, applied = engine._log, engine.applied_index
        for index in (journal.base_index, applied):
            known = self._terms.get(index)
            if known is not None and journal.term_at(index) != known:
                self._checks.fail(
                    "a log goes with its state",
                    f"{name} has applied {applied}, and entry {index} of its log is of term {journal.term_at(index)}, not {known}",
                )
        taken = engine._snapshots
        known = self._terms.get(taken.index)
        if taken.name and known is not None and taken.name != snapshots.file_name(taken.index, known):
            self._checks.fail("a snapshot is named by its last entry", f"{name}: {taken.name} holds {known}'s entry")
        waiting, most = journal.unwritten_bytes, engine.config.unwritten_bytes_max
        # A leader takes what is its own, and one message may come on top.
        if not engine.is_leader and waiting > 3 * most + 20_000:
            self._checks.fail("memory is bounded", f"{waiting} bytes wait for the disk of {name}")

    def overdue(self, engine: Engine) -> None:
        """All has been well for a while: whatever is due, this leader has seen to."""
        machine = engine.machine
        assert isinstance(machine, Machine)
        now_ms = engine.now_ms()
        due = machine.state.next_due_ms(now_ms)
        crons = [cron.next_due for cron in machine.state.schedule.crons.values() if cron.next_due]
        soonest = min([each for each in (due, *crons) if each], default=now_ms)
        if now_ms - soonest > OVERDUE_MS:
            self._checks.fail("timers fire on time", f"{engine.node_id} leads, and is {now_ms - soonest} ms late")
