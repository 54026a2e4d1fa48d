"""An asyncio event loop whose time passes only when nothing else is to be done, and whose callbacks have an owner.

An owner is a simulated process: when it is paused its callbacks wait, when it is dead they are dropped. The owner of a callback is
that of the code which scheduled it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any


class Process:
    """What a callback belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused = False
        self.held: list[tuple[Callable[..., Any], tuple[Any, ...], contextvars.Context | None]] = []

    def context(self) -> contextvars.Context:
        """A context in which everything scheduled belongs to this process."""
        context = contextvars.copy_context()
        context.run(CURRENT.set, self)
        return context

    def run(self, work: Callable[..., Any], *args: Any) -> None:
        """Call `work` as this process, when it can."""
        if self.dead:
            return
        if self.paused:
            self.held.append((work, args, None))
        else:
            self.context().run(work, *args)

    def resume(self, loop: VirtualLoop) -> None:
        """Go on with all that waited, in order."""
        self.paused = False
        held, self.held = self.held, []
        for work, args, context in held:
            loop.call_soon(work, *args, context=context or self.context())


CALLBACKS_MAX = 50_000


class StandstillError(BaseException):
    """The code turns in a circle."""


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Selector:
    """Instead of waiting for sockets, lets time pass."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left to happen")
        if timeout > 0:
            self._loop.now += timeout
            self._loop.at_this_instant = 0
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """No threads, no sockets, no waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self.set_exception_handler(self._trouble)
        self.trouble: list[str] = []
        self.at_this_instant = 0

    def time(self) -> float:
        return self.now

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # Tasks of a process that was killed are never finished, and that is as it should be.
        if error is not None:
            import traceback

            self.trouble.append(f"{context.get('message')}: " + "".join(traceback.format_exception(error)[-3:]))

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return super().call_soon(self._owned(callback, args, context), context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return super().call_at(when, self._owned(callback, args, context), context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _owned(self, callback: Any, args: tuple[Any, ...], context: contextvars.Context | None) -> Callable[[], None]:
        owner = CURRENT.get() if context is None else context.get(CURRENT)

        def run() -> None:
            self.at_this_instant += 1
            if self.at_this_instant > CALLBACKS_MAX:
                raise StandstillError(f"{CALLBACKS_MAX} callbacks and no time passed; now {callback!r}")
            if owner is None:
                callback(*args)
            elif owner.dead:
                return
            elif owner.paused:
                owner.held.append((callback, args, contextvars.copy_context()))
            else:
                callback(*args)

        return run
