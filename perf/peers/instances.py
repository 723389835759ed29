"""Published workflows (WfFormat 1.5) to replay, and what is possible with them: a schedule that costs nothing.

Knows nothing of the house, which has a reader and a schedule of its own: that the two agree is checked by W8.
"""

from __future__ import annotations

import heapq
import json
import os
from pathlib import Path
from typing import NamedTuple

FOLDER = "TITAN_FAST_WFINSTANCES"
"""The environment variable that says where they are. Without it they are beside the repository."""
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "wfinstances"


class Instance(NamedTuple):
    path: Path
    runtimes: list[float]
    """Seconds, by the place in the file."""
    parents: list[set[int]]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def edges(self) -> int:
        return sum(map(len, self.parents))

    def floor(self, slots: int) -> float:
        """Seconds that nothing with so many slots can beat: the longest chain, or all the work shared evenly."""
        return max(self.greedy(len(self.runtimes)), sum(self.runtimes) / slots)

    def greedy(self, slots: int) -> float:
        """Seconds of a scheduler without overhead: tasks start in the order they became ready, and of those that did so
        together in the order of the file; a free slot never waits."""
        children: list[list[int]] = [[] for _ in self.parents]
        for number, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(number)
        waits = [len(parents) for parents in self.parents]
        ready = [(0.0, number) for number, count in enumerate(waits) if not count]
        running: list[tuple[float, int]] = []
        now = 0.0
        while ready or running:
            while ready and len(running) < slots:
                number = heapq.heappop(ready)[1]
                heapq.heappush(running, (now + self.runtimes[number], number))
            now = running[0][0]
            while running and running[0][0] == now:
                for child in children[heapq.heappop(running)[1]]:
                    waits[child] -= 1
                    if not waits[child]:
                        heapq.heappush(ready, (now, child))
        return now


def folder() -> Path:
    return Path(os.environ.get(FOLDER) or BESIDE)


def find() -> list[Instance]:
    """All of the folder; none when there is no such folder. Raises ValueError for a file that is none."""
    return [read(path) for path in sorted(folder().glob("*.json"))]


def read(path: Path) -> Instance:
    try:
        workflow = json.loads(path.read_bytes())["workflow"]
        specified = workflow["specification"]["tasks"]
        runtimes = {task["id"]: float(task["runtimeInSeconds"]) for task in workflow["execution"]["tasks"]}
        numbers = {task["id"]: number for number, task in enumerate(specified)}
        parents = [{numbers[parent] for parent in task.get("parents", ())} for task in specified]
        for number, task in enumerate(specified):
            for child in task.get("children", ()):
                parents[numbers[child]].add(number)
        return Instance(path, [runtimes[name] for name in numbers], parents)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no WfFormat 1.5 instance: {error!r}") from None
