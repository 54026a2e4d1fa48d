"""Long polls: who is served first, who goes on waiting, what happens to jobs of those who left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quorumq.node import long_polls
from quorumq.node.machine.lifecycle import runs
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import PauseQueue, ResumeQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, FinishAndPull, PullJobs
from quorumq.node.machine.operations.settings import HoldQueue, SetRateLimit, SetWindow
from quorumq.node.machine.refusals import IdempotencyKeyReused, JobNotFound
from quorumq.node.machine.state import job_spec
from quorumq.node.node import IdempotencyKey
from tests.node.conftest import Local
from tests.support.world import encode


async def test_an_empty_queue_answers_at_once_and_writes_nothing(local: Local) -> None:
    assert await local.pull() == []
    await local.push("other")
    entries = len(local.engine.entries)
    assert await local.pull() == []
    assert len(local.engine.entries) == entries


async def test_whoever_waits_hears_of_what_came_with_a_snapshot(local: Local) -> None:
    """A node that was away is sent no entries but a state; in it there may be a job, the end of one, and events."""
    job_id = await local.push()
    await local.pull()
    end = asyncio.create_task(local.node.wait_finished(job_id, 600_000, lambda job: job is not None))
    polling, readers = local.pull_later(600_000, queue="other"), local.node.readers
    told = readers.join("q")
    await local.settle()
    elsewhere = Machine()
    elsewhere.restore(list(local.machine.image()))
    for op in (AckJob(job_id), PushJobs("other", [job_spec("came", b"1")])):
        elsewhere.apply(elsewhere.index + 1, local.now_ms, [encode([op])])
    assert not end.done() and not polling.done() and not told.is_set()
    local.machine.restore(list(elsewhere.image()))
    assert told.is_set()
    async with asyncio.timeout(30):
        assert await end is True and await polling == ["came"]
    readers.leave("q", told)


async def test_an_empty_answer_to_an_owner_has_no_tokens(local: Local) -> None:
    assert await local.node.pull(PullJobs("q", owner="w"), lambda reply: reply.tokens) == []
    assert await local.node.pull(PullJobs("q"), lambda reply: reply.tokens) is None


async def test_a_wait_ends_with_a_job(local: Local) -> None:
    waiter = local.pull_later()
    await local.settle()
    job_id = await local.push()
    assert await waiter == [job_id]
    assert local.node.waiters.count == 0


async def test_a_wait_ends_with_nothing(local: Local) -> None:
    assert await local.pull(wait_ms=20) == []
    assert local.node.waiters.count == 0


async def test_the_longest_waiting_is_served_first(local: Local) -> None:
    waiters = []
    for _ in range(4):
        waiters.append(local.pull_later())
        await local.settle()
    ids = [await local.push() for _ in range(4)]
    assert [await waiter for waiter in waiters] == [[job_id] for job_id in ids]


async def test_one_job_wakes_one_waiter(local: Local) -> None:
    waiters = [local.pull_later() for _ in range(100)]
    await local.settle()
    entries = len(local.engine.entries)
    await local.push()
    await local.settle()
    assert sum(waiter.done() for waiter in waiters) == 1
    assert len(local.engine.entries) == entries + 2
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert local.node.waiters.count == 0


async def test_a_loser_goes_on_waiting(local: Local) -> None:
    waiter = local.pull_later()
    await local.settle()
    # Another node's pull reaches the log between the push and this node's own pull.
    push = asyncio.get_running_loop().create_task(local.push())
    while not local.machine.state.jobs:
        await asyncio.sleep(0)
    taken = runs.take(local.machine.state, local.machine.state.queues["q"], 1, None, 0, "")
    assert len(taken) == 1
    await push
    await local.settle()
    assert not waiter.done()
    second = await local.push()
    assert await waiter == [second]


async def test_a_newcomer_does_not_overtake_those_who_wait(local: Local) -> None:
    first = local.pull_later()
    await local.settle()
    push = asyncio.get_running_loop().create_task(local.push())
    second = local.pull_later()
    job_id = await push
    assert await first == [job_id]
    assert not second.done()
    assert await local.push() == (await second)[0]


async def test_a_waiter_that_left_gives_its_job_back_as_it_was(local: Local) -> None:
    waiter = local.pull_later(owner="w")
    await local.settle()
    await local.push()
    # The waiter is on its way to the job when its client hangs up.
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await local.settle()
    job = local.machine.state.jobs["job-1"]
    assert (job.state, job.attempts, job.token) == ("waiting", 0, None)
    assert await local.pull() == ["job-1"]


@pytest.mark.parametrize("turns", range(8))
async def test_leaving_at_any_moment_loses_no_job(local: Local, turns: int) -> None:
    waiter = local.pull_later()
    await local.settle()
    push = asyncio.get_running_loop().create_task(local.push())
    for _ in range(turns):
        await asyncio.sleep(0)
    waiter.cancel()
    await push
    await asyncio.wait([waiter])
    await local.settle()
    got = [] if waiter.cancelled() else waiter.result()
    assert got == ["job-1"] or await local.pull() == ["job-1"]


async def test_a_failing_view_gives_the_jobs_back(local: Local) -> None:
    await local.push()

    def view(reply: object) -> None:
        raise ValueError("cannot render")

    with pytest.raises(ValueError, match="cannot render"):
        await local.node.pull(PullJobs("q"), view)
    await local.settle()
    assert local.state_of("job-1") == "waiting"


async def test_the_next_in_line_gets_what_a_leaver_was_woken_for(local: Local) -> None:
    first, second = local.pull_later(), local.pull_later()
    await local.settle()
    push = asyncio.get_running_loop().create_task(local.push())
    while not local.machine.state.jobs:
        await asyncio.sleep(0)
    first.cancel()
    await push
    assert await second == ["job-1"]
    await asyncio.wait([first])


async def test_resume_wakes_those_who_wait(local: Local) -> None:
    await local.node.submit(PauseQueue("q"))
    job_id = await local.push()
    assert await local.pull() == []
    waiter = local.pull_later()
    await local.settle()
    assert not waiter.done()
    await local.node.submit(ResumeQueue("q"))
    assert await waiter == [job_id]


async def test_a_batch_waits_for_the_first_job_only(local: Local) -> None:
    waiter = local.pull_later(count=10)
    await local.settle()
    job_id = await local.push()
    assert await waiter == [job_id]


async def test_draining_sends_everybody_away_with_nothing(local: Local) -> None:
    job_id = await local.push()
    await local.pull()
    waiters = [local.pull_later() for _ in range(3)]
    finish = asyncio.get_running_loop().create_task(local.node.wait_finished(job_id, 60_000, lambda job: job))
    await local.settle()
    local.node.drain()
    assert await asyncio.gather(*waiters) == [[], [], []]
    assert await finish is None
    assert await local.pull(wait_ms=60_000) == []


async def test_a_restored_state_is_looked_at_by_those_who_wait(local: Local) -> None:
    waiter = local.pull_later()
    await local.settle()
    other = Local(machine=Machine())
    await other.engine.start()
    await other.push()
    local.machine.restore(other.machine.image())
    assert await waiter == ["job-1"]


# -- Waiting for an end


async def test_waiting_for_an_end(local: Local) -> None:
    job_id = await local.push()
    assert await local.node.wait_finished(job_id, 10, lambda job: job and job.result) is None
    waiting = asyncio.get_running_loop().create_task(
        local.node.wait_finished(job_id, 60_000, lambda job: job and job.result)
    )
    await local.pull()
    await local.node.submit(AckJob(job_id, result=b"7"))
    assert await waiting == b"7"
    assert await local.node.wait_finished(job_id, 0, lambda job: job and job.result) == b"7"
    assert local.machine.state.watched == {}


async def test_waiting_for_the_end_of_a_job_that_is_removed_then(local: Local) -> None:
    job_id = await local.push(remove_on_complete=True)
    waiting = asyncio.get_running_loop().create_task(
        local.node.wait_finished(job_id, 60_000, lambda job: job and job.result)
    )
    await local.pull()
    await local.node.submit(AckJob(job_id, result=b"7"))
    assert await waiting == b"7"


async def test_a_failure_is_not_the_end_that_is_waited_for(local: Local) -> None:
    job_id = await local.push(max_attempts=1)
    await local.pull()
    await local.node.submit(FailJob(job_id))
    assert await local.node.wait_finished(job_id, 10, lambda job: job) is None


async def test_waiting_for_the_end_of_an_unknown_job(local: Local) -> None:
    with pytest.raises(JobNotFound):
        await local.node.wait_finished("nope", 1000, lambda job: job)


async def test_a_rate_limited_queue_wakes_its_waiters_when_a_token_comes_free(local: Local) -> None:
    await local.node.submit(SetRateLimit("q", 100))
    ids = [await local.push() for _ in range(101)]
    assert await local.pull(count=1000) == ids[:100]
    waiter = local.pull_later()
    await local.settle()
    assert not waiter.done()
    local.now_ms += 10
    assert await waiter == ids[100:]


async def test_a_window_wakes_those_who_wait_when_it_is_over(local: Local) -> None:
    await local.node.submit(SetWindow("q", 2, 10))
    ids = [await local.push() for _ in range(3)]
    assert await local.pull(count=3) == ids[:2]
    waiter = local.pull_later()
    await local.settle()
    assert not waiter.done()
    local.now_ms += 10
    assert await waiter == ids[2:]


async def test_every_window_that_is_over_wakes_some_of_those_who_wait(local: Local) -> None:
    await local.node.submit(SetWindow("q", 1, 10))
    ids = [await local.push() for _ in range(4)]
    assert await local.pull() == ids[:1]
    waiters = [local.pull_later() for _ in range(3)]
    for waiter, job_id in zip(waiters, ids[1:], strict=True):
        await local.settle()
        assert not waiter.done()
        local.now_ms += 10
        assert await waiter == [job_id]


async def test_a_hold_wakes_those_who_wait_when_it_is_over_or_ended(local: Local) -> None:
    ids = [await local.push() for _ in range(2)]
    await local.node.submit(HoldQueue("q", 10))
    waiter = local.pull_later()
    await local.settle()
    assert not waiter.done()
    local.now_ms += 10
    assert await waiter == ids[:1]
    await local.node.submit(HoldQueue("q", 60_000))
    waiter = local.pull_later()
    await local.settle()
    assert not waiter.done()
    await local.node.submit(HoldQueue("q", 0))
    assert await waiter == ids[1:]


async def test_a_clock_that_is_ahead_of_the_logs_does_not_fill_the_log(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough that it is not over while this test looks.
    monkeypatch.setattr(long_polls, "LOOK_AGAIN_S", 0.5)
    job_id = await local.push()
    await local.node.submit(HoldQueue("q", 50))
    local.node._clock = local.node.waiters._clock = lambda: local.now_ms + 100
    entries = len(local.engine.entries)
    waiter = local.pull_later()
    for _ in range(5):
        await local.settle()
    # The first try, and one from the line.
    assert len(local.engine.entries) <= entries + 2 and not waiter.done()
    local.now_ms += 50
    assert await waiter == [job_id]


def bounded(local: Local, active_max: int, wait_ms: int = 60_000) -> asyncio.Task[list[str]]:
    pull = PullJobs("q", owner="w", token_seed="s", active_max=active_max)
    return asyncio.get_running_loop().create_task(
        local.node.pull(pull, lambda reply: [job.id for job in reply.jobs], wait_ms=wait_ms)
    )


async def test_an_owner_that_has_enough_waits_until_one_of_its_jobs_is_done(local: Local) -> None:
    ids = [await local.push() for _ in range(3)]
    assert await bounded(local, 1) == ids[:1]
    entries = len(local.engine.entries)
    waiter, other = bounded(local, 1), bounded(local, 1)
    await local.settle()
    assert not waiter.done() and len(local.engine.entries) == entries
    assert await bounded(local, 1, 0) == []
    # Somebody without a bound is not held up by those who wait for room.
    assert await local.pull(1000) == ids[1:2]
    await local.node.submit(AckJob(ids[0], "s-0"))
    assert await waiter == ids[2:]
    await local.settle()
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])
    assert local.node.waiters.count == 0 and not local.node.waiters._bounded


# -- Ending a run and taking the next job


async def taken_by_hand(local: Local) -> str:
    job_id = await local.push()
    await local.node.pull(PullJobs("q", token="t"), lambda reply: None)
    return job_id


async def test_the_next_job_comes_with_the_end_of_the_last(local: Local) -> None:
    first, second = await taken_by_hand(local), await local.push()
    both = FinishAndPull(AckJob(first, "t"), PullJobs("q", token="t"))
    seen = await local.node.submit(both, lambda reply: (reply.job.id, [job.id for job in reply.next.jobs]))
    assert seen == (first, [second])


@pytest.mark.parametrize("turns", range(6))
async def test_the_next_job_of_somebody_who_left_goes_back(local: Local, turns: int) -> None:
    first, second = await taken_by_hand(local), await local.push()
    both = FinishAndPull(AckJob(first, "t"), PullJobs("q", token="t"))
    task = asyncio.get_running_loop().create_task(local.node.submit(both, lambda reply: reply.job.id))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await local.settle()
    # Either it was answered in time, or the next job is there for others; the end of the first one stays if it came to that.
    answered = not task.cancelled()
    assert local.state_of(second) == ("active" if answered else "waiting")
    assert local.state_of(first) in ("active", "completed")


async def test_a_next_job_that_cannot_be_rendered_goes_back(local: Local) -> None:
    first, second = await taken_by_hand(local), await local.push()
    both = FinishAndPull(AckJob(first, "t"), PullJobs("q", token="t"))
    with pytest.raises(ZeroDivisionError):
        await local.node.submit(both, lambda reply: 1 / 0)
    await local.settle()
    assert (local.state_of(first), local.state_of(second)) == ("completed", "waiting")
    assert local.machine.state.jobs[second].starts == 0


# -- With an idempotency key


def keyed(local: Local, key: str = "k", fingerprint: bytes = b"f", wait_ms: int = 0) -> Any:
    """Pull under a key; the seed of the tokens is new each time, as the edge makes it."""
    local.ids += 1
    return local.node.pull(
        PullJobs("q", 1, "w", token_seed=f"seed{local.ids}"),
        lambda reply: (reply.tokens, [job.id for job in reply.jobs]),
        wait_ms=wait_ms,
        once=IdempotencyKey(key, fingerprint, "", f"{key}-earlier"),
    )


async def test_a_repeated_pull_gets_the_same_jobs_and_tokens(local: Local) -> None:
    await local.push()
    await local.push()
    first = await keyed(local)
    assert await keyed(local) == first
    assert (await keyed(local, "other"))[1] != first[1]
    with pytest.raises(IdempotencyKeyReused):
        await keyed(local, fingerprint=b"another request")


async def test_a_repeated_pull_that_found_nothing_tries_again(local: Local) -> None:
    assert await keyed(local) == ([], [])
    job_id = await local.push()
    assert (await keyed(local))[1] == [job_id]


async def test_a_pull_under_a_key_may_wait(local: Local) -> None:
    task = asyncio.get_running_loop().create_task(keyed(local, wait_ms=60_000))
    await local.settle()
    job_id = await local.push()
    first = await task
    assert first[1] == [job_id]
    assert await keyed(local, wait_ms=60_000) == first


async def test_jobs_given_back_are_taken_anew_by_a_repeat(local: Local) -> None:
    job_id = await local.push()
    task = asyncio.get_running_loop().create_task(keyed(local))
    # Gone after its pull was sent and before the answer.
    while not local.node.batcher.backlog and not task.done():
        await asyncio.sleep(0)
    local.node.batcher._flush()
    task.cancel()
    await local.settle()
    assert local.state_of(job_id) == "waiting"
    tokens, jobs = await keyed(local)
    assert (jobs, local.machine.state.jobs[job_id].token) == ([job_id], tokens[0])


async def test_a_repeated_write_is_rendered_from_the_first_reply(local: Local) -> None:
    ids = []
    for i in range(2):
        push = PushJobs("q", [job_spec(f"new-{i}", b"1")])
        ids.append(await local.node.submit(push, lambda reply: reply.ids[0], once=IdempotencyKey("k", b"f", "", "e")))
    assert ids == ["new-0", "new-0"]
