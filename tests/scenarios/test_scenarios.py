"""Stories of a queue as text: what was done, and what could be seen after it.

A scenario is a file of steps (`> push emails a priority=5`), each followed by what it answered. `--rewrite` writes the
answers anew; the difference is then read like any other change. A history that once failed becomes a file here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorumq.node.machine.operations.dlq import ListDlq, RetryDlq
from quorumq.node.machine.operations.jobs import CancelJob, ChangePriority, DiscardJob, PromoteJob
from quorumq.node.machine.operations.queue_reads import ListJobs, QueueCounts
from quorumq.node.machine.operations.queues import PauseQueue, ResumeQueue
from quorumq.node.machine.operations.runs import AckJob, ExtendLock, FailJob, HeartbeatJob, ProgressJob, PullJobs
from quorumq.node.machine.operations.settings import SetConcurrency, SetRateLimit, SetStallConfig
from quorumq.node.machine.refusals import Refusal
from tests.support.world import START_MS, World

HERE = Path(__file__).parent
COMMANDS: dict[str, Callable[..., str]] = {}


def command(run: Callable[..., str]) -> Callable[..., str]:
    COMMANDS[run.__name__.replace("_", "-")] = run
    return run


def value(text: str) -> Any:
    """Read an argument: JSON where it is JSON, else text; a comma makes a list of ids."""
    if "," in text:
        return tuple(text.split(","))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def names(jobs: list[Any]) -> str:
    return " ".join(job.id for job in jobs) or "nothing"


@command
def push(world: World, queue: str, job_id: str, **options: Any) -> str:
    if "depends_on" in options and isinstance(options["depends_on"], str):
        options["depends_on"] = (options["depends_on"],)
    given = world.push(queue, job_id, **options)
    return world.state_of(given) if given == job_id else f"there is {given}"


@command
def pull(world: World, queue: str, count: int = 1, owner: str | None = None, lock: int | None = None) -> str:
    reply = world.do(PullJobs(queue, count, owner, lock, owner or ""))
    return names(reply.jobs) + (f" with {' '.join(reply.tokens)}" if reply.tokens else "")


@command
def ack(world: World, job_id: str, token: str | None = None, result: Any = None) -> str:
    world.do(AckJob(job_id, token, None if result is None else json.dumps(result).encode()))
    return "ok"


@command
def fail(world: World, job_id: str, token: str | None = None, error: str | None = None, final: bool = False) -> str:
    job = world.do(FailJob(job_id, token, error, final)).job
    wait = job.run_at - world.now_ms
    return f"{job.state} for {wait} ms" if job.state == "delayed" else job.state


@command
def heartbeat(world: World, job_id: str, token: str | None = None) -> str:
    world.do(HeartbeatJob(job_id, token))
    return "ok"


@command
def extend(world: World, job_id: str, token: str | None = None, ms: int | None = None) -> str:
    job = world.do(ExtendLock(job_id, token, ms)).job
    return f"until {job.lock_until - START_MS}"


@command
def progress(world: World, job_id: str, percent: float) -> str:
    return f"{world.do(ProgressJob(job_id, percent)).job.progress}"


@command
def cancel(world: World, job_id: str) -> str:
    world.do(CancelJob(job_id))
    return "ok"


@command
def promote(world: World, job_id: str) -> str:
    return str(world.do(PromoteJob(job_id)).job.state)


@command
def discard(world: World, job_id: str) -> str:
    return str(world.do(DiscardJob(job_id)).job.state)


@command
def priority(world: World, job_id: str, number: int) -> str:
    world.do(ChangePriority(job_id, number))
    return world.state_of(job_id)


@command
def pause(world: World, queue: str) -> str:
    return "paused" if world.do(PauseQueue(queue)) else "was paused"


@command
def resume(world: World, queue: str) -> str:
    return "resumed" if world.do(ResumeQueue(queue)) else "was not paused"


@command
def retry_dlq(world: World, queue: str, job_id: str | None = None) -> str:
    return str(world.do(RetryDlq(queue, job_id)).count)


@command
def limit(world: World, queue: str, rate: int | None = None, concurrency: int | None = None) -> str:
    if rate is not None:
        world.do(SetRateLimit(queue, rate))
    if concurrency is not None:
        world.do(SetConcurrency(queue, concurrency))
    return "ok"


@command
def stalls(world: World, queue: str, **config: Any) -> str:
    world.do(SetStallConfig(queue, **config))
    return "ok"


@command
def wait(world: World, ms: int) -> str:
    world.wait(ms)
    return f"at {world.now_ms - START_MS}"


@command
def state(world: World, *job_ids: str) -> str:
    return " ".join(world.state_of(job_id) for job_id in job_ids)


@command
def jobs(world: World, queue: str, kind: str | None = None) -> str:
    return names(world.ask(ListJobs(queue, kind)))


@command
def dlq(world: World, queue: str) -> str:
    found = world.ask(ListDlq(queue)).jobs
    return " ".join(f"{job.id}:{job.failures.reason}" for job in found) or "nothing"


@command
def counts(world: World, queue: str) -> str:
    found = world.ask(QueueCounts(queue))
    shown = {name: getattr(found, name) for name in found.__struct_fields__}
    return " ".join(f"{name}={number}" for name, number in shown.items() if number) or "nothing"


@command
def timeline(world: World, job_id: str) -> str:
    return " ".join(f"{step.state}@{step.at - START_MS}" for step in world.job(job_id).timeline)


@command
def events(world: World) -> str:
    """What was reported since the last time this was asked."""
    return " ".join(world.event_names()) or "nothing"


def play(text: str) -> str:
    """Run the steps of a scenario; return it with the answers they gave."""
    world = World()
    told: list[str] = []
    for line in text.splitlines():
        if not line.startswith(">"):
            if not line or line.startswith("#"):
                told.append(line)
            continue
        told.append(line)
        name, *words = shlex.split(line[1:])
        more = {key: value(word) for key, mark, word in (word.partition("=") for word in words) if mark}
        plain = [value(word) if word.isdecimal() else word for word in words if "=" not in word]
        try:
            told.append(COMMANDS[name](world, *plain, **more))
        except Refusal as refusal:
            told.append(f"refused: {refusal}")
    world.check()
    return "\n".join(told) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text("utf-8")
    told = play(text)
    if request.config.getoption("--rewrite"):
        path.write_text(told, "utf-8")
    else:
        assert told == text
