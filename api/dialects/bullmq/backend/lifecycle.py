"""Calls about the connection itself."""

from __future__ import annotations

from .rows import Args, Asked, NoArgs, Right, Row, own

ANY: tuple[Right, ...] = ("produce", "consume", "read")


class Cancel(Args):
    """number: of the call that waits."""

    number: int


async def ping(asked: Asked, args: NoArgs) -> int:
    """Say that the node is there."""
    return 0


async def cancel(asked: Asked, args: Cancel) -> int:
    """Have a call that waits wait no longer; it is answered with null."""
    asked.connection.cancel(args.number)
    return 0


ROWS: tuple[Row, ...] = (
    own("ping", ping, right=ANY),
    own("cancel", cancel, right=ANY, takes=Cancel),
)
