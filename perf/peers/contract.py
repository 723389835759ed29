"""What every contender does, the same for all of them: the works, how they are timed, and the line of JSON in the end.

A contender is a program with one subclass of `Contender`; it says how its system is started and how it is used, nothing
of clocks. It runs on the interpreter of its own virtual environment, so this imports the standard library alone.

    python peer_ray.py --work W1   {"contender": "ray", "version": "2.60.0", "work": "W1", "figures": {"rate": …}}
    python peer_ray.py --list      {"contender": "ray", "works": ["W1", …]}
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import instances

HERE = Path(__file__).resolve().parent
SLOTS = 2
REPLAY_SLOTS = 16
REPLAY_SECONDS = 20.0
"""What a replayed workflow takes at the least: it is scaled to that."""
SCRIPT_PYTHON = os.environ.get("TITAN_FAST_PEERS_PYTHON", sys.executable)
"""Runs the scripts of W4 for everybody who starts an interpreter: one of an environment with nothing in it, as what is
installed beside a script can cost more than its start."""
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Missing(Exception):
    """A contender has no way to do a work; the text says what is missing. No failure, a ``-`` in the table."""


class Contender:
    """A system under test, with one worker of two slots.

    ``start`` returns when its processes are started; they need not be ready: the first result says that they are. What
    a work returns is checked by `measure`, so that nobody is fast by doing nothing. What a contender does not override
    it cannot do.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    """What its client imports, which is no part of a cold start."""

    def __init__(self, folder: Path) -> None:
        """``folder``: for its files; gone afterwards."""
        self.folder = folder

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version(cls.package)

    def start(self, workers: bool = True) -> None:
        """Without ``workers`` what is submitted stays queued."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def schedulers(self) -> list[int]:
        """Process ids whose trees are the scheduler: the master, the broker."""
        raise Missing("no scheduler of its own")

    def workers(self) -> list[int]:
        raise Missing("no worker of its own")

    def first(self) -> None:
        """Returns when something has run: the system is up."""
        check(self.call(1), 1)

    def call(self, item: int) -> object:
        """One function call: submit, wait, its result."""
        raise Missing("no function calls")

    def map(self, count: int) -> Sequence[object]:
        """The results of ``noop(0) … noop(count - 1)``, submitted the fastest way there is."""
        raise Missing("no function calls")

    def singles(self, count: int) -> Sequence[object]:
        """The same, submitted one by one, each with a handle of its own."""
        raise Missing("no function calls")

    def chain(self, count: int) -> object:
        """``noop(noop(… noop(0)))``: each needs the one before."""
        raise Missing("no dependencies")

    def fan(self, width: int) -> object:
        """One, then ``width`` that need it, then one that counts their results and gives the number."""
        raise Missing("no dependencies")

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        """Run each command as a process; their exit codes."""
        raise Missing("no processes")

    def scripts(self, folder: Path, names: Sequence[str]) -> Sequence[object]:
        """Run each script, a Python file of the folder, in a process of its own; their exit codes."""
        return self.processes([[SCRIPT_PYTHON, str(folder / name)] for name in names])

    def queue(self, count: int) -> None:
        """Submit ``count`` no-op functions as one batch that nobody takes; returns when the scheduler has them."""
        raise Missing("no function calls")

    def queue_named(self, count: int) -> None:
        """The same as tasks with a name of their own each."""
        raise Missing("every task is queued the same way")

    def replay(self, instance: instances.Instance, factor: float) -> float:
        """Seconds of a workflow of which each task is a process that sleeps ``factor`` times what it once took, on 16
        slots."""
        raise Missing("no replay of workflows")

    def memory(self) -> int:
        """Bytes the scheduler occupies."""
        return sum(resident(pid) for root in self.schedulers() for pid in tree(root))


# ---------------------------------------------------------------- the works


def measure_map(contender: Contender, scale: float) -> dict[str, float]:
    return rate(contender.map, scaled(10_000, scale), lambda n: list(range(n)))


def measure_singles(contender: Contender, scale: float) -> dict[str, float]:
    return rate(contender.singles, scaled(10_000, scale), lambda n: list(range(n)))


def measure_trips(contender: Contender, scale: float) -> dict[str, float]:
    seconds = []
    for number in range(-50, scaled(500, scale)):
        began = time.perf_counter()
        result = contender.call(number)
        if number >= 0:
            seconds.append(time.perf_counter() - began)
        check(result, number)
    return {"p50": percentile(seconds, 50) * 1e3, "p99": percentile(seconds, 99) * 1e3}


def measure_processes(contender: Contender, scale: float) -> dict[str, float]:
    return rate(lambda n: contender.processes([["/bin/true"]] * n), scaled(2_000, scale), lambda n: [0] * n)


def measure_scripts(contender: Contender, scale: float) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="scripts-", dir=contender.folder))
    names = [f"script_{number}.py" for number in range(scaled(300, scale))]
    for number, name in enumerate(names):
        (folder / name).write_text(f"print({number}, {folder.name!r})\n")  # like no script of another measurement
    return rate(lambda n: contender.scripts(folder, names[:n]), len(names), lambda n: [0] * n)


def measure_chain(contender: Contender, scale: float) -> dict[str, float]:
    steps = scaled(200, scale)
    return {"step": timed(contender.chain, steps, lambda n: 0) / steps * 1e3}


def measure_fan(contender: Contender, scale: float) -> dict[str, float]:
    return {"seconds": timed(contender.fan, scaled(1_000, scale), lambda n: n)}


def measure_queue(contender: Contender, scale: float) -> dict[str, float]:
    return bytes_each(contender, contender.queue, scaled(100_000, scale))


def measure_queue_named(contender: Contender, scale: float) -> dict[str, float]:
    return bytes_each(contender, contender.queue_named, scaled(100_000, scale))


def measure_start(contender: Contender, scale: float) -> dict[str, float]:
    for name in contender.modules:
        importlib.import_module(name)
    began = time.perf_counter()
    contender.start()
    contender.first()
    figures = {"seconds": time.perf_counter() - began}
    time.sleep(1.0)  # what it does after its start, so that it is idle
    for figure, roots in (("scheduler", contender.schedulers), ("worker", contender.workers)):
        try:
            figures[figure] = sum(proportional(pid) for root in roots() for pid in tree(root)) / 2**20
        except Missing:
            continue
    return figures


def measure_replay(contender: Contender, scale: float) -> dict[str, float]:
    """Seconds of each instance there is, by its name."""
    found = instances.find()
    if not found:
        raise Missing(f"there are no instances in {instances.folder()} ({instances.FOLDER} says where they are)")
    return {instance.name: contender.replay(instance, replay_factor(instance, scale)) for instance in found}


def replay_factor(instance: instances.Instance, scale: float) -> float:
    greedy = instance.greedy(REPLAY_SLOTS)
    return REPLAY_SECONDS * scale / greedy if greedy else 1.0


class Work(NamedTuple):
    """``starts``: with workers, without, or by itself. ``needs``: what a contender overrides when it can do it.
    ``patience``: seconds until it is ended, its start and warm-up included."""

    measure: Callable[[Contender, float], dict[str, float]]
    needs: tuple[str, ...]
    starts: str = "workers"
    patience: float = 180.0


WORKS = {
    "W1": Work(measure_map, ("map",)),
    "W1s": Work(measure_singles, ("singles",)),
    "W2": Work(measure_trips, ("call",)),
    "W2r": Work(measure_trips, ("relax", "call")),
    "W3": Work(measure_processes, ("processes",)),
    "W4": Work(measure_scripts, ("processes",)),
    "W5": Work(measure_chain, ("chain",)),
    "W5f": Work(measure_fan, ("fan",)),
    "W6": Work(measure_queue, ("queue",), "scheduler"),
    "W6n": Work(measure_queue_named, ("queue_named",), "scheduler"),
    "W7": Work(measure_start, ("call",), "nothing"),
    "W8": Work(measure_replay, ("replay",), "nothing", 600.0),
}
"""``W2r`` is W2 with durability that survives a killed process and no power cut; a contender that has such a setting
defines ``relax``. The peers' brokers keep everything in memory to begin with."""


