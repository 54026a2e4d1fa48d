"""What a pushed job of the bunqueue dialect says of its family: parent, children, and what its failure means to the parent.

Its documented server keeps both lists as they come and ties nothing by them: `UpdateParent` does, which its older clients send after the
pushes. Here jobs that are there are tied at once (`flows.tie`), and the later command finds it done.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from quorumq.api.errors import Invalid
from quorumq.api.rules import says
from quorumq.api.values import BATCH_MAX, KEY_CHARS_MAX
from quorumq.node.machine.lifecycle.flows import JOBS_MAX
from quorumq.node.machine.operations.jobs import JobTies
from quorumq.node.machine.state.job import OnChildFailure

from .values import cut

# What says which policy a child has, in the order of the documented server.
POLICIES: tuple[tuple[str, OnChildFailure], ...] = (
    ("fail_parent_on_failure", "fail"),
    ("continue_parent_on_failure", "continue"),
    ("ignore_dependency_on_failure", "ignore"),
    ("remove_dependency_on_failure", "remove"),
)
Policy = Annotated[
    bool | None, says("What becomes of the parent when the job fails for good; one of them.", default=False)
]


class FamilyBody(Struct, gc=False, rename="camel"):
    """Whom a job waits for, and who waits for it."""

    parent_id: Annotated[
        str | None,
        says(
            "Id of a job that waits for this one from now on, if it is there and nobody took it.",
            max_chars=KEY_CHARS_MAX,
        ),
    ] = None
    children_ids: Annotated[
        list[str] | None, says("Ids of jobs that become its children, those that are there.", max_items=BATCH_MAX)
    ] = None
    fail_parent_on_failure: Policy = None
    continue_parent_on_failure: Policy = None
    ignore_dependency_on_failure: Policy = None
    remove_dependency_on_failure: Policy = None


def policies_of(given: FamilyBody) -> list[OnChildFailure]:
    """Return the policies that a job has for its parent. Raises Invalid."""
    chosen = []
    for field, policy in POLICIES:
        value = getattr(given, field)
        if value is not None and not isinstance(value, bool):
            head, *rest = field.split("_")
            raise Invalid(f"{head}{''.join(word.title() for word in rest)} must be a boolean")
        if value:
            chosen.append(policy)
    return chosen


def ties_of(position: int, given: FamilyBody) -> JobTies | None:
    """Return what ties a job of a push, or None. Raises Invalid."""
    policies = policies_of(given)
    parent_id = given.parent_id
    if parent_id is not None and not (isinstance(parent_id, str) and len(parent_id) <= KEY_CHARS_MAX):
        raise Invalid(f"parentId must be a string of at most {KEY_CHARS_MAX} characters")
    children = given.children_ids or ()
    if not (isinstance(children, list | tuple) and all(isinstance(one, str) for one in children)):
        raise Invalid("childrenIds must be an array of strings")
    if len(children) > JOBS_MAX:
        raise Invalid(f"childrenIds must have at most {JOBS_MAX} items")
    if not (policies or parent_id or children):
        return None
    return JobTies(
        position, parent_id or None, tuple(dict.fromkeys(map(cut, children))), policies[0] if policies else "wait"
    )
