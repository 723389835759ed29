"""The comparison with others: every contender keeps the contract, and the table says what was measured.

No peer is installed here: a contender must be able to say what it can do without its system.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

PEERS = Path(__file__).parents[2] / "perf" / "peers"
CONTENDERS = sorted([*PEERS.glob("peer_*.py"), PEERS / "ours.py", PEERS / "limits.py"])
OF_PEERS = [path for path in CONTENDERS if path.stem.startswith("peer_")]
NO_SYSTEM = {"-S": "without site-packages nothing of a peer can be imported"}


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.fixture
def load(monkeypatch):
    """Imports a module of perf/peers, which finds its neighbours; all of them are gone after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PEERS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and PEERS in Path(sys.modules[name].__file__).parents:
            del sys.modules[name]


@pytest.fixture
def contract(load) -> ModuleType:
    return load("contract")


@pytest.fixture
def compare(load) -> ModuleType:
    return load("compare")


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    switches = () if path.stem == "ours" else NO_SYSTEM
    return subprocess.run([sys.executable, *switches, str(path), *arguments], capture_output=True, text=True)


# ---------------------------------------------------------------- the contenders


@pytest.mark.parametrize("path", CONTENDERS, ids=names(CONTENDERS))
def test_a_contender_says_what_it_can_do(path, contract) -> None:
    done = run(path, "--list")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["contender"] == {"ours": "ours", "limits": "limit"}.get(path.stem, path.stem.removeprefix("peer_"))
    assert said["works"] and set(said["works"]) <= set(contract.WORKS)


def test_ours_can_do_every_work(contract) -> None:
    assert json.loads(run(PEERS / "ours.py", "--list").stdout)["works"] == list(contract.WORKS)


@pytest.mark.parametrize("arguments", [(), ("--work", "W99"), ("--frog",)], ids=repr)
@pytest.mark.parametrize("path", CONTENDERS, ids=names(CONTENDERS))
def test_a_contender_refuses_what_it_does_not_know(path, arguments) -> None:
    done = run(path, *arguments)
    assert done.returncode == 2 and "usage:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.py")), ids=lambda path: path.stem)
