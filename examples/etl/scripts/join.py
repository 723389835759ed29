"""Joins one partition of the orders with customers, products and exchange rates: what remains is a sale, in euros.

Orders of customers or products that are unknown, or were rejected themselves, are set aside here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tables


def main() -> None:
    """Reads the clean tables and writes the sales of the partition, its rejected orders and its tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--rates", type=Path, required=True, help="euros per unit of each currency")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    clean, name = out / "clean", f"orders-{options.part}"

    customers = {row[0] for row in tables.read_table(clean / "customers.csv")}
    products = {row[0] for row in tables.read_table(clean / "products.csv")}
    # As whole ten-thousandths, so that every amount is exact integer arithmetic.
    rates = {currency: int(rate * 10_000) for currency, rate in tables.read_rates(options.rates).items()}
    kept: list[list[object]] = []
    rejected: list[list[object]] = []
    read = 0
    for read, row in enumerate(tables.read_table(clean / f"{name}.csv"), start=1):
        order, day, customer, product, quantity, price, currency, channel, _city = row
        if customer not in customers:
            rejected.append(["unknown_customer", read + 1, *row])
        elif product not in products:
            rejected.append(["unknown_product", read + 1, *row])
        else:
            cents = int(quantity) * int(price)
            cents_eur = (cents * rates[currency] + 5_000) // 10_000
            kept.append([order, day, customer, product, quantity, channel, currency, cents, cents_eur])
    tables.write_outcome(
        out,
        "joined",
        name,
        read=read,
        kept=kept,
        kept_columns=tables.SALES,
        rejected=rejected,
        columns=tables.ORDERS,
    )


if __name__ == "__main__":
    main()
