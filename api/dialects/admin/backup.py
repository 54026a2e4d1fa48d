"""GET /admin/backup: an image of the whole state, as a file that `quorumq restore` takes.

It comes from this node's disk in bounded pieces, as fast as the client reads, while the node goes on serving.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

from quorumq.api.reply import DATE, Reply
from quorumq.api.request import Call
from quorumq.cluster import backup
from quorumq.cluster.engine import Engine

IMAGE = b"application/octet-stream"


class BackupReply(Reply):
    """A reply that is written piece by piece."""

    def __init__(self, image: backup.Backup) -> None:
        disposition = b'Content-Disposition: attachment; filename="%b"\r\n' % image.name.encode()
        super().__init__(200, b"", IMAGE, disposition)
        self._image = image

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the head and then the pieces. One that cannot be read ends the connection, so that nobody takes it for whole."""
        try:
            await self._write(request)
        except BaseException:
            self.end_connection()
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._image.close()

    async def _write(self, request: web.BaseRequest) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        head = [self.heads[200], DATE.line(), self._more, b"Content-Type: %b\r\n" % IMAGE]
        # One reply to a connection: whoever fetches so much has nothing else to ask.
        head.append(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % self._image.size)
        self.end_connection()
        transport.write(b"".join(head))
        if request.method == "HEAD":
            return
        async for piece in self._image.pieces():
            transport.write(piece)
            await self.pace.drain(request)


async def handle(call: Call) -> Reply:
    """Answer from this node; `?consistency=stale` leaves out asking the others, for when there is no quorum."""
    engine = cast(Engine, call.node.engine)
    if not call.stale:
        await engine.read_index(asyncio.get_running_loop().time() + call.node.timeout_s)
    return BackupReply(await backup.take(engine))
