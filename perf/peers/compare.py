"""Ours and its peers on the same works, one at a time, in one go: the table, and build/reports/peers.json.

Ours runs beside every peer and beside the limit, in pairs whose order alternates with the rounds: a ratio is of
neighbours, so that a slow moment of the machine hits both. Medians over the rounds. A contender that cannot be
installed, or fails, is reported as such, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import instances
from asked import BEST, EFFICIENCY, FIGURES, LIMIT, Asked, Figure, Key, replayed
from contract import REPLAY_SLOTS, WORKS, end_with_parent, replay_factor
from install import NotInstalled, bare, environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORT = ROOT / "build" / "reports" / "peers.json"
OURS = "ours"
PEERS = tuple(sorted(path.stem.removeprefix("peer_") for path in HERE.glob("peer_*.py")))
CANNOT = "it has no such thing"


class Contenders:
    """How each is started."""

    def __init__(self, pythons: dict[str, str], folder: Path, scale: float) -> None:
        self._pythons = pythons
        self._logs = folder / "log"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._scale = scale
        # Settings of whoever measures are none of the contenders' business.
        self._environ = {name: value for name, value in os.environ.items() if not is_setting(name)}

    def works(self, name: str) -> set[str]:
        """What it can do, as far as it knows without being started."""
        argv, environ = self._program(name)
        said = subprocess.run([*argv, "--list"], env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return set(json.loads(said.stdout)["works"])

    def _program(self, name: str) -> tuple[list[str], dict[str, str]]:
        program = {OURS: "ours.py", LIMIT: "limits.py"}.get(name, f"peer_{name}.py")
        own = {"PYTHONPATH": str(ROOT), "TITAN_FAST_ACCEL": "require"} if name == OURS else {}
        return [self._pythons[name], str(HERE / program)], {**self._environ, **own}

    def measure(self, name: str, work: str) -> dict[str, Any]:
        """What it says of a work, ``{"figures"}`` or ``{"missing"}``, or ``{"failed"}`` with where to look."""
        argv, environ = self._program(name)
        patience = WORKS[work].patience
        log = self._logs / f"{name}-{work}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*argv, "--work", work, "--scale", str(self._scale)],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),
            )
            try:
                answer, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                return {"failed": f"ended by the time limit of {patience:g} s"}
            finally:
                give_up(process)
        if process.returncode:
            return {"failed": f"{last_line(log)} (log/{log.name})"}
        found: dict[str, Any] = json.loads(answer)
        return found


def is_setting(name: str) -> bool:
    return name.startswith("TITAN_") and not name.startswith(("TITAN_FAST_PEERS_", instances.FOLDER))


def give_up(process: subprocess.Popen[bytes]) -> None:
    """A contender that is told to end takes its processes along; killed, those that it started end with it."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                continue


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it ended without a word"


class Results:
    """What was measured: of each contender by figure, and of each pair of neighbours."""

    def __init__(self) -> None:
        self.values: dict[str, dict[Key, list[float]]] = {}
        self.pairs: dict[tuple[str, str], list[tuple[dict[str, float], dict[str, float]]]] = {}
        self.missing: dict[str, dict[str, str]] = {}
        self.versions: dict[str, str] = {}

    def add(self, name: str, work: str, said: dict[str, Any]) -> None:
        self.versions.setdefault(name, said.get("version", ""))
        for figure, value in said.get("figures", {}).items():
            self.values.setdefault(name, {}).setdefault(Key(work, figure), []).append(value)
        if why := said.get("failed") or said.get("missing"):
            self.missing.setdefault(name, {})[work] = why

    def add_pair(self, other: str, work: str, mine: dict[str, Any], its: dict[str, Any]) -> None:
        if "figures" in mine and "figures" in its:
            self.pairs.setdefault((other, work), []).append((mine["figures"], its["figures"]))

    def median(self, name: str, key: Key) -> float | None:
        values = self.values.get(name, {}).get(key)
        return statistics.median(values) if values else None

    def ratio(self, figure: Figure, other: str, key: Key | None = None) -> float | None:
        """How many times better ours is, by neighbours; by medians when what it is held against is another figure."""
        if key is not None and key.work != figure.key.work:
            mine, its = self.median(OURS, figure.key), self.median(other, key)
            return None if mine is None or its is None else figure.ratio(mine, its)
        theirs = figure.key.figure if key is None else key.figure
        ratios = [
            figure.ratio(mine[figure.key.figure], its[theirs])
            for mine, its in self.pairs.get((other, figure.key.work), [])
            if figure.key.figure in mine and theirs in its
        ]
        return statistics.median(ratios) if ratios else None


