"""titan-fast: a master and one worker of two slots as separate processes, default durability, by the public SDK alone.

Nothing is tuned: these are the settings a user has who changes none.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import contract
import instances

import titan_fast
from titan_fast import Client, Graph
from titan_fast.sdk.local import LocalCluster

PATIENCE = 240


def noop(item: int) -> int:
    return item


class Ours(contract.Contender):
    """Measures titan-fast."""

    name = "ours"
    package = "titan-fast"
    _cluster: LocalCluster | None = None
    _client: Client | None = None
    _options: tuple[str, ...] = ()

    @classmethod
    def version(cls) -> str:
        return titan_fast.__version__

    def relax(self) -> None:
        """Outcomes survive a killed process, not a power cut."""
        self._options = ("--durability", "os")

    def start(self, workers: bool = True) -> None:
        home = self.folder / "home"
        self._cluster = LocalCluster(home, options=self._options)
        self._cluster.start_master()
        if workers:
            self._cluster.start_worker("w1", "--slots", str(contract.SLOTS))
        os.environ["TITAN_HOME"] = str(home)  # where the token is
        self._client = Client(self._cluster.address)

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.stop()

    def schedulers(self) -> list[int]:
        return [self._cluster.master.pid]

    def workers(self) -> list[int]:
        return [worker.pid for worker in self._cluster.workers.values()]

    # ------------------------------------------------------------ functions

    def call(self, item: int) -> object:
        return self._result_of_last(self._calls(1, item))

    def map(self, count: int) -> Sequence[object]:
        graph = Graph("map")
        graph.map(noop, range(count), name="noop")
        return self._submit(graph)["noop"].results()

    def singles(self, count: int) -> Sequence[object]:
        """Calls by themselves, with a future each; the SDK batches what is submitted while others are on their way."""
        with self._client.executor("singles") as pool:
            futures = [pool.submit(noop, item) for item in range(count)]
            return [future.result() for future in futures]

    def chain(self, count: int) -> object:
        return self._result_of_last(self._calls(count, 0))

    def _calls(self, count: int, item: int) -> Graph:
        graph = Graph("chain")
        last = graph.call(noop, item, name="noop-0")
        for number in range(1, count):
            last = graph.call(noop, last, name=f"noop-{number}")
        return graph

    def _result_of_last(self, graph: Graph) -> object:
        last = next(reversed(graph.tasks.values()))
        return last.result(self._submit(graph))

    def _submit(self, graph: Graph):
        """In one request with the wait for its end."""
        return self._client.submit_nowait(graph)

    def fan(self, width: int) -> object:
        graph = Graph("fan")
        root = graph.call(noop, 0, name="root")
        members = graph.map(noop, range(width), name="members", needs=[root])
        graph.call(len, members, name="count")
        return self._result_of_last(graph)

    def queue(self, count: int) -> None:
        graph = Graph("queue")
        graph.map(noop, range(count), name="noop")
        self._client.submit(graph)

    # ------------------------------------------------------------ processes

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        """The same command many times is an array; a matrix counts its members."""
        (argv,) = {tuple(argv) for argv in commands}
        graph = Graph("processes")
        graph.task("command", run=argv, matrix={"number": range(len(commands))})
        return self._codes(graph)

    def scripts(self, folder: Path, names: Sequence[str]) -> Sequence[object]:
        """By the worker's own Python, which is what a user gets who says nothing else."""
        graph = Graph("scripts", project=folder)
        for name in names:
            graph.task(Path(name).stem, file=name)
        return self._codes(graph)

    def _codes(self, graph: Graph) -> list[int]:
        """Raises RunFailed when one was not 0."""
        return [0] * self._submit(graph).wait(PATIENCE).counts["COMPLETED"]

    def queue_named(self, count: int) -> None:
        graph = Graph("named")
        for number in range(count):
            graph.task(f"task-{number}", run=["/bin/true"])
        self._client.submit(graph)

    def replay(self, instance: instances.Instance, factor: float) -> float:
        """By its own command, which has the tasks' own clocks say whether each ran once and after its parents. Raises
        ValueError when it says they did not, or thinks other of what is possible than we do."""
        options = ["--local", "--slots", str(contract.REPLAY_SLOTS), "--scale", f"{factor:.9f}", "--json"]
        argv = [sys.executable, "-P", "-m", "titan_fast", "bench", "replay", instance.path, *options]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        said = json.loads(done.stdout or "{}")
        if done.returncode or said["completed"] != len(instance.runtimes) or said["violations"]:
            raise ValueError(f"{instance.path.name} was not replayed as it is: {said or 'the log says why'}")
        possible = instance.greedy(contract.REPLAY_SLOTS) * factor
        if not math.isclose(said["greedy"], possible, rel_tol=1e-3):
            raise ValueError(f"{instance.path.name} can be replayed in {possible} s, not in {said['greedy']}")
        return said["wall"]


if __name__ == "__main__":
    contract.main(Ours)
