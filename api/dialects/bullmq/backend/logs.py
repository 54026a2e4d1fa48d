"""Log lines of jobs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.logs import AppendLog, CutLog, ListLog, LogPage

from .rows import Args, Asked, Row, Word, nothing, read, write

LINE_BYTES_MAX = 256 << 10


class Line(Args):
    job: Word
    text: Annotated[str, Meta(max_length=LINE_BYTES_MAX)]
    keep: int | None = None


class Cut(Args):
    job: Word
    keep: int | None = None


class LogRange(Args):
    job: Word
    start: int = 0
    end: int = -1
    asc: bool = True


def add(asked: Asked, args: Line) -> AppendLog:
    if len(args.text) * 4 > LINE_BYTES_MAX and len(args.text.encode()) > LINE_BYTES_MAX:
        raise Invalid("A line of a log may have 256 KB")
    # BullMQ's client gives 0 or nothing where all are to stay.
    return AppendLog(asked.queue, args.job, args.text, args.keep or None)


def clear(asked: Asked, args: Cut) -> CutLog:
    return CutLog(asked.queue, args.job, max(args.keep or 0, 0))


def get(asked: Asked, args: LogRange) -> ListLog:
    return ListLog(asked.queue, args.job, args.start, args.end, args.asc)


def shown(page: LogPage) -> list[Any]:
    return [page.lines, page.count]


ROWS: tuple[Row, ...] = (
    write("addLog", AppendLog, add, lambda reply: reply.count, right="consume", takes=Line),
    write("clearLogs", CutLog, clear, nothing, right=("produce", "consume"), takes=Cut),
    read("getJobLogs", ListLog, get, shown, takes=LogRange),
)