def measure(results: Results, contenders: Contenders, others: list[str], works: list[str], rounds: int) -> None:
    """Every work by ours and each of the others as neighbours; who goes first alternates. Where none of the others can
    do it, ours has no neighbour."""
    for number in range(rounds):
        for work in works:
            told: dict[str, dict[str, Any]] = {}
            for other in [name for name in others if not cannot(results, name, work)] or [""]:
                for name in (OURS, other) if number % 2 else (other, OURS):
                    if not name or cannot(results, name, work):
                        continue
                    print(f"… round {number + 1}: {work} {name}", file=sys.stderr, flush=True)
                    told[name] = contenders.measure(name, work)
                    results.add(name, work, told[name])
                if OURS in told and other in told:
                    results.add_pair(other, work, told[OURS], told[other])


def cannot(results: Results, name: str, work: str) -> bool:
    """What is missing or failed once is not tried again."""
    return work in results.missing.get(name, {})


# ---------------------------------------------------------------- the report


def summary(results: Results, peers: list[str], works: list[str]) -> list[dict[str, Any]]:
    """A row for each figure of the works."""
    rows = []
    for figure in FIGURES:
        if figure.key.work not in works:
            continue
        found = {peer: value for peer in peers if (value := results.median(peer, figure.key)) is not None}
        best = (max if figure.more_is_better else min)(found, key=lambda peer: found[peer], default=None)
        rows.append(
            {
                "work": figure.key.work,
                "figure": figure.key.figure,
                "title": figure.title,
                "unit": figure.unit,
                "ours": results.median(OURS, figure.key),
                "limit": results.median(LIMIT, figure.key),
                "peers": found,
                "best": best,
                "ratio": None if best is None else results.ratio(figure, best),
                "asked": [judged(results, figure, asked, best) for asked in figure.asked],
                "rounds": {name: values[figure.key] for name, values in results.values.items() if figure.key in values},
            }
        )
    return rows


def judged(results: Results, figure: Figure, asked: Asked, best: str | None) -> dict[str, Any]:
    """``holds`` is null when one side was not measured. ``short``: how many times better ours would have to be; below 1
    there is something left."""
    if not asked.of:
        value = results.median(OURS, figure.key)
        return verdict(figure.text(asked), None if value is None else asked.factor / value, 1.0)
    of = best if asked.of == BEST else asked.of
    return verdict(figure.text(asked), None if of is None else results.ratio(figure, of, asked.key), asked.factor)


def verdict(text: str, ratio: float | None, factor: float) -> dict[str, Any]:
    if ratio is None:
        return {"text": text, "holds": None, "short": None}
    return {"text": text, "holds": ratio >= factor, "short": factor / ratio}


def replays(results: Results, works: list[str], scale: float) -> list[dict[str, Any]]:
    """A row for each instance: what is possible, and what part of that ours is."""
    rows = []
    for instance in instances.find() if "W8" in works else ():
        figure = replayed(instance.name)
        efficiency = results.ratio(figure, LIMIT)
        rows.append(
            {
                "instance": instance.name,
                "tasks": len(instance.runtimes),
                "edges": instance.edges,
                "floor": instance.floor(REPLAY_SLOTS) * replay_factor(instance, scale),
                "greedy": results.median(LIMIT, figure.key),
                "wall": results.median(OURS, figure.key),
                "efficiency": efficiency,
                "asked": verdict(f"≥ {EFFICIENCY * 100:g} %", efficiency, EFFICIENCY),
                "rounds": results.values.get(OURS, {}).get(figure.key, []),
            }
        )
    return rows


def replay_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [["W8", "tasks", "floor", "greedy", "ours", "greedy / ours", "asked for", "holds?"]]
    for row in rows:
        times = [number(row[name], "s") for name in ("floor", "greedy", "wall")]
        part = "-" if row["efficiency"] is None else f"{row['efficiency'] * 100:.1f} %"
        asked = row["asked"]
        lines.append([row["instance"], str(row["tasks"]), *times, part, asked["text"], HOLDS[asked["holds"]]])
    return aligned(lines)


