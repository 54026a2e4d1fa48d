"""Adding by the backend protocol: places, numbers, duplicates, deduplication, parents. Sections 3 and 4 of the contract."""

import pytest

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.bullmq.adding import AddNamedFlow, AddNamedJobs, FlowPart
from quorumq.node.machine.operations.bullmq.changing import FindNamed, FreeNamedKey, NamedKeyHolder, RetryNamed
from quorumq.node.machine.operations.bullmq.removing import RemoveDependency, RemoveNamed, RemoveUnprocessed
from quorumq.node.machine.operations.bullmq.running import AwaitNamedChildren, GiveBack
from quorumq.node.machine.operations.queues import ObliterateQueue
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state.job import Dedup
from tests.support.bullmq import add, complete, fail, job, named, number_of, take
from tests.support.world import World

SECOND = 1_000


# -- Places, numbers, duplicates

PLACES = {
    "waiting": ({}, "waiting"),
    "delayed": ({"delay_ms": 5, "priority": -1}, "delayed"),
    "prioritized": ({"priority": -1}, "waiting"),
    "for children": ({"to_children": True, "delay_ms": 5}, "waiting-children"),
}


@pytest.mark.parametrize(("options", "state"), PLACES.values(), ids=PLACES)
def test_a_job_goes_to_its_place(world: World, options: dict[str, object], state: str) -> None:
    assert job(world, add(world, **options)).state == state


def test_a_delay_counts_from_a_time_that_the_producer_chose(world: World) -> None:
    add(world, delay_ms=SECOND, due_from=world.now_ms - 400)
    assert job(world, "1").run_at == world.now_ms + 600
    add(world, delay_ms=SECOND, due_from=world.now_ms - 2 * SECOND)
    assert job(world, "2").state == "waiting"


def test_an_id_that_is_taken_stands_for_the_new_job_and_every_add_counts(world: World) -> None:
    assert [add(world, "a"), add(world, "a"), add(world, "x:y:1"), add(world)] == ["a", "a", "x:y:1", "4"]
    take(world)
    complete(world, "a")
    assert add(world, "a") == "a" and job(world, "a").state == "completed"
    world.do(RemoveNamed("q", "a"))
    assert add(world, "a") == "a" and job(world, "a").state == "waiting"


# -- Deduplication


def holder(world: World) -> str | None:
    found: str | None = world.ask(NamedKeyHolder("q", "k"))
    return found


def test_a_key_is_held_until_the_end(world: World) -> None:
    rule = {"key": "k", "dedup": Dedup()}
    assert [add(world, **rule), add(world, **rule)] == ["1", "1"]
    take(world)
    assert add(world, **rule) == "1"
    complete(world, "1")
    assert holder(world) is None and add(world, **rule) == "4"


def test_a_key_with_a_time_is_held_that_long(world: World) -> None:
    rule = {"key": "k", "dedup": Dedup(ttl_ms=SECOND)}
    add(world, **rule)
    take(world)
    complete(world, "1")
    assert add(world, **rule) == "1"
    world.wait(SECOND)
    assert add(world, **rule) == "3"


def test_a_delayed_job_makes_room_or_waits_anew(world: World) -> None:
    rule = {"key": "k", "delay_ms": SECOND}
    add(world, dedup=Dedup(replace=True), **rule)
    assert add(world, dedup=Dedup(replace=True), **rule) == "2"
    assert world.ask(FindNamed("q", "1")) is None and holder(world) == "2"
    world.wait(600)
    assert add(world, dedup=Dedup(reschedule=True), **rule) == "2"
    assert job(world, "2").run_at == world.now_ms + SECOND
    world.wait(SECOND)
    assert add(world, dedup=Dedup(replace=True), **rule) == "2"


def test_the_last_one_kept_away_while_the_job_is_active_follows_it(world: World) -> None:
    rule = Dedup(keep_last=True)
    add(world, key="k", dedup=rule, data=b"1")
    assert add(world, key="k", dedup=rule, data=b"2") == "1"
    take(world)
    for data in (b"3", b"4"):
        assert add(world, key="k", dedup=rule, data=data) == "1"
    image = list(world.machine.image())
    assert list(world.restored().image()) == image
    complete(world, "1")
    following = take(world).job
    assert following is not None and following.data == b"4" and holder(world) == following.id.rpartition(":")[2]
    # Nobody was kept away meanwhile, so nothing follows.
    complete(world, holder(world) or "")
    assert take(world).job is None
    add(world, key="k", dedup=rule)
    own = take(world).job.id.rpartition(":")[2]  # type: ignore[union-attr]
    add(world, key="k", dedup=rule)
    world.do(RemoveNamed("q", own))
    assert job(world, own).state == "active"
    fail(world, own)
    assert take(world).job is not None


