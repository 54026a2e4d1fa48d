"""Groups of a queue: how many of a group's jobs may be active at once and start in what time, whether any may, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from quorumq.node.machine.bounds import PATH_CHARS_MAX, QueueName, bounded
from quorumq.node.machine.events import QueueCreated
from quorumq.node.machine.lifecycle import groups
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import DurationMs
from quorumq.node.machine.refusals import TooManyGroups, TooManyQueues
from quorumq.node.machine.state import State
from quorumq.node.machine.state.group import USUAL, GroupSettings, GroupUse
from quorumq.node.machine.state.limits import Window
from quorumq.node.machine.state.queue import Queue

GroupId = Annotated[str, bounded(PATH_CHARS_MAX, "A job's groupId.")]
# Groups of one queue with settings of their own, and groups that are held or have a window under way; others have no record
# beyond their jobs.
GROUPS_MAX = 10_000


class GroupShown(msgspec.Struct, frozen=True, gc=False):
    """A group now. waiting: jobs that may be taken but for others of their group, and those that may.

    settings: its own.  use: what has started in its window, and until when it is held.  in_force: its own settings, and those of
    the queue's groups for the rest.
    """

    waiting: int
    active: int
    settings: GroupSettings
    use: GroupUse
    in_force: GroupSettings = USUAL

    def free_at_ms(self, jobs: int | None = None) -> int | None:
        """Return when the hold ends, else the window under way; None without either.

        jobs: 0 in the place of the window's end while fewer than so many have started in it.
        """
        if self.use.held_until:
            return self.use.held_until
        if jobs is not None and 0 < self.use.started < jobs:
            return 0
        return self.use.window_ends(self.in_force) or None


def check_room(records: Mapping[str, object], group_id: str) -> None:
    """Raise TooManyGroups when a group would be one too many with a record of that kind."""
    if group_id not in records and len(records) >= GROUPS_MAX:
        raise TooManyGroups(GROUPS_MAX)


def configure(state: State, name: str, group_id: str, **changes: object) -> bool:
    """Change settings of a group; say whether that was a change. Raises TooManyGroups, TooManyQueues."""
    queue = state.queue(name)
    before = queue.group_settings.get(group_id, USUAL)
    after = msgspec.structs.replace(before, **changes)
    if after == before:
        return False
    check_room(queue.group_settings, group_id)
    groups.configure(state, queue, group_id, after)
    return True


@operation(emits=(QueueCreated,), refuses=(TooManyGroups, TooManyQueues))
class SetGroupConcurrency(Operation, frozen=True, tag="group.set_concurrency"):
    """Let at most `limit` jobs of a group be active at once; None for one, as without a setting."""

    queue: QueueName
    group_id: GroupId
    limit: int | None = None

    def apply(self, state: State, entry: Entry) -> bool:
        return configure(state, self.queue, self.group_id, concurrency=1 if self.limit is None else max(self.limit, 0))


@operation(emits=(QueueCreated,), refuses=(TooManyGroups, TooManyQueues))
class PauseGroup(Operation, frozen=True, tag="group.pause"):
    """Give out no jobs of a group; active ones go on, and other groups too. True when that is a change."""

    queue: QueueName
    group_id: GroupId

    def apply(self, state: State, entry: Entry) -> bool:
        return configure(state, self.queue, self.group_id, paused=True)


@operation()
class ResumeGroup(Operation, frozen=True, tag="group.resume"):
    """Give out jobs of a group again. True when that is a change."""

    queue: QueueName
    group_id: GroupId

    def apply(self, state: State, entry: Entry) -> bool:
        if self.queue not in state.queues:
            return False
        return configure(state, self.queue, self.group_id, paused=False)


@operation(emits=(QueueCreated,), refuses=(TooManyGroups, TooManyQueues), since=1)
class SetGroupRateLimit(Operation, frozen=True, tag="group.set_rate_limit"):
    """Let at most `max` jobs of a group start within duration_ms of the first one; None takes the limit away.

    What has started before does not count. True when that is a change.
    """

    queue: QueueName
    group_id: GroupId
    max: int | None = None
    duration_ms: DurationMs = 1000

    def apply(self, state: State, entry: Entry) -> bool:
        if self.max is None and self.queue not in state.queues:
            return False
        rate = None if self.max is None else Window(max(self.max, 0), max(self.duration_ms, 1))
        queue = state.queue(self.queue)
        if rate is not None:
            check_room(queue.group_settings, self.group_id)
        state.group_limits.end_window(queue, self.group_id)
        is_change = configure(state, self.queue, self.group_id, rate=rate)
        groups.fit(state, queue, self.group_id)
        return is_change


@operation(emits=(QueueCreated,), refuses=(TooManyGroups, TooManyQueues), since=1)
class HoldGroup(Operation, frozen=True, tag="group.hold"):
    """Give out no jobs of a group for duration_ms from now, in the place of what an earlier one said; 0 ends it."""

    queue: QueueName
    group_id: GroupId
    duration_ms: DurationMs

    def apply(self, state: State, entry: Entry) -> None:
        queue = state.queue(self.queue)
        check_room(queue.group_uses, self.group_id)
        until_ms = state.now_ms + self.duration_ms if self.duration_ms > 0 else 0
        state.group_limits.hold(queue, self.group_id, until_ms)
        groups.fit(state, queue, self.group_id)


@operation(emits=(QueueCreated,), refuses=(TooManyGroups, TooManyQueues), since=1)
class SetUsualGroup(Operation, frozen=True, tag="group.set_usual"):
    """Let this hold for the groups of a queue as far as they have no settings of their own: `concurrency` active jobs at once, and
    `max` that start within duration_ms; None for any number. True when that is a change.

    Refused while more than GROUPS_MAX groups have jobs: each of them is looked at.
    """

    queue: QueueName
    concurrency: int = 1
    max: int | None = None
    duration_ms: DurationMs = 1000

    @property
    def usual(self) -> GroupSettings | None:
        """What this makes of the settings of a queue's groups; None for the usual ones."""
        rate = None if self.max is None else Window(max(self.max, 1), max(self.duration_ms, 1))
        wanted = GroupSettings(max(self.concurrency, 1), rate=rate)
        return None if wanted == USUAL else wanted

    def apply(self, state: State, entry: Entry) -> bool:
        queue = state.queue(self.queue)
        if queue.settings.groups == self.usual:
            return False
        if len(queue.groups) > GROUPS_MAX:
            raise TooManyGroups(GROUPS_MAX)
        groups.set_usual(state, queue, self.usual)
        return True


