"""taskiq with redis as broker and result store: two worker processes.

Lists as queues, its fastest broker of those that give a task to one worker. Tasks are sent and results fetched by many
coroutines at once, over a pool of connections; it is asked for a result every millisecond or two, not every 200 as it
does by itself. No timeout on its sockets: by the default of its redis library a worker that waits for work for five
seconds dies. It has no dependencies (a pipeline is another package).
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from collections.abc import Sequence

import contract
from redis_server import URL, OnRedis

PATIENCE = 240
AT_ONCE = 50


@functools.cache
def make_broker():
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

    options = {"max_connection_pool_size": 2 * AT_ONCE, "socket_timeout": None}
    backend = RedisAsyncResultBackend(redis_url=os.environ[URL], **options)
    broker = ListQueueBroker(url=os.environ[URL], **options).with_result_backend(backend)

    @broker.task("noop")
    async def noop(item: int) -> int:
        return item

    @broker.task("run")
    def run(argv: list[str]) -> int:
        return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode

    return broker


def __getattr__(name: str):
    """``broker`` for the workers, which import this module; made on first use, so that nothing else needs taskiq."""
    if name == "broker":
        return make_broker()
    raise AttributeError(name)


class Taskiq(OnRedis):
    """Measures taskiq."""

    name = "taskiq"
    package = "taskiq"
    modules = ("taskiq_redis",)
    _loop = None

    def worker_argv(self) -> list[str]:
        # The functions of W3 and W4 run in a thread, one at a time in each process: two slots.
        options = ["--workers", str(contract.SLOTS), "--max-threadpool-threads", "1", "--log-level", "ERROR"]
        return ["taskiq", "worker", "peer_taskiq:broker", *options]

    def connect(self) -> None:
        self._loop = asyncio.new_event_loop()
        broker = make_broker()
        self._loop.run_until_complete(broker.startup())
        self._noop, self._run = broker.find_task("noop"), broker.find_task("run")

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(make_broker().shutdown())
        super().stop()

    def call(self, item: int) -> object:
        async def call():
            return (await (await self._noop.kiq(item)).wait_result(0.001, PATIENCE)).return_value

        return self._loop.run_until_complete(call())

    def map(self, count: int) -> Sequence[object]:
        return self._loop.run_until_complete(self._all(self._noop, range(count)))

    def singles(self, count: int) -> Sequence[object]:
        """It has no batch call, so this is the same."""
        return self.map(count)

    async def _all(self, task, items: Sequence[object]) -> list[object]:
        handles = await self._send(task, items)
        # One asks for the last result while the others are made: many that ask would take the workers' processors.
        await handles[-1].wait_result(0.002, PATIENCE)
        return [found.return_value for found in await _in_lots(lambda h: h.wait_result(0.001, PATIENCE), handles)]

    @staticmethod
    async def _send(task, items: Sequence[object]) -> list:
        return await _in_lots(task.kiq, items)

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        return self._loop.run_until_complete(self._all(self._run, commands))

    def queue(self, count: int) -> None:
        self._loop.run_until_complete(self._send(self._noop, range(count)))


async def _in_lots(work, items: Sequence[object]) -> list:
    """`asyncio.gather`, a number at a time: each holds a connection."""
    found = []
    for first in range(0, len(items), AT_ONCE):
        found += await asyncio.gather(*map(work, items[first : first + AT_ONCE]))
    return found


if __name__ == "__main__":
    contract.main(Taskiq)
