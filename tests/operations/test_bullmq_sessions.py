"""Calls of a session are made once and answered alike, within bounds; and who is connected is known for as long as its node says so."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.bullmq.presence import ListClients, NotePresence
from quorumq.node.machine.operations.bullmq.sessions import CallOnce, IsAnswered
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.queues import DrainQueue
from quorumq.node.machine.operations.runs import AckJob, PullJobs
from quorumq.node.machine.refusals import (
    AnswerForgotten,
    JobNotFound,
    ReplyForgotten,
    TooManyClients,
    TooManySessions,
)
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.bullmq import sessions
from quorumq.node.machine.state.bullmq.presence import LEASE_MS, Client
from quorumq.node.machine.state.bullmq.sessions import ANSWER_BYTES, FORGET_MS
from tests.support.world import START_MS, World, encode


def once(operation: Operation, number: int, acknowledged: int = 0, session: str = "s") -> CallOnce:
    return CallOnce(session, number, acknowledged, encode(operation))


def push(number: int, acknowledged: int = 0, session: str = "s", data: bytes = b"1") -> CallOnce:
    return once(PushJobs("q", [job_spec(f"{session}-{number}", data)]), number, acknowledged, session)


def answers(world: World, session: str = "s") -> list[int]:
    return list(world.machine.state.bullmq.sessions.by_id[session].answers)


def size(world: World) -> int:
    table = world.machine.state.bullmq.sessions
    assert table.size == sum(session.size for session in table.by_id.values())
    return table.size


def test_a_call_is_made_once_and_answered_as_it_was_first(world: World) -> None:
    first = world.do(push(1))
    taken = world.do(once(PullJobs("q", 1, token_seed="t"), 2))
    job = taken.jobs[0]
    assert world.do(push(1)).ids == first.ids == ["s-1"]
    world.do(AckJob(job.id, "t-0"))
    again = world.do(once(PullJobs("q", 1, token_seed="t"), 2))
    assert [one.id for one in again.jobs] == [job.id]
    assert again.jobs[0].state == "active"
    assert job.state == "completed"
    assert len(world.machine.state.queues["q"].jobs) == 1


def test_a_call_that_says_the_time_is_not_heeded_where_the_log_has_it(world: World) -> None:
    world.do(CallOnce("s", 1, 0, encode(PushJobs("q", [job_spec("a", b"1")])), 7))
    assert world.machine.state.now_ms == world.machine.state.jobs["a"].created_at == START_MS


def test_a_refusal_is_an_answer_too(world: World) -> None:
    for _ in range(2):
        with pytest.raises(JobNotFound, match="nope"):
            world.do(once(AckJob("nope"), 1))
        world.push(job_id="nope")
        world.pull()


def test_sessions_do_not_share_numbers(world: World) -> None:
    assert world.do(push(1, session="a")).ids == ["a-1"]
    assert world.do(push(1, session="b")).ids == ["b-1"]


def test_what_is_acknowledged_is_kept_no_more_and_not_done_again(world: World) -> None:
    for number in range(1, 5):
        world.do(push(number))
    world.do(push(5, 3))
    assert answers(world) == [4, 5]
    assert size(world) == sum(map(sessions.weight_of, world.machine.state.bullmq.sessions.by_id["s"].answers.values()))
    with pytest.raises(AnswerForgotten):
        world.do(push(2))
    assert world.ask(IsAnswered("s", 2))
    assert world.ask(IsAnswered("s", 5))
    assert not world.ask(IsAnswered("s", 6))
    assert not world.ask(IsAnswered("other", 1))
    # An older word on it takes nothing back.
    world.do(push(6, 1))
    assert answers(world) == [4, 5, 6]


def test_one_that_was_lost_and_comes_again_behind_later_ones_is_made(world: World) -> None:
    world.do(push(2))
    assert world.do(push(1)).ids == ["s-1"]
    assert world.do(push(3, 1)).ids == ["s-3"]
    assert answers(world) == [2, 1, 3]
    world.do(push(4, 2))
    assert answers(world) == [3, 4]


def test_a_session_keeps_as_many_answers_as_its_window_holds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ANSWERS_MAX", 3)
    for number in range(1, 6):
        world.do(push(number))
    assert answers(world) == [3, 4, 5]
    with pytest.raises(AnswerForgotten):
        world.do(push(2))


def test_a_session_keeps_as_many_bytes_as_may_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSION_BYTES_MAX", 5_000)
    for number in range(1, 5):
        world.push(data=b'"%b"' % (b"x" * 2000))
        world.do(once(PullJobs("q"), number))
    assert answers(world) == [3, 4]
    assert size(world) <= 5_000
    # One answer that is larger than all may be is kept all the same.
    world.push(data=b'"%b"' % (b"x" * 9000))
    world.do(once(PullJobs("q"), 5))
    assert answers(world) == [5]
    assert len(world.do(once(PullJobs("q"), 5)).jobs) == 1


def test_all_sessions_together_are_bounded_and_small_ones_keep_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "BYTES_MAX", 100 * ANSWER_BYTES)
    for number in range(1, 4):
        world.do(once(DrainQueue("q"), number, session="small"))
    for number in range(1, 200):
        world.do(once(DrainQueue("q"), number, session="large"))
        assert size(world) <= 100 * ANSWER_BYTES
    assert answers(world, "small") == [1, 2, 3]
    assert answers(world, "large")[-1] == 199
    assert len(answers(world, "large")) > 60


def test_a_reply_that_is_too_large_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.requests.REPLY_BYTES_MAX", 10)
    world.push(data=b'"%b"' % (b"x" * 20))
    world.push(data=b'"%b"' % (b"x" * 20))
    assert len(world.do(once(PullJobs("q", 2), 1)).jobs) == 2
    with pytest.raises(ReplyForgotten):
        world.do(once(PullJobs("q", 2), 1))


def test_a_session_that_nothing_is_heard_of_is_forgotten(world: World) -> None:
    world.do(push(1))
    world.do(push(1, session="kept"))
    world.wait(FORGET_MS - 1)
    world.do(NotePresence("n1", sessions=["kept", "unknown"]))
    world.wait(1)
    assert world.do(push(2, 1, session="kept")).ids == ["kept-2"]
    assert list(world.machine.state.bullmq.sessions.by_id) == ["kept"]
    # It begins anew with what it has acknowledged by then.
    assert world.do(push(3, 2)).ids == ["s-3"]
    with pytest.raises(AnswerForgotten):
        world.do(push(2, 1))


def test_a_call_is_a_sign_of_life(world: World) -> None:
    world.do(push(1))
    for number in range(2, 5):
        world.wait(FORGET_MS - 60_000)
        assert world.do(push(number)).ids == [f"s-{number}"]
    assert answers(world) == [1, 2, 3, 4]


def test_one_that_is_heard_of_does_not_keep_others_that_came_after_it(world: World) -> None:
    world.do(push(1, session="first"))
    world.do(push(1))
    world.wait(FORGET_MS - 1)
    world.do(NotePresence("n1", sessions=["first"]))
    world.wait(1)
    world.do(push(2, session="first"))
    assert list(world.machine.state.bullmq.sessions.by_id) == ["first"]
    assert size(world) == sum(
        map(sessions.weight_of, world.machine.state.bullmq.sessions.by_id["first"].answers.values())
    )


def test_a_node_whose_clock_its_clients_set_forgets_none(world: World) -> None:
    world.machine.state.bullmq.sessions.lasting = True
    world.do(push(1))
    world.wait(10 * FORGET_MS)
    assert world.do(push(2, 1)).ids == ["s-2"]


def test_there_are_so_many_sessions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 1)
    world.do(push(1))
    with pytest.raises(TooManySessions):
        world.do(push(1, session="other"))
    assert "other-1" not in world.machine.state.jobs
    world.wait(FORGET_MS)
    world.do(push(1, session="other"))


def test_an_image_keeps_sessions(world: World) -> None:
    for number in range(1, 4):
        world.do(push(number, number - 1))
    with pytest.raises(JobNotFound):
        world.do(once(AckJob("nope"), 4, 2))
    world.do(push(1, session="other"))
    restored = world.restored()
    table = restored.state.bullmq.sessions
    assert list(table.by_id) == ["s", "other"]
    assert table.size == size(world)
    outcome = restored.apply(99, world.now_ms, [encode([push(3), once(AckJob("nope"), 4), push(2)])])[0]
    assert outcome[0].ids == ["s-3"]
    assert isinstance(outcome[1], JobNotFound)
    assert isinstance(outcome[2], AnswerForgotten)


# -- Who is connected


def client(name: str, queue: str = "q") -> Client:
    return Client(name, queue, f"bull:{name}", "127.0.0.1:1")


def shown(world: World, queue: str = "q") -> list[str]:
    return [one.id for one in world.ask(ListClients(queue))[0]]


def test_clients_are_known_until_they_leave_or_their_nodes_lease_is_over(world: World) -> None:
    assert world.do(NotePresence("n1", [client("a"), client("b"), client("c", "other")])).count == 3
    assert world.do(NotePresence("n2", [client("d")])).count == 1
    assert shown(world) == ["a", "b", "d"]
    assert world.ask(ListClients("q"))[0][0].since_ms == START_MS
    world.do(NotePresence("n1", left=["b", "d", "nobody"]))
    assert shown(world) == ["a", "d"]
    world.wait(LEASE_MS - 1)
    assert world.do(NotePresence("n2")).count == 1
    world.wait(1)
    assert shown(world) == ["d"]
    # Whoever held none any more says so, and is asked for all.
    assert world.do(NotePresence("n3")).count == 0
    assert world.do(NotePresence("n1")).count == 0
    assert world.do(NotePresence("n1", [client("a")], whole=True)).count == 1
    assert shown(world) == ["d", "a"]


def test_a_client_is_on_one_node(world: World) -> None:
    world.do(NotePresence("n1", [client("a")]))
    world.do(NotePresence("n2", [client("a")]))
    world.do(NotePresence("n1", left=["a"]))
    assert shown(world) == ["a"]
    assert len(world.machine.state.bullmq.presence.by_node["n1"].by_id) == 0
    world.do(NotePresence("n2", whole=True))
    assert shown(world) == []
    assert len(world.machine.state.bullmq.presence) == 0


def test_there_are_so_many_clients(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.bullmq.presence.CLIENTS_MAX", 2)
    world.do(NotePresence("n1", [client("a"), client("b")]))
    with pytest.raises(TooManyClients):
        world.do(NotePresence("n1", [client("c")]))
    assert world.do(NotePresence("n1", left=["a"])).count == 1


def test_an_image_keeps_clients(world: World) -> None:
    world.do(NotePresence("n1", [client("a"), client("b")]))
    world.do(NotePresence("n2"))
    restored = world.restored()
    assert [one.id for one in ListClients("q").answer(restored.state)[0]] == ["a", "b"]
    assert list(restored.state.bullmq.presence.by_node) == ["n1", "n2"]
    assert len(restored.state.bullmq.presence) == 2


def test_no_call_whose_answer_had_to_go_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a call that was lost on its way came behind later ones: its answer goes after theirs."""
    monkeypatch.setattr(sessions, "ANSWERS_MAX", 2)
    for number in (5, 3, 6, 7):
        world.do(push(number))
    assert answers(world) == [6, 7]
    for number in (3, 5):
        with pytest.raises(AnswerForgotten):
            world.do(push(number))
    assert sorted(world.machine.state.jobs) == ["s-3", "s-5", "s-6", "s-7"]
