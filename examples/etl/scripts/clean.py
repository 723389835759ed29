"""Cleans one table, or one partition of the orders: repairs what can be repaired and sets the rest aside with a reason.

Nothing is dropped in silence: every row read is kept or rejected, and the tally says how many of each.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import tables

MISSING = {"", "NULL", "n/a"}
COUNTRIES = {"DE", "FR", "ES", "SE", "NO", "GB", "IT", "CH"}
COUNTRY_NAMES = {"GERMANY": "DE", "FRANCE": "FR", "UNITED KINGDOM": "GB", "SWITZERLAND": "CH"}
CURRENCIES = {"EUR", "USD", "GBP", "SEK", "CHF"}
PRICE = re.compile(r"(\d+)\.(\d\d)")
QUANTITY = re.compile(r"[1-9]\d{0,5}")


class Rejected(Exception):
    """This row cannot be repaired; the argument is the reason, as it is counted."""


def lines(path: Path) -> Iterator[str]:
    """The lines of an export whose rows may differ in encoding: UTF-8, else Windows-1252, else with U+FFFD in it.

    Line by line because a whole file would be one encoding or the other; the export has no line breaks in values.
    """
    with tables.existing(path).open("rb") as file:
        for line in file:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                try:
                    yield line.decode("cp1252")
                except UnicodeDecodeError:
                    yield line.decode(errors="replace")


def to_date(text: str) -> str:
    """An ISO date from ``2024-03-05``, ``20240305`` or ``05.03.2024``."""
    if text.count(".") == 2:
        text = "-".join(reversed(text.split(".")))
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise Rejected("bad_date") from None
    if not 2000 <= day.year <= 2030:
        raise Rejected("bad_date")
    return day.isoformat()


def to_cents(text: str) -> int:
    """Cents from ``1234.50``, ``1,234.50`` or ``1234,50``."""
    match = PRICE.fullmatch(text.replace(",", "") if "." in text else text.replace(",", "."))
    if not match:
        raise Rejected("bad_price")
    return int(match[1]) * 100 + int(match[2])


def clean_customer(row: list[str]) -> list[object]:
    """A customer; a missing e-mail address is no reason to lose one."""
    key, name, email, country, joined = row
    if name in MISSING:
        raise Rejected("missing_name")
    country = country.upper()
    country = COUNTRY_NAMES.get(country, country)
    if country not in COUNTRIES:
        raise Rejected("unknown_country")
    return [key, name, email.lower(), country, to_date(joined)]


def clean_product(row: list[str]) -> list[object]:
    """A product, its list price in cents."""
    key, name, category, price = row
    if category in MISSING:
        raise Rejected("missing_category")
    return [key, name, category.capitalize(), to_cents(price)]


def clean_order(row: list[str]) -> list[object]:
    """An order, its unit price in cents of the currency."""
    key, ordered_on, customer, product, quantity, price, currency, channel, city = row
    day = to_date(ordered_on)
    if customer in MISSING:
        raise Rejected("missing_customer")
    if not QUANTITY.fullmatch(quantity):
        raise Rejected("bad_quantity")
    cents = to_cents(price)
    currency = currency.upper()
    if currency not in CURRENCIES:
        raise Rejected("unknown_currency")
    return [key, day, customer, product, int(quantity), cents, currency, channel.lower(), city]


CLEAN: dict[str, Callable[[list[str]], list[object]]] = {
    "customers": clean_customer,
    "products": clean_product,
    "orders": clean_order,
}


def main() -> None:
    """Reads a raw table and writes its kept rows, its rejected rows and its tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", choices=CLEAN, required=True)
    parser.add_argument("--part", type=int, help="which partition, where the table has some")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    name = f"{options.table}-{options.part}" if options.part else options.table
    clean, columns = CLEAN[options.table], tables.COLUMNS[options.table]

    source = csv.reader(lines(out / "raw" / f"{name}.csv"))
    header = next(source)
    if [column.lstrip("\ufeff") for column in header] != columns:
        raise SystemExit(f"raw/{name}.csv has the columns {header}, not {columns}: the export has changed")
    kept: list[list[object]] = []
    rejected: list[list[object]] = []
    seen: set[object] = set()
    read = 0
    for row in source:
        read += 1
        try:
            if len(row) != len(columns):
                raise Rejected("truncated")
            if any("\ufffd" in value for value in row):
                raise Rejected("bad_encoding")
            cleaned = clean([value.strip() for value in row])
            # Last, so that a spoilt row does not make a duplicate of the good one that follows it.
            if cleaned[0] in seen:
                raise Rejected("duplicate")
        except Rejected as reason:
            rejected.append([reason, source.line_num, *row])
            continue
        seen.add(cleaned[0])
        kept.append(cleaned)
    tables.write_outcome(
        out, "clean", name, read=read, kept=kept, kept_columns=columns, rejected=rejected, columns=columns
    )


if __name__ == "__main__":
    main()
