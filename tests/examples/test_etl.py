"""The ETL example without titan-fast: its scripts, with the arguments of ``etl.yaml``, in the order of its ``needs``.

Each task runs in another working copy of the project than the one before, as on different workers: what passes here
hands its data on through ``out`` alone.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2] / "examples" / "etl"
GRAPH = yaml.safe_load((PROJECT / "etl.yaml").read_text(encoding="utf-8"))
ROWS = 3000


@dataclass
class Pipeline:
    """One delivery, worked on in two copies of the project."""

    copies: list[Path]
    out: Path
    seed: int = 7
    rows: int = ROWS
    ran: list[str] = field(default_factory=list)

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each task's name and command, matrices expanded, parents first."""
        tasks = {task["id"]: task for task in GRAPH["tasks"]}
        inputs = {**GRAPH["inputs"], "out": self.out, "seed": self.seed, "rows": self.rows}
        found = []
        for name in TopologicalSorter({name: task.get("needs", []) for name, task in tasks.items()}).static_order():
            task = tasks[name]
            ((axis, values),) = task.get("matrix", {"none": [None]}).items()
            for value in values:
                known = {f"inputs.{key}": each for key, each in inputs.items()} | {f"matrix.{axis}": value}
                args = [
                    re.sub(r"\$\{(.+?)\}", lambda match, known=known: str(known[match[1]]), a) for a in task["args"]
                ]
                found.append((name if value is None else f"{name}[{value}]", [task["file"], *args]))
        return found

    def run_task(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs one task to its end, whatever that is."""
        copy = self.copies[len(self.ran) % len(self.copies)]
        self.ran.append(name)
        # A fresh hash seed for each process: determinism must not hang on the order of a set. ASCII: nor on a locale.
        environment = {**os.environ, "TITAN_RESULT": str(self.result), "PYTHONHASHSEED": "random", "LC_ALL": "C"}
        command = [sys.executable, *dict(self.commands())[name]]
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=60)

    def run(self) -> Pipeline:
        """Runs every task; each must succeed."""
        for name, _command in self.commands():
            done = self.run_task(name)
            assert done.returncode == 0, f"{name}: {done.stderr}"
        return self

    @property
    def result(self) -> Path:
        """The file that TITAN_RESULT names."""
        return self.out.parent / f"{self.out.name}.result"

    def files(self) -> dict[str, bytes]:
        """Everything under ``out``."""
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}

    def rows_of(self, name: str) -> list[dict[str, str]]:
        """The rows of a table under ``out``."""
        with (self.out / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def json(self, name: str) -> dict:
        """A document under ``out``."""
        return json.loads((self.out / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("copies")
    ignore = shutil.ignore_patterns("__pycache__", "build")
    return [shutil.copytree(PROJECT, root / name, ignore=ignore) for name in ("one", "two")]


@pytest.fixture(scope="module")
def finished(copies, tmp_path_factory) -> Pipeline:
    """A finished pipeline, to look at."""
    return Pipeline(copies, tmp_path_factory.mktemp("finished") / "out").run()


@pytest.fixture
def spoilable(finished, tmp_path) -> Pipeline:
    """A finished pipeline of one's own, to do harm to."""
    return Pipeline(finished.copies, Path(shutil.copytree(finished.out, tmp_path / "out")))


def test_the_graph_is_as_large_as_its_readme_says(finished):
    assert len(finished.commands()) == 13
    parts = {tuple(task["matrix"]["part"]) for task in GRAPH["tasks"] if "part" in task.get("matrix", {})}
    assert parts == {tuple(range(1, finished.json("raw/delivery.json")["parts"] + 1))}


def test_the_result_is_the_path_of_the_report(finished):
    assert finished.result.read_text(encoding="utf-8") == str(finished.out / "report.md")
    assert "checks passed" in (finished.out / "report.md").read_text(encoding="utf-8")


def test_nothing_is_written_outside_out(finished):
    for copy in finished.copies:
        written = {path for path in copy.rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert {str(path.relative_to(copy)) for path in written} <= {
            str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*")
        }


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    again = Pipeline(finished.copies[::-1], tmp_path / "elsewhere").run()
    assert again.files() == finished.files()


def test_another_seed_gives_other_data_that_reconciles_too(finished, tmp_path):
    other = Pipeline(finished.copies, tmp_path / "out", seed=8).run()
    assert other.files()["report.csv"] != finished.files()["report.csv"]


def test_every_row_is_kept_or_rejected(finished):
    delivered = finished.json("raw/delivery.json")["rows"]
    for name, rows in delivered.items():
        kept, rejected = finished.rows_of(f"clean/{name}.csv"), finished.rows_of(f"rejected/clean-{name}.csv")
        # The bytes themselves: no value of the export contains a line break.
        assert rows == (finished.out / "raw" / f"{name}.csv").read_bytes().count(b"\r\n") - 1
        assert rows == len(kept) + len(rejected)
        if name.startswith("orders"):
            sold, orphans = finished.rows_of(f"joined/{name}.csv"), finished.rows_of(f"rejected/joined-{name}.csv")
            assert len(kept) == len(sold) + len(orphans)


def test_exactly_the_planted_dirt_is_rejected(finished):
    found: dict[str, Counter[str]] = {}
    for path in (finished.out / "rejected").glob("*.csv"):
        step, table, *_part = path.stem.split("-")
        reasons = Counter(row["reason"] for row in finished.rows_of(f"rejected/{path.name}"))
        found.setdefault("joined" if step == "joined" else table, Counter()).update(reasons)
    planted = finished.json("raw/planted.json")
    assert found == planted
    assert planted["orders"].keys() == {
        "bad_date",
        "bad_encoding",
        "bad_price",
        "bad_quantity",
        "duplicate",
        "missing_customer",
        "truncated",
        "unknown_currency",
    }


def test_what_can_be_repaired_is(finished):
    raw = b"".join((finished.out / "raw" / f"orders-{part}.csv").read_bytes() for part in (1, 2, 3, 4))
    assert b"K\xf6ln" in raw and "Köln".encode() in raw and b"\xef\xbb\xbf" in raw and b"WEB" in raw
    orders = [row for part in (1, 2, 3, 4) for row in finished.rows_of(f"clean/orders-{part}.csv")]
    assert {row["currency"] for row in orders} == {"EUR", "USD", "GBP", "SEK", "CHF"}
    assert {row["channel"] for row in orders} == {"web", "app", "shop", "phone"}
    assert all(re.fullmatch(r"2024-\d\d-\d\d", row["ordered_on"]) for row in orders)
    assert len({row["order_id"] for row in orders}) == len(orders)
    assert {"Köln", "Zürich", "Łódź"} < {row["city"] for row in orders}
    assert len({row["city"] for row in orders}) == 11
    customers = finished.rows_of("clean/customers.csv")
    assert {row["country"] for row in customers} == {"DE", "FR", "ES", "SE", "NO", "GB", "IT", "CH"}
    assert any("ü" in row["name"] for row in customers) and not any("�" in row["name"] for row in customers)


def test_the_warehouse_holds_every_sale(finished):
    with closing(sqlite3.connect(finished.out / "warehouse.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        stored = database.execute("SELECT order_id, cents_eur FROM sales ORDER BY 1").fetchall()
    sales = [row for part in (1, 2, 3, 4) for row in finished.rows_of(f"joined/orders-{part}.csv")]
    assert stored == sorted((row["order_id"], int(row["cents_eur"])) for row in sales)
    reported = sum(round(float(row["revenue_eur"]) * 100) for row in finished.rows_of("report.csv"))
    assert reported == sum(cents for _order, cents in stored) > 0


def test_a_second_run_over_the_same_output_is_harmless(spoilable, finished):
    # What an attempt that was killed, and a run with more partitions, leave behind.
    (spoilable.out / "clean" / ".orders-1.csv.1.7-4711.tmp").write_bytes(b"order_id,ordered_on\nO1,")
    shutil.copy(spoilable.out / "joined" / "orders-1.csv", spoilable.out / "joined" / "orders-9.csv")
    spoilable.run()
    assert {name: spoilable.files()[name] for name in finished.files()} == finished.files()


@pytest.mark.parametrize("name", [name for name, _ in Pipeline([], Path("out")).commands()])
def test_a_task_may_run_again_alone(spoilable, finished, name):
    assert spoilable.run_task(name).returncode == 0
    assert spoilable.files() == finished.files()


def test_a_smaller_delivery_replaces_a_larger_one(spoilable, copies, tmp_path):
    spoilable.rows = 400
    fresh = Pipeline(copies, tmp_path / "fresh", rows=400).run()
    assert spoilable.run().files() == fresh.files()


def test_a_failed_attempt_leaves_the_last_good_files(spoilable):
    part = spoilable.out / "joined" / "orders-3.csv"
    # The database refuses this row after two partitions have been loaded.
    part.write_text(part.read_text(encoding="utf-8") + "O1,2024-01-01,nobody,nothing,1,web,EUR,1,1\n", encoding="utf-8")
    before = spoilable.files()
    assert spoilable.run_task("aggregate").returncode == 1
    assert spoilable.files() == before


def drop_last_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def one_cent_more(path: Path) -> None:
    head, _, tail = path.read_text(encoding="utf-8").rstrip("\n").rpartition(",")
    path.write_text(f"{head},{int(tail) + 1}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "name", "again", "complaint"),
    [
        (drop_last_line, "raw/orders-2.csv", "clean-orders[2]", "clean orders-2: rows in = read"),
        (drop_last_line, "clean/orders-2.csv", "join[2]", "joined orders-2: rows in = read"),
        (drop_last_line, "rejected/clean-customers.csv", None, "clean customers: rejected = rows in its file"),
        (drop_last_line, "joined/orders-2.csv", "aggregate", "warehouse: sales = kept"),
        (one_cent_more, "joined/orders-2.csv", "aggregate", "revenue (cents): cleaned orders = sales"),
    ],
)
def test_numbers_that_do_not_add_up_fail_the_report(spoilable, spoil, name, again, complaint):
    spoil(spoilable.out / name)
    if again:
        assert spoilable.run_task(again).returncode == 0
    before = spoilable.files()
    report = spoilable.run_task("report")
    assert report.returncode == 1
    assert f"does not reconcile: {complaint}" in report.stderr
    assert spoilable.files() == before and not spoilable.result.exists()


def test_a_folder_that_other_workers_do_not_see_is_named(copies, tmp_path):
    alone = Pipeline(copies, tmp_path / "out").run_task("clean-orders[1]")
    assert alone.returncode == 1
    assert "orders-1.csv is missing: is --out one absolute folder" in alone.stderr
    assert "Traceback" not in alone.stderr
