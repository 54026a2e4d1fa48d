"""Clients of the backend protocol that are connected to this node, which reports them in the log and renews that while they are.

One operation every RENEW_S for all of them, and one for whoever comes; those who leave together are reported together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from quorumq.cluster.errors import ClusterError
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.bullmq.presence import NotePresence
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state.bullmq.presence import Client
from quorumq.node.machine.state.bullmq.sessions import FORGET_MS

RENEW_S = 10.0
"""A third of the lease: two may be lost."""
# A session that was heard of within this is not told of again.
SESSION_FRESH_MS = FORGET_MS // 3


class Connected:
    """This node's clients by id, and how many connections each session has here.

    submit: replicates an operation and returns its reply.  clock: the log's clock as this node knows it.
    """

    def __init__(
        self, node: str, machine: Machine, submit: Callable[[NotePresence], Any], clock: Callable[[], int]
    ) -> None:
        self._node = node
        self._machine = machine
        self._submit = submit
        self._clock = clock
        self._clients: dict[str, Client] = {}
        self._sessions: dict[str, int] = {}
        self._left: list[str] = []
        # Whether what the state knows of this node may be wrong: it is what the process before left, or a word got lost.
        self._unsure = True
        self._spoke = False
        self._renewing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    # -- Sessions

    def join(self, session: str) -> None:
        """A session has one connection more here."""
        self._sessions[session] = self._sessions.get(session, 0) + 1
        self._start()

    def leave(self, session: str) -> None:
        """And one less."""
        self._sessions[session] -= 1
        if not self._sessions[session]:
            del self._sessions[session]

    # -- Clients

    async def register(self, client: Client) -> None:
        """Have a client be known everywhere; one of that id takes the place of another. Raises Refusal, ClusterError."""
        self._clients[client.id] = client
        self._start()
        await self._tell(NotePresence(self._node, [client]))

    def unregister(self, client_id: str) -> None:
        """Have a client be known no more, soon."""
        if self._clients.pop(client_id, None) is not None:
            self._left.append(client_id)
            if self._leaving is None:
                self._leaving = asyncio.create_task(self._tell_who_left())

    async def _tell_who_left(self) -> None:
        # One turn of the loop later, so that those who leave together are told together.
        await asyncio.sleep(0)
        left, self._left, self._leaving = self._left, [], None
        with contextlib.suppress(ClusterError, Refusal):
            await self._tell(NotePresence(self._node, left=[one for one in left if one not in self._clients]))

    # -- The lease

    def _start(self) -> None:
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())

    def stop(self) -> None:
        """Renew no more."""
        for task in (self._renewing, self._leaving):
            if task is not None:
                task.cancel()
        self._renewing = self._leaving = None

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self.renew()

    async def renew(self) -> None:
        """Say once that this node's clients and sessions are there; what does not get through is said again the next time."""
        sessions = self._silent_sessions()
        if not self._clients and not sessions and not (self._unsure and self._spoke):
            return
        with contextlib.suppress(ClusterError, Refusal):
            if await self._tell(NotePresence(self._node, sessions=sessions)) != len(self._clients):
                # The lease was over.
                self._unsure = True
                await self._tell(NotePresence(self._node))

    def _silent_sessions(self) -> list[str]:
        known, before = self._machine.state.bullmq.sessions.by_id, self._clock() - SESSION_FRESH_MS
        return [name for name in self._sessions if (found := known.get(name)) is not None and found.seen_ms < before]

    async def _tell(self, word: NotePresence) -> int:
        """Say something of this node, or all of it; return how many clients it is known to have then."""
        if self._unsure:
            word = NotePresence(self._node, list(self._clients.values()), whole=True, sessions=word.sessions)
        self._unsure, self._spoke = False, True
        try:
            count: int = (await self._submit(word)).count
        except BaseException:
            self._unsure = True
            raise
        return count