@pytest.mark.parametrize(
    ("before", "after"), [(Dedup(), Dedup(ttl_ms=500, extend=True)), (Dedup(ttl_ms=500), Dedup(keep_last=True))]
)
def test_a_key_that_is_held_otherwise_than_its_job_said_is_found_in_an_image(
    world: World, before: Dedup, after: Dedup
) -> None:
    add(world, key="k", dedup=before)
    take(world)
    assert add(world, key="k", dedup=after) == "1"
    assert list(world.machine.state.queues["q"].throttled) == (["k"] if after.ttl_ms else [])
    for machine in (world.machine, world.restored()):
        world.machine = machine
        world.wait(500)
        assert holder(world) == (None if after.ttl_ms else "1")


@pytest.mark.parametrize("gone", [RemoveNamed("q", "1"), ObliterateQueue("q")], ids=["job", "queue"])
def test_nobody_follows_what_was_removed(world: World, gone: Operation) -> None:
    rule = Dedup(keep_last=True)
    add(world, key="k", dedup=rule)
    take(world)
    add(world, key="k", dedup=rule)
    facts = world.machine.state.bullmq.facts
    assert facts.following == 1
    world.do(GiveBack("q", "1", "t"))
    world.do(gone)
    assert facts.following == 0 and take(world).job is None


def test_a_key_is_given_back(world: World) -> None:
    add(world, key="k", dedup=Dedup())
    assert world.do(FreeNamedKey("q", "k", "9")) is False
    assert world.do(FreeNamedKey("q", "k", "1")) is True and world.do(FreeNamedKey("q", "k")) is False
    assert add(world, key="k", dedup=Dedup()) == "2"


# -- Parents


def child(world: World, own: str = "", queue: str = "c", parent: str = "p", **more: object) -> str:
    return add(world, own, queue, parent=("q", parent), **more)


def family(world: World, children: int = 2, **more: object) -> list[str]:
    """Add a parent with children, and return their ids."""
    add(world, "p", to_children=True, **more)
    return [child(world) for _ in range(children)]


def end(world: World, own: str, *, well: bool = True) -> None:
    assert take(world, queue="c").job is job(world, own, "c")
    if well:
        complete(world, own, queue="c", result=b"1")
    else:
        fail(world, own, queue="c", reason="broken")


def test_a_parent_waits_for_its_children_and_then_comes_first(world: World) -> None:
    one, two = family(world)
    add(world)
    end(world, one)
    assert job(world, "p").state == "waiting-children"
    end(world, two)
    assert take(world).job is job(world, "p")


def test_a_parent_must_be_there(world: World) -> None:
    assert world.do(AddNamedJobs("c", [named(parent=("q", "p")), named()])).errors == [-5, 0]
    # The counter is not touched by what comes before it.
    assert list(world.machine.state.queues["c"].jobs) == ["bull:c:1"]


