"""What the tests found out arrives in docs/reliability.md as it is: passed, failed, or not run."""

from __future__ import annotations

import pytest
import report
from checker import Verdict
from figures import Figures
from pages import page_writer


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REPORTS", tmp_path)
    return page_writer("reliability", tmp_path, monkeypatch)


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
    with Figures("master-kill", "pytest it", "CI") as told:
        told.add(Verdict({}, {"seen lost": 1}, {"tasks": 600}), 2.0)
        told.add(Verdict({}, {"seen lost": 2}, {"tasks": 1_500_000}), 1.0)
    page.main()
    assert row(page, "Master `kill -9`")[-2:] == ["passed, 0 s", "not run"]
    said = page.PAGE.read_text()
    figures = "rounds 2, tasks 1,500,600, slowest end after the last fault, s 2"
    assert f"**master-kill, CI** (`pytest it`): {figures}." in said
    assert "Excused: seen lost 3." in said


def test_a_failed_test_is_a_failure_in_the_table(page):
    with pytest.raises(AssertionError), Figures("master-kill", "pytest it", "long") as told:
        told.add(Verdict({}, {}, {"tasks": 1}), 1.0)
        raise AssertionError("the second round never came to its verdict")
    page.main()
    assert row(page, "Master `kill -9`")[-2:] == ["not run", "**failed**, 0 s"]


@pytest.mark.parametrize(("hours", "says"), [(4_145, "4,145 of 20,000 so far, 0 s"), (20_000, "passed, 0 s")])
def test_what_is_reached_in_several_goes_says_how_far_it_is(page, hours, says):
    with report.Report("simulation", "replay.py --more", is_long=True) as told:
        told.figures["cluster-hours"] = hours
    page.main()
    assert row(page, "Everyone crashes")[-1] == says


def test_a_page_without_its_marks_is_left_alone(page):
    page.PAGE.write_text("mine\n")
    with pytest.raises(SystemExit, match="has lost its marks"):
        page.main()
    assert page.PAGE.read_text() == "mine\n"
