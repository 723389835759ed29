"""The performance gate: it prints one table, and it can turn red."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PERF = Path(__file__).parents[2] / "perf"


@pytest.fixture
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate", PERF / "gate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two benchmarks that measure at once, and their promises."""
    folder = tmp_path / "perf"
    folder.mkdir()
    (folder / "bench_a.py").write_text('def measure():\n    return {"speed": 2.0, "growth": 1.1}\n')
    (folder / "bench_b.py").write_text('def measure():\n    return {"calls": 12.0, "seconds": 9.0}\n')
    (folder / "budgets.toml").write_text(
        '[speed]\nkind = "ratio"\nmin = 1.6\n[growth]\nkind = "growth"\nmax = 1.5\n[calls]\nkind = "count"\nmax = 12\n'
        '[seconds]\nkind = "absolute"\nmachine = "reference"\nmax = 3\n'
    )
    return folder


def report(folder: Path) -> Path:
    return folder.parent / "build" / "reports" / "gate.json"


def test_kept_promises_are_one_table(gate, folder, capsys) -> None:
    assert gate.main(folder) == 0
    *printed, took = capsys.readouterr().out.splitlines()
    lines = [[cell.strip() for cell in line.split("|")] for line in printed]
    assert lines == [
        ["name", "measured", "promise", "headroom"],
        ["calls", "12.000", "<= 12", "+0%"],
        ["growth", "1.100", "<= 1.5", "+27%"],
        ["seconds", "9.000", "<= 3", "only on reference"],
        ["speed", "2.000", ">= 1.6", "+25%"],
    ]
    left = json.loads(report(folder).read_text())
    assert [list(row.values()) for row in left["figures"]] == lines[1:]
    assert took.startswith("took ") and 0 <= left["seconds"] < 60


@pytest.mark.parametrize(
    ("switch", "says"), [("speed", "speed: 0.200"), ("growth:2", "growth: 2.200"), ("calls:1.1", "calls")]
)
def test_the_slow_down_switch_turns_it_red(gate, folder, monkeypatch, capsys, switch, says) -> None:
    monkeypatch.setenv("TITAN_FAST_SLOWDOWN", switch)
    assert gate.main(folder) == 1
    out = capsys.readouterr()
    assert "BROKEN" in out.out and says in out.err
    assert not report(folder).exists(), "it was not what was measured"


@pytest.mark.parametrize(("slow", "code"), [(2, 0), (3, 1)])
def test_a_broken_promise_is_measured_again_twice(gate, folder, capsys, slow, code) -> None:
    """``slow``: of so many measurements, from the first on."""
    (folder / "bench_a.py").write_text(
        "runs = 0\n\ndef measure():\n    global runs\n    runs += 1\n"
        f'    return {{"speed": 1.0 if runs <= {slow} else 3.0, "growth": 1.1}}\n'
    )
    assert gate.main(folder) == code
    assert ("BROKEN" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        ("sped", "no promise about 'sped' (did you mean speed?)"),
        ("speed:fast", "'fast' is no factor"),
        ("speed:0", "'0' is no factor"),
        ("speed:nan", "'nan' is no factor"),
        (":3", "no promise about ''"),
    ],
)
def test_a_switch_that_says_nothing_is_refused_before_anything_is_measured(
    gate, folder, monkeypatch, capsys, switch, said
) -> None:
    (folder / "bench_a.py").write_text('raise SystemExit("it was measured")\n')
    monkeypatch.setenv("TITAN_FAST_SLOWDOWN", switch)
    assert gate.run([str(folder)]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == ""


def test_a_switch_for_what_nobody_measures_is_red(gate, folder, monkeypatch, capsys) -> None:
    (folder / "bench_b.py").unlink()
    monkeypatch.setenv("TITAN_FAST_SLOWDOWN", "calls")
    assert gate.main(folder) == 1
    assert "NOT MEASURED" in capsys.readouterr().out


def test_a_folder_without_benchmarks_is_a_line(gate, tmp_path, capsys) -> None:
    assert gate.run([str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert "nowhere" in told and "No such file" in told and told.count("\n") == 1


def test_promises_that_cannot_be_read_are_a_line(gate, folder, capsys) -> None:
    (folder / "budgets.toml").write_text("[speed\n")
    assert gate.run([str(folder)]) == 2
    assert capsys.readouterr().err.startswith("gate: ")


def test_absolute_promises_bind_on_their_machine(gate, folder, monkeypatch) -> None:
    monkeypatch.setenv("TITAN_FAST_MACHINE", "reference")
    assert gate.main(folder) == 1


def test_a_measurement_without_a_promise_is_red(gate, folder, capsys) -> None:
    (folder / "bench_c.py").write_text('def measure():\n    return {"new": 1.0}\n')
    assert gate.main(folder) == 1
    assert "NO PROMISE" in capsys.readouterr().out


def test_a_promise_without_a_measurement_is_red(gate, folder, capsys) -> None:
    (folder / "bench_b.py").unlink()
    assert gate.main(folder) == 1
    assert "NOT MEASURED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row",
    [
        'kind = "fast"\nmax = 1',
        'kind = "ratio"',
        'kind = "ratio"\nmin = 1\nmax = 2',
        'kind = "absolute"\nmax = 2',
        'kind = "ratio"\nmax = 2\nmachine = "m"',
    ],
)
def test_a_promise_must_say_something(gate, tmp_path, row) -> None:
    (tmp_path / "budgets.toml").write_text(f"[x]\n{row}\n")
    with pytest.raises(ValueError, match="x:"):
        gate.main(tmp_path)


def test_a_figure_belongs_to_one_benchmark(gate, folder) -> None:
    (folder / "bench_c.py").write_text('def measure():\n    return {"speed": 1.0}\n')
    with pytest.raises(ValueError, match="twice"):
        gate.main(folder)


def test_the_promises_of_the_house_can_be_read(gate) -> None:
    assert gate.read_budgets(PERF / "budgets.toml")
