"""The origin's and the leader's side of writes and reads, one step at a time."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from quorumq.cluster.errors import ClusterError, EntryTooLarge, NotApplied, NotUnderstood, OutcomeUnknown
from quorumq.cluster.reads import ROUND_S, Readers, Rounds
from quorumq.cluster.replica import (
    _SESSIONS_PER_ORIGIN,
    LEVEL,
    Batch,
    Replica,
    encode_batches,
    encode_cluster_id,
)
from quorumq.cluster.submit import RESEND_S, Inbox, Submitter
from tests.consensus.counting import Recorder


class Wire:
    """Remembers what was sent; `up` says whether sending works."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Batch]] = []
        self.up = True

    def __call__(self, leader: str, batch: Batch) -> bool:
        if self.up:
            self.sent.append((leader, batch))
        return self.up


def a_submitter() -> tuple[Submitter, Wire, list[Any]]:
    wire = Wire()
    told: list[Any] = []
    return Submitter("n1", 77, 1000, wire), wire, told


def tell(told: list[Any]) -> Any:
    def done(outcome: Any, error: ClusterError | None) -> None:
        told.append(error if error is not None else outcome)

    return done


def test_a_batch_is_told_its_outcome_once() -> None:
    submitter, wire, told = a_submitter()
    submitter.hand_in(b"a", 10.0, tell(told), "n2", 1, 0.0)
    batch = wire.sent[0][1]
    submitter.settled(batch, "done")
    submitter.settled(batch, "again")
    assert told == ["done"] and len(submitter) == 0


def test_what_an_earlier_process_of_this_node_asked_for_is_no_answer_to_this_one() -> None:
    """Both number their batches from 1, and the earlier one's may be applied after the restart."""
    submitter, wire, told = a_submitter()
    submitter.hand_in(b"a", 10.0, tell(told), "n2", 1, 0.0)
    batch = wire.sent[0][1]
    submitter.settled(msgspec.structs.replace(batch, epoch=76), "of the process before")
    submitter.settled(msgspec.structs.replace(batch, origin="n2"), "of another node")
    assert told == [] and len(submitter) == 1
    submitter.settled(batch, "done")
    assert told == ["done"]


def test_a_change_of_leader_sends_again_in_order() -> None:
    submitter, wire, told = a_submitter()
    for payload in (b"a", b"b"):
        submitter.hand_in(payload, 10.0, tell(told), "n2", 1, 0.0)
    submitter.drive("n3", 2, 0.1)
    assert [(to, batch.seq) for to, batch in wire.sent] == [("n2", 1), ("n2", 2), ("n3", 1), ("n3", 2)]
    submitter.drive("n3", 2, 0.2)
    assert len(wire.sent) == 4, "not again to the same leader"
    submitter.drive("n3", 2, 0.2 + RESEND_S)
    assert len(wire.sent) == 6, "but after silence"


def test_the_floor_follows_what_is_settled() -> None:
    submitter, wire, told = a_submitter()
    for payload in (b"a", b"b", b"c"):
        submitter.hand_in(payload, 10.0, tell(told), "n2", 1, 0.0)
    submitter.settled(wire.sent[0][1], 1)
    submitter.hand_in(b"d", 10.0, tell(told), "n2", 1, 0.0)
    assert wire.sent[-1][1].floor == 2


def test_deadlines_say_whether_it_may_have_happened() -> None:
    submitter, wire, told = a_submitter()
    submitter.hand_in(b"never sent", 1.0, tell(told), None, 0, 0.0)
    submitter.hand_in(b"sent", 1.0, tell(told), "n2", 1, 0.0)
    wire.up = False
    submitter.drive(None, 1, 0.5)
    assert told == []
    submitter.drive(None, 1, 1.0)
    assert [type(error) for error in told] == [NotApplied, OutcomeUnknown]


def test_too_large_is_refused_at_once() -> None:
    submitter, _, told = a_submitter()
    submitter.hand_in(b"x" * 1001, 1.0, tell(told), "n2", 1, 0.0)
    assert isinstance(told[0], EntryTooLarge)


def test_a_snapshot_settles_what_it_covers() -> None:
    submitter, wire, told = a_submitter()
    submitter.hand_in(b"a", 9.0, tell(told), "n2", 1, 0.0)
    submitter.hand_in(b"b", 9.0, tell(told), "n2", 1, 0.0)
    replica = Replica(Recorder(), lambda batch, outcome: None)
    replica.apply(2, encode_batches(5, [wire.sent[0][1]]))
    submitter.state_replaced(replica)
    assert len(told) == 1 and isinstance(told[0], OutcomeUnknown) and len(submitter) == 1


