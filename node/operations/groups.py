"""Groups of a queue: how many of a group's jobs may be active at once, whether any may, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from node.operation import Operation, Query, operation, query
from node.operations.jobs import QueueName
from node.refusals import TooManyGroups
from node.state.queue import GroupSettings

if TYPE_CHECKING:
    from node.machine import Entry
    from node.state import State

GroupId = Annotated[str, Meta(description="A job's groupId.")]
# Groups of one queue with settings of their own; others have no record beyond their jobs.
GROUPS_MAX = 10_000


class GroupShown(msgspec.Struct, frozen=True, gc=False):
    """A group now. waiting: jobs that may be taken but for others of their group, and those that may."""

    waiting: int
    active: int
    settings: GroupSettings


def configure(state: State, name: str, group_id: str, **changes: object) -> bool:
    """Change settings of a group; say whether that was a change. Raises TooManyGroups."""
    queue = state.queue(name)
    before = queue.group_settings.get(group_id, GroupSettings())
    after = msgspec.structs.replace(before, **changes)
    if after == before:
        return False
    if group_id not in queue.group_settings and len(queue.group_settings) >= GROUPS_MAX:
        raise TooManyGroups(GROUPS_MAX)
    state.configure_group(queue, group_id, after)
    return True


@operation(refuses=(TooManyGroups,))
class SetGroupConcurrency(Operation, frozen=True, tag="group.set_concurrency"):
    """Let at most `limit` jobs of a group be active at once; None for one, as without a setting."""

    queue: QueueName
    group_id: GroupId
    limit: int | None = None

    def apply(self, state: State, entry: Entry) -> bool:
        return configure(state, self.queue, self.group_id, concurrency=1 if self.limit is None else max(self.limit, 0))


@operation(refuses=(TooManyGroups,))
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


@query
class GetGroup(Query, frozen=True):
    """One group; without jobs and with the usual settings when nobody has heard of it."""

    queue: QueueName
    group_id: GroupId

    def answer(self, state: State) -> GroupShown:
        queue = state.queues.get(self.queue)
        if queue is None:
            return GroupShown(0, 0, GroupSettings())
        settings = queue.group_settings.get(self.group_id, GroupSettings())
        group = queue.groups.get(self.group_id)
        if group is None:
            return GroupShown(0, 0, settings)
        return GroupShown(len(group.heads) + len(group.parked), group.active, settings)


@query
class CountGrouped(Query, frozen=True):
    """How many waiting jobs of a queue belong to groups."""

    queue: QueueName

    def answer(self, state: State) -> int:
        queue = state.queues.get(self.queue)
        return 0 if queue is None else sum(len(group.heads) + len(group.parked) for group in queue.groups.values())
