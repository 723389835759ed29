"""What the tests found out arrives in docs/reliability.md as it is: passed, failed, or not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import report as reports
from checker import Verdict
from figures import Figures


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The program that writes the page, with reports and a page of the test's own."""
    path = Path(__file__).parents[2] / "docs" / "reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(reports, "REPORTS", tmp_path)
    monkeypatch.setattr(program, "REPORTS", tmp_path)
    monkeypatch.setattr(program, "PAGE", tmp_path / "page.md")
    marks = [f"{program.BEGIN.format(name)}\nFROM LAST TIME\n{program.END.format(name)}" for name in program.TABLES]
    program.PAGE.write_text("\n\n".join(["before", *marks, "after\n"]))
    return program


def row(page, what):
    (line,) = [line for line in page.PAGE.read_text().splitlines() if what in line and line.startswith("|")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_test_that_nobody_ran_is_not_run(page):
    page.main()
    assert row(page, "Master `kill -9`")[-2:] == ["not run", "not run"]
    text = page.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "FROM LAST TIME" not in text


def test_rounds_are_summed_and_reasons_are_told(page):
    with Figures("master-kill", "pytest it", "CI") as report:
        report.add(Verdict({}, {"seen lost": 1}, {"tasks": 600}), 2.0)
        report.add(Verdict({}, {"seen lost": 2}, {"tasks": 1_500_000}), 1.0)
    page.main()
    assert row(page, "Master `kill -9`")[-2:] == ["passed, 0 s", "not run"]
    said = page.PAGE.read_text()
    figures = "rounds 2, tasks 1,500,600, slowest end after the last fault, s 2"
    assert f"**master-kill, CI** (`pytest it`): {figures}." in said
    assert "Excused: seen lost 3." in said


def test_a_failed_test_is_a_failure_in_the_table(page):
    with pytest.raises(AssertionError), Figures("master-kill", "pytest it", "long") as report:
        report.add(Verdict({}, {}, {"tasks": 1}), 1.0)
        raise AssertionError("the second round never came to its verdict")
    page.main()
    assert row(page, "Master `kill -9`")[-2:] == ["not run", "**failed**, 0 s"]


def test_a_page_without_its_marks_is_left_alone(page):
    page.PAGE.write_text("mine\n")
    with pytest.raises(SystemExit, match="has lost its marks"):
        page.main()
    assert page.PAGE.read_text() == "mine\n"
