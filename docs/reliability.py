"""Writes the figures of docs/reliability.md from the reports that tests left in build/reports.

    python docs/reliability.py            after the tests; replaces what stands between the two marks of the page

A report is one JSON document, NAME.json for the size that runs in CI and NAME-long.json for the long one:
``{"name", "command", "size", "passed", "seconds", "figures": {text: number}, "excused": {text: number}}``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
PAGE = HERE / "reliability.md"
REPORTS = HERE.parent / "build" / "reports"
BEGIN = "<!-- figures: written by docs/reliability.py -->"
END = "<!-- end of the figures -->"


class Proof(msgspec.Struct, frozen=True):
    """A row of the table. ``asked``: what has to be shown, in CI and in the long size."""

    report: str
    what: str
    oracle: str
    asked: str


class Report(msgspec.Struct, frozen=True):
    name: str
    command: str
    size: str
    passed: bool
    seconds: float
    figures: dict[str, float]
    excused: dict[str, int] = {}


PROOFS = (
    Proof(
        "simulation",
        "The scheduler, the release rule and the worker's books, simulated: sockets that delay, lose and cut, clocks, "
        "processes, and a store that forgets what was not committed. Everyone crashes",
        "the invariants at every step; then the faults stop and everything finishes",
        "200 / 20,000 cluster-hours",
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
        "Mutated frames, through both twins and against a live master",
        "the same verdict from both, no crash, memory flat, a good client beside it notices nothing",
        "2 M + 10 k / 100 M + 1 M frames",
    ),
    Proof(
        "disk-full",
        "A full disk and a failing commit, at each of the first 200 writes",
        "no false promise, and it recovers",
        "200 / 200 writes",
    ),
    Proof(
        "process-trees",
        "Process trees that do not want to end: double fork, setsid, TERM ignored, output held open",
        "no survivor, no stranger hit",
        "60 / 500 trees",
    ),
    Proof(
        "connections",
        "10,000 idle connections, slow senders, a storm of reconnects",
        "the others' latency at most doubles, all are back within 30 s",
        "as said",
    ),
)


def read_report(name: str) -> Report | None:
    path = REPORTS / f"{name}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise SystemExit(f"{path} is no report: {error}; run its test again") from None


def figures() -> str:
    lines = ["| test | what decides | asked for | CI | long |", "|---|---|---|---|---|"]
    told = []
    for proof in PROOFS:
        reports = [read_report(proof.report), read_report(f"{proof.report}-long")]
        cells = (proof.what, proof.oracle, proof.asked, *(result(report) for report in reports))
        lines.append(f"| {' | '.join(cells)} |")
        told += [detail(report) for report in reports if report is not None]
    return "\n\n".join(["\n".join(lines), *told])


def result(report: Report | None) -> str:
    if report is None:
        return "not run"
    return f"{'passed' if report.passed else '**failed**'}, {report.seconds:,.0f} s"


def detail(report: Report) -> str:
    """What a test did, and what needed a reason."""
    said = ", ".join(f"{text} {value:,.10g}" for text, value in report.figures.items())
    excused = ", ".join(f"{text} {count:,}" for text, count in report.excused.items()) or "nothing"
    return f"**{report.name}, {report.size}** (`{report.command}`): {said}. Excused: {excused}."


def write(page: str, table: str) -> str:
    """The page with the table between its marks. Raises SystemExit when it has no marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has lost its marks ({BEGIN} … {END}): put them back")
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"


def main() -> int:
    PAGE.write_text(write(PAGE.read_text("utf-8"), figures()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