def test_the_inbox_keeps_order_and_drops_what_it_knows() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: inbox.settled(batch))
    inbox = Inbox(replica)
    first, second = (Batch("n1", 7, seq, 1, b"x" * 400) for seq in (1, 2))
    inbox.put(first)
    inbox.put(first)
    inbox.put(second)
    assert inbox.take(10_000) == [first, second]
    inbox.put(first)
    assert len(inbox) == 0, "it is in an entry already"
    replica.apply(2, encode_batches(5, [first, second]))
    inbox.put(first)
    assert len(inbox) == 0, "it was applied"
    assert not inbox._known, "which the replica knows from here on"


def test_a_leader_that_was_deposed_takes_again_what_it_had() -> None:
    """Its entries may be lost; whoever still waits sends his batch again."""
    inbox = Inbox(Replica(Recorder(), lambda batch, outcome: None))
    batch = Batch("n1", 7, 1, 1, b"x")
    inbox.put(batch)
    assert inbox.take(1000) == [batch]
    inbox.clear()
    inbox.put(batch)
    assert inbox.take(1000) == [batch]


def test_the_inbox_bounds_an_entry() -> None:
    inbox = Inbox(Replica(Recorder(), lambda batch, outcome: None))
    small = [Batch("n1", 7, seq, 1, b"x" * 10) for seq in (1, 2)]
    large = Batch("n1", 7, 3, 1, b"x" * 5000)
    for batch in (*small, large):
        inbox.put(batch)
    assert inbox.take(1000) == small
    assert inbox.take(1000) == [large]


def test_a_batch_is_applied_once_in_any_order_of_arrival() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    late, early = Batch("n1", 7, 1, 1, b"late"), Batch("n1", 7, 2, 1, b"early")
    replica.apply(2, encode_batches(5, [early]))
    replica.apply(3, encode_batches(6, [late, early]))
    replica.apply(4, encode_batches(7, [late]))
    assert machine.applied == [b"early", b"late"]
    settled = Batch("n1", 7, 9, 9, b"new floor")
    replica.apply(5, encode_batches(8, [settled, Batch("n1", 7, 3, 1, b"given up")]))
    assert machine.applied[-1] == b"new floor", "below the floor nothing is applied any more"


def test_another_life_of_the_same_node_counts_anew() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    for epoch in range(20):
        replica.apply(2 + epoch, encode_batches(5, [Batch("n1", epoch, 1, 1, bytes([epoch]))]))
    assert len(machine.applied) == 20
    again = Replica(Recorder(), lambda batch, outcome: None)
    again.restore(replica.head(), machine.image())
    assert again.was_applied(Batch("n1", 19, 1, 1, b"")) and not again.was_applied(Batch("n1", 19, 2, 1, b""))


def test_batches_of_the_last_lives_of_a_node_are_not_applied_again() -> None:
    """What an earlier process sent may be under way for some time, and come again from whoever leads then."""
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    batches = [Batch("n1", epoch, 1, 1, bytes([epoch])) for epoch in range(_SESSIONS_PER_ORIGIN)]
    for index, batch in enumerate(batches * 2):
        replica.apply(2 + index, encode_batches(5, [batch]))
    assert machine.applied == [batch.payload for batch in batches]


def test_the_clock_of_the_log_never_goes_back() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    for seq, now in enumerate((50, 20, 60), 1):
        replica.apply(seq + 1, encode_batches(now, [Batch("n1", 1, seq, 1, b"")]))
    assert machine.times == [50, 50, 60]


def test_the_cluster_is_named_once() -> None:
    replica = Replica(Recorder(), lambda batch, outcome: None)
    replica.apply(2, encode_cluster_id(1, "first"))
    replica.apply(3, encode_cluster_id(2, "second"))
    assert replica.cluster_id == "first"


def test_an_unreadable_entry_is_not_skipped() -> None:
    machine = Recorder()
    replica = Replica(machine, lambda batch, outcome: None)
    newer = msgpack.packb((5, 1, b"")), msgpack.packb((LEVEL, 1, 1))
    for command in (b"", b"\xc1", b"\x93\x00", b"\x01", *newer):
        with pytest.raises(NotUnderstood):
            replica.apply(2, command)
    assert machine.applied == [] and replica.now_ms == 0


# reads


def test_a_round_begun_before_the_question_proves_nothing() -> None:
    numbers: list[int] = []
    rounds = Rounds(numbers.append)
    answers: list[tuple[str, int | None]] = []
    rounds.ask(lambda index: answers.append(("first", index)))
    rounds.drive(leads=True, ready=True, commit_index=10, quorum=2, now=0.0)
    rounds.ask(lambda index: answers.append(("second", index)))
    rounds.drive(leads=True, ready=True, commit_index=12, quorum=2, now=0.0)
    assert numbers == [1]
    rounds.confirmed("n2", 1, 2)
    assert answers == [("first", 10)]
    rounds.drive(leads=True, ready=True, commit_index=12, quorum=2, now=0.0)
    rounds.confirmed("n2", 1, 2)
    assert answers == [("first", 10)], "an answer to the first round does not confirm the second"
    rounds.confirmed("n3", 2, 2)
    assert answers[-1] == ("second", 12)


