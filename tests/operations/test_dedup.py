"""Deduplication as BullMQ has it (section 6): who keeps whom away, for how long, and what frees a key."""

import pytest

from quorumq.node.machine.lifecycle import clock, unique_keys
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.jobs import CancelJob, PushJobs, RemoveJob, RetryJob
from quorumq.node.machine.operations.queues import DrainQueue, ObliterateQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.state import Dedup, Job, job_spec, own_id
from tests.support.world import World

SIMPLE = Dedup()


def add(world: World, data: bytes = b"1", *, dedup: Dedup = SIMPLE, key: str = "k", **options: object) -> Job:
    """Add a job under a key; return it, or the one that stands for it (which may be gone: None then)."""
    reply = world.do(AddJobs("q", [job_spec("", data, unique_key=key, dedup=dedup, **options)]))
    return world.machine.state.jobs.get(f"bull:q:{reply.ids[0]}")


def added(world: World, **options: object) -> bool:
    """Whether an add puts a new job there."""
    before = world.machine.state.queue("q").counters.pushed
    add(world, **options)
    return world.machine.state.queue("q").counters.pushed > before


def test_a_suppressed_add_answers_the_job_that_is_kept_and_consumes_a_number(world: World) -> None:
    kept = add(world, b"first")
    world.event_names()
    assert add(world, b"second") is kept
    assert (kept.data, kept.unique_key) == (b"first", "k")
    assert world.event_names() == ["job:duplicated"]
    assert own_id(add(world, key="other")) == "3"


def test_simple_holds_while_the_job_is_unfinished(world: World) -> None:
    job = add(world, max_attempts=2, backoff=500)
    for _ in range(2):
        assert not added(world)
        world.pull()
        assert not added(world)
        world.do(FailJob(job.id))
        if not job.finished:
            assert job.state == "delayed" and not added(world)
            world.wait(500)
    assert job.state == "failed" and added(world)


def test_simple_is_free_when_the_job_completed_or_was_removed(world: World) -> None:
    first = add(world)
    world.pull()
    world.do(AckJob(first.id))
    second = add(world)
    assert second is not first
    world.do(RemoveJob(second.id))
    assert added(world)


def test_a_key_belongs_to_its_queue_and_to_all_dialects(world: World) -> None:
    job = add(world)
    assert world.do(PushJobs("q", [job_spec("x", b"1", unique_key="k")])).ids == [job.id]
    assert world.do(PushJobs("other", [job_spec("x", b"1", unique_key="k")])).ids == ["x"]


# -- Throttle


def test_throttle_holds_until_its_time_even_if_the_job_finished(world: World) -> None:
    throttle = Dedup(ttl_ms=1000)
    job = add(world, dedup=throttle)
    world.pull()
    world.do(AckJob(job.id))
    world.wait(999)
    assert add(world, dedup=throttle) is job
    world.wait(1)
    assert added(world, dedup=throttle)


def test_throttle_ends_at_its_time_even_if_the_job_still_waits(world: World) -> None:
    throttle = Dedup(ttl_ms=1000)
    first = add(world, dedup=throttle)
    world.wait(1000)
    second = add(world, dedup=throttle)
    assert second is not first
    # The first one's end does not free what the second one holds.
    world.pull()
    world.do(AckJob(first.id))
    assert add(world, dedup=throttle) is second


def test_a_throttle_outlives_a_job_that_left_no_trace(world: World) -> None:
    throttle = Dedup(ttl_ms=1000)
    job = add(world, dedup=throttle, remove_on_complete=True)
    world.pull()
    world.do(AckJob(job.id))
    assert job.id not in world.machine.state.jobs
    assert world.do(AddJobs("q", [job_spec("", b"1", unique_key="k", dedup=throttle)])).ids == ["1"]
    world.wait(1000)
    assert added(world, dedup=throttle)


@pytest.mark.parametrize("how", ["remove", "cancel", "drain", "obliterate", "remove finished"])
def test_removing_the_job_frees_a_throttled_key(world: World, how: str) -> None:
    throttle = Dedup(ttl_ms=60_000)
    job = add(world, dedup=throttle)
    if how == "remove finished":
        world.pull()
        world.do(AckJob(job.id))
    done = {"cancel": CancelJob(job.id), "drain": DrainQueue("q"), "obliterate": ObliterateQueue("q")}
    world.do(done.get(how, RemoveJob(job.id)))
    assert not world.machine.state.throttles
    assert added(world, dedup=throttle)


def test_removing_a_job_that_lost_its_key_leaves_the_key(world: World) -> None:
    throttle = Dedup(ttl_ms=1000)
    first = add(world, dedup=throttle)
    world.wait(1000)
    second = add(world, dedup=throttle)
    world.do(RemoveJob(first.id))
    assert add(world, dedup=throttle) is second


# -- Debounce


