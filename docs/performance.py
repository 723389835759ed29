"""Writes the tables of docs/performance.md from the reports that benchmarks left in build/reports, and of README.md
those of others and of the workflows.

    python docs/performance.py            after perf/peers/run.sh; replaces what stands between the marks of the pages

It ends with 1 when the page does not say why something that is asked for does not hold. The comparison with others
(peers.json) is `Comparison`, as perf/peers/compare.py makes it. The reports of single benchmarks are those of
docs/reports.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from reports import Report, marks, read_report, rewrite

PAGE = Path(__file__).parent / "performance.md"
README = Path(__file__).parents[1] / "README.md"
PROGRAM = "docs/performance.py"
OWN = ("durable", "commit", "memory-arrays", "memory-single-tasks", "restart-growth-long")
"""Reports of one benchmark or test each."""
NOT_RUN = "Not run: `perf/peers/run.sh` makes it."


class Asked(msgspec.Struct, frozen=True):
    """``holds`` is none when one side was not measured. ``short``: how many times better ours would have to be."""

    text: str
    holds: bool | None
    short: float | None = None


class Row(msgspec.Struct, frozen=True):
    work: str
    figure: str
    title: str
    unit: str
    ours: float | None
    limit: float | None
    peers: dict[str, float]
    best: str | None
    ratio: float | None
    asked: tuple[Asked, ...]


class Replay(msgspec.Struct, frozen=True):
    """A workflow of real processes; seconds. ``efficiency``: greedy / wall, by neighbours."""

    instance: str
    tasks: int
    edges: int
    floor: float
    greedy: float | None
    wall: float | None
    efficiency: float | None
    asked: Asked


class Machine(msgspec.Struct, frozen=True):
    cpus: int
    memory_gib: float
    kernel: str
    python: str
    load_before: float


class Comparison(msgspec.Struct, frozen=True):
    """``absent`` could not be installed, ``missing`` says by contender and work what it cannot do or why it failed."""

    command: str
    at: str
    rounds: int
    machine: Machine
    versions: dict[str, str]
    absent: dict[str, str]
    missing: dict[str, dict[str, str]]
    rows: tuple[Row, ...]
    replays: tuple[Replay, ...] = ()

    def value(self, work: str, figure: str, contender: str = "ours") -> float | None:
        for row in self.rows:
            if (row.work, row.figure) == (work, figure):
                return {"ours": row.ours, "limit": row.limit}.get(contender, row.peers.get(contender))
        return None


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peers() -> str:
    found = read_report("peers", Comparison)
    if found is None:
        return NOT_RUN
    names = [name for name in found.versions if name not in ("ours", "limit")]
    head = ["work", "what", "ours", "limit", *names, "to the best peer", "asked for", "holds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in found.rows:
        asked = "<br>".join(item.text for item in row.asked) or "–"
        holds = "<br>".join({True: "yes", False: "**no**", None: "–"}[item.holds] for item in row.asked) or "–"
        ratio = "–" if row.ratio is None else f"{number(row.ratio)} × {row.best}"
        values = [number(value) for value in (row.ours, row.limit, *map(row.peers.get, names))]
        lines.append(f"| {' | '.join([row.work, f'{row.title}, {row.unit}', *values, ratio, asked, holds])} |")
    return "\n".join(lines)


def conditions() -> str:
    found = read_report("peers", Comparison)
    if found is None:
        return NOT_RUN
    machine = found.machine
    rounds = "one round" if found.rounds == 1 else f"medians of {found.rounds} rounds"
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [
        f"`{found.command}`, {found.at}, {rounds}. {machine.cpus} processors, "
        f"{machine.memory_gib:g} GiB, Linux {machine.kernel}, Python {machine.python}; load before it began: "
        f"{machine.load_before:g}. Versions: {versions}."
    ]
    lines += [f"* {name} is not there: {why}" for name, why in found.absent.items()]
    for name, works in found.missing.items():
        said: dict[str, list[str]] = {}
        for work, why in works.items():
            said.setdefault(why, []).append(work)
        lines += [f"* {name}, {', '.join(works)}: {why}" for why, works in said.items()]
    return "\n".join([lines[0], *([""] if lines[1:] else []), *lines[1:]])


BRIEF = (
    ("W1", "rate", "10,000 no-op functions as one batch"),
    ("W1s", "rate", "the same by single submits"),
    ("W2", "p50", "one call and its result, p50"),
    ("W5", "step", "a step of a chain"),
    ("W5f", "seconds", "one, 1,000 that need it, one that needs them"),
    ("W3", "rate", "2,000 × `/bin/true`"),
    ("W4", "rate", "300 Python script files, a process each"),
    ("W6", "bytes", "memory per queued task of a batch"),
)


def brief() -> str:
    """For the README: ours and the best of the others."""
    found = read_report("peers", Comparison)
    if found is None:
        return NOT_RUN
    rows = {(row.work, row.figure): row for row in found.rows}
    lines = ["| work | ours | best of the others |", "|---|---|---|"]
    for work, figure, what in BRIEF:
        row = rows.get((work, figure))
        if row is not None and row.best is not None:
            best = f"{number(row.peers[row.best])} {row.unit} ({row.best})"
            lines.append(f"| {what} | {number(row.ours)} {row.unit} | {best} |")
    return "\n".join(lines).replace(" /s", "/s")


def replays() -> str:
    found = read_report("peers", Comparison)
    if found is None or not found.replays:
        return "Not run: `perf/peers/run.sh none --work W8` makes it, with instances of WfFormat 1.5."
    lines = [
        "| instance | tasks | edges | floor, s | greedy, s | wall, s | efficiency | asked for | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found.replays:
        times = [number(value) for value in (row.floor, row.greedy, row.wall)]
        holds = {True: "yes", False: "**no**", None: "–"}[row.asked.holds]
        cells = [
            row.instance,
            f"{row.tasks:,}",
            f"{row.edges:,}",
            *times,
            percent(row.efficiency),
            row.asked.text,
            holds,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f} %"


def not_reached() -> str:
    """What is asked for and does not hold, by the label that a bullet of the page explains."""
    found = read_report("peers", Comparison)
    if found is None:
        return NOT_RUN
    lines = [
        f"| {label} | {what} | {ours} | {asked.text} | {'–' if asked.short is None else f'{asked.short:.2f} ×'} |"
        for label, what, ours, asked in judged(found)
        if asked.holds is False
    ]
    if not lines:
        return "Everything that is asked for and was measured holds."
    return "\n".join(["| work | what | ours | asked for | would have to be better |", "|---|---|---|---|---|", *lines])


def judged(found: Comparison) -> Iterator[tuple[str, str, str, Asked]]:
    """(label, what it is, ours, what is asked). A work is the label of its first figure."""
    seen = set()
    for row in found.rows:
        label = f"{row.work} {row.figure}" if row.work in seen else row.work
        seen.add(row.work)
        for asked in row.asked:
            yield label, row.title, f"{number(row.ours)} {row.unit}", asked
    for replay in found.replays:
        yield "W8", f"replay of {replay.instance}", percent(replay.efficiency), replay.asked


SECTION = "## What we do not reach"
BULLET = re.compile(r"^\* \*\*[^*]*\(([^()]*)\)\*\*", re.MULTILINE)
"""``* **A round trip (W2, W2 p99)** is …``"""


def explained(text: str) -> set[str]:
    """The labels in the headings of the bullets."""
    section = text.partition(SECTION)[2].partition("\n## ")[0]
    return {label.strip() for labels in BULLET.findall(section) for label in labels.split(",")}


def missed(text: str) -> list[str]:
    """The labels in the page's table of what is not reached."""
    begin, end = marks(PROGRAM, "not reached")
    table = text.partition(begin)[2].partition(end)[0]
    return list(dict.fromkeys(re.findall(r"^\| (W\d[^|]*?) \|", table, re.MULTILINE)))


