"""What the comparison found arrives in docs/performance.md as it is, and nothing that was not measured does."""

from __future__ import annotations

import importlib
import json

import pytest
from pages import DOCS, page_writer

README = """# Title

<!-- replays: written by docs/performance.py -->

OLD

<!-- end of the replays -->

<!-- best of the others: written by docs/performance.py -->

PREVIOUS

<!-- end of the best of the others -->
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    program = page_writer("performance", tmp_path, monkeypatch)
    program.README = tmp_path / "readme.md"
    program.README.write_text(README)
    return program


def explain(page, *bullets):
    """Put bullets where the page says why something does not hold."""
    text = "".join(f"* **{heading}** because.\n" for heading in bullets)
    page.PAGE.write_text(f"{page.PAGE.read_text()}\n{page.SECTION}, and what it would take\n\n{text}\n## The next\n")


def row(work, figure, **values):
    nothing = {"title": "title", "unit": "/s", "ours": None, "limit": None, "peers": {}, "best": None, "ratio": None}
    return {"work": work, "figure": figure, **nothing, "asked": [], **values}


def write_report(page, rows, **values):
    report = {
        "command": "perf/peers/run.sh",
        "at": "2026-01-01T00:00:00Z",
        "rounds": 3,
        "machine": {"cpus": 2, "memory_gib": 24, "kernel": "6.1", "python": "3.11.7", "load_before": 0.1},
        "versions": {"ours": "0.1", "limit": "Linux", "ray": "2"},
        "absent": {"dask": "no network"},
        "missing": {"ray": {"W5": "fell over", "W6": "fell over"}},
        "rows": rows,
        **values,
    }
    (page.PAGE.parent / "peers.json").write_text(json.dumps(report))


def cells(page, start):
    (line,) = [line for line in page.PAGE.read_text().splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_nobody_ran_is_not_run(page) -> None:
    page.main()
    text = page.PAGE.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert text.count("Not run") == len(page.TABLES) and "FROM LAST TIME" not in text


def test_a_row_says_who_was_how_fast_and_what_holds(page) -> None:
    asked = [{"text": "≥ 75 % of limit", "ratio": 0.9, "holds": True}, {"text": "≥ 6 × best peer", "holds": False}]
    write_report(
        page, [row("W3", "rate", ours=1800.0, limit=2000.0, peers={"ray": 738.4}, best="ray", ratio=2.44, asked=asked)]
    )
    explain(page, "A process (W3)")
    page.main()
    figures = ["1,800", "2,000", "738", "2.44 × ray", "≥ 75 % of limit<br>≥ 6 × best peer", "yes<br>**no**"]
    assert cells(page, "W3 | title, /s") == ["W3", "title, /s", *figures]
    text = page.PAGE.read_text()
    assert "2026-01-01T00:00:00Z, medians of 3 rounds. 2 processors" in text
    assert "* dask is not there: no network" in text
    assert "* ray, W5, W6: fell over" in text


def test_one_round_has_no_medians(page) -> None:
    write_report(page, [], rounds=1)
    page.main()
    assert "2026-01-01T00:00:00Z, one round. 2 processors" in page.PAGE.read_text()


def test_what_was_not_measured_stays_empty(page) -> None:
    write_report(page, [row("W1", "rate")])
    page.main()
    assert cells(page, "W1")[2:] == ["–", "–", "–", "–", "–", "–"]
    assert cells(page, "no-op of a batch")[1:] == ["–", "–", "–"]


def test_what_we_add_is_the_difference(page) -> None:
    write_report(
        page,
        [
            row("W3", "rate", ours=1600.0, limit=2000.0),
            row("W2", "p50", ours=0.5, limit=0.1),
            row("W2r", "p50", ours=0.3),
        ],
    )
    page.main()
    assert cells(page, "process, two at a time")[1:] == ["625", "500", "125"]
    assert cells(page, "round trip, nothing else")[1:] == ["500", "100", "400"]
    assert cells(page, "the same with relaxed")[1:] == ["300", "100", "200"]
    assert cells(page, "wait for the disk")[1] == "200"


def test_the_page_has_its_marks() -> None:
    text = (DOCS / "performance.md").read_text("utf-8")
    for mark in importlib.import_module("performance").TABLES:
        assert f"<!-- {mark}: written by" in text and f"<!-- end of the {mark} -->" in text
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert "<!-- replays: written by" in readme and "<!-- best of the others: written by" in readme


def test_the_page_says_why_each_figure_that_is_asked_for_does_not_hold() -> None:
    performance = importlib.import_module("performance")
    text = (DOCS / "performance.md").read_text("utf-8")
    assert performance.unexplained(text) == []
    assert performance.explained(text), "it has bullets, of which the program finds the headings"


MISSED = [
    row("W2", "p50", ours=1.0, unit="ms", asked=[{"text": "≤ 6 × limit", "holds": True, "short": 0.9}]),
    row("W2", "p99", ours=2.0, unit="ms", asked=[{"text": "≤ 10 × limit", "holds": False, "short": 2.5}]),
    row("W2r", "p50", ours=0.5, unit="ms", asked=[{"text": "≤ 3 × limit", "holds": False, "short": 1.204}]),
    row("W7", "seconds", ours=0.4, unit="s", asked=[{"text": "≤ 0.5 s", "holds": None, "short": None}]),
]
REPLAY = {"instance": "blast", "tasks": 43, "edges": 1120, "floor": 16.4, "greedy": 20.0}
SLOW = {**REPLAY, "wall": 22.0, "efficiency": 0.909, "asked": {"text": "≥ 95 %", "holds": False, "short": 1.045}}


def test_what_is_not_reached_is_told_with_how_much_is_missing(page) -> None:
    write_report(page, MISSED, replays=[SLOW])
    explain(page, "A trip (W2 p99, W2r)", "A workflow (W8)")
    page.main()
    begin, end = importlib.import_module("reports").marks(page.PROGRAM, "not reached")
    text = page.PAGE.read_text().partition(begin)[2].partition(end)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]
    assert rows == [
        ["W2 p99", "title", "2 ms", "≤ 10 × limit", "2.50 ×"],
        ["W2r", "title", "0.5 ms", "≤ 3 × limit", "1.20 ×"],
        ["W8", "replay of blast", "90.9 %", "≥ 95 %", "1.04 ×"],
    ]


@pytest.mark.parametrize(
    ("bullets", "says"),
    [
        ((), "W2 p99, W2r, W8"),
        (("A round trip (W2, W2r)", "A workflow (W8)"), "W2 p99"),
        (("W2 p99, W2r, W8",), "W2 p99, W2r, W8"),
        (("A round trip (W2 p99, W2r)", "A workflow (W88)"), "W8"),
    ],
)
def test_what_does_not_hold_and_nobody_explains_is_an_error(page, bullets, says) -> None:
    write_report(page, MISSED, replays=[SLOW])
    explain(page, *bullets)
    with pytest.raises(SystemExit, match=f"does not say why this does not hold: {says};"):
        page.main()
    assert cells(page, "W2r | title, ms")[2] == "0.5", "the tables are written all the same"


def test_an_explanation_elsewhere_is_none(page) -> None:
    write_report(page, MISSED[:2])
    explain(page)
    page.PAGE.write_text(page.PAGE.read_text() + "* **A round trip (W2 p99)** because.\n")
    with pytest.raises(SystemExit, match="W2 p99"):
        page.main()


def test_an_explanation_of_what_holds_is_told(page, capsys) -> None:
    write_report(page, MISSED[:2])
    explain(page, "A round trip (W2, W2 p99)")
    page.main()
    assert "page.md explains what holds, or was not measured: W2\n" in capsys.readouterr().err


def test_nothing_is_missed_when_everything_holds(page) -> None:
    write_report(page, MISSED[:1])
    page.main()
    assert "Everything that is asked for and was measured holds." in page.PAGE.read_text()


def test_replays_are_told_on_both_pages(page) -> None:
    fast = {**REPLAY, "wall": 20.1, "efficiency": 0.9953, "asked": {"text": "≥ 95 %", "holds": True, "short": 0.95}}
    write_report(page, [], replays=[fast])
    page.main()
    wanted = ["blast", "43", "1,120", "16.4", "20", "20.1", "99.5 %", "≥ 95 %", "yes"]
    assert cells(page, "blast") == wanted
    text = page.README.read_text()
    assert "OLD" not in text and f"| {' | '.join(wanted)} |" in text and text.startswith("# Title\n")


def test_the_readme_has_the_best_of_the_others(page) -> None:
    rows = [
        row("W1", "rate", ours=174_960.0, peers={"ray": 1804.8, "dask": 500.2}, best="ray", ratio=96.1),
        row("W2", "p50", unit="ms", ours=1.219, peers={"ray": 1.36}, best="ray", ratio=1.1),
        row("W3", "rate", ours=1000.0),
    ]
    write_report(page, rows)
    page.main()
    text = page.README.read_text()
    assert "| 10,000 no-op functions as one batch | 174,960/s | 1,805/s (ray) |\n" in text
    assert "| one call and its result, p50 | 1.22 ms | 1.36 ms (ray) |\n" in text
    assert "/bin/true" not in text and "PREVIOUS" not in text and "OLD" in text


def test_without_replays_the_readme_stays_as_it_is(page) -> None:
    write_report(page, [])
    page.main()
    assert page.README.read_text() == README


def test_a_page_without_marks_is_told(page) -> None:
    page.PAGE.write_text("nothing\n")
    with pytest.raises(SystemExit, match="lost its marks"):
        page.main()