HOLDS = {True: "yes", False: "NO", None: "?"}


def table(rows: list[dict[str, Any]], peers: list[str]) -> list[str]:
    lines = [["work", "", "ours", "limit", *peers, "to the best peer", "asked for", "holds?"]]
    for row in rows:
        unit = row["unit"]
        cells = [number(value, unit) for value in (row["ours"], row["limit"], *map(row["peers"].get, peers))]
        ratio = "-" if row["ratio"] is None else f"{number(row['ratio'], '×')} {row['best']}"
        asked = ", ".join(item["text"] for item in row["asked"]) or "-"
        holds = ", ".join(HOLDS[item["holds"]] for item in row["asked"]) or "-"
        lines.append([row["work"], row["title"], *cells, ratio, asked, holds])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def number(value: float | None, unit: str) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def machine() -> dict[str, Any]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": os.cpu_count(),
        "memory_gib": round(pages * size / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }


# ---------------------------------------------------------------- the program


def install(peers: Iterable[str], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(interpreters, why others are not there), by name."""
    pythons, absent = {}, {}
    for peer in peers:
        try:
            pythons[peer] = environment(peer, folder)
        except NotInstalled as error:
            absent[peer] = str(error)
            print(f"{peer} is left out: {error}", file=sys.stderr)
    return pythons, absent


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf/peers/run.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"default: all: {', '.join(PEERS)}; none: no peer")
    parser.add_argument("--work", default=",".join(WORKS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--dir", type=Path, default=ROOT / "build" / "peers", help="default: build/peers")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of each work's size, to try it; no report")
    options = parser.parse_args(arguments)
    options.works = [work.strip() for work in options.work.split(",")]
    options.peers = [] if options.peers == ["none"] else list(dict.fromkeys(options.peers or PEERS))
    for kind, given, known in (("work", options.works, WORKS), ("peer", options.peers, PEERS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}; there is {', '.join(known)}")
    try:
        instances.find()
    except ValueError as error:
        parser.error(str(error))
    if options.rounds < 1 or not 0 < options.scale <= 1:
        parser.error("--rounds is at least 1, --scale above 0 and at most 1")
    return options


def command(options: argparse.Namespace) -> str:
    """What measures the same again; where the environments are is the machine's own."""
    words = ["perf/peers/run.sh", *options.peers, "--rounds", str(options.rounds)]
    return " ".join(words if options.works == list(WORKS) else [*words, "--work", ",".join(options.works)])


def main(arguments: list[str]) -> int:
    options = read_options(arguments)
    folder = options.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    before = machine()
    try:
        bare(folder)
    except NotInstalled as error:
        print(f"scripts are run by {sys.executable}: {error}", file=sys.stderr)
    pythons, absent = install(options.peers, folder)
    peers = list(pythons)
    contenders = Contenders({OURS: sys.executable, LIMIT: sys.executable, **pythons}, folder, options.scale)
    began = time.monotonic()
    results = Results()
    for name in (OURS, LIMIT, *peers):
        can = contenders.works(name)
        results.missing[name] = {work: CANNOT for work in options.works if work not in can}
    is_stopped = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(results, contenders, [LIMIT, *peers], options.works, options.rounds)
    except KeyboardInterrupt:
        is_stopped = True
        print("stopped; so far:", file=sys.stderr)
    rows = summary(results, peers, options.works)
    replayed_rows = replays(results, options.works, options.scale)
    tables = [table(rows, peers)] if rows else []
    tables += [replay_table(replayed_rows)] if replayed_rows else []
    print("\n\n".join("\n".join(lines) for lines in tables))
    for name, missing in results.missing.items():
        for work, why in missing.items():
            print(f"{name} {work}: {why}", file=sys.stderr)
    if is_stopped:
        return 130
    if options.scale == 1:
        report = {
            "name": "peers",
            "command": command(options),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rounds": options.rounds,
            "seconds": round(time.monotonic() - began, 1),
            "machine": before,
            "versions": results.versions,
            "absent": absent,
            "missing": {name: works for name, works in results.missing.items() if works},
            "rows": rows,
            "replays": replayed_rows,
        }
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    asked = [item for row in rows for item in row["asked"]] + [row["asked"] for row in replayed_rows]
    return 1 if any(item["holds"] is False for item in asked) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
