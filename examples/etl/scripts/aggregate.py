"""Loads customers, products and sales into ``warehouse.sqlite`` and aggregates them there.

The database is built under a temporary name and renamed when it is whole, so a retry begins from nothing and a reader
never meets a half-loaded one.
"""

from __future__ import annotations

import argparse
import sqlite3
from contextlib import closing
from pathlib import Path

import tables

# Every attempt starts over, so a journal would protect nothing.
SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA foreign_keys = ON;
CREATE TABLE customers (
  customer_id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, country TEXT NOT NULL, joined_on TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE products (
  product_id TEXT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, list_cents INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sales (
  order_id TEXT PRIMARY KEY,
  ordered_on TEXT NOT NULL,
  customer_id TEXT NOT NULL REFERENCES customers,
  product_id TEXT NOT NULL REFERENCES products,
  quantity INTEGER NOT NULL CHECK (quantity > 0),
  channel TEXT NOT NULL,
  currency TEXT NOT NULL,
  cents INTEGER NOT NULL,
  cents_eur INTEGER NOT NULL
) WITHOUT ROWID;
"""

AGGREGATES = """
CREATE TABLE revenue AS
  SELECT substr(ordered_on, 1, 7) AS month, country, category,
         count(*) AS orders, sum(quantity) AS quantity, sum(cents_eur) AS cents_eur
  FROM sales JOIN customers USING (customer_id) JOIN products USING (product_id)
  GROUP BY month, country, category ORDER BY month, country, category;
CREATE TABLE best_products AS
  SELECT product_id, products.name, category, sum(quantity) AS quantity, sum(cents_eur) AS cents_eur
  FROM sales JOIN products USING (product_id)
  GROUP BY product_id ORDER BY cents_eur DESC, product_id LIMIT 10;
"""


def main() -> None:
    """Builds the warehouse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out.resolve()
    clean, joined = out / "clean", out / "joined"
    parts = tables.part_names(out)

    with (
        tables.replacing(out / "warehouse.sqlite") as temporary,
        closing(sqlite3.connect(temporary, isolation_level=None)) as database,
    ):
        database.executescript(SCHEMA)
        database.execute("BEGIN")
        database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", tables.read_table(clean / "customers.csv"))
        database.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", tables.read_table(clean / "products.csv"))
        for name in parts:
            database.executemany(
                "INSERT INTO sales VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", tables.read_table(joined / f"{name}.csv")
            )
        database.execute("COMMIT")
        database.executescript(AGGREGATES)
        (sales,) = database.execute("SELECT count(*) FROM sales").fetchone()
    print(f"warehouse: {sales} sales from {len(parts)} partitions")


if __name__ == "__main__":
    main()
