"""dramatiq with redis as broker and result store: two processes with one thread each, so that two cores run tasks.

Only the middleware that results need: no time limits, retries or metrics. `group` is its batch call; it writes each
message to the broker alone, as there is no other way to.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence

import contract
from redis_server import URL, OnRedis

PATIENCE = 240_000


@functools.cache
def make_actors():
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.middleware import Pipelines
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    # A read waits for a result longer than the five seconds that are the default of the redis library.
    url = f"{os.environ[URL]}?socket_timeout={PATIENCE / 1000}"
    broker = RedisBroker(url=url, middleware=[Pipelines(), Results(backend=RedisBackend(url=url))])
    dramatiq.set_broker(broker)

    def noop(item: int) -> int:
        return item

    def run(argv: list[str]) -> int:
        return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode

    actor = functools.partial(dramatiq.actor, broker=broker, store_results=True)
    return broker, actor(noop), actor(run)


def __getattr__(name: str):
    """``broker`` for the workers, which import this module; made on first use, so that nothing else needs dramatiq."""
    if name == "broker":
        return make_actors()[0]
    raise AttributeError(name)


class Dramatiq(OnRedis):
    """Measures dramatiq."""

    name = "dramatiq"
    package = "dramatiq"
    modules = ("dramatiq.brokers.redis", "dramatiq.results.backends.redis")

    def worker_argv(self) -> list[str]:
        return ["dramatiq", "peer_dramatiq:broker", "--processes", str(contract.SLOTS), "--threads", "1"]

    def connect(self) -> None:
        _, self._noop, self._run = make_actors()

    def call(self, item: int) -> object:
        return self._noop.send(item).get_result(block=True, timeout=PATIENCE)

    def map(self, count: int) -> Sequence[object]:
        return self._all([self._noop.message(item) for item in range(count)])

    @staticmethod
    def _all(messages) -> list[object]:
        from dramatiq import group

        return list(group(messages).run().get_results(block=True, timeout=PATIENCE))

    def singles(self, count: int) -> Sequence[object]:
        messages = [self._noop.send(item) for item in range(count)]
        return [message.get_result(block=True, timeout=PATIENCE) for message in messages]

    def chain(self, count: int) -> object:
        from dramatiq import pipeline

        steps = [self._noop.message(0), *[self._noop.message() for _ in range(count - 1)]]
        return pipeline(steps).run().get_result(block=True, timeout=PATIENCE)

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        return self._all([self._run.message(argv) for argv in commands])

    def queue(self, count: int) -> None:
        from dramatiq import group

        group([self._noop.message(item) for item in range(count)]).run()


if __name__ == "__main__":
    contract.main(Dramatiq)
