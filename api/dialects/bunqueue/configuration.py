"""Stall detection and dead letter queue of a queue as it is configured: what is sent, what is answered, and the rows."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Struct

from quorumq.api.errors import Invalid
from quorumq.api.request import Call, Route
from quorumq.api.rows import ask, grouped, write
from quorumq.api.rules import apply
from quorumq.api.values import COUNT_MAX, YEAR_MS, Number, fields_of
from quorumq.node.machine.operations.settings import GetQueueSettings, SetDlqConfig, SetStallConfig
from quorumq.node.machine.state.queue import QueueSettings

from . import replies
from .values import flag, integer, of_queue, queue_of, read_unchecked

STALLS_MAX = 1_000_000
ENTRIES_MAX = 1_000_000


class StallFields(Struct, gc=False, rename="camel"):
    """Stall detection of a queue; what is left out stays as it is."""

    enabled: Annotated[bool | None, flag("Whether stalled jobs are looked for.")] = None
    stall_interval: Annotated[
        Number | None, integer("Milliseconds without a heartbeat after which a job is stalled.", 1, YEAR_MS)
    ] = None
    max_stalls: Annotated[
        Number | None, integer("Stalls after which a job goes to the dead letter queue.", 0, STALLS_MAX)
    ] = None
    grace_period: Annotated[
        Number | None, integer("Milliseconds after the start of a run that never count.", 0, YEAR_MS)
    ] = None


class StallBody(StallFields, gc=False, rename="camel"):
    """Settings in `config`, as documented, or beside it."""

    config: StallFields | None = None


class DlqFields(Struct, gc=False, rename="camel"):
    """Dead letter queue of a queue; what is left out stays as it is."""

    # The age is checked before all others.
    CHECKED: ClassVar = ("max_age",)

    auto_retry: Annotated[bool | None, flag("Whether its jobs are tried again by themselves.")] = None
    auto_retry_interval: Annotated[Number | None, integer("Milliseconds before such a retry.", 1, YEAR_MS)] = None
    max_auto_retries: Annotated[Number | None, integer("Such retries of one job.", 0, STALLS_MAX)] = None
    max_age: Annotated[
        Number | msgspec.UnsetType | None,
        integer("Milliseconds after which a job is removed; null keeps jobs for good.", 1, COUNT_MAX),
    ] = msgspec.UNSET
    max_entries: Annotated[Number | None, integer("Jobs kept; the oldest make room for new ones.", 0, ENTRIES_MAX)] = (
        None
    )


class DlqBody(DlqFields, gc=False, rename="camel"):
    """Settings in `config`, as documented, or beside it."""

    config: DlqFields | None = None


STALL = msgspec.json.Decoder(StallBody)
DLQ = msgspec.json.Decoder(DlqBody)


def set_stall_config(call: Call) -> SetStallConfig:
    queue = queue_of(call)
    body = config_of(read_unchecked(STALL, call.body), StallFields)
    return SetStallConfig(queue, body.enabled, body.stall_interval, body.max_stalls, body.grace_period)


def set_dlq_config(call: Call) -> SetDlqConfig:
    queue = queue_of(call)
    body = config_of(read_unchecked(DLQ, call.body), DlqFields)
    # The operation's word for keeping jobs for good is 0.
    max_age_ms = None if body.max_age is msgspec.UNSET else body.max_age or 0
    return SetDlqConfig(
        queue, body.auto_retry, body.auto_retry_interval, body.max_auto_retries, max_age_ms, body.max_entries
    )


def config_of(body: Any, fields: type[Struct]) -> Any:
    """Return the settings of a body, checked: those in `config` if that is there, else those beside it. Raises Invalid."""
    config = body.config
    if config is None:
        config = body
    elif isinstance(config, dict):
        # What did not fit the types was decoded generically.
        names = dict(fields_of(fields))
        config = fields(**{names[name]: value for name, value in config.items() if name in names})
    if not isinstance(config, fields):
        raise Invalid("config must be an object")
    return apply(config)


class StallConfigShown(Struct, forbid_unknown_fields=True, rename="camel"):
    enabled: bool
    stall_interval: int
    max_stalls: int
    grace_period: int


class StallConfigOf(replies.Success):
    config: StallConfigShown


class DlqConfigShown(Struct, forbid_unknown_fields=True, rename="camel"):
    auto_retry: bool
    auto_retry_interval: int
    max_auto_retries: int
    max_age: int | None
    max_entries: int


class DlqConfigOf(replies.Success):
    config: DlqConfigShown


def stall_config(reply: QueueSettings) -> StallConfigShown:
    stall = reply.stall
    return StallConfigShown(stall.enabled, stall.interval_ms, stall.max_stalls, stall.grace_ms)


def dlq_config(reply: QueueSettings) -> DlqConfigShown:
    dlq = reply.dlq
    return DlqConfigShown(
        dlq.auto_retry, dlq.auto_retry_interval_ms, dlq.max_auto_retries, dlq.max_age_ms, dlq.max_entries
    )


def show_stall_config(reply: QueueSettings) -> bytes:
    return replies.ENCODE(StallConfigOf(True, stall_config(reply)))


def show_dlq_config(reply: QueueSettings) -> bytes:
    return replies.ENCODE(DlqConfigOf(True, dlq_config(reply)))


ROUTES: tuple[Route, ...] = grouped(
    "Configuration",
    ask("GET", "/queues/{queue}/stall-config", GetQueueSettings, of_queue(GetQueueSettings), show_stall_config,
        reply=StallConfigOf, about="Stall detection of a queue.", command="GetStallConfig"),
    write("PUT", "/queues/{queue}/stall-config", SetStallConfig, set_stall_config, replies.ok,
          takes=StallBody, reply=replies.Ok, right="manage:all", command="SetStallConfig"),
    ask("GET", "/queues/{queue}/dlq-config", GetQueueSettings, of_queue(GetQueueSettings), show_dlq_config,
        reply=DlqConfigOf, about="Dead letter queue of a queue.", command="GetDlqConfig"),
    write("PUT", "/queues/{queue}/dlq-config", SetDlqConfig, set_dlq_config, replies.ok,
          takes=DlqBody, reply=replies.Ok, right="manage:all",
          about="Configure a queue's dead letter queue; what is not given stays.", command="SetDlqConfig"),
)  # fmt: skip
