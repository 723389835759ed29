"""Checks that the numbers reconcile and, only if all of them do, writes ``report.md`` and ``report.csv``.

Every row must be accounted for at every step, and the revenue must come out the same by a second way that shares
nothing with the first: in decimals from the cleaned orders, against the whole cents that went through the warehouse.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

import tables

CENT = Decimal("0.01")


class Check(NamedTuple):
    """Two numbers that must be equal."""

    what: str
    left: int
    right: int


class Step(NamedTuple):
    """What one step did to one table or partition."""

    label: str
    read: int
    kept: int
    rejected: dict[str, int]

    @property
    def lost(self) -> int:
        """Rows rejected, for all reasons."""
        return sum(self.rejected.values())


def euros(cents: int) -> str:
    """Cents as people read them."""
    return f"{cents // 100:,}.{cents % 100:02}"


def rows_in(path: Path) -> int:
    """How many rows a table really has."""
    return sum(1 for _ in tables.read_table(path))


def read_step(out: Path, step: str, name: str) -> Step:
    """A step's own account of itself."""
    tally = tables.read_json(out / "tally" / f"{step}-{name}.json")
    read, kept, rejected = tally["read"], tally["kept"], tally["rejected"]
    assert isinstance(read, int) and isinstance(kept, int) and isinstance(rejected, dict)
    return Step(f"{step} {name}", read, kept, rejected)


def check_rows(out: Path, step: str, name: str, delivered: int, account: Step) -> list[Check]:
    """What came in is what was read; what was read is what was kept and rejected, in the files as in the tally."""
    return [
        Check(f"{account.label}: rows in = read", delivered, account.read),
        Check(f"{account.label}: read = kept + rejected", account.read, account.kept + account.lost),
        Check(f"{account.label}: kept = rows in its file", account.kept, rows_in(out / step / f"{name}.csv")),
        Check(
            f"{account.label}: rejected = rows in its file",
            account.lost,
            rows_in(out / "rejected" / f"{step}-{name}.csv"),
        ),
    ]


