"""Random operations of the backend protocol beside those of the other dialects: tables agree with records, and an image is the whole state.

No model says what each answers (tests/operations does); here whatever comes after whatever else must leave a state that can be
restored, and goes on from there as the one that it is the image of.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from quorumq.node.machine.lifecycle.bullmq.running import Wish
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.bullmq.adding import AddNamedFlow, AddNamedJobs, FlowPart
from quorumq.node.machine.operations.bullmq.changing import (
    ChangeNamedDelay,
    ChangeNamedPriority,
    FreeNamedKey,
    PromoteAllNamed,
    PromoteNamed,
    RetryAllNamed,
    RetryNamed,
    UpdateNamedData,
    UpdateNamedProgress,
)
from quorumq.node.machine.operations.bullmq.limits import LimitFor, Unlimit
from quorumq.node.machine.operations.bullmq.metas import Pause
from quorumq.node.machine.operations.bullmq.removing import (
    CleanNamed,
    ObliterateNamed,
    RemoveDependency,
    RemoveNamed,
    RemoveUnprocessed,
)
from quorumq.node.machine.operations.bullmq.running import (
    AwaitNamedChildren,
    CheckNamedStalled,
    CompleteRun,
    DelayRun,
    ExtendNamedLocks,
    FailRun,
    GiveBack,
    RetryRun,
    TakeNext,
)
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.job import Dedup, Keep
from tests.support.bullmq import named
from tests.support.indexes import check_indexes
from tests.support.world import START_MS

QUEUES = ("a", "b")
POLICIES = ("wait", "fail", "continue", "ignore", "remove")
STATES = ("completed", "failed", "delayed", "wait", "active", "prioritized", "waiting-children")


class Chance:
    """Makes operations. dice: where the chance comes from."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def some(self, *of: Any) -> Any:
        return self.dice.choice(of)

    @property
    def queue(self) -> str:
        return str(self.some(*QUEUES))

    @property
    def own(self) -> str:
        return str(self.some("x", "y", "z", *(str(at) for at in range(1, 12))))

    @property
    def token(self) -> str:
        return str(self.some("t", "t", "t", "u", "0"))

    @property
    def wish(self) -> Wish | None:
        limit = self.some(None, None, 2)
        return self.some(None, Wish(self.token, self.some(5, 50), self.some(None, "w"), limit, 30))

    @property
    def keep(self) -> Keep:
        return Keep(self.some(None, None, 20), self.some(None, None, 0, 2))

    def job(self, *, can_have_parent: bool = True) -> Any:
        dedup = self.some(
            None, None, Dedup(), Dedup(20), Dedup(20, True), Dedup(None, False, True), Dedup(20, True, True),
            Dedup(None, False, False, True), Dedup(None, False, False, False, True),
        )  # fmt: skip
        more = {"parent": (self.queue, self.own)} if can_have_parent and self.dice.random() < 0.3 else {}
        return named(
            self.some("", "", "x", "y", "z"),
            key=None if dedup is None else str(self.some("k", "l")),
            dedup=dedup,
            delay_ms=self.some(0, 0, 5, 30),
            priority=self.some(0, 0, -1, -2),
            lifo=self.some(False, False, True),
            max_attempts=self.some(1, 3),
            on_failure=self.some(*POLICIES),
            to_children=self.some(False, False, False, True),
            **more,
        )

    def flow(self) -> AddNamedFlow:
        root = FlowPart(self.queue, msgspec.structs.replace(self.job(), to_children=True))
        return AddNamedFlow([root, *(FlowPart(self.queue, self.job(can_have_parent=False), 0) for _ in range(2))])

    def operation(self) -> Operation:
        queue, own, token = self.queue, self.own, self.token
        makers: list[Callable[[], Operation]] = [
            lambda: AddNamedJobs(queue, [self.job() for _ in range(3)]),
            lambda: AddJobs(queue, [job_spec("", b"{}", max_attempts=2, rejoin_last=True, stalls_allowed=1)]),
            self.flow,
            *[lambda: TakeNext(queue, self.wish or Wish("t", 20))] * 4,
            *[lambda: CompleteRun(queue, own, token, b"1", self.keep, self.wish)] * 3,
            lambda: FailRun(queue, own, token, "broken", b"[]", self.keep, self.wish),
            lambda: DelayRun(queue, own, token, self.some(0, 9), self.some(True, False), "r", None, self.wish),
            lambda: RetryRun(queue, own, token, "r", b"[]"),
            lambda: GiveBack(queue, own, token),
            lambda: AwaitNamedChildren(queue, own, token),
            lambda: ExtendNamedLocks(queue, [own], [token], 40),
            lambda: CheckNamedStalled(queue, 1, 10),
            lambda: LimitFor(queue, 5),
            lambda: Unlimit(queue),
            lambda: UpdateNamedData(queue, own, b"[1,2]"),
            lambda: UpdateNamedProgress(queue, own, b"5", 5),
            lambda: ChangeNamedDelay(queue, own, 7),
            lambda: ChangeNamedPriority(queue, own, self.some(0, 1, 3), self.some(True, False)),
            lambda: PromoteNamed(queue, own),
            lambda: PromoteAllNamed(queue, 2),
            lambda: RetryNamed(
                queue, own, self.some("failed", "completed"), self.some(True, False), self.some(True, False)
            ),
            lambda: RetryAllNamed(queue, self.some("failed", "completed"), 2),
            lambda: FreeNamedKey(queue, "k"),
            lambda: RemoveNamed(queue, own, self.some(True, False)),
            lambda: RemoveUnprocessed(queue, own),
            lambda: RemoveDependency(queue, own, [(self.queue, self.own)]),
            lambda: CleanNamed(queue, self.some(*STATES), None, 2),
            lambda: Pause(queue, paused=self.dice.random() < 0.2),
            lambda: ObliterateNamed(queue, 3, force=True),
        ]
        made: Operation = self.dice.choice(makers)()
        return made


@pytest.mark.parametrize("seed", range(25))
def test_whatever_comes_leaves_a_state_that_is_its_image(seed: int) -> None:
    chance = Chance(seed)
    machine, now_ms = Machine(), START_MS
    # What its image was when it was made, and what it has become by the same entries.
    other = Machine()
    for index in range(1, 301):
        now_ms += chance.some(0, 0, 1, 7)
        batch = [msgspec.msgpack.encode([chance.operation() for _ in range(3)])]
        machine.apply(index, now_ms, batch)
        other.apply(index, now_ms, batch)
        assert machine.errors == 0
        check_indexes(machine.state)
        if index % 20 == 0:
            image = list(machine.image())
            assert list(other.image()) == image
            other = Machine()
            other.restore(image)
            assert list(other.image()) == image
            assert other.digest() == machine.digest()
