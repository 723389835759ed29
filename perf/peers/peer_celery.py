"""Celery with redis as broker and result store: two prefork processes.

As its documentation recommends for short tasks: a high prefetch multiplier, acknowledged when they are taken, no
events, no gossip, mingle or heartbeats, a pool of connections that stay. `group` is its batch call.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence

import contract
from redis_server import URL, OnRedis


@functools.cache
def make_app():
    from celery import Celery

    app = Celery("peers", broker=os.environ[URL], backend=os.environ[URL])
    app.conf.update(
        worker_prefetch_multiplier=128,
        task_acks_late=False,
        worker_send_task_events=False,
        result_expires=3600,
        broker_pool_limit=10,
        worker_hijack_root_logger=False,
    )

    @app.task(name="noop")
    def noop(item: int) -> int:
        return item

    @app.task(name="after")
    def after(parent: int, item: int) -> int:
        return item

    @app.task(name="count")
    def count(items: list[int] | int) -> int:
        return len(items) if isinstance(items, list) else 1  # a group of one is taken for the task in it

    @app.task(name="run")
    def run(argv: list[str]) -> int:
        return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode

    return app


def __getattr__(name: str):
    """``app`` for the worker, which imports this module; made on first use, so that nothing else needs Celery."""
    if name == "app":
        return make_app()
    raise AttributeError(name)


class Celery(OnRedis):
    """Measures Celery."""

    name = "celery"
    package = "celery"
    modules = ("celery", "celery.backends.redis", "kombu.transport.redis")

    def worker_argv(self) -> list[str]:
        options = [f"--concurrency={contract.SLOTS}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        return ["celery", "-A", "peer_celery", "worker", *options, "--loglevel=error"]

    def connect(self) -> None:
        self._tasks = make_app().tasks

    def call(self, item: int) -> object:
        return self._tasks["noop"].delay(item).get()

    def map(self, count: int) -> Sequence[object]:
        return self._all([self._tasks["noop"].s(item) for item in range(count)])

    @staticmethod
    def _all(signatures) -> list[object]:
        from celery import group

        return group(signatures).apply_async().get()

    def singles(self, count: int) -> Sequence[object]:
        handles = [self._tasks["noop"].delay(item) for item in range(count)]
        return [handle.get() for handle in handles]

    def chain(self, count: int) -> object:
        from celery import chain

        return chain(self._tasks["noop"].s(0), *[self._tasks["noop"].s() for _ in range(count - 1)]).delay().get()

    def fan(self, width: int) -> object:
        from celery import chain, group

        members = group([self._tasks["after"].s(item) for item in range(width)])
        return chain(self._tasks["noop"].s(0), members, self._tasks["count"].s()).delay().get()

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        return self._all([self._tasks["run"].s(argv) for argv in commands])

    def queue(self, count: int) -> None:
        from celery import group

        group([self._tasks["noop"].s(item) for item in range(count)]).apply_async()


if __name__ == "__main__":
    contract.main(Celery)