POLICIES = {
    "wait": ("waiting-children", None),
    "fail": ("waiting", "child bull:c:1 failed"),
    "continue": ("waiting", None),
    "ignore": ("waiting-children", None),
    "remove": ("waiting-children", None),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_childs_failure_means_for_its_parent(world: World, policy: str) -> None:
    state, deferred = POLICIES[policy]
    add(world, "p", to_children=True)
    child(world, on_failure=policy)
    child(world)
    end(world, "1", well=False)
    parent = job(world, "p")
    assert parent.record is not None and (parent.state, parent.record.deferred) == (state, deferred)
    if state == "waiting":
        assert take(world).job is parent
        with pytest.raises(BullmqError) as refused:
            complete(world, "p")
        assert refused.value.number == -4
    end(world, "2")
    if policy in ("ignore", "remove"):
        assert parent.state == "waiting"
    if policy == "fail":
        with pytest.raises(BullmqError) as refused:
            complete(world, "p")
        assert refused.value.number == -9
        # Its worker fails it, and so the failure climbs.
        fail(world, "p", reason="child bull:c:1 failed")
        assert parent.state == "failed"


def test_a_failed_child_that_is_retried_is_pending_again(world: World) -> None:
    family(world, 0)
    child(world, on_failure="ignore")
    child(world)
    end(world, "1", well=False)
    world.do(RetryNamed("c", "1"))
    assert job(world, "p").pending_children == 2


def test_a_job_that_is_there_becomes_the_child_of_its_new_parent(world: World) -> None:
    add(world, "done", "c")
    end(world, "done")
    add(world, "p", to_children=True)
    child(world, "done")
    assert job(world, "p").state == "waiting"
    add(world, "other", to_children=True)
    assert world.do(AddNamedJobs("c", [named("done", parent=("q", "other"))])).errors == [-7]
    world.do(RemoveNamed("q", "p"))
    child(world, "done", parent="other")
    assert job(world, "other").state == "waiting"
    # A job is not put below itself.
    assert world.do(AddNamedJobs("q", [named("other", parent=("c", "done"))])).errors == [-7]


def test_a_failed_job_that_is_there_is_waited_for_until_it_is_retried(world: World) -> None:
    add(world, "bad", "c")
    end(world, "bad", well=False)
    add(world, "p", to_children=True)
    child(world, "bad", on_failure="fail")
    assert job(world, "p").state == "waiting-children"
    world.do(RetryNamed("c", "bad"))
    end(world, "bad")
    assert job(world, "p").state == "waiting"


def test_an_active_job_waits_for_children_that_it_has_made(world: World) -> None:
    add(world, "p")
    take(world)
    child(world)
    child(world)
    assert number_of(world, AwaitNamedChildren("q", "p", "u")) == -6
    assert world.do(AwaitNamedChildren("q", "p", "t", [("c", "9")])) is False
    with pytest.raises(BullmqError) as refused:
        complete(world, "p")
    assert refused.value.number == -4
    assert world.do(AwaitNamedChildren("q", "p", "t", [("c", "2")])) is True
    end(world, "1")
    end(world, "2")
    assert take(world).job is job(world, "p")
    assert world.do(AwaitNamedChildren("q", "p", "t", [("c", "2")])) is False
    complete(world, "p")


# -- Trees


def test_a_tree_is_added_whole_and_its_parents_wait(world: World) -> None:
    tree = [
        FlowPart("q", named("root", to_children=True)),
        FlowPart("q", named("", to_children=True), 0),
        FlowPart("c", named("leaf"), 1),
        FlowPart("c", named(), 0),
    ]
    reply = world.do(AddNamedFlow(tree))
    assert (reply.ids, reply.errors) == (["root", "2", "leaf", "2"], [0] * 4)
    end(world, "leaf")
    assert (job(world, "2").state, job(world, "root").state) == ("waiting", "waiting-children")


def test_a_parent_whose_children_are_done_already_goes_on_when_the_tree_is_in(world: World) -> None:
    add(world, "done", "c")
    end(world, "done")
    world.do(
        AddNamedFlow(
            [FlowPart("q", named("r", to_children=True)), FlowPart("c", named("done"), 0), FlowPart("c", named(), 0)]
        )
    )
    assert job(world, "r").state == "waiting-children" and job(world, "r").pending_children == 1
    world.do(RemoveNamed("q", "r"))
    world.do(AddNamedFlow([FlowPart("q", named("s", to_children=True)), FlowPart("c", named("done"), 0)]))
    assert job(world, "s").state == "waiting"


def test_a_tree_whose_parent_is_not_there_is_kept_away_as_a_whole_and_the_others_are_added(world: World) -> None:
    reply = world.do(
        AddNamedFlow(
            [
                FlowPart("q", named(parent=("q", "p"))),
                FlowPart("c", named(), 0),
                FlowPart("d", named(), 1),
                FlowPart("q", named("other")),
            ]
        )
    )
    assert (reply.ids, reply.errors) == (["", "", "", "other"], [-5, -5, -5, 0])
    assert len(world.machine.state.jobs) == 1


# -- Going


def test_dependencies_are_broken_and_children_removed(world: World) -> None:
    one, two = family(world)
    assert number_of(world, RemoveDependency("c", "9", [("q", "p")])) == -1
    assert number_of(world, RemoveDependency("c", one, [("q", "x")])) == -5
    assert world.do(RemoveDependency("c", one, [("q", "p")])) is True
    assert world.do(RemoveDependency("c", one, [("q", "p")])) is False
    assert take(world, queue="c").job is job(world, one, "c")
    assert world.do(RemoveNamed("c", one)) is False
    world.do(RemoveUnprocessed("q", "p"))
    assert world.ask(FindNamed("c", two)) is None and job(world, "p").state == "waiting"


def test_a_job_goes_with_its_children_unless_one_is_held(world: World) -> None:
    one, _ = family(world)
    take(world, queue="c")
    assert world.do(RemoveNamed("q", "p", children=True)) is False
    complete(world, one, queue="c")
    assert world.do(RemoveNamed("q", "p", children=True)) is True
    assert not world.machine.state.jobs
    assert world.do(RemoveNamed("q", "p")) is True