def unexplained(text: str) -> list[str]:
    known = explained(text)
    return [label for label in missed(text) if label not in known]


def microseconds() -> str:
    """What one of each costs, and what of it the machine takes by itself: both measured in the same run."""
    found = read_report("peers", Comparison)
    if found is None:
        return NOT_RUN
    lines = ["| one … | ours, µs | the machine alone, µs | what we add, µs |", "|---|---|---|---|"]
    for what, work, figure in (
        ("no-op of a batch", "W1", "rate"),
        ("no-op submitted by itself, many on their way", "W1s", "rate"),
        ("round trip, nothing else on its way (p50)", "W2", "p50"),
        ("the same with relaxed durability (p50)", "W2r", "p50"),
        ("step of a chain", "W5", "step"),
        ("process, two at a time", "W3", "rate"),
        ("Python script, two at a time", "W4", "rate"),
    ):
        alone = {"W1s": ("W1", "rate"), "W2r": ("W2", "p50")}.get(work, (work, figure))
        ours, limit = in_microseconds(found, work, figure), in_microseconds(found, *alone, "limit")
        added = None if ours is None or limit is None else ours - limit
        lines.append(f"| {what} | {number(ours)} | {number(limit)} | {number(added)} |")
    durable, relaxed = in_microseconds(found, "W2", "p50"), in_microseconds(found, "W2r", "p50")
    waited = None if durable is None or relaxed is None else durable - relaxed
    lines.append(f"| wait for the disk in a round trip (W2 less W2r) | {number(waited)} | | |")
    return "\n".join(lines)


