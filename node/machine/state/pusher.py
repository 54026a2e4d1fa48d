"""Push workers: which endpoint gets the jobs of which queue, and which node sees to it.

One registration per queue. Nothing here calls anybody: the node that a registration is assigned to does, and what it may take is
decided where a pull is applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from quorumq.node.machine.state.job import Keep
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.queue import QueueSettings

PUSHERS_MAX = 10_000
# Owner of the jobs that push workers have taken. A queue has one registration, so owner and queue name it.
PUSH_OWNER: Final = "push-worker"


class Circuit(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """How it stands with an endpoint that cannot be reached. Only what changes rarely is kept here.

    failures: calls in a row that found nobody.  next_try_at: nothing is taken before, but for one job then; 0 while the
    circuit is closed.  error: of the last of them.
    """

    failures: int = 0
    next_try_at: int = 0
    error: str | None = None


CLOSED = Circuit()


class Pusher(msgspec.Struct, gc=False, array_like=True):
    """A registration. Order of fields is the image's format: only append.

    timeout_ms: for one call.  concurrency: jobs under way at once, in the whole cluster.  limit, max_stalls, keep_*: what the
    queue goes by while this stands.  generation: rises over the whole state with each registration.  node: who calls,
    None while nobody does.
    """

    queue: str
    url: str
    method: str
    headers: tuple[tuple[str, str], ...]
    timeout_ms: int
    concurrency: int
    limit: Window | None
    max_stalls: int | None
    keep_completed: Keep | None
    keep_failed: Keep | None
    registered_at: int
    generation: int
    node: str | None = None
    circuit: Circuit = CLOSED


def settings_under(settings: QueueSettings, pusher: Pusher | None, before: Pusher | None = None) -> QueueSettings:
    """Return the settings of a queue whose registration is now `pusher`, and was `before`.

    A window that somebody else set stays unless the registration has one of its own.
    """
    window = settings.window
    if before is not None and before.limit == window:
        window = None
    if pusher is None:
        return msgspec.structs.replace(
            settings,
            window=window,
            default_keep_completed=None,
            default_keep_failed=None,
            default_stalls_allowed=None,
        )
    return msgspec.structs.replace(
        settings,
        window=pusher.limit or window,
        default_keep_completed=pusher.keep_completed,
        default_keep_failed=pusher.keep_failed,
        default_stalls_allowed=pusher.max_stalls,
    )


class Pushers:
    """All registrations by queue, in order of their first registration, and by the node that serves them.

    nodes: those that have said that they call endpoints.  version: not replicated; changes with who has to call what.
    """

    __slots__ = ("_by_node", "by_queue", "generation", "nodes", "version")

    def __init__(self) -> None:
        self.by_queue: dict[str, Pusher] = {}
        self._by_node: dict[str, dict[str, Pusher]] = {}
        self.nodes: dict[str, None] = {}
        self.generation = 0
        self.version = 0

    def of_node(self, node: str) -> Iterable[Pusher]:
        """Return the registrations that a node serves."""
        return self._by_node.get(node, {}).values()

    def count_of(self, node: str) -> int:
        """Return how many registrations a node serves."""
        return len(self._by_node.get(node, ()))

    def restore(self, pushers: Iterable[Pusher], nodes: Iterable[str], generation: int) -> None:
        """Add registrations and nodes from an image, in its order."""
        for pusher in pushers:
            self.put(pusher)
        self.nodes.update(dict.fromkeys(nodes))
        self.generation = generation

    def put(self, pusher: Pusher) -> None:
        """Add a registration, or replace the one of its queue: the place and the node stay."""
        before = self.by_queue.get(pusher.queue)
        if before is not None:
            self._leave(before)
        self.by_queue[pusher.queue] = pusher
        self._enter(pusher)

    def remove(self, pusher: Pusher) -> None:
        """Take a registration away."""
        del self.by_queue[pusher.queue]
        self._leave(pusher)

    def assign(self, pusher: Pusher, node: str | None) -> None:
        """Let a node serve a registration, or nobody."""
        self._leave(pusher)
        pusher.node = node
        self._enter(pusher)

    def _enter(self, pusher: Pusher) -> None:
        self.version += 1
        if pusher.node is not None:
            self._by_node.setdefault(pusher.node, {})[pusher.queue] = pusher

    def _leave(self, pusher: Pusher) -> None:
        self.version += 1
        if pusher.node is not None:
            served = self._by_node[pusher.node]
            del served[pusher.queue]
            if not served:
                del self._by_node[pusher.node]
