"""The two index structures of the state against plain sorted lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quorumq.node.machine.state.job import DEFAULT, Job
from quorumq.node.machine.state.ranked import PIECE, Ranked
from quorumq.node.machine.state.timers import Timers


def a_record(seq: int) -> Job:
    return Job(f"j{seq}", "q", b"", DEFAULT, "waiting", seq, seq, 0, 0)


def contents(index: Ranked) -> list[int]:
    ranks = [job.seq for job in index]
    assert len(index) == len(ranks)
    return ranks


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "append", "append", "remove", "pop"]), st.integers(0, 400)), max_size=300
)


@given(STEPS)
def test_ranked_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    index, plain = Ranked(), []
    for step, number in steps:
        if step == "append":
            number = max(plain, default=0) + 1 + number % 3
        if step in ("add", "append") and number not in plain:
            index.add(number, a_record(number))
            plain = sorted([*plain, number])
        elif step == "remove" and plain:
            number = plain[number % len(plain)]
            assert index.remove(number).seq == number
            plain.remove(number)
        elif step == "pop":
            taken = [job.seq for job in index.pop_first(number % 7)]
            assert taken == plain[: number % 7]
            del plain[: number % 7]
        first = index.first()
        assert (first and first.seq) == (plain[0] if plain else None)
    assert contents(index) == plain


def test_ranked_over_many_pieces() -> None:
    index, count = Ranked(), PIECE * 5
    for i in range(count):
        # Even ranks at the end, odd ones in the middle.
        index.add(i * 2, a_record(i * 2))
    for i in range(count):
        index.add(i * 2 + 1, a_record(i * 2 + 1))
    assert contents(index) == list(range(count * 2))
    assert [job.seq for job in index.slice(PIECE * 3 + 1, 4)] == list(range(PIECE * 3 + 1, PIECE * 3 + 5))
    assert [job.seq for job in index.slice(count * 2 - 2, None)] == [count * 2 - 2, count * 2 - 1]
    assert [job.seq for job in index.pop_first(PIECE * 3)] == list(range(PIECE * 3))
    for rank in range(PIECE * 3, count * 2, 2):
        index.remove(rank)
    assert contents(index) == list(range(PIECE * 3 + 1, count * 2, 2))


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "set", "clear", "pass"]), st.integers(0, 20), st.integers(0, 5000)),
        max_size=80,
    )
)
def test_timers_ring_in_order_of_time_and_birth(steps: list[tuple[str, int, int]]) -> None:
    timers, jobs, now = Timers(), [a_record(i) for i in range(21)], 10_000
    plain: dict[int, int] = {}
    for step, number, ms in steps:
        if step == "set":
            timers.set(jobs[number], now + ms)
            plain[number] = now + ms
        elif step == "clear":
            timers.clear(jobs[number])
            plain.pop(number, None)
        else:
            now += ms
            due = sorted((when, seq) for seq, when in plain.items() if when <= now)
            rung = []
            while (job := timers.pop_due(now)) is not None:
                rung.append(job.seq)
                assert job.due == 0
            assert rung == [seq for _, seq in due]
            for seq in rung:
                del plain[seq]
        assert len(timers) == len(plain)
        look = timers.next_due(now)
        assert (look is None) == (not plain)
        if look is not None:
            assert min(plain.values()) - 1024 <= look <= min(plain.values())
