"""A master without a disk, and the other end of its connections, message by message."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from titan_fast.config import load
from titan_fast.master.server import Master
from titan_fast.protocol.connection import Connection, send, send_hot
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening

DEADLINE = 20.0


@asynccontextmanager
async def a_master(home):
    """One in this process that keeps everything in memory."""
    master = Master(load({"master": {"port": 0}, "store": {"durability": "memory"}}, {"TITAN_HOME": str(home)}))
    await master.start()
    try:
        yield master
    finally:
        await master.stop(0.0)


class Peer:
    """A client, a worker or a task."""

    def __init__(self, reader, writer, connection):
        self._reader, self._writer, self._connection = reader, writer, connection
        self._heard = []
        self._request = 6

    @classmethod
    async def connect(cls, master, role, **told):
        """``told``: what else its HELLO says (fence, epoch), or another token."""
        reader, writer = await asyncio.open_connection("127.0.0.1", master.port)
        connection = Connection(Role.MASTER)
        opening = Opening(connection, role, told.pop("token", None) or master.tokens[role], **told)
        writer.write(opening.hello())
        while opening.welcome is None:
            for incoming in connection.receive(await reader.read(1 << 16)):
                writer.write(opening.take(incoming))
        return cls(reader, writer, connection)

    def say(self, message, *attachments):
        """Returns the number of the request."""
        self._request += 1
        self._writer.write(send(message, attachments, self._request))
        return self._request

    def say_hot(self, op, sequence, columns, tail=b""):
        self._writer.write(send_hot(op, sequence, columns, tail))

    async def next(self, seconds=DEADLINE):
        async with asyncio.timeout(seconds):
            while not self._heard:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionError("hung up")
                self._heard.extend(self._connection.receive(data))
            return self._heard.pop(0)

    async def hear(self, op):
        while (incoming := await self.next()).op is not op:
            pass
        return incoming

    async def ask(self, message, *attachments):
        """What answers it; the rest that comes until then is passed over."""
        request = self.say(message, *attachments)
        while (incoming := await self.next()).request != request:
            pass
        return incoming

    def cut(self):
        self._writer.transport.abort()
