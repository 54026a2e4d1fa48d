"""Pulling: order, batches, locks, fences, groups, pauses."""

from quorumq.node.machine.operations.jobs import CancelJob, PromoteJob
from quorumq.node.machine.operations.queue_reads import ListJobs, QueueCounts
from quorumq.node.machine.operations.queues import PauseQueue, ResumeQueue
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs, ReleaseJobs
from tests.support.world import START_MS, World


def test_the_documented_order(world: World) -> None:
    pushes = {
        "a": {},
        "b": {"priority": 5},
        "c": {"priority": 5},
        "d": {"priority": -3},
        "e": {"priority": 5, "lifo": True},
    }
    pushes |= {"f": {"lifo": True}, "g": {"lifo": True}, "h": {}}
    for name, options in pushes.items():
        world.push("q", name, **options)
    assert [job.id for job in world.ask(ListJobs("q"))] == list("ebcgfahd")
    assert [world.pull_ids()[0] for _ in pushes] == list("ebcgfahd")


def test_the_extremes_of_priority(world: World) -> None:
    low, high = world.push(priority=-1_000_000), world.push(priority=1_000_000)
    assert world.pull_ids(count=2) == [high, low]


def test_a_pull_makes_the_job_active(world: World) -> None:
    job = world.job(world.push())
    world.event_names()
    world.wait(100)
    assert world.pull() == [job]
    assert (job.state, job.started_at, job.last_heartbeat) == ("active", START_MS + 100, START_MS + 100)
    assert (job.token, job.locked, job.attempts) == (None, False, 0)
    assert world.event_names() == ["job:active"]
    assert world.pull() == []


def test_an_unknown_queue_is_not_created(world: World) -> None:
    assert world.pull("nowhere") == []
    assert world.machine.state.queues == {}


def test_a_batch_takes_what_is_there(world: World) -> None:
    ids = [world.push() for _ in range(3)]
    assert world.pull_ids(count=2) == ids[:2]
    assert world.pull_ids(count=10) == ids[2:]


def test_an_owner_gets_locks_and_tokens(world: World) -> None:
    first, second = world.job(world.push()), world.job(world.push())
    reply = world.do(PullJobs("q", 2, owner="w1", lock_ms=5000, token_seed="s"))
    assert reply.tokens == ["s-0", "s-1"]
    assert [first.token, second.token] == reply.tokens
    assert (first.owner, first.locked, first.lock_until) == ("w1", True, START_MS + 5000)
    assert world.do(PullJobs("q", 2, owner="w1")).tokens == []
    third = world.job(world.push())
    world.pull(owner="w2", token_seed="t")
    assert third.lock_until == START_MS + 30_000


def test_fences_rise_with_every_delivery(world: World) -> None:
    jobs = [world.job(world.push(backoff=0)) for _ in range(3)]
    world.pull(count=3)
    fences = [job.fence for job in jobs]
    assert fences == sorted(set(fences))
    world.do(FailJob(jobs[0].id))
    world.pull()
    assert jobs[0].fence > fences[2]


def test_a_paused_queue_gives_nothing(world: World) -> None:
    job = world.a_job("active")
    waiting = world.push()
    assert world.do(PauseQueue("q")) is True
    assert world.do(PauseQueue("q")) is False
    assert world.pull() == []
    assert world.ask(QueueCounts("q")).paused
    world.do(AckJob(job.id))
    world.woken.clear()
    assert world.do(ResumeQueue("q")) is True
    assert world.do(ResumeQueue("q")) is False
    assert "q" in world.woken
    assert world.pull_ids() == [waiting]


# -- Groups


def test_a_group_runs_one_at_a_time_and_others_overtake(world: World) -> None:
    for name, group in (("a", "g1"), ("b", "g1"), ("c", "g2"), ("d", None)):
        world.push("q", name, group_id=group)
    assert world.pull_ids(count=10) == ["a", "c", "d"]
    assert world.ask(QueueCounts("q")).waiting == 1
    world.woken.clear()
    world.do(AckJob("a"))
    assert world.woken == ["q"]
    assert world.pull_ids(count=10) == ["b"]


def test_every_way_out_of_active_lets_the_next_of_the_group_run(world: World) -> None:
    def release(job_id: str) -> None:
        world.do(ReleaseJobs([(job_id, world.job(job_id).fence)]))

    for leave in (
        lambda i: world.do(AckJob(i)),
        lambda i: world.do(FailJob(i)),
        lambda i: world.do(CancelJob(i)),
        release,
    ):
        first, second = world.push(group_id="g"), world.push(group_id="g")
        assert world.pull_ids(count=5) == [first]
        leave(first)
        expected = first if leave is release else second
        assert world.pull_ids(count=5) == [expected]
        for job_id in (first, second):
            if job_id in world.machine.state.jobs and not world.job(job_id).finished:
                world.do(CancelJob(job_id))
    assert world.machine.state.queues["q"].groups == {}


def test_priority_decides_inside_a_group(world: World) -> None:
    low, middle, high = (world.push(group_id="g", priority=p) for p in (0, 3, 9))
    assert [job.id for job in world.ask(ListJobs("q", "waiting"))] == [high, middle, low]
    for expected in (high, middle, low):
        assert world.pull_ids(count=5) == [expected]
        world.do(AckJob(expected))


def test_a_cancelled_head_gives_its_place_to_the_next(world: World) -> None:
    head, parked, last = (world.push(group_id="g") for _ in range(3))
    world.do(CancelJob(parked))
    world.do(CancelJob(head))
    assert world.pull_ids(count=5) == [last]


def test_a_delayed_job_joins_its_group_when_due(world: World) -> None:
    delayed = world.push(group_id="g", delay_ms=1000, priority=5)
    waiting = world.push(group_id="g")
    world.do(PromoteJob(delayed))
    assert world.pull_ids(count=5) == [delayed]
    assert world.state_of(waiting) == "waiting"


# -- Giving back


def test_a_released_job_is_as_it_was(world: World) -> None:
    first, second = world.push(), world.push()
    job = world.pull(owner="w", token_seed="s")[0]
    assert world.do(ReleaseJobs([(job.id, job.fence)])).count == 1
    assert (job.state, job.attempts, job.token, job.locked, job.started_at) == ("waiting", 0, None, False, None)
    assert [step.state for step in job.timeline] == ["waiting"]
    assert world.pull_ids(count=2) == [first, second]


def test_a_release_leaves_a_later_delivery_alone(world: World) -> None:
    job = world.a_job("active")
    fence = job.fence
    assert world.do(ReleaseJobs([(job.id, fence - 1), ("nope", fence)])).count == 0
    assert job.state == "active"
