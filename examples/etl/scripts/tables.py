"""Where the pipeline's tables lie under ``out``, and how they are read and written.

Tasks of one run may be on different workers, each with its own working copy of the project, so everything they
hand on lies under the one absolute folder ``out``. A file appears there by a rename, whole or not at all: a retry,
a second run or an attempt that was killed half way never shows a reader half a table.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

CUSTOMERS = ["customer_id", "name", "email", "country", "joined_on"]
PRODUCTS = ["product_id", "name", "category", "list_price"]
ORDERS = [
    "order_id",
    "ordered_on",
    "customer_id",
    "product_id",
    "quantity",
    "unit_price",
    "currency",
    "channel",
    "city",
]
# Of a cleaned order, and of a sale, prices and amounts are whole cents: sums of floats depend on their order.
SALES = ["order_id", "ordered_on", "customer_id", "product_id", "quantity", "channel", "currency", "cents", "cents_eur"]

COLUMNS = {"customers": CUSTOMERS, "products": PRODUCTS, "orders": ORDERS}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; the file written there becomes ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The fence is new for every attempt, so a retry never shares a name with an attempt that is still dying.
    temporary = path.with_name(f".{path.name}.{os.environ.get('TITAN_FENCE', 'direct')}-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Writes a document with sorted keys: equal content is equal bytes."""
    write_text(path, json.dumps(document, indent=2, sort_keys=True) + "\n")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV table with its header, in UTF-8."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def existing(path: Path) -> Path:
    """The path, or an exit that says what is probably wrong."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: is --out one absolute folder that every worker of this run can see?")
    return path


def read_json(path: Path) -> dict[str, object]:
    """Reads a document that another task wrote."""
    document: dict[str, object] = json.loads(existing(path).read_text(encoding="utf-8"))
    return document


def read_table(path: Path) -> Iterator[list[str]]:
    """The rows of a table that another task wrote, without its header."""
    with existing(path).open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        yield from reader


def read_rates(path: Path) -> dict[str, Decimal]:
    """Euros per unit of each currency, four decimals; the table ships with the project."""
    return {currency: Decimal(rate) for currency, rate in read_table(path)}


def part_names(out: Path) -> list[str]:
    """The order partitions of this delivery. Not a glob: an earlier run may have left more of them."""
    parts = read_json(out / "raw" / "delivery.json")["parts"]
    assert isinstance(parts, int)
    return [f"orders-{part}" for part in range(1, parts + 1)]


def write_outcome(
    out: Path,
    step: str,
    name: str,
    *,
    read: int,
    kept: Sequence[Sequence[object]],
    kept_columns: Sequence[str],
    rejected: Sequence[Sequence[object]],
    columns: Sequence[str],
) -> None:
    """Writes what a step kept and what it rejected and, last, the tally of both.

    Args:
        step: ``clean`` or ``joined``, the folder of the kept rows.
        name: The table or partition.
        read: Rows read, counted at the source and not from the two lists: the report checks that they add up.
        rejected: Rows that begin with the reason and the line in the step's input.
        columns: The columns of the input.
    """
    write_table(out / step / f"{name}.csv", kept_columns, kept)
    write_table(out / "rejected" / f"{step}-{name}.csv", ["reason", "line", *columns], rejected)
    reasons = Counter(str(row[0]) for row in rejected)
    write_json(out / "tally" / f"{step}-{name}.json", {"read": read, "kept": len(kept), "rejected": reasons})
    print(f"{step} {name}: {len(kept)} kept, {len(rejected)} rejected {dict(sorted(reasons.items()))}")
