"""The forked process that writes snapshots: what becomes of one that stands still, and of one whose parent dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quorumq.cluster.snapshots import Forked

ROOT = Path(__file__).parents[2]
STOPPED_CHILD = """
import os, signal, sys, time
from quorumq.cluster.snapshots import Forked

writer = Forked()

def work(alive):
    alive()
    os.kill(os.getpid(), signal.SIGSTOP)

writer.start(work, lambda error: None)
print(writer._child, flush=True)
time.sleep(600)
"""


def ended(writer: Forked, outcome: list[Exception | None], timeout_s: float = 30.0) -> Exception | None:
    """Poll as a node does until the writing has ended; returns how."""
    deadline = time.monotonic() + timeout_s
    while not outcome:
        assert time.monotonic() < deadline
        writer.poll()
        time.sleep(0.01)
    return outcome[0]


def state_of(pid: int) -> str:
    """The process's state as the system says; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_child_that_stands_still_is_ended_and_another_one_can_begin() -> None:
    writer = Forked()
    writer.stall_s = 0.5
    outcome: list[Exception | None] = []

    def stops(alive: Callable[[], None]) -> None:
        alive()
        os.kill(os.getpid(), signal.SIGSTOP)

    writer.start(stops, outcome.append)
    error = ended(writer, outcome)
    assert isinstance(error, OSError)
    assert "no progress" in str(error)
    assert writer.stalls == 1
    outcome.clear()
    # However long the machine takes to begin one.
    writer.stall_s = 30.0
    writer.start(lambda alive: alive(), outcome.append)
    assert ended(writer, outcome) is None
    assert writer.stalls == 1


def test_a_child_that_goes_on_slowly_is_left_alone() -> None:
    """It takes longer in all than it may take without a sign of life, and gives many of those: a busy machine may delay each."""
    writer = Forked()
    writer.stall_s = 4.0
    outcome: list[Exception | None] = []

    def slow(alive: Callable[[], None]) -> None:
        ends = time.monotonic() + 1.1 * writer.stall_s
        while time.monotonic() < ends:
            time.sleep(0.2)
            alive()

    writer.start(slow, outcome.append)
    assert ended(writer, outcome) is None
    assert writer.stalls == 0


def test_a_node_that_stops_takes_a_stopped_child_with_it_at_once() -> None:
    writer = Forked()
    outcome: list[Exception | None] = []
    writer.start(lambda alive: os.kill(os.getpid(), signal.SIGSTOP), outcome.append)
    child = writer._child
    while state_of(child) != "T":
        time.sleep(0.01)
    writer.stop()
    assert state_of(child) == ""
    writer.poll()
    assert outcome == []


def test_a_stopped_child_does_not_outlive_a_node_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", STOPPED_CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 30
        while state_of(child) != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    # Where nobody collects orphans it stays in the table, as a zombie.
    deadline = time.monotonic() + 5
    while (state := state_of(child)) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    if state not in ("", "Z"):
        os.kill(child, signal.SIGKILL)
    assert state in ("", "Z"), "it outlives its parent"
