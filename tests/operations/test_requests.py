"""Requests with an idempotency key: applied once, answered alike, remembered within bounds."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from quorumq.cluster.errors import NotUnderstood
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import PushJobs, UpdateJobData
from quorumq.node.machine.operations.queues import PauseQueue
from quorumq.node.machine.operations.requests import GetOutcome, Idempotent
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FailJob, PullJobs, ReleaseJobs
from quorumq.node.machine.operations.settings import SetDlqConfig
from quorumq.node.machine.refusals import (
    DependencyNotFound,
    IdempotencyKeyReused,
    JobNotFound,
    KeyForgotten,
    KeyNeedsScope,
    ReplyForgotten,
)
from quorumq.node.machine.state import forgotten, job_spec
from quorumq.node.machine.state import outcomes as bounds
from quorumq.node.machine.state.forgotten import HOUR_MS, Slice
from quorumq.node.machine.state.outcomes import scope_of
from tests.support.world import World, encode

DAY_MS = 24 * 3600 * 1000


def once(
    operation: Operation, key: str = "k", fingerprint: bytes = b"f", scope: str = "", earlier: str | None = None
) -> Idempotent:
    return Idempotent(key, fingerprint, encode(operation), scope, earlier)


def before_level_1(operation: Operation, key: str = "k", fingerprint: bytes = b"f") -> Idempotent:
    return Idempotent(key, fingerprint, encode(operation))


def a_push(job_id: str, **options: Any) -> PushJobs:
    return PushJobs("q", [job_spec(job_id, b"{}", **options)])


def test_a_repeat_is_answered_and_not_applied(world: World) -> None:
    assert world.do(once(a_push("a"))).ids == ["a"]
    # The edge makes another id for the repeat; the first one's counts.
    assert world.do(once(a_push("b"))).ids == ["a"]
    assert world.count("q") == 1
    assert world.ask(GetOutcome("k", b"f")).ids == ["a"]
    assert world.ask(GetOutcome("other", b"f")) is None


def test_a_key_belongs_to_one_request(world: World) -> None:
    world.do(once(a_push("a")))
    with pytest.raises(IdempotencyKeyReused):
        world.do(once(a_push("b"), fingerprint=b"g"))
    with pytest.raises(IdempotencyKeyReused):
        world.ask(GetOutcome("k", b"g"))
    assert world.count("q") == 1


def test_a_refusal_is_an_answer_too(world: World) -> None:
    with pytest.raises(DependencyNotFound):
        world.do(once(a_push("a", depends_on=("b",))))
    world.push(job_id="b")
    with pytest.raises(DependencyNotFound) as again:
        world.do(once(a_push("a", depends_on=("b",))))
    assert (again.value.position, again.value.dependency_id) == (0, "b")


def test_jobs_in_a_reply_are_those_of_that_moment(world: World) -> None:
    world.push(data=b"1", priority=4)
    first = world.do(once(PullJobs("q", 1, "w", 1000, "seed")))
    world.do(UpdateJobData(first.jobs[0].id, b"2"))
    world.do(AckJob(first.jobs[0].id, "seed-0", b"9"))
    again = world.do(once(PullJobs("q", 1, "w", 1000, "other")))
    job = again.jobs[0]
    assert again.tokens == ["seed-0"]
    assert (job.state, job.data, job.result, job.opts.priority, job.queue) == ("active", b"1", None, 4, "q")


def test_refusals_inside_a_reply_come_back(world: World) -> None:
    world.push(job_id="a")
    world.pull()
    first = world.do(once(AckJobs(["a", "nope"])))
    again = world.do(once(AckJobs(["a", "nope"])))
    assert again.job_ids == first.job_ids == ["a"]
    assert isinstance(again.refused[0], JobNotFound) and again.refused[0].job_id == "nope"


@pytest.mark.parametrize("operation", [PauseQueue("q"), SetDlqConfig("q", True), FailJob("a", error="e")])
def test_replies_of_all_kinds_are_kept(world: World, operation: Operation) -> None:
    world.push(job_id="a")
    world.pull()
    first, again = world.apply(once(operation))[0], world.apply(once(operation))[0]
    # Jobs are compared by identity, their bytes are not.
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(first)


def test_a_pull_that_took_nothing_may_be_repeated(world: World) -> None:
    assert world.do(once(PullJobs("q"))).jobs == []
    world.push(job_id="a")
    assert [job.id for job in world.do(once(PullJobs("q"))).jobs] == ["a"]


def test_jobs_given_back_are_no_answer_any_more(world: World) -> None:
    world.push(job_id="a")
    taken = world.do(once(PullJobs("q"))).jobs[0]
    fence = taken.fence
    world.do(ReleaseJobs([("a", fence)], "k"))
    assert world.do(once(PullJobs("q"))).jobs[0].fence > fence
    # A release that comes too late leaves the key with the delivery that it has now.
    world.do(ReleaseJobs([("a", fence)], "k"))
    assert len(world.do(once(PullJobs("q"))).jobs) == 1


def test_keys_are_forgotten_after_a_day_and_survive_an_image(world: World) -> None:
    world.do(once(a_push("a")))
    world.wait(DAY_MS - 1)
    assert world.do(once(a_push("b"))).ids == ["a"]
    other = world.restored()
    assert GetOutcome("k", b"f").answer(other.state).ids == ["a"]
    world.wait(1)
    assert world.do(once(a_push("b"))).ids == ["b"]
    assert len(world.machine.state.outcomes) == 1


def test_keys_are_bounded_in_number_and_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "KEYS_MAX", 3)
    for i in range(5):
        world.do(once(a_push(f"j{i}"), f"k{i}"))
    table = world.machine.state.outcomes
    assert [key for key, _ in table.items()] == ["k2", "k3", "k4"]
    assert table.size == sum(bounds.weight_of(key, outcome) for key, outcome in table.items())
    monkeypatch.setattr(bounds, "BYTES_MAX", 300)
    world.do(once(a_push("last"), "last"))
    assert [key for key, _ in table.items()] == ["last"]


def test_a_reply_too_large_is_said_to_be_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.requests.REPLY_BYTES_MAX", 10)
    for _ in range(2):
        world.push(data=b'"123456789"')
    assert len(world.do(once(PullJobs("q", 2))).jobs) == 2
    with pytest.raises(ReplyForgotten):
        world.do(once(PullJobs("q", 2)))


def test_an_operation_nobody_knows_is_not_skipped(world: World) -> None:
    with pytest.raises(NotUnderstood):
        world.do(Idempotent("k", b"f", b"\x81\xa2op\xa4nope", ""))


def test_what_is_remembered_shows_in_the_digest() -> None:
    one, other = World(), World()
    one.do(a_push("a"))
    other.do(once(a_push("a")))
    assert one.machine.digest() != other.machine.digest()


def full(monkeypatch: pytest.MonkeyPatch, **most: int) -> None:
    for name, value in most.items():
        monkeypatch.setattr(bounds, name, value)


def digests(world: World) -> list[tuple[str, int]]:
    return [(scope, len(piece)) for scope, piece in world.machine.state.outcomes.slices()]


def test_a_key_that_had_to_go_is_never_applied_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, KEYS_MAX=3)
    for i in range(5):
        world.do(once(a_push(f"j{i}"), f"k{i}"))
    assert world.machine.state.outcomes.evicted == 2
    for place in (world.machine, world.restored()):
        assert isinstance(
            place.apply(place.index + 1, world.now_ms, [encode([once(a_push("again"), "k0")])])[0][0], KeyForgotten
        )
        with pytest.raises(KeyForgotten):
            GetOutcome("k1", b"f", "").answer(place.state)
    # Whatever the request is, for nobody knows any more what it was.
    with pytest.raises(KeyForgotten):
        world.do(once(a_push("again"), "k0", fingerprint=b"g"))
    assert world.count("q") == 5
    # Of another scope it is another key.
    assert world.do(once(a_push("theirs"), "k0", scope="other")).ids == ["theirs"]


def test_digests_stay_for_their_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, KEYS_MAX=1)
    world.do(once(a_push("a"), "k0"))
    world.do(once(a_push("b"), "k1"))
    world.wait(DAY_MS - 1)
    with pytest.raises(KeyForgotten):
        world.do(once(a_push("c"), "k0"))
    # By the hour: a little longer, never shorter.
    world.wait(HOUR_MS + 1)
    assert world.do(once(a_push("c"), "k0")).ids == ["c"]
    assert digests(world) == [] and world.machine.state.outcomes.digests == 0
    assert world.restored().full_digest() == world.machine.full_digest()


def test_what_is_over_by_itself_leaves_no_digest(world: World) -> None:
    world.do(once(a_push("a")))
    world.wait(DAY_MS)
    world.do(once(a_push("b"), "other"))
    outcomes = world.machine.state.outcomes
    assert ([key for key, _ in outcomes.items()], outcomes.digests, outcomes.evicted) == (["other"], 0, 0)


@pytest.mark.parametrize("most", [{"KEYS_MAX": 20}, {"BYTES_MAX": 20 * 300}], ids=["keys", "bytes"])
def test_a_flood_of_one_scope_flushes_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, most: dict[str, int]
) -> None:
    full(monkeypatch, **most)
    for i in range(4):
        world.do(once(a_push(f"quiet{i}"), f"quiet{i}", scope="quiet"))
    for i in range(200):
        world.do(once(a_push(f"loud{i}"), f"loud{i}", scope="loud"))
    for i in range(4):
        assert world.do(once(a_push("again"), f"quiet{i}", scope="quiet")).ids == [f"quiet{i}"]
    # A newcomer gets its share from whoever has most.
    for i in range(8):
        world.do(once(a_push(f"new{i}"), f"new{i}", scope="new"))
    kept = {key for key, _ in world.machine.state.outcomes.items()}
    share = {f"quiet{i}" for i in range(4)} | {f"new{i}" for i in range(8)}
    assert share <= kept
    assert {scope for scope, _ in digests(world)} <= {"loud", "new"}


@pytest.mark.parametrize(("what", "whose"), [("KEYS_MAX", "many"), ("BYTES_MAX", "large")])
def test_who_has_most_of_what_is_too_much_loses(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, whose: str
) -> None:
    for i in range(12):
        world.do(once(a_push(f"many{i}"), f"many{i}", scope="many"))
    for i in range(3):
        jobs = [job_spec(f"large{i}-{j}", b"1") for j in range(200)]
        world.do(once(PushJobs("q", jobs), f"large{i}", scope="large"))
    outcomes = world.machine.state.outcomes
    full(monkeypatch, **{what: len(outcomes) if what == "KEYS_MAX" else outcomes.size})
    world.do(once(a_push("new"), "new", scope="new"))
    assert [scope for scope, _ in digests(world)] == [whose]


def test_an_answer_that_takes_all_the_room_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, BYTES_MAX=700)
    for scope in ("a", "b"):
        world.do(once(a_push(f"small-{scope}"), f"small-{scope}", scope=scope))
    large = [job_spec(f"job-{i}", b"1") for i in range(100)]
    first = world.do(once(PushJobs("q", large), "large", scope="a")).ids
    assert world.do(once(PushJobs("q", large), "large", scope="a")).ids == first
    assert [key for key, _ in world.machine.state.outcomes.items()] == ["large"]


def test_digests_are_bounded_and_shared_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, KEYS_MAX=2, DIGESTS_MAX=25)
    monkeypatch.setattr(forgotten, "SLICE_MAX", 10)
    for i in range(6):
        world.do(once(a_push(f"quiet{i}"), f"quiet{i}", scope="quiet"))
    for i in range(60):
        world.do(once(a_push(f"loud{i}"), f"loud{i}", scope="loud"))
    outcomes = world.machine.state.outcomes
    assert outcomes.digests == sum(count for _, count in digests(world)) <= 25
    assert outcomes.lost >= 30 and outcomes.evicted == 64
    quiet = sum(count for scope, count in digests(world) if scope == "quiet")
    assert quiet + sum(scope_of(outcome) == "quiet" for _, outcome in outcomes.items()) == 6
    # The newest are known, what was lost is done again: the price that the metric tells.
    with pytest.raises(KeyForgotten):
        world.do(once(a_push("again"), "loud57", scope="loud"))
    assert world.do(once(a_push("again"), "loud0", scope="loud")).ids == ["again"]
    assert world.restored().full_digest() == world.machine.full_digest()


def test_many_digests_are_found_and_no_others() -> None:
    piece, picked = Slice(5), random.Random(3)
    known = {picked.getrandbits(64) for _ in range(5000)} | {0, 1, (1 << 64) - 1}
    for digest in known:
        assert piece.add(digest) and not piece.add(digest)
    again = Slice(5, piece.bytes())
    for some in (piece, again):
        assert len(some) == len(known) and all(digest in some for digest in known)
        assert not any(picked.getrandbits(64) in some for _ in range(5000))
    assert again.bytes() == piece.bytes()


class TestTheLevel:
    """Keys of below level 1, and what becomes of them."""

    def test_below_level_1_the_old_rule_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(level=0)
        full(monkeypatch, KEYS_MAX=3)
        for i in range(5):
            world.do(before_level_1(a_push(f"j{i}"), f"k{i}"))
        assert [key for key, _ in world.machine.state.outcomes.items()] == ["k2", "k3", "k4"]
        assert world.do(before_level_1(a_push("again"), "k0")).ids == ["again"]
        assert digests(world) == []
        assert world.restored().full_digest() == world.machine.full_digest()

    def test_a_key_of_before_is_known_under_its_new_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(level=0)
        world.do(before_level_1(a_push("a"), "old"))
        world.machine.level = 1
        for machine in (world.machine, world.restored()):
            again = encode([once(a_push("b"), "new", scope="s", earlier="old")])
            assert machine.apply(machine.index + 1, world.now_ms, [again])[0][0].ids == ["a"]
            assert GetOutcome("new", b"f", "s", "old").answer(machine.state).ids == ["a"]
        full(monkeypatch, KEYS_MAX=1)
        world.do(once(a_push("c"), "c"))
        with pytest.raises(KeyForgotten):
            world.do(once(a_push("b"), "new", scope="s", earlier="old"))
        assert world.count("q") == 2

    def test_a_sender_that_has_not_seen_the_level_is_sent_back(self, world: World) -> None:
        with pytest.raises(KeyNeedsScope):
            world.do(before_level_1(a_push("a")))
        assert world.count("q") == 0 and not len(world.machine.state.outcomes)
