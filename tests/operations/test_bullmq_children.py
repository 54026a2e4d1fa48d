"""Children of a job as BullMQ's getters ask for them."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.bullmq.children import CountChildren, ListChildren, PageOfChildren
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.jobs import RemoveJob
from quorumq.node.machine.operations.runs import AckJob, FailJob
from quorumq.node.machine.state import job_spec
from tests.support.world import World

KINDS = ("processed", "unprocessed", "ignored", "failed")


@pytest.fixture
def family(world: World) -> World:
    """A parent with six children in a queue of theirs: two completed, one ignored, one continued past, two pending."""
    specs = [job_spec(f"c{number}", b"1", custom=True, max_attempts=1) for number in range(1, 7)]
    children = [
        FlowJob("kids", spec, 0, None, {"c3": "ignore", "c4": "continue"}.get(spec.id, "wait")) for spec in specs
    ]
    world.do(AddFlow([FlowJob("q", job_spec("top", b"1", custom=True)), *children], True))
    for job in world.pull("kids", 4):
        number = job.id[-1]
        world.do(AckJob(job.id, result=number.encode()) if number in "12" else FailJob(job.id, error=f"e{number}"))
    return world


def ids(children: list[object]) -> list[str]:
    return [child.job_id for child in children]  # type: ignore[attr-defined]


def test_children_are_counted_by_kind(family: World) -> None:
    assert family.ask(CountChildren("q", "top", KINDS)) == [2, 2, 2, 0]
    assert family.ask(CountChildren("q", "nope", KINDS)) == [0, 0, 0, 0]


def test_all_children_or_pages_of_them(family: World) -> None:
    everything = family.ask(ListChildren("q", "top"))
    assert {kind: len(children) for kind, children in everything.pages.items()} == {
        "processed": 2, "unprocessed": 2, "ignored": 2, "failed": 0,
    }  # fmt: skip
    assert [child.end.result for child in everything.pages["processed"]] == [b"1", b"2"]
    assert [child.end.reason for child in everything.pages["ignored"]] == ["e3", "e4"]
    assert set(everything.next.values()) == {0}
    pages = family.ask(ListChildren("q", "top", {"processed": (0, 1), "unprocessed": (1, 5)}))
    assert pages.next == {"processed": 1, "unprocessed": 0}
    assert [len(pages.pages[kind]) for kind in ("processed", "unprocessed")] == [1, 1]
    nobody = family.ask(ListChildren("q", "nope", {"processed": (0, 1)}))
    assert nobody.pages == {"processed": []}
    assert nobody.next == {"processed": 0}


def test_a_page_by_places_with_its_jobs(family: World) -> None:
    total, page, jobs = family.ask(PageOfChildren("q", "top", "processed", 0, -1, jobs=True))
    assert (total, len(page)) == (2, 2)
    assert [job.id for job in jobs] == ids(page)
    family.do(RemoveJob(page[0].job_id))
    total, page, jobs = family.ask(PageOfChildren("q", "top", "processed", 0, 0, jobs=True))
    assert (total, len(page), jobs) == (2, 1, [])
    total, page, jobs = family.ask(PageOfChildren("q", "top", "unprocessed", 1, 1))
    assert (total, len(page), jobs) == (2, 1, None)
    assert family.ask(PageOfChildren("q", "nope", "unprocessed")) == (0, [], None)