def revenue_from_orders(out: Path, parts: Iterable[str], rates: dict[str, Decimal]) -> int:
    """The revenue in cents, from the cleaned tables alone."""
    customers = {row[0] for row in tables.read_table(out / "clean" / "customers.csv")}
    products = {row[0] for row in tables.read_table(out / "clean" / "products.csv")}
    total = Decimal(0)
    for name in parts:
        for row in tables.read_table(out / "clean" / f"{name}.csv"):
            _order, _day, customer, product, quantity, price, currency, _channel, _city = row
            if customer in customers and product in products:
                amount = int(quantity) * (Decimal(price) / 100) * rates[currency]
                total += amount.quantize(CENT, ROUND_HALF_UP)
    return int(total * 100)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers unless their header ends with a space."""
    align = [":--" if number == 0 or column.endswith(" ") else "--:" for number, column in enumerate(header)]
    lines = [header, align, *rows]
    return ["| " + " | ".join(str(value).strip() for value in line) + " |" for line in lines] + [""]


def main() -> None:
    """Checks, reports, and hands the report's path on as the task's result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=Path, required=True, help="euros per unit of each currency")
    options = parser.parse_args()
    out: Path = options.out.resolve()

    delivery = tables.read_json(out / "raw" / "delivery.json")
    delivered = delivery["rows"]
    assert isinstance(delivered, dict)
    parts = tables.part_names(out)
    cleaned = {name: read_step(out, "clean", name) for name in ["customers", "products", *parts]}
    joined = {name: read_step(out, "joined", name) for name in parts}

    warehouse = tables.existing(out / "warehouse.sqlite").as_uri() + "?mode=ro"
    with closing(sqlite3.connect(warehouse, uri=True)) as database:
        counts = {
            name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("customers", "products", "sales")
        }
        revenue = database.execute("SELECT * FROM revenue").fetchall()
        best = database.execute("SELECT * FROM best_products").fetchall()
        by_month, by_country, by_category = (
            database.execute(
                f"SELECT {key}, sum(orders), sum(quantity), sum(cents_eur) FROM revenue GROUP BY 1 ORDER BY 1"
            ).fetchall()
            for key in ("month", "country", "category")
        )
        (sold,) = database.execute("SELECT coalesce(sum(cents_eur), 0) FROM sales").fetchone()

    checks = [
        check for name, step in cleaned.items() for check in check_rows(out, "clean", name, delivered[name], step)
    ]
    for name, step in joined.items():
        checks += check_rows(out, "joined", name, cleaned[name].kept, step)
    recomputed = revenue_from_orders(out, parts, tables.read_rates(options.rates))
    checks += [
        Check("warehouse: customers = kept", counts["customers"], cleaned["customers"].kept),
        Check("warehouse: products = kept", counts["products"], cleaned["products"].kept),
        Check("warehouse: sales = kept", counts["sales"], sum(step.kept for step in joined.values())),
        Check("warehouse: orders aggregated = sales", sum(row[1] for row in by_month), counts["sales"]),
        Check("revenue (cents): cleaned orders = sales", recomputed, sold),
        Check("revenue (cents): by month = sales", sum(row[3] for row in by_month), sold),
        Check("revenue (cents): by country = sales", sum(row[3] for row in by_country), sold),
        Check("revenue (cents): by category = sales", sum(row[3] for row in by_category), sold),
    ]
    failed = [check for check in checks if check.left != check.right]
    for check in failed:
        print(f"does not reconcile: {check.what}: {check.left} != {check.right}", file=sys.stderr)
    if failed:
        # A report of numbers that do not add up is worse than none: the last good one stays.
        raise SystemExit(f"{len(failed)} of {len(checks)} checks failed, no report written")

    steps = [*cleaned.values(), *joined.values()]
    reasons = sorted({reason for step in steps for reason in step.rejected})
    lost = {reason: sum(step.rejected.get(reason, 0) for step in steps) for reason in reasons}
    header = ["", "orders", "quantity", "revenue EUR"]
    lines = [
        "# Sales report",
        "",
        f"Seed {delivery['seed']}, {sum(delivered.values()):,} rows delivered in {len(delivered)} files.",
        f"{counts['sales']:,} sales, {euros(sold)} EUR. All {len(checks)} checks passed.",
        "",
        "## Where the rows went",
        "",
        *table(["step", "in", "kept", "rejected"], ((step.label, step.read, step.kept, step.lost) for step in steps)),
        "## Why rows were rejected",
        "",
        *table(["reason", "rows"], lost.items()),
    ]
    for title, key, grouped in (
        ("Revenue by month", "month", by_month),
        ("Revenue by country", "country", by_country),
        ("Revenue by category", "category", by_category),
    ):
        rows = ((name, orders, quantity, euros(cents)) for name, orders, quantity, cents in grouped)
        lines += [f"## {title}", "", *table([key, *header[1:]], rows)]
    top = ((name, category, quantity, euros(cents)) for _key, name, category, quantity, cents in best)
    lines += ["## Best products", "", *table(["product", "category ", "quantity", "revenue EUR"], top)]
    lines += ["## Checks", "", *table(["check", "one way", "the other"], checks)]

    tables.write_table(
        out / "report.csv",
        ["month", "country", "category", "orders", "quantity", "revenue_eur"],
        ([*row[:5], f"{row[5] // 100}.{row[5] % 100:02}"] for row in revenue),
    )
    report = out / "report.md"
    tables.write_text(report, "\n".join(lines).rstrip() + "\n")
    print(f"{counts['sales']} sales, {euros(sold)} EUR, {len(checks)} checks passed")
    if result := os.environ.get("TITAN_RESULT"):
        Path(result).write_text(str(report), encoding="utf-8")


if __name__ == "__main__":
    main()
