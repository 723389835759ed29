"""Writes the tables of docs/reliability.md from the reports that tests left in build/reports.

    python docs/reliability.py            after the tests; replaces what stands between the marks of the page

A report is one JSON document, NAME.json for the size that runs in CI and NAME-long.json for the long one:
``{"name", "command", "size", "passed", "seconds", "figures": {text: number}, "excused": {text: number}}``. The one of
broken promises (sabotage.json) is `Catches`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from reports import Report, read_report, rewrite

PAGE = Path(__file__).parent / "reliability.md"


class Proof(msgspec.Struct, frozen=True):
    """A row of the table. ``asked``: what has to be shown, in CI and in the long size. ``whole``: the figure of a long
    size that is reached in several goes, and how much of it that is."""

    report: str
    what: str
    oracle: str
    asked: str
    whole: tuple[str, int] | None = None


class Catch(msgspec.Struct, frozen=True):
    """A promise that was broken on purpose. ``seed`` is of the first simulated hour that noticed, ``tests`` are others
    that did."""

    name: str
    breaks: str
    seed: int | None
    tests: tuple[str, ...]


class Catches(msgspec.Struct, frozen=True):
    within: int
    catches: tuple[Catch, ...]


PROOFS = (
    Proof(
        "simulation",
        "The scheduler, the release rule and the worker's books, simulated: sockets that delay, lose and cut, clocks, "
        "processes, and a store that forgets what was not committed. Everyone crashes",
        "the invariants at every step; then the faults stop and everything finishes",
        "200 / 20,000 cluster-hours",
        ("cluster-hours", 20_000),
    ),
    Proof(
        "master-kill",
        "Master `kill -9` under load, while it works and while it starts; real processes, real disk",
        "no acknowledged submit lost, one accepted outcome per task and generation, no child before its parents, "
        "nothing run twice",
        "20 / 1,000 kills",
    ),
    Proof(
        "agent-kill",
        "Agents killed (`kill -9`) and frozen (SIGSTOP); connections cut, stalled and half open",
        "everything finishes, the same processes go on under the next agent, slots hold, late results are refused",
        "20 / 500 faults",
    ),
    Proof(
        "run-command",
        "`titan-fast run` of a large graph from a shell, while master, agents and whole workers are killed",
        "exit code 0; every task once, or twice with its worker lost in between",
        "2,000 / 20,000 tasks",
    ),
    Proof(
        "frames",
        "Mutated frames, and every vector cut at every byte, through both twins",
        "the same verdict from both, no crash, memory flat",
        "2 M / 100 M frames",
    ),
    Proof(
        "frames-master",
        "Mutated frames from proved clients and workers against a live master",
        "it ends a stream when and why its codec does, no crash, memory flat, a good client beside it notices nothing",
        "10 k / 1 M frames",
    ),
    Proof(
        "disk-full",
        "The store on a disk that is full or fails at each of the first 200 writes, half of which is on the disk then",
        "no false promise, and it recovers",
        "200 / 200 writes",
    ),
    Proof(
        "disk-master",
        "A master process whose disk does the same, while a client submits",
        "it ends with code 70 and one line, and tells nobody anything; the next one has what was acknowledged, once",
        "20 / 200 of these writes",
    ),
    Proof(
        "process-trees",
        "Process trees that do not want to end: double fork, setsid, TERM ignored, output held open, fork storms, "
        "stopped; ended by timeout, by a kill, by their leader's own end",
        "no survivor, no stranger hit",
        "60 / 500 trees",
    ),
    Proof(
        "connections",
        "10,000 idle connections, slow senders, readers that do not read, 1,000 that dial at once, 1,000 waiting "
        "clients and 200 workers cut off at once",
        "the others' latency at most doubles, all are back within 30 s and hear what they waited for, who is refused "
        "is told why, memory flat when they are gone",
        "as said, in CI",
    ),
)


class Number(msgspec.Struct, frozen=True):
    """A row of the second table: a figure with a limit. ``figures``: those of the report that are shown."""

    report: str
    asked: str
    figures: tuple[str, ...] = ()


NUMBERS = (
    Number("restart-array", "100,000 tasks of an array pending, all workers alive: assigning within 2 s of the start"),
    Number("restart-named", "the same, named tasks"),
    Number("restart-missing", "the same with a worker that does not come back: within the grace and 1 s"),
    Number(
        "restart-growth",
        "a start costs at most linearly more; a million finished members with 1 KB each do not slow it",
    ),
    Number(
        "commit",
        "a commit beside a loop that never rests takes at most 5 times as long as beside an idle one",
        tuple(
            f"{what}, switch interval 0.2 ms, {when}, p50, ms"
            for what in ("a submit", "1,000 results")
            for when in ("idle", "busy")
        ),
    ),
    Number(
        "durable",
        "tasks that do nothing: at least 80 % of the rate of a master that keeps nothing",
        (
            "array tasks per second, durable",
            "array tasks per second, in memory",
            "durable against memory",
            "facts per commit",
        ),
    ),
    Number("memory-arrays", "the master's memory stays flat with retention on (long: a million tasks)"),
    Number("memory-single-tasks", "the same, runs of one task (long: a million)"),
    Number("backup", "a backup finishes under full load"),
)


def figures() -> str:
    lines = ["| test | what decides | asked for | CI | long |", "|---|---|---|---|---|"]
    told = []
    for proof in PROOFS:
        reports = [read_report(proof.report, Report), read_report(f"{proof.report}-long", Report)]
        cells = (proof.what, proof.oracle, proof.asked, result(reports[0]), result(reports[1], proof.whole))
        lines.append(f"| {' | '.join(cells)} |")
        told += [detail(report) for report in reports if report is not None]
    return "\n\n".join(["\n".join(lines), *told])


def numbers() -> str:
    lines = ["| asked for | shown by | CI | long |", "|---|---|---|---|"]
    for number in NUMBERS:
        short, long = read_report(number.report, Report), read_report(f"{number.report}-long", Report)
        commands = dict.fromkeys(f"`{report.command}`" for report in (short, long) if report is not None)
        cells = (number.asked, "<br>".join(commands), measured(short, number), measured(long, number))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(report: Report | None, number: Number) -> str:
    if report is None:
        return "–"
    shown = {text: report.figures[text] for text in number.figures} if number.figures else report.figures
    return ("" if report.passed else "**failed**: ") + "; ".join(
        f"{text} {value:,.10g}" for text, value in shown.items()
    )


def result(report: Report | None, whole: tuple[str, int] | None = None) -> str:
    if report is None:
        return "not run"
    if whole is not None and report.passed and (done := report.figures[whole[0]]) < whole[1]:
        return f"{done:,.10g} of {whole[1]:,} so far, {report.seconds:,.0f} s"
    return f"{'passed' if report.passed else '**failed**'}, {report.seconds:,.0f} s"


def detail(report: Report) -> str:
    """What a test did, and what needed a reason."""
    said = ", ".join(f"{text} {value:,.10g}" for text, value in report.figures.items())
    excused = ", ".join(f"{text} {count:,}" for text, count in report.excused.items()) or "nothing"
    return f"**{report.name}, {report.size}** (`{report.command}`): {said}. Excused: {excused}."


def broken_promises() -> str:
    """Which promises were broken on purpose, and who noticed."""
    report = read_report("sabotage", Catches)
    if report is None:
        return "Not run."
    lines = ["| switch | what it breaks | noticed in hour | other tests that notice |", "|---|---|---|---|"]
    for catch in report.catches:
        seed = f"**none of {report.within:,}**" if catch.seed is None else f"{catch.seed}"
        tests = "<br>".join(f"`{test}`" for test in catch.tests) or "–"
        lines.append(f"| `{catch.name}` | {catch.breaks} | {seed} | {tests} |")
    return "\n".join(lines)


TABLES = {"figures": figures, "numbers": numbers, "broken promises": broken_promises}


def main() -> None:
    rewrite(PAGE, "docs/reliability.py", TABLES)


if __name__ == "__main__":
    main()