def rate(run: Callable[[int], Sequence[object]], count: int, expected: Callable[[int], list[Any]]) -> dict[str, float]:
    return {"rate": count / timed(lambda n: list(run(n)), count, expected)}


def timed(run: Callable[[int], object], count: int, expected: Callable[[int], object]) -> float:
    """Seconds for ``count`` after a tenth of it as a warm-up. Raises ValueError when the results are wrong."""
    warm = max(count // 10, 1)
    check(run(warm), expected(warm))
    began = time.perf_counter()
    result = run(count)
    seconds = time.perf_counter() - began
    check(result, expected(count))
    return seconds


def bytes_each(contender: Contender, queue: Callable[[int], None], count: int) -> dict[str, float]:
    """What a queued task costs, from what a tenth and the whole need: what is there before is nobody's task."""
    queue(max(count // 10, 1))
    before = contender.memory()
    began = time.perf_counter()
    queue(count)
    seconds = time.perf_counter() - began
    return {"bytes": (contender.memory() - before) / count, "seconds": seconds}


def check(result: object, expected: object) -> None:
    if result != expected:
        raise ValueError(f"wrong results: {str(result)[:80]}, expected {str(expected)[:80]}")


def scaled(count: int, scale: float) -> int:
    return max(int(count * scale), 1)


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


# ---------------------------------------------------------------- processes


def start(argv: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a part of a contender: it finds our modules, writes to ``log`` and dies with us, however that ends."""
    with log.open("ab") as file:
        return subprocess.Popen(
            argv,
            env={**os.environ, "PYTHONPATH": str(HERE), **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGKILL),
        )


def end_with_parent(how: signal.Signals) -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, how)


def end(process: subprocess.Popen[bytes], patience: float = 3.0) -> None:
    """Politely first; then all that came from it, of which some may not notice that it is gone."""
    came = tree(process.pid)
    process.terminate()
    try:
        process.wait(patience)
        return
    except subprocess.TimeoutExpired:
        pass
    for pid in came:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def tree(root: int) -> list[int]:
    """A process and all that came from it and is there."""
    found = [root]
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


def resident(pid: int) -> int:
    return _kilobytes(f"/proc/{pid}/status", "VmRSS:") * 1024


def proportional(pid: int) -> int:
    """Resident bytes, what several processes share divided among them: forked workers do not count twice."""
    return _kilobytes(f"/proc/{pid}/smaps_rollup", "Pss:") * 1024


def _kilobytes(path: str, field: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


# ---------------------------------------------------------------- the program


def works_of(kind: type[Contender]) -> list[str]:
    """The works it can do, as far as its methods tell."""
    return [
        name
        for name, work in WORKS.items()
        if all(getattr(kind, need, None) not in (None, getattr(Contender, need, None)) for need in work.needs)
    ]


def measure(kind: type[Contender], name: str, scale: float) -> dict[str, Any]:
    """One work by a system that was started for it. What it says is told by the exception when it fails."""
    work = WORKS[name]
    document: dict[str, Any] = {"contender": kind.name, "version": kind.version(), "work": name}
    with tempfile.TemporaryDirectory(prefix=f"peers-{kind.name}-") as folder:
        contender = kind(Path(folder))
        try:
            if name not in works_of(kind):
                raise Missing("it has no such thing")
            if "relax" in work.needs:
                contender.relax()  # type: ignore[attr-defined]
            if work.starts != "nothing":
                contender.start(work.starts == "workers")
            document["figures"] = work.measure(contender, scale)
        except Missing as missing:
            document["missing"] = str(missing)
        finally:
            contender.stop()
    return document


def main(kind: type[Contender]) -> None:
    """The contender as a program. Whatever its libraries print goes to standard error. Told to end, it stops what it
    started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--work", choices=WORKS, help="measure this one")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of its size, to try it")
    parser.add_argument("--list", action="store_true", help="say what it can do")
    options = parser.parse_args()
    if not options.list and not options.work:
        parser.error("what shall it do? --work W1, or --list")
    answer = os.dup(1)
    os.dup2(2, 1)
    if options.list:
        document = {"contender": kind.name, "works": works_of(kind)}
    else:
        document = measure(kind, options.work, options.scale)
    with os.fdopen(answer, "w") as out:
        print(json.dumps(document), file=out)