@query
class GetGroup(Query, frozen=True):
    """One group; an unknown one has no jobs and the usual settings."""

    queue: QueueName
    group_id: GroupId

    def answer(self, state: State) -> GroupShown:
        queue = state.queues.get(self.queue)
        return GroupShown(0, 0, USUAL, GroupUse()) if queue is None else shown(queue, self.group_id)


def shown(queue: Queue, group_id: str) -> GroupShown:
    """Return what there is to say of a group."""
    settings, use = queue.group_settings.get(group_id, USUAL), queue.group_uses.get(group_id, GroupUse())
    group, in_force = queue.groups.get(group_id), queue.settings_of(group_id)
    if group is None:
        return GroupShown(0, 0, settings, use, in_force)
    return GroupShown(len(group.heads) + len(group.parked), group.active, settings, use, in_force)


class GroupPage(msgspec.Struct, frozen=True, gc=False):
    """Some groups in order of their ids. total: how many there are."""

    groups: list[tuple[str, GroupShown]]
    total: int


@query
class ListLimitedGroups(Query, frozen=True):
    """The groups of a queue that have limits of their own, or are paused or held."""

    queue: QueueName
    limit: int = 100
    offset: int = 0

    def answer(self, state: State) -> GroupPage:
        queue = state.queues.get(self.queue)
        if queue is None:
            return GroupPage([], 0)
        names = sorted(queue.group_settings.keys() | queue.group_uses.keys())
        begin = max(self.offset, 0)
        some = names[begin : begin + max(self.limit, 0)]
        return GroupPage([(name, shown(queue, name)) for name in some], len(names))


@query
class CountGrouped(Query, frozen=True):
    """How many waiting jobs of a queue belong to groups."""

    queue: QueueName

    def answer(self, state: State) -> int:
        queue = state.queues.get(self.queue)
        return 0 if queue is None else sum(len(group.heads) + len(group.parked) for group in queue.groups.values())
