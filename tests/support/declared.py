"""Holds every operation that a test applies to what it declares: the events it may emit, the refusals it may answer, its fields' bounds.

Put over each `apply` of the catalogue in the process of the tests, so that any test that meets an undeclared one fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import quorumq.node.machine.operations  # noqa: F401 - fills the catalogue
from quorumq.node.machine.bounds import exceeding
from quorumq.node.machine.operation import CATALOGUE, OperationInfo
from quorumq.node.machine.operations.bullmq.sessions import CallOnce
from quorumq.node.machine.operations.requests import Idempotent
from quorumq.node.machine.refusals import Refusal

undeclared: set[str] = set()
"""What was met since somebody looked, as `operation emits Event` or `operation refuses with Refusal`."""


class _Nested:
    """What operations that an operation applies have answered for already: their events, and the refusal on its way up."""

    events = 0
    refusal: Refusal | None = None


def _held(info: OperationInfo, apply: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply)
    def held(operation: Any, state: Any, entry: Any) -> Any:
        events = state.events
        start = 0 if events is None else len(events)
        outside, _Nested.events, _Nested.refusal = _Nested.events, 0, None
        undeclared.update(f"{info.name} holds more than its type says in {name}" for name in exceeding(operation))
        try:
            return apply(operation, state, entry)
        except Refusal as refusal:
            # A repeat under an idempotency key is answered as the operation was that it carries.
            again = info.record in (Idempotent, CallOnce)
            if not again and refusal is not _Nested.refusal and not isinstance(refusal, info.refuses):
                undeclared.add(f"{info.name} refuses with {type(refusal).__name__}")
            _Nested.refusal = refusal
            raise
        finally:
            if events is not None:
                new = events[start:]
                if not _Nested.events:
                    undeclared.update(
                        f"{info.name} emits {type(event).__name__}" for event in new if type(event) not in info.emits
                    )
                _Nested.events = outside + len(new)

    return held


def hold_all() -> None:
    """Put the check over every operation, once."""
    for info in CATALOGUE.values():
        if not hasattr(info.record.apply, "__wrapped__"):
            info.record.apply = _held(info, info.record.apply)  # type: ignore[method-assign]


def found() -> list[str]:
    """Return what was met and forget it."""
    met = sorted(undeclared)
    undeclared.clear()
    return met
