"""Logs of jobs: what is sent, what is answered, and the rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from quorumq.api.request import Call, Route
from quorumq.api.rows import ask, grouped, write
from quorumq.api.rules import says
from quorumq.api.values import as_text
from quorumq.node.machine.operations.job_reads import GetLogs
from quorumq.node.machine.operations.jobs import AddLog, ClearLogs, Counted
from quorumq.node.machine.state.job import LogLine

from . import replies
from .values import NAME_CHARS_MAX, note, of_known_job, read


def as_level(name: str, value: Any) -> str:
    return (as_text(value) or "")[:NAME_CHARS_MAX]


class LogBody(Struct, gc=False):
    """One line for a job's log."""

    message: Annotated[str | None, note("The line; cut after 65,536 characters.", required=True)] = None
    level: Annotated[
        str | None,
        says("info, warn, error, or a word of your own.", reads=as_level,
             bound=NAME_CHARS_MAX, default="info"),
    ] = None  # fmt: skip


LOG = msgspec.json.Decoder(LogBody)


def clear_logs(call: Call) -> ClearLogs:
    return ClearLogs(call.path["id"], known=call.over_http and call.level >= 1)


def add_log(call: Call) -> AddLog:
    body = read(LOG, call.body)
    return AddLog(call.path["id"], body.message, body.level or "info")


class AddedData(Struct, forbid_unknown_fields=True):
    added: Literal[True]


class LogAdded(replies.Success):
    data: AddedData


class LogLineShown(Struct, forbid_unknown_fields=True):
    timestamp: replies.Millis
    level: str
    message: str


class LogsData(Struct, forbid_unknown_fields=True):
    logs: list[LogLineShown]
    count: int


class Logs(replies.Success):
    data: LogsData


def log_added(reply: Counted) -> bytes:
    return b'{"ok":true,"data":{"added":true}}'


def lines(reply: list[LogLine]) -> bytes:
    lines = [{"timestamp": line.at, "level": line.level, "message": line.message} for line in reply]
    return b'{"ok":true,"data":{"logs":%b,"count":%d}}' % (replies.ENCODE(lines), len(lines))


ROUTES: tuple[Route, ...] = grouped(
    "Jobs",
    ask("GET", "/jobs/{id}/logs", GetLogs, of_known_job(GetLogs), lines, reply=Logs, command="GetLogs"),
    write("POST", "/jobs/{id}/logs", AddLog, add_log, log_added, takes=LogBody,
          reply=LogAdded, right="consume", command="AddLog"),
    write("DELETE", "/jobs/{id}/logs", ClearLogs, clear_logs, replies.ok,
          reply=replies.Ok, right="consume", about="Drop the lines attached to a job.", command="ClearLogs"),
)  # fmt: skip