def in_microseconds(found: Comparison, work: str, figure: str, contender: str = "ours") -> float | None:
    """A rate as the time of one; a time in milliseconds as it is."""
    value = found.value(work, figure, contender)
    if not value:
        return None
    return 1e6 / value if figure == "rate" else value * 1e3


def path() -> str:
    """(point, microseconds since the first) of each way, as perf/path.py leaves it."""
    found = read_report("path", dict[str, list[tuple[str, float]]])
    if found is None:
        return "Not run: `python perf/path.py` makes it."
    told = []
    for what, steps in found.items():
        lines = [f"**{what}**", "", "| point | µs since the first | since the one before |", "|---|---|---|"]
        before = 0.0
        for point, at in steps:
            lines.append(f"| {point} | {at:,.0f} | {at - before:,.0f} |")
            before = at
        told.append("\n".join(lines))
    return "\n\n".join(told)


class Kept(msgspec.Struct, frozen=True):
    """A line of the gate's table, as it prints it."""

    name: str
    measured: str
    promise: str
    headroom: str


class Gate(msgspec.Struct, frozen=True):
    """``seconds``: how long all of it took."""

    seconds: float
    figures: tuple[Kept, ...]


GATE_SECONDS = 300
"""What the gate may take."""


def gate() -> str:
    found = read_report("gate", Gate)
    if found is None:
        return "Not run: `perf/run.sh` makes it."
    took = f"All of it took {found.seconds:,.0f} s; asked for are less than {GATE_SECONDS} s."
    lines = ["| figure | measured | promised | headroom |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.measured} | {row.promise} | {row.headroom} |" for row in found.figures]
    return "\n".join([took, "", *lines])


def own() -> str:
    """Named by the command that makes each."""
    reports = [report for name in OWN if (report := read_report(name, Report)) is not None]
    return "\n\n".join(map(listed, reports)) or "Not run."


def listed(report: Report) -> str:
    title = f"**{report.name}, {report.size}** (`{report.command}`){'' if report.passed else ': **failed**'}"
    lines = ["| figure | value |", "|---|---|"]
    lines += [f"| {text} | {value:,.10g} |" for text, value in report.figures.items()]
    return "\n".join([title, "", *lines])


TABLES = {
    "peers": peers,
    "conditions": conditions,
    "replays": replays,
    "microseconds": microseconds,
    "path": path,
    "not reached": not_reached,
    "gate": gate,
    "own benchmarks": own,
}


def main() -> None:
    rewrite(PAGE, PROGRAM, TABLES)
    found = read_report("peers", Comparison)
    if found is not None and found.replays:
        rewrite(README, PROGRAM, {"replays": replays})
    if found is not None and any(row.best for row in found.rows):
        rewrite(README, PROGRAM, {"best of the others": brief})
    text = PAGE.read_text("utf-8")
    if found is not None and (over := sorted(explained(text) - set(missed(text)))):
        print(f"{PAGE.name} explains what holds, or was not measured: {', '.join(over)}", file=sys.stderr)
    if labels := unexplained(text):
        raise SystemExit(
            f"{PAGE.name} does not say why this does not hold: {', '.join(labels)}; write a bullet of "
            f"'{SECTION.strip('# ')}' whose heading names it: * **Its name ({labels[0]})** …"
        )


if __name__ == "__main__":
    main()