def test_only_ours_knows_the_house_and_by_its_sdk_alone(path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    of_the_house = {name for name in found if name.split(".")[0] == "titan_fast"}
    allowed = {name for name in of_the_house if name == "titan_fast" or name.startswith("titan_fast.sdk.")}
    assert of_the_house == (allowed if path.stem == "ours" else set())


@pytest.mark.parametrize("path", OF_PEERS, ids=names(OF_PEERS))
def test_a_peer_is_pinned(path) -> None:
    pins = (PEERS / "requirements" / f"{path.stem.removeprefix('peer_')}.txt").read_text().split()
    assert pins and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_there_are_no_pins_without_a_peer(compare) -> None:
    assert sorted(path.stem for path in (PEERS / "requirements").iterdir()) == sorted(compare.PEERS)


@pytest.mark.parametrize(("work", "figures"), [("W1", {"rate"}), ("W3", {"rate"}), ("W4", {"rate"})])
def test_the_limits_can_be_measured(work, figures) -> None:
    done = subprocess.run(
        [sys.executable, str(PEERS / "limits.py"), "--work", work, "--scale", "0.02"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["figures"]) == figures


# ---------------------------------------------------------------- the contract


@pytest.fixture
def quick(contract):
    """A contender that does everything at once, in this process."""

    class Quick(contract.Contender):
        name = "quick"

        def start(self, workers=True):
            self.is_started = True

        def stop(self):
            self.is_started = False

        @classmethod
        def version(cls):
            return "1"

        def map(self, count):
            assert self.is_started
            return range(count)

        def processes(self, commands):
            return [subprocess.run(argv).returncode for argv in commands]

        def call(self, item):
            return item

    return Quick


def test_a_work_has_its_figures(contract, quick) -> None:
    said = contract.measure(quick, "W1", 0.01)
    assert said.keys() == {"contender", "version", "work", "figures"}
    assert said["figures"]["rate"] > 0
    assert contract.measure(quick, "W2", 0.01)["figures"].keys() == {"p50", "p99"}


def test_scripts_are_processes_to_whoever_has_no_better_way(contract, quick) -> None:
    assert contract.measure(quick, "W4", 0.01)["figures"]["rate"] > 0


def test_wrong_results_are_an_error(contract, quick) -> None:
    class Lazy(quick):
        def map(self, count):
            return [0] * count

    with pytest.raises(ValueError, match="wrong results"):
        contract.measure(Lazy, "W1", 0.01)


@pytest.mark.parametrize("work", ["W1s", "W2r", "W5", "W5f", "W6"])
def test_what_it_cannot_do_is_missing(contract, quick, work) -> None:
    said = contract.measure(quick, work, 0.01)
    assert "figures" not in said and said["missing"]


def test_the_answer_is_one_line_whatever_libraries_print(tmp_path) -> None:
    program = tmp_path / "loud.py"
    program.write_text(
        "import os, contract\n"
        "class Loud(contract.Contender):\n"
        "    name, version, start, stop = 'loud', lambda: '1', lambda *_: None, lambda _: None\n"
        "    def map(self, count):\n"
        "        print('libraries talk', flush=True), os.system('echo so do programs')\n"
        "        return range(count)\n"
        "contract.main(Loud)\n"
    )
    argv = [sys.executable, str(program), "--work", "W1", "--scale", "0.01"]
    done = subprocess.run(argv, env={"PYTHONPATH": str(PEERS)}, capture_output=True, text=True)
    assert json.loads(done.stdout)["contender"] == "loud"
    assert "libraries talk" in done.stderr and "so do programs" in done.stderr


def test_told_to_end_it_stops_what_it_started(tmp_path) -> None:
    """The contender's process writes its id when it is up, and the contender waits for ever."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import contract, pathlib, signal\n"
        "class Slow(contract.Contender):\n"
        "    name, version = 'slow', lambda: '1'\n"
        "    def start(self, workers=True):\n"
        "        self.part = contract.start(['sleep', '1000'], self.folder / 'log')\n"
        "    def stop(self):\n"
        "        contract.end(self.part)\n"
        "    def map(self, count):\n"
        "        print(self.part.pid, flush=True)\n"
        "        signal.pause()\n"
        "contract.main(Slow)\n"
    )
    argv = [sys.executable, str(program), "--work", "W1"]
    process = subprocess.Popen(argv, env={"PYTHONPATH": str(PEERS)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    part = int(process.stderr.readline())
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(part, 0)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1)])
def test_a_percentile_is_a_value_that_was_measured(contract, percent, value) -> None:
    assert contract.percentile(range(1, 101), percent) == value


# ---------------------------------------------------------------- the comparison


class Scripted:
    """Contenders whose answers are given: by name the figures of W3, one after the other, or what went wrong."""

    def __init__(self, **answers) -> None:
        self.asked = []
        self._answers = {name: iter(values) for name, values in answers.items()}

    def measure(self, name, work):
        self.asked.append(name)
        answer = next(self._answers[name])
        return answer if isinstance(answer, dict) else {"version": "1", "figures": {"rate": answer}}


def rows_of(compare, contenders, others, rounds) -> tuple[list[dict], object]:
    results = compare.Results()
    compare.measure(results, contenders, others, ["W3"], rounds)
    return compare.summary(results, [name for name in others if name != "limit"], ["W3"]), results


def test_ratios_are_of_neighbours(compare) -> None:
    """The machine was slower or faster in each round, which is not what a ratio should be of."""
    contenders = Scripted(ours=[100, 300, 40], ray=[50, 100, 10])
    (row,), _ = rows_of(compare, contenders, ["ray"], 3)
    assert contenders.asked == ["ray", "ours", "ours", "ray", "ray", "ours"]
    assert (row["ours"], row["peers"], row["best"], row["ratio"]) == (100, {"ray": 50}, "ray", 3.0)


def test_ours_runs_beside_each_of_them(compare) -> None:
    contenders = Scripted(ours=[90, 80, 100], limit=[100], ray=[20], hyperqueue=[50])
    (row,), _ = rows_of(compare, contenders, ["limit", "ray", "hyperqueue"], 1)
    assert (row["ours"], row["limit"], row["best"], row["ratio"]) == (90, 100, "hyperqueue", 2.0)
    assert row["asked"] == [
        {"text": "≥ 75 % of limit", "holds": True, "short": pytest.approx(0.75 / 0.9)},
        {"text": "≥ 2.5 × hyperqueue", "holds": False, "short": 1.25},
    ]


def test_what_failed_is_told_and_not_tried_again(compare) -> None:
    contenders = Scripted(ours=[90, 80, 90, 80], limit=[100, 100], ray=[{"failed": "it fell over"}])
    (row,), results = rows_of(compare, contenders, ["limit", "ray"], 2)
    assert results.missing == {"ray": {"W3": "it fell over"}}
    assert contenders.asked.count("ray") == 1
    assert row["peers"] == {} and row["best"] is None and row["ratio"] is None


def test_ours_runs_beside_nobody_who_cannot(compare) -> None:
    """And by itself where nobody else can."""
    results = compare.Results()
    results.missing = {"limit": {"W3": "no such thing"}, "ray": {"W3": "no such thing", "W4": "no such thing"}}
    contenders = Scripted(ours=[90, 80, 70], limit=[100])
    compare.measure(results, contenders, ["limit", "ray"], ["W3", "W4"], 1)
    assert contenders.asked == ["ours", "limit", "ours"]


def test_what_ours_cannot_do_yet_is_no_crash_and_holds_nothing(compare) -> None:
    contenders = Scripted(ours=[{"version": "1", "missing": "not there yet"}], limit=[100], ray=[10])
    rows, _ = rows_of(compare, contenders, ["limit", "ray"], 1)
    assert [item["holds"] for item in rows[0]["asked"]] == [None, None]
    (head, line) = compare.table(rows, ["ray"])
    cells = [cell.strip() for cell in line.split("|")]
    assert len(cells) == head.count("|") + 1
    assert cells[2:7] == ["-", "100 /s", "10 /s", "-", "≥ 75 % of limit, ≥ 2.5 × hyperqueue"]
    assert cells[7] == "?, ?"


def test_a_time_is_better_when_it_is_shorter(load) -> None:
    asked = load("asked")
    trip = next(figure for figure in asked.FIGURES if figure.key == ("W2", "p50"))
    assert trip.ratio(0.5, 2.0) == 4.0
    assert trip.text(trip.asked[0]) == "≤ 6 × limit"
    assert next(f.text(f.asked[0]) for f in asked.FIGURES if f.key.work == "W6") == "≤ 100 B"


def test_what_is_asked_can_be_measured(load, compare) -> None:
    asked, contract = load("asked"), load("contract")
    assert {figure.key.work for figure in asked.FIGURES} | {"W8"} == set(contract.WORKS)
    of = {item.of for figure in asked.FIGURES for item in figure.asked}
    assert of <= {"", asked.BEST, asked.LIMIT, *compare.PEERS}


@pytest.fixture
def diamond(tmp_path, monkeypatch):
    """A folder with our own small instance: 1 s, then 2.5 and 4 s beside each other, then 0.5 s."""
    folder = tmp_path / "instances"
    folder.mkdir()
    (folder / "diamond.json").write_bytes((PEERS.parents[1] / "tests/data/diamond.wfformat.json").read_bytes())
    monkeypatch.setenv("TITAN_FAST_WFINSTANCES", str(folder))
    return folder / "diamond.json"


def test_what_is_possible_with_a_workflow_is_computed(load, diamond) -> None:
    (instance,) = load("instances").find()
    assert (instance.name, instance.runtimes, instance.edges) == ("diamond", [1.0, 2.5, 4.0, 0.5], 4)
    assert [(instance.floor(slots), instance.greedy(slots)) for slots in (16, 1)] == [(5.5, 5.5), (8.0, 8.0)]


@pytest.fixture
def twins(diamond):
    """Two tasks that end together, and what waited for either: the first in the file goes first, with two slots."""
    place = diamond.with_name("twins.json")
    runtimes = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 5}
    parents = {"c": ["b"], "d": ["b"], "e": ["a"]}
    specified = [{"id": name, "parents": parents.get(name, []), "children": []} for name in runtimes]
    executed = [{"id": name, "runtimeInSeconds": seconds} for name, seconds in runtimes.items()]
    workflow = {"specification": {"tasks": specified}, "execution": {"tasks": executed}}
    place.write_text(json.dumps({"name": "twins", "schemaVersion": "1.5", "workflow": workflow}))
    return place


def test_of_what_became_ready_together_the_first_goes_first(load, twins) -> None:
    assert load("instances").read(twins).greedy(2) == 7.0


def test_the_house_computes_the_same(load, diamond, twins) -> None:
    from titan_fast.model import wfformat

    places = [diamond, twins, *sorted((PEERS.parents[2] / "shared" / "wfinstances").glob("*.json"))]
    for instance, other in ((load("instances").read(place), wfformat.load_instance(place)) for place in places):
        assert instance.edges == other.edges
        for slots in (1, 2, 16):
            assert instance.greedy(slots) == pytest.approx(wfformat.greedy_makespan(other, slots))
            assert instance.floor(slots) == pytest.approx(wfformat.floor(other, slots))


@pytest.mark.smoke
def test_ours_replays_a_workflow(diamond) -> None:
    """At a hundredth of its size: 0.2 s."""
    said = {}
    for name in ("ours", "limits"):
        argv = [sys.executable, str(PEERS / f"{name}.py"), "--work", "W8", "--scale", "0.01"]
        environ = {**os.environ, "PYTHONPATH": str(PEERS.parents[1])}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[name] = json.loads(done.stdout)["figures"]
    assert said["limits"] == {"diamond": pytest.approx(0.2)}
    assert said["ours"]["diamond"] >= 0.2


def test_a_replay_is_told_as_a_part_of_what_is_possible(compare, diamond) -> None:
    results = compare.Results()
    contenders = Scripted(
        ours=[{"figures": {"diamond": 22.0}}, {"figures": {"diamond": 20.5}}, {"figures": {"diamond": 20.8}}],
        limit=[{"figures": {"diamond": 20.0}}] * 3,
    )
    compare.measure(results, contenders, ["limit"], ["W8"], 3)
    (row,) = compare.replays(results, ["W8"], 1.0)
    assert row["efficiency"] == pytest.approx(20 / 20.8)
    assert row["asked"] == {"text": "≥ 95 %", "holds": True, "short": pytest.approx(0.95 * 20.8 / 20)}
    assert (row["tasks"], row["floor"], row["wall"]) == (4, pytest.approx(20.0), 20.8)
    cells = [cell.strip() for cell in compare.replay_table([row])[1].split("|")]
    assert cells == ["diamond", "4", "20 s", "20 s", "20.8 s", "96.2 %", "≥ 95 %", "yes"]
    assert compare.replays(results, ["W3"], 1.0) == []


def test_without_instances_nothing_is_replayed_and_that_is_said(contract, compare, diamond) -> None:
    diamond.unlink()
    said = contract.measure(importlib.import_module("limits").Limits, "W8", 0.01)
    assert "there are no instances in" in said["missing"] and "TITAN_FAST_WFINSTANCES" in said["missing"]
    assert compare.replays(compare.Results(), ["W8"], 1.0) == []


def test_a_file_that_is_no_instance_is_refused(compare, diamond, capsys) -> None:
    diamond.write_text("{}")
    with pytest.raises(SystemExit):
        compare.read_options([])
    assert "diamond.json is no WfFormat 1.5 instance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frog"], "no peer 'frog'"),
        (["--work", "W1,W99"], "no work 'W99'"),
        (["--rounds", "0"], "--rounds"),
        (["--scale", "2"], "--scale"),
    ],
)
def test_what_it_does_not_know_is_refused(compare, capsys, arguments, says) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.read_options(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_ctrl_c_shows_what_there_is_and_leaves_no_report(compare, tmp_path, monkeypatch, capsys) -> None:
    def interrupted(self, name, work):
        if name == "ours":
            raise KeyboardInterrupt
        return {"version": "1", "figures": {"rate": 1234.0}}

    monkeypatch.setattr(compare.Contenders, "measure", interrupted)
    monkeypatch.setattr(compare, "REPORT", tmp_path / "peers.json")
    assert compare.main(["none", "--work", "W3", "--dir", str(tmp_path)]) == 130
    assert "1,234 /s" in capsys.readouterr().out
    assert not (tmp_path / "peers.json").exists()


def test_the_report_has_what_the_page_reads(compare, tmp_path, monkeypatch, capsys) -> None:
    """A promise that does not hold is exit code 1, as in the gate."""
    monkeypatch.setattr(
        compare.Contenders, "measure", lambda self, name, work: {"version": "1", "figures": {"rate": 1000.0}}
    )
    monkeypatch.setattr(compare, "environment", lambda name, folder: "python")
    monkeypatch.setattr(compare, "REPORT", tmp_path / "peers.json")
    assert compare.main(["hyperqueue", "--work", "W3", "--rounds", "1", "--dir", str(tmp_path)]) == 1
    monkeypatch.syspath_prepend(str(PEERS.parents[1] / "docs"))
    import msgspec

    performance = importlib.import_module("performance")
    report = msgspec.json.decode((tmp_path / "peers.json").read_bytes(), type=performance.Comparison)
    assert [item.short for item in report.rows[0].asked] == [0.75, 2.5]
    assert report.value("W3", "rate") == report.value("W3", "rate", "hyperqueue") == 1000.0
    assert [item.holds for item in report.rows[0].asked] == [True, False]


def test_a_contender_that_fails_leaves_its_last_word(compare, tmp_path) -> None:
    contenders = compare.Contenders({"ray": sys.executable}, tmp_path, 1.0)
    said = contenders.measure("ray", "W1")
    assert "No package metadata was found for ray" in said["failed"] and "ray-W1.log" in said["failed"]


def test_a_contender_that_takes_too_long_is_ended_and_so_told(compare, tmp_path, monkeypatch) -> None:
    """It says its id before it waits for ever."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    monkeypatch.setitem(compare.WORKS, "W1", compare.WORKS["W1"]._replace(patience=2.0))
    (tmp_path / "peer_ray.py").write_text(
        "import os, pathlib, signal\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "signal.pause()\n"
    )
    began = time.monotonic()
    said = compare.Contenders({"ray": sys.executable}, tmp_path, 1.0).measure("ray", "W1")
    assert 2 <= time.monotonic() - began < 15
    assert said == {"failed": "ended by the time limit of 2 s"}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_every_work_has_a_time_limit(contract) -> None:
    assert all(0 < work.patience <= 600 for work in contract.WORKS.values())


def test_all_peers_are_measured_when_none_is_named(compare) -> None:
    assert compare.read_options([]).peers == ["celery", "dask", "dramatiq", "hyperqueue", "ray", "taskiq"]


def test_a_peer_that_cannot_be_installed_is_left_out(load, compare, tmp_path, monkeypatch, capsys) -> None:
    def refuse(name, folder):
        if name == "ray":
            raise load("install").NotInstalled("no network")
        return "python"

    monkeypatch.setattr(compare, "environment", refuse)
    assert compare.install(["dask", "ray"], tmp_path) == ({"dask": "python"}, {"ray": "no network"})
    assert "ray is left out: no network" in capsys.readouterr().err
