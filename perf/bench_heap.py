"""The ready queue: compiled against pure, and whether its cost grows with tasks or classes.

A figure is a median; the two sides of a ratio run in turn. What is compared differs in one thing only: the 10,000
and the 100,000 tasks lie in the same 2,000 run queues, and the run queues of one class and of 10,000 classes are
equally many. Run as a program it prints nanoseconds too.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

CLASSES = 20
RUNS = 100
MANY_CLASSES = 10_000


def measure() -> dict[str, float]:
    """compiled_vs_pure: more is better; growth: 1 is best."""
    from titan_fast import _heap, _heap_py

    pure = tasks(_heap_py, 100_000)
    few, many = tasks(_heap, 10_000), tasks(_heap, 100_000)
    one_view = compare(lambda: classes_one_view(_heap, MANY_CLASSES), lambda: classes_one_view(_heap, 1), 7)
    all_views = compare(lambda: classes_all_views(_heap, MANY_CLASSES), lambda: classes_all_views(_heap, 1), 7)
    return {
        "heap_compiled_vs_pure": compare(pure, many, 3),
        "heap_growth": compare(many, few, 11),
        "heap_classes_growth": max(one_view, all_views),
    }


def compare(mine: Callable[[], float], other: Callable[[], float], rounds: int) -> float:
    return statistics.median(mine() / other() for _ in range(rounds))


def tasks(module: ModuleType, count: int) -> Callable[[], float]:
    """Seconds per push and take of ``count`` single tasks in random classes and runs that the queue knows."""
    rng = random.Random(7)
    indices = rng.sample(range(count), count)
    pushes = [(rng.randrange(CLASSES), rng.randrange(RUNS), 0, 1, index, 1) for index in indices]

    def work() -> float:
        queue = module.ReadyQueue()
        view = queue.add_view()
        for cls in range(CLASSES):
            queue.link(view, queue.add_class())
            for run in range(RUNS):
                queue.push(cls, run, 0, 1, 0, 1)
        while queue.take(view, 1) is not None:
            pass
        return push_and_take_all(queue, view, pushes) / count

    return work


def push_and_take_all(queue: Any, view: int, pushes: list[tuple[int, ...]]) -> float:
    push, take = queue.push, queue.take
    gc.collect()
    gc.disable()
    began = time.process_time()
    for arguments in pushes:
        push(*arguments)
    while take(view, 1) is not None:
        pass
    spent = time.process_time() - began
    gc.enable()
    return spent


def classes_one_view(module: ModuleType, classes: int) -> float:
    """Seconds per push and take of a view that serves one class, with all the others filled and never served by it."""
    queue = module.ReadyQueue()
    view, others = queue.add_view(), queue.add_view()
    for cls in range(classes):
        queue.add_class()
        queue.link(others, cls)
        for run in (1, 2):
            queue.push(cls, run, 0, 0, 1_000_000, 10)
    queue.link(view, 0)
    return pairs(queue, view, [(0, 1 + number % 2, 0, 0, 2 * number, 1) for number in range(20_000)])


def classes_all_views(module: ModuleType, classes: int) -> float:
    """Seconds per push and take of a view that serves every class: 20,000 run queues, all of them filled."""
    queue = module.ReadyQueue()
    view = queue.add_view()
    for _ in range(classes):
        queue.link(view, queue.add_class())
    run_queues = 2 * MANY_CLASSES
    for number in range(run_queues):
        queue.push(number % classes, number // classes, 0, 0, 1_000_000, 1)
    rng = random.Random(5)
    numbers = [rng.randrange(run_queues) for _ in range(20_000)]
    pushes = [(number % classes, number // classes, 0, 0, 2 * at, 1) for at, number in enumerate(numbers)]
    return pairs(queue, view, pushes)


def pairs(queue: Any, view: int, pushes: list[tuple[int, ...]]) -> float:
    """Seconds per push followed by a take."""
    push, take = queue.push, queue.take
    gc.collect()
    gc.disable()
    began = time.process_time()
    for arguments in pushes:
        push(*arguments)
        take(view, 1)
    spent = time.process_time() - began
    gc.enable()
    return spent / len(pushes)


def main() -> None:
    from titan_fast import _heap, _heap_py

    for name, value in measure().items():
        print(f"{name:42} {value:8.2f}")
    works: dict[str, Callable[[], float]] = {
        "compiled, 10,000 tasks": tasks(_heap, 10_000),
        "compiled, 100,000 tasks": tasks(_heap, 100_000),
        "pure, 100,000 tasks": tasks(_heap_py, 100_000),
        "one class of 1": lambda: classes_one_view(_heap, 1),
        "one class of 10,000": lambda: classes_one_view(_heap, MANY_CLASSES),
        "all of 1 class": lambda: classes_all_views(_heap, 1),
        "all of 10,000 classes": lambda: classes_all_views(_heap, MANY_CLASSES),
    }
    for name, work in works.items():
        print(f"{name + ', ns per push and take':42} {statistics.median(work() for _ in range(3)) * 1e9:8.0f}")


if __name__ == "__main__":
    main()
