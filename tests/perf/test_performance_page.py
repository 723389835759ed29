"""What the comparison found arrives in docs/performance.md as it is, and nothing that was not measured does."""

from __future__ import annotations

import json

import pytest
from pages import DOCS, page_writer


@pytest.fixture
def page(tmp_path, monkeypatch):
    return page_writer("performance", tmp_path, monkeypatch)


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
    page.main()
    figures = ["1,800", "2,000", "738", "2.44 × ray", "≥ 75 % of limit<br>≥ 6 × best peer", "yes<br>**no**"]
    assert cells(page, "W3") == ["W3", "title, /s", *figures]
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
    for mark in ("peers", "conditions", "microseconds", "path", "gate", "own benchmarks"):
        assert f"<!-- {mark}: written by" in text and f"<!-- end of the {mark} -->" in text


def test_a_page_without_marks_is_told(page) -> None:
    page.PAGE.write_text("nothing\n")
    with pytest.raises(SystemExit, match="lost its marks"):
        page.main()
