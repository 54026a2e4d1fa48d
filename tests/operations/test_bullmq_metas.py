"""Fields that BullMQ's clients keep with a queue, and what of them acts."""

import pytest

from quorumq.node.machine.operations.bullmq.metas import GetMeta, GetMetaFields, Pause, RemoveMeta, SetMeta
from quorumq.node.machine.operations.bullmq.streams import LastEvent, OpenStream, PublishEvent, ReadEvents, TrimEvents
from quorumq.node.machine.operations.queues import ObliterateQueue, PauseQueue, ResumeQueue
from quorumq.node.machine.operations.settings import GetQueueSettings, SetConcurrency, SetWindow
from quorumq.node.machine.refusals import MetaTooLarge
from quorumq.node.machine.state import Window
from quorumq.node.machine.state.bullmq import metas, streams
from quorumq.node.machine.state.bullmq.streams import read_id
from tests.support.world import World


def settings(world: World) -> tuple[bool, int | None, Window | None]:
    found = world.ask(GetQueueSettings("q"))
    return found.paused, found.concurrency, found.window


def kinds(world: World) -> list[str]:
    return [event.fields[1] for event in world.ask(ReadEvents("q", 0)).events]


def test_fields_are_texts_and_come_back(world: World) -> None:
    assert world.ask(GetMeta("q")) == {}
    assert world.do(SetMeta("q", {"version": "bullmq:6.7.0", "opts.maxLenEvents": "10000"})).count == 2
    assert world.do(SetMeta("q", {"version": "bullmq:6.8.0", "mine": ""})).count == 1
    assert world.ask(GetMeta("q")) == {"version": "bullmq:6.8.0", "opts.maxLenEvents": "10000", "mine": ""}
    assert world.ask(GetMetaFields("q", ("mine", "none", "version"))) == ["", None, "bullmq:6.8.0"]
    assert world.ask(GetMetaFields("none", ("mine",))) == [None]
    assert world.do(RemoveMeta("q", ["mine", "other"])).count == 1
    assert world.do(RemoveMeta("none", ["mine"])).count == 0
    assert "mine" not in world.ask(GetMeta("q"))
    assert settings(world) == (False, None, None)


def test_settings_act_at_once_and_show_whoever_set_them(world: World) -> None:
    world.do(SetMeta("q", {"concurrency": "2", "max": "5", "duration": "1000", "paused": "1"}))
    assert settings(world) == (True, 2, Window(5, 1000))
    world.do(ResumeQueue("q"))
    world.do(SetConcurrency("q", 3))
    world.do(SetWindow("q", 7, 500))
    assert world.ask(GetMeta("q")) == {"concurrency": "3", "max": "7", "duration": "500"}
    assert world.do(RemoveMeta("q", ["concurrency", "max"])).count == 2
    assert settings(world) == (False, None, None)
    assert world.ask(GetMeta("q")) == {"duration": "500"}
    world.do(SetMeta("q", {"max": "1"}))
    assert settings(world) == (False, None, Window(1, 500))


@pytest.mark.parametrize("text", ["", "many", "-1", "1.5", "1" * 16, "²"])
def test_what_is_no_number_sets_nothing(world: World, text: str) -> None:
    world.do(SetMeta("q", {"concurrency": text, "max": text, "duration": "0", "opts.maxLenEvents": text}))
    assert settings(world) == (False, None, None)
    assert world.ask(GetMeta("q"))["concurrency"] == text


def test_the_pause_is_told_each_time_in_the_stream_and_once_elsewhere(world: World) -> None:
    world.add()
    world.event_names()
    for paused in (True, True, False, False):
        world.do(Pause("q", paused))
        assert settings(world)[0] is paused
    assert world.event_names() == ["queue:paused", "queue:resumed"]
    assert kinds(world) == ["paused", "paused", "resumed", "resumed"]
    world.do(PauseQueue("q"))
    assert world.ask(GetMeta("q")) == {"paused": "1"}
    world.woken.clear()
    world.do(RemoveMeta("q", ["paused"]))
    assert world.woken == ["q"]
    assert len(world.pull()) == 1


def test_a_queue_keeps_as_many_events_as_its_field_says(world: World) -> None:
    world.do(SetMeta("q", {"opts.maxLenEvents": "2"}))
    for _ in range(4):
        world.do(Pause("q", True))
    assert kinds(world) == ["paused"] * 2
    world.do(RemoveMeta("q", ["opts.maxLenEvents"]))
    world.do(Pause("q", True))
    assert len(kinds(world)) == 3


def test_fields_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetaTooLarge):
        world.do(SetMeta("q", {f"f{number}": "" for number in range(257)}))
    with pytest.raises(MetaTooLarge):
        world.do(SetMeta("q", {"concurrency": "1", "f": "x" * (200 << 10)}))
    assert settings(world) == (False, None, None)
    assert world.ask(GetMeta("q")) == {}
    world.do(SetMeta("q", {"f": "x" * (60 << 10)}))
    monkeypatch.setattr(metas, "BYTES_MAX", 100 << 10)
    with pytest.raises(MetaTooLarge):
        world.do(SetMeta("other", {"f": "x" * (60 << 10)}))
    world.do(SetMeta("q", {"f": "y" * (60 << 10)}))
    world.do(ObliterateQueue("q"))
    assert world.machine.state.bullmq.metas.size == 0
    world.do(SetMeta("other", {"f": "x" * (60 << 10)}))


def test_an_image_keeps_fields(world: World) -> None:
    world.do(SetMeta("q", {"a": "1", "paused": "1"}))
    world.do(SetMeta("p", {"b": "2"}))
    state = world.restored().state
    assert GetMeta("q").answer(state) == {"a": "1", "paused": "1"}
    assert GetMeta("p").answer(state) == {"b": "2"}
    assert state.bullmq.metas.size == world.machine.state.bullmq.metas.size > 0


def test_streams_are_opened_published_to_read_and_trimmed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.ask(LastEvent("q")) is None
    world.do(OpenStream("q"))
    assert world.ask(LastEvent("q")) == 0
    published = [world.do(PublishEvent("q", (("event", "mine"), ("n", str(n))))).event_id for n in range(4)]
    assert world.ask(LastEvent("q")) == published[-1]
    reading = world.ask(ReadEvents("q", published[0], 2))
    assert [event.fields for event in reading.events] == [["event", "mine", "n", "1"], ["event", "mine", "n", "2"]]
    assert reading.more
    assert reading.last == read_id(reading.events[-1].id) == published[2]
    assert not world.ask(ReadEvents("q", published[2])).more
    assert world.ask(ReadEvents("q", published[3])).events == world.ask(ReadEvents("none", 0)).events == []
    monkeypatch.setattr("quorumq.node.machine.operations.bullmq.streams.READ_BYTES", streams.EVENT_BYTES)
    assert len(world.ask(ReadEvents("q", 0)).events) == 1
    assert world.do(TrimEvents("q", 3)).count == 1
    world.do(PublishEvent("q", (("event", "mine"),), 2))
    assert len(world.machine.state.bullmq.streams.by_queue["q"].entries) == 2
