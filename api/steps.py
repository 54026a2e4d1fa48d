"""Large replies, made a few jobs at a time: a view that renders ten thousand jobs at once would hold up all other clients of this node.

What a client is told is still the state of its own entry: the view inside the apply copies the records, which is quick, and they are
rendered afterwards, with turns of the loop between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from quorumq.node.machine.operations.flows import AddedFlow
from quorumq.node.machine.state.job import Job

STEP_JOBS = 100
"""Jobs that one turn of the loop renders: a millisecond or two."""
PAUSE_S = 0.001
"""Between two turns the loop waits, so that the disk's thread gets the interpreter.

A loop that goes on at once gives the interpreter up and takes it again, which wakes who waits, too late, and begins his 5 ms anew: all
writes would wait until the reply is made. Python's switch interval could be shorter than a turn; a tenth fewer single pushes came of that.
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Job]).decode


class Copies:
    """Records of jobs as they were when this was made."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._steps = [_encode(jobs[at : at + STEP_JOBS]) for at in range(0, len(jobs), STEP_JOBS)]
        # These never change, and what is made of one is remembered with it.
        self._options = [job.opts for job in jobs]

    async def texts(self, text: Callable[[Job], bytes]) -> list[bytes]:
        """Render each."""
        made: list[bytes] = []
        options = iter(self._options)
        for step in self._steps:
            if made:
                await asyncio.sleep(PAUSE_S)
            for job in _decode(step):
                job.opts = next(options)
                job.settle_form()
                made.append(text(job))
        return made


def copies_of(reply: AddedFlow) -> Copies:
    """A view of a flow that was added."""
    return Copies(reply.jobs)


async def in_steps(text: Callable[..., bytes], *items: Iterable[Any]) -> list[bytes]:
    """Render each of many that nobody changes. items: for each argument of `text`."""
    made: list[bytes] = []
    for place, each in enumerate(zip(*items, strict=True)):
        if place and place % STEP_JOBS == 0:
            await asyncio.sleep(PAUSE_S)
        made.append(text(*each))
    return made


def with_commas(texts: Sequence[bytes]) -> list[bytes]:
    """Put a comma between each two of what is listed."""
    return [piece for text in texts for piece in (b",", text)][1:]
