"""The streams of events that BullMQ's clients read: ids, bounds, fields, and that an image keeps them."""

import pytest

from quorumq.node.machine.operations.queues import ObliterateQueue, PauseQueue
from quorumq.node.machine.state.bullmq import streams as module
from quorumq.node.machine.state.bullmq.streams import (
    ACTIVE,
    ADDED,
    CLEANED,
    COMPLETED,
    DEDUPLICATED,
    DELAYED,
    DRAINED,
    FAILED,
    WAITING,
    Streams,
    fields_of,
    read_id,
    written,
)
from tests.support.world import START_MS, World


def read(streams: Streams, queue: str = "q", after: int = 0) -> list[list[str]]:
    return [fields_of(entry) for entry in streams.by_queue[queue].after(after)]


def ids(streams: Streams, queue: str = "q") -> list[str]:
    return [written(entry[0]) for entry in streams.by_queue[queue].entries]


def test_ids_rise_within_a_millisecond_and_when_the_clock_goes_back() -> None:
    streams = Streams()
    for now_ms in (5, 5, 7, 6, 8):
        streams.add(now_ms, "q", DRAINED)
    assert ids(streams) == ["5-0", "5-1", "7-0", "7-1", "8-0"]


@pytest.mark.parametrize("text", ["0", "0-0"])
def test_everything_is_after_zero(text: str) -> None:
    streams = Streams()
    streams.add(1, "q", WAITING, "1")
    streams.add(1, "q", WAITING, "2", "active")
    expected = [["event", "waiting", "jobId", "1"], ["event", "waiting", "jobId", "2", "prev", "active"]]
    assert read(streams, after=read_id(text)) == expected
    assert read(streams, after=read_id("1-0")) == expected[1:]
    assert read(streams, after=read_id("1-1")) == read(streams, after=streams.last_id("q")) == []


def test_an_id_that_was_trimmed_goes_on_at_the_oldest() -> None:
    streams = Streams()
    streams.set_most("q", 2)
    for number in range(5):
        streams.add(10 + number, "q", WAITING, str(number))
    assert [fields[3] for fields in read(streams, after=read_id("10-0"))] == ["3", "4"]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (ADDED, ("1", "paint"), ["jobId", "1", "name", "paint"]),
        (DELAYED, ("1", 1700000000000), ["jobId", "1", "delay", "1700000000000"]),
        (ACTIVE, ("1",), ["jobId", "1", "prev", "waiting"]),
        (COMPLETED, ("1", b'{"a":"\xc3\xa9"}'), ["jobId", "1", "returnvalue", '{"a":"é"}', "prev", "active"]),
        (FAILED, ("1", "no"), ["jobId", "1", "failedReason", "no", "prev", "active"]),
        (DEDUPLICATED, ("1", "key", "2"), ["jobId", "1", "deduplicationId", "key", "deduplicatedJobId", "2"]),
        (CLEANED, (3,), ["count", "3"]),
        (DRAINED, (), []),
    ],
)
def test_fields_are_bullmqs(kind: str, values: tuple[str | bytes | int, ...], expected: list[str]) -> None:
    streams = Streams()
    streams.add(1, "q", kind, *values)
    assert read(streams) == [["event", kind, *expected]]


def test_clients_publish_events_of_their_own() -> None:
    streams = Streams()
    streams.add(1, "q", DRAINED)
    streams.publish(1, "q", [("event", "mine"), ("x", "")], most=1)
    assert read(streams) == [["event", "mine", "x", ""]]
    assert streams.trim("q", 0) == 1
    assert streams.size == 0
    assert streams.trim("q", 0) == streams.trim("other", 0) == 0


def test_all_streams_together_are_bounded_and_small_ones_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 100 * (module.EVENT_BYTES + 1))
    streams = Streams()
    for number in range(9):
        streams.add(number, "small", WAITING, str(number))
    for number in range(200):
        streams.add(number, f"large-{number % 2}", WAITING, "1")
        assert streams.size <= module.BYTES_MAX
        assert streams.size == sum(stream.size for stream in streams.by_queue.values())
    assert len(streams.by_queue["small"].entries) == 9
    assert 60 < len(streams.by_queue["large-0"].entries) + len(streams.by_queue["large-1"].entries) < 92
    assert fields_of(streams.by_queue["large-1"].entries[-1])[3] == "1"


def test_a_queue_that_comes_again_goes_on_above_its_old_ids(world: World) -> None:
    world.do(PauseQueue("q"))
    streams = world.machine.state.bullmq.streams
    old = streams.add(START_MS, "q", DRAINED)
    world.do(ObliterateQueue("q"))
    assert not streams.is_open("q")
    assert streams.size == 0
    assert streams.last_id("q") == old
    assert streams.add(START_MS, "q", DRAINED) > old


def test_an_image_keeps_streams(world: World) -> None:
    streams = world.machine.state.bullmq.streams
    streams.set_most("q", 7)
    for number in range(9):
        streams.add(START_MS, "q", COMPLETED, str(number), b"1")
    streams.open("empty")
    restored = world.restored().state.bullmq.streams
    assert read(restored) == read(streams)
    assert (restored.size, restored.by_queue["q"].most) == (streams.size, 7)
    assert list(restored.by_queue) == ["q", "empty"]
    assert restored.add(START_MS, "q", DRAINED) == streams.add(START_MS, "q", DRAINED)


@pytest.mark.parametrize("text", ["", "$", "x", "1-x", "-1", "1--1", "²"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        read_id(text)


def test_an_id_past_everything_is_after_everything() -> None:
    streams = Streams()
    streams.add(1, "q", DRAINED)
    assert read(streams, after=read_id("99999999999999-99999999999999999")) == []