def test_debounce_replaces_what_is_still_delayed_and_starts_the_time_anew(world: World) -> None:
    debounce = Dedup(ttl_ms=1000, extend=True, replace=True)
    first = add(world, b"1", dedup=debounce, delay_ms=1000)
    world.wait(600)
    world.event_names()
    second = add(world, b"2", dedup=debounce, delay_ms=1000)
    assert first.id not in world.machine.state.jobs and (second.data, second.state) == (b"2", "delayed")
    assert world.event_names() == ["job:removed", "job:pushed", "job:delayed"]
    world.wait(600)
    third = add(world, b"3", dedup=debounce, delay_ms=1000)
    assert second.id not in world.machine.state.jobs
    world.wait(999)
    assert third.state == "delayed"
    world.wait(1)
    assert third.state == "waiting" and added(world, dedup=debounce, delay_ms=1000)


def test_debounce_drops_the_new_one_once_the_old_one_is_not_delayed(world: World) -> None:
    debounce = Dedup(ttl_ms=5000, extend=True, replace=True)
    first = add(world, b"1", dedup=debounce, delay_ms=100)
    world.wait(100)
    assert add(world, b"2", dedup=debounce, delay_ms=100) is first and first.data == b"1"
    # That is no extension: the time runs on.
    world.wait(4900)
    assert added(world, dedup=debounce, delay_ms=100)


def test_replacing_without_extending_keeps_the_time(world: World) -> None:
    replace = Dedup(ttl_ms=1000, replace=True)
    add(world, b"1", dedup=replace, delay_ms=9000)
    world.wait(700)
    second = add(world, b"2", dedup=replace, delay_ms=9000)
    world.wait(299)
    assert world.machine.state.queue("q").throttled == {"k": world.now_ms + 1}
    world.wait(1)
    third = add(world, b"3", dedup=replace, delay_ms=9000)
    assert {second.state, third.state} == {"delayed"}


def test_replacing_without_a_time_passes_the_key_on(world: World) -> None:
    replace = Dedup(replace=True)
    first = add(world, b"1", dedup=replace, delay_ms=100)
    second = add(world, b"2", dedup=replace, delay_ms=100)
    assert first.id not in world.machine.state.jobs
    world.wait(100)
    assert world.pull() == [second] and add(world, dedup=replace) is second
    world.do(AckJob(second.id))
    assert added(world, dedup=replace)


# -- Extend


def test_extend_drops_and_starts_the_time_anew(world: World) -> None:
    extend = Dedup(ttl_ms=1000, extend=True)
    first = add(world, dedup=extend, delay_ms=9000)
    for _ in range(4):
        world.wait(800)
        assert add(world, dedup=extend) is first
    world.wait(1000)
    assert added(world, dedup=extend)


# -- Memory, images, retries


def test_keys_are_forgotten_on_time_and_restored(world: World) -> None:
    for number in range(50):
        add(world, key=f"k{number}", dedup=Dedup(ttl_ms=100 + number))
    state = world.machine.state
    world.machine = world.restored()
    world.machine.events_wanted = True
    assert len(world.machine.state.throttles) == len(state.throttles) == 50
    world.wait(124)
    left = world.machine.state
    assert len(left.throttles) == len(left.queue("q").throttled) == len(left.queue("q").unique) == 25
    world.wait(25)
    assert not left.throttles and not left.queue("q").throttled and not left.queue("q").unique


def test_keys_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique_keys, "THROTTLED_MAX", 3)
    for number in range(5):
        add(world, key=f"k{number}", dedup=Dedup(ttl_ms=100 + number))
    assert sorted(world.machine.state.queue("q").throttled) == ["k2", "k3", "k4"]
    assert added(world, key="k0", dedup=Dedup(ttl_ms=100))


def test_more_keys_than_one_entry_forgets_count_for_nothing(world: World) -> None:
    count = clock.ADVANCE_MAX + 10
    # Of keys whose time is over together the names say which are forgotten first.
    specs = [job_spec("", b"1", unique_key=f"k{n:05}", dedup=Dedup(ttl_ms=100)) for n in range(count)]
    world.do(AddJobs("q", specs))
    world.now_ms += 100
    # Looked at in the very entry that could not forget all of them.
    last = job_spec("", b"2", unique_key=f"k{count - 1:05}", dedup=Dedup(ttl_ms=100))
    assert world.do(AddJobs("q", [last])).duplicates == [False]
    world.tick()
    assert len(world.machine.state.throttles) == 1


def test_a_retried_job_takes_its_key_back_unless_another_holds_it(world: World) -> None:
    first = add(world)
    world.pull()
    world.do(AckJob(first.id))
    world.do(RetryJob(first.id))
    assert add(world) is first
    world.pull()
    world.do(AckJob(first.id))
    second = add(world)
    world.do(RetryJob(first.id))
    assert first.unique_key is None and add(world) is second


def test_a_retried_job_leaves_a_throttle_as_it_is(world: World) -> None:
    throttle = Dedup(ttl_ms=1000)
    first = add(world, dedup=throttle)
    world.pull()
    world.do(AckJob(first.id))
    world.wait(1000)
    world.do(RetryJob(first.id))
    second = add(world, dedup=throttle)
    assert second is not first and first.unique_key == "k"
    world.do(RemoveJob(first.id))
    assert add(world, dedup=throttle) is second