def asked_of_five() -> tuple[Rounds, list[int | None]]:
    """Return the rounds of a leader of five nodes, whom a reader has asked, and what that is told."""
    rounds = Rounds(lambda number: None)
    answers: list[int | None] = []
    rounds.ask(answers.append)
    rounds.drive(leads=True, ready=True, commit_index=10, quorum=3, now=0.0)
    return rounds, answers


def test_a_round_of_five_needs_two_others() -> None:
    rounds, answers = asked_of_five()
    rounds.confirmed("n2", 1, 3)
    rounds.confirmed("n2", 1, 3)
    assert answers == [], "one of them, however often"
    rounds.confirmed("n3", 1, 3)
    assert answers == [10]


def test_a_round_that_is_begun_again_is_confirmed_anew() -> None:
    rounds, answers = asked_of_five()
    rounds.confirmed("n2", 1, 3)
    rounds.drive(leads=True, ready=True, commit_index=11, quorum=3, now=ROUND_S * 1.5)
    rounds.confirmed("n3", 2, 3)
    assert answers == [], "n2 may follow another leader by now"
    rounds.confirmed("n2", 2, 3)
    assert answers == [11]


def test_no_answer_before_an_entry_of_the_own_term() -> None:
    numbers: list[int] = []
    rounds = Rounds(numbers.append)
    rounds.ask(lambda index: None)
    rounds.drive(leads=True, ready=False, commit_index=10, quorum=2, now=0.0)
    assert numbers == []


def test_a_deposed_leader_answers_none_and_a_lost_round_is_repeated() -> None:
    numbers: list[int] = []
    rounds = Rounds(numbers.append)
    answers: list[int | None] = []
    rounds.ask(answers.append)
    rounds.drive(leads=True, ready=True, commit_index=10, quorum=2, now=0.0)
    rounds.drive(leads=True, ready=True, commit_index=11, quorum=2, now=ROUND_S * 1.5)
    assert numbers == [1, 2]
    rounds.drive(leads=False, ready=False, commit_index=11, quorum=2, now=ROUND_S * 1.6)
    assert answers == [None]


def test_readers_share_a_question_and_wait_for_the_apply() -> None:
    asked: list[tuple[str, int]] = []

    def ask(leader: str, question: int) -> bool:
        asked.append((leader, question))
        return True

    readers = Readers(ask)
    done: list[tuple[str, bool]] = []
    readers.wait(5.0, lambda fresh: done.append(("a", fresh)))
    readers.wait(5.0, lambda fresh: done.append(("b", fresh)))
    readers.drive("n2", 1, 0.0)
    readers.wait(5.0, lambda fresh: done.append(("c", fresh)))
    readers.drive("n2", 1, 0.0)
    assert asked == [("n2", 1)]
    readers.answered(1, 20, applied_index=18)
    assert done == []
    readers.applied(20)
    assert done == [("a", True), ("b", True)]
    readers.drive("n2", 1, 0.1)
    assert asked[-1] == ("n2", 2)
    readers.drive("n3", 2, 0.2)
    assert asked[-1] == ("n3", 3), "a new leader is asked anew"
    readers.answered(2, 1, applied_index=20)
    assert len(done) == 2, "the old leader's answer counts no more"
    readers.answered(3, None, applied_index=20)
    readers.drive(None, 2, 5.0)
    assert done[-1] == ("c", False)


def test_a_leader_in_another_term_is_asked_anew() -> None:
    asked: list[int] = []
    done: list[bool] = []
    readers = Readers(lambda leader, question: asked.append(question) or True)  # type: ignore[func-returns-value]
    readers.wait(5.0, done.append)
    readers.drive("n2", 1, 0.0)
    readers.drive("n2", 2, 0.1)
    assert asked == [1, 2]
    readers.answered(1, 1, applied_index=20)
    assert done == []
    readers.answered(2, 20, applied_index=20)
    assert done == [True]


def test_a_reader_does_not_wait_for_ever_for_an_index_that_never_comes() -> None:
    readers = Readers(lambda leader, question: True)
    done: list[bool] = []
    readers.wait(5.0, done.append)
    readers.drive("n2", 1, 0.0)
    readers.answered(1, 1_000, applied_index=20)
    readers.drive("n2", 1, 4.9)
    assert done == []
    readers.drive("n2", 1, 5.0)
    assert done == [False]
