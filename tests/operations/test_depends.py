"""Jobs that depend on others."""

import pytest

from quorumq.node.machine.operations.dlq import RetryDlq
from quorumq.node.machine.operations.job_reads import GetChildrenValues
from quorumq.node.machine.operations.jobs import CancelJob, DiscardJob, PushJobs
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.refusals import DependencyNotFound
from quorumq.node.machine.state import job_spec
from tests.support.world import World


def finish(world: World, job_id: str, result: bytes | None = None, queue: str = "q") -> None:
    assert world.pull_ids(queue) == [job_id]
    world.do(AckJob(job_id, result=result))


def test_a_job_waits_until_all_it_depends_on_is_completed(world: World) -> None:
    first, second = world.push(), world.push("other")
    third = world.push(depends_on=(first, second))
    assert world.state_of(third) == "waiting-children"
    assert world.ask(QueueCounts("q")).waiting_children == 1
    assert world.job(third).depends_on == (first, second)
    finish(world, first, b"1")
    assert world.state_of(third) == "waiting-children"
    assert world.ask(GetChildrenValues(third)) == {first: b"1"}
    world.woken.clear()
    finish(world, second, queue="other")
    assert "q" in world.woken
    assert world.ask(GetChildrenValues(third)) == {first: b"1", second: None}
    assert world.pull_ids() == [third]


def test_a_job_that_is_named_twice_is_waited_for_once(world: World) -> None:
    first, second = world.push(), world.push()
    third = world.push(depends_on=(first, second, first))
    dependencies = world.job(third).dependencies
    assert dependencies is not None and dependencies.remaining == [first, second]
    assert world.machine.state.dependents.count(first) == 1
    for done in (first, second):
        finish(world, done)
    assert world.state_of(third) == "waiting"
    assert world.ask(GetChildrenValues(third)) == {first: None, second: None}


def test_a_completed_dependency_need_not_be_waited_for(world: World) -> None:
    first = world.push()
    finish(world, first, b"7")
    second = world.push(depends_on=(first,))
    assert world.state_of(second) == "waiting"
    assert world.ask(GetChildrenValues(second)) == {first: b"7"}


def test_a_removed_but_completed_dependency_counts(world: World) -> None:
    first = world.push(remove_on_complete=True)
    second = world.push(depends_on=(first,))
    finish(world, first, b"7")
    assert world.state_of(second) == "waiting"
    assert world.ask(GetChildrenValues(second)) == {first: b"7"}
    assert world.state_of(world.push(depends_on=(first,))) == "waiting"


def test_unknown_dependencies_and_oneself_are_refused(world: World) -> None:
    with pytest.raises(DependencyNotFound):
        world.push(depends_on=("nope",))
    with pytest.raises(DependencyNotFound):
        world.push("q", "me", depends_on=("me",))
    with pytest.raises(DependencyNotFound):
        world.do(PushJobs("q", [job_spec("a", b"1", depends_on=("b",)), job_spec("b", b"1")]))


def test_a_job_may_depend_on_an_earlier_one_of_its_push(world: World) -> None:
    world.do(PushJobs("q", [job_spec("a", b"1"), job_spec("b", b"1", depends_on=("a", "a"))]))
    finish(world, "a")
    assert world.state_of("b") == "waiting"


def test_a_dependency_that_fails_holds_its_dependents(world: World) -> None:
    first = world.push(max_attempts=1)
    second = world.push(depends_on=(first,))
    world.pull()
    world.do(FailJob(first))
    assert world.state_of(second) == "waiting-children"
    assert world.state_of(world.push(depends_on=(first,))) == "waiting-children"


def test_a_cancelled_dependency_holds_its_dependents_and_a_new_generation_frees_them(world: World) -> None:
    world.push("q", "a")
    second = world.push(depends_on=("a",))
    world.do(CancelJob("a"))
    assert world.state_of(second) == "waiting-children"
    world.push("q", "a")
    finish(world, "a")
    assert world.state_of(second) == "waiting"


def test_a_cancelled_dependent_is_forgotten(world: World) -> None:
    first = world.push()
    second = world.push(depends_on=(first,))
    world.do(CancelJob(second))
    assert len(world.machine.state.dependents) == 0
    finish(world, first)


def test_the_delay_of_a_dependent_counts_from_its_push(world: World) -> None:
    first = world.push()
    late, early = world.push(depends_on=(first,), delay_ms=5000), world.push(depends_on=(first,), delay_ms=100)
    world.wait(1000)
    finish(world, first)
    assert (world.state_of(late), world.state_of(early)) == ("delayed", "waiting")
    world.wait(4000)
    assert world.state_of(late) == "waiting"


@pytest.mark.parametrize("options", [{}, {"remove_on_fail": True}])
def test_a_job_that_was_discarded_is_told_of_no_completion(world: World, options: dict[str, bool]) -> None:
    first = world.push()
    second = world.job(world.push(depends_on=(first,), **options))
    world.do(DiscardJob(second.id))
    finish(world, first)
    assert second.state == "failed" and not len(world.machine.state.dependents)
    if not options:
        world.do(RetryDlq("q", second.id))
        assert world.pull() == [second]
