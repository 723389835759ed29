"""Plays the shop that delivers the data: customers, products and orders as CSV, as dirty as such exports are.

Some of the dirt can be repaired (mixed case, spaces, other date and number formats, Windows-1252 next to UTF-8), some
cannot. What was planted of the second kind is written to ``planted.json`` for the tests; the pipeline never reads it.
The same seed and number of rows give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import cycle
from pathlib import Path
from random import Random

import tables

FIRST = ["Anna", "Björn", "Chloé", "Elif", "François", "Greta", "Håkan", "Inés", "Jürgen", "Nuño", "Renée", "Søren"]
LAST = ["Müller", "Lefèvre", "García", "Nyström", "Øvergård", "Smith", "Rossi", "Peña", "Weiß", "Novak", "Östlund"]
CITIES = ["Köln", "Zürich", "Malmö", "Besançon", "Århus", "Málaga", "Porto", "Leeds", "Łódź", "Brno", "Tromsø"]
COUNTRIES = ["DE", "FR", "ES", "SE", "NO", "GB", "IT", "CH"]
WRITTEN_OUT = {"DE": "Germany", "FR": "France", "GB": "United Kingdom", "CH": "Switzerland"}
CATEGORIES = ["Books", "Garden", "Kitchen", "Music", "Outdoor", "Toys"]
CURRENCIES = ["EUR", "EUR", "EUR", "USD", "GBP", "SEK", "CHF"]
CHANNELS = ["web", "web", "app", "shop", "phone"]

LOST = "\ufffd"  # stands for a byte that is neither UTF-8 nor Windows-1252
DIRTY = 0.04  # share of rows that no cleaning can save
UNTIDY = 0.15  # share of values that it can

# What is wrong -> (the column, what stands there).
Dirt = Mapping[str, tuple[int, Sequence[str]]]
BAD_DATES = ("2024-02-30", "31.04.2024", "2204-03-01", "n/a", "")
CUSTOMER_DIRT: Dirt = {
    "missing_name": (1, ("", "  ", "NULL")),
    "unknown_country": (3, ("Atlantis", "??", "")),
    "bad_date": (4, BAD_DATES),
    "bad_encoding": (1, (f"J{LOST}rgen M{LOST}ller", f"Ren{LOST}e")),
}
PRODUCT_DIRT: Dirt = {
    "missing_category": (2, ("", "n/a", "NULL")),
    "bad_price": (3, ("on request", "-1.00", "")),
}
ORDER_DIRT: Dirt = {
    "bad_date": (1, BAD_DATES),
    "missing_customer": (2, ("", " ", "NULL")),
    "bad_quantity": (4, ("0", "-2", "two", "")),
    "bad_price": (5, ("free", "-4.00", "12.3.4", "")),
    "unknown_currency": (6, ("BTC", "EURO", "€€", "")),
    "bad_encoding": (8, (f"K{LOST}ln", f"Z{LOST}rich")),
}


class Export:
    """One dirty CSV file in the making; ``planted`` counts its rows that cannot be saved, by reason."""

    def __init__(self, rng: Random, dirt: Dirt) -> None:
        self.rng = rng
        self.dirt = dirt
        self.reasons = cycle([*dirt, "truncated", "duplicate"])
        self.rows: list[list[str]] = []
        self.sent_again: list[list[str]] = []
        self.planted: Counter[str] = Counter()

    def add(self, row: list[str]) -> bool:
        """Adds a row, spoiling a few of them; says whether the row can still be used."""
        self.rows.append(row)
        if self.rng.random() >= DIRTY:
            return True
        reason = next(self.reasons)
        self.planted[reason] += 1
        if reason == "duplicate":
            self.sent_again.append([value.upper() if value.islower() else f" {value}" for value in row])
            return True
        if reason == "truncated":
            del row[self.rng.randrange(1, len(row)) :]
        else:
            column, values = self.dirt[reason]
            row[column] = self.rng.choice(values)
        return False

    def write(self, path: Path, header: Sequence[str], encodings: Sequence[str]) -> int:
        """Writes the file, duplicates at its end, each row in one of the encodings; returns the rows written."""
        rows = self.rows + self.sent_again
        with tables.replacing(path) as temporary, temporary.open("wb") as file:
            if encodings[0] == "utf-8-sig":
                file.write(b"\xef\xbb\xbf")
            line = Line()
            writer = csv.writer(line, lineterminator="\r\n")
            for row in [list(header), *rows]:
                writer.writerow(row)
                file.write(line.encoded(self.rng.choice(encodings)))
        return len(rows)


class Line:
    """What csv.writer writes to: keeps the one line, to be encoded in its own way."""

    def write(self, text: str) -> None:
        self.text = text

    def encoded(self, encoding: str) -> bytes:
        """The line in the encoding, or in UTF-8 where that lacks a letter; lost bytes become 0x81."""
        try:
            pieces = [piece.encode(encoding.removesuffix("-sig")) for piece in self.text.split(LOST)]
        except UnicodeEncodeError:
            pieces = [piece.encode() for piece in self.text.split(LOST)]
        return b"\x81".join(pieces)


def untidy_date(rng: Random, day: date) -> str:
    """A date as one of the shop's systems writes it."""
    if rng.random() >= UNTIDY:
        return day.isoformat()
    return rng.choice([f"{day.day:02}.{day.month:02}.{day.year}", f"{day.year}{day.month:02}{day.day:02}", f" {day} "])


def untidy_text(rng: Random, text: str) -> str:
    """A text with the wrong case or spaces around it, now and then."""
    if rng.random() >= UNTIDY:
        return text
    return rng.choice([text.upper(), text.lower(), f" {text}", f"{text}  "])


def untidy_price(rng: Random, cents: int) -> str:
    """A price with a point or a comma, now and then with thousands separated."""
    if rng.random() >= UNTIDY:
        return f"{cents // 100}.{cents % 100:02}"
    return rng.choice([f"{cents // 100},{cents % 100:02}", f"{cents // 100:,}.{cents % 100:02}"])


def customers(rng: Random, count: int) -> tuple[Export, list[str], set[str]]:
    """The customers' export, all their numbers, and the numbers whose row can be used."""
    export, every, usable = Export(rng, CUSTOMER_DIRT), [], set()
    for number in range(1, count + 1):
        key, first, last = f"C{number:06}", rng.choice(FIRST), rng.choice(LAST)
        email = "" if rng.random() < 0.05 else untidy_text(rng, f"customer{number}@example.org")
        country = rng.choice(COUNTRIES)
        country = WRITTEN_OUT.get(country, country) if rng.random() < UNTIDY else untidy_text(rng, country)
        joined = untidy_date(rng, date(2015, 1, 1) + timedelta(days=rng.randrange(3000)))
        every.append(key)
        if export.add([key, f"{first} {last}", email, country, joined]):
            usable.add(key)
    return export, every, usable


def products(rng: Random, count: int) -> tuple[Export, list[tuple[str, int]], set[str]]:
    """The products' export, all numbers with their price in cents, and the numbers whose row can be used."""
    export, every, usable = Export(rng, PRODUCT_DIRT), [], set()
    for number in range(1, count + 1):
        key, category, cents = f"P{number:05}", rng.choice(CATEGORIES), int(200 * 1000 ** rng.random())
        every.append((key, cents))
        if export.add([key, f"{category} no. {number}", untidy_text(rng, category), untidy_price(rng, cents)]):
            usable.add(key)
    return export, every, usable


def orders(
    rng: Random,
    numbers: range,
    last: int,
    buyers: tuple[list[str], set[str]],
    goods: tuple[list[tuple[str, int]], set[str]],
) -> tuple[Export, Counter[str]]:
    """One partition of the orders, and how many of its clean rows name a customer or product that cannot be used."""
    export, orphans = Export(rng, ORDER_DIRT), Counter[str]()
    (customer_keys, usable_customers), (price_list, usable_products) = buyers, goods
    for number in numbers:
        customer = rng.choice(customer_keys) if rng.random() > 0.002 else f"C9{number:06}"
        # Squared: a few products sell most, as they do.
        product, cents = price_list[int(len(price_list) * rng.random() ** 2)]
        row = [
            f"O{number:08}",
            untidy_date(rng, date(2024, 1, 1) + timedelta(days=number * 366 // (last + 1))),
            customer,
            product,
            str(1 + int(4 * rng.random() ** 3)),
            untidy_price(rng, cents * rng.randrange(90, 101) // 100),
            untidy_text(rng, rng.choice(CURRENCIES)),
            untidy_text(rng, rng.choice(CHANNELS)),
            rng.choice(CITIES),
        ]
        if export.add(row):
            if customer not in usable_customers:
                orphans["unknown_customer"] += 1
            elif product not in usable_products:
                orphans["unknown_product"] += 1
    return export, orphans


def total(counters: Iterable[Counter[str]]) -> Counter[str]:
    """The sum of counters."""
    return sum(counters, Counter[str]())


def main() -> None:
    """Writes ``raw/``: the tables, the delivery note with their row counts, and what was planted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--rows", type=int, required=True, help="orders in all, before duplicates")
    parser.add_argument("--parts", type=int, required=True, help="files the orders are split into")
    options = parser.parse_args()
    raw: Path = options.out.resolve() / "raw"
    seed, rows, parts = options.seed, options.rows, options.parts

    # One generator for each file: a change to one of them leaves the others as they were.
    buyers, customer_keys, usable_customers = customers(Random(f"{seed}/customers"), max(200, rows // 10))
    goods, price_list, usable_products = products(Random(f"{seed}/products"), max(100, rows // 150))
    counts = {
        "customers": buyers.write(raw / "customers.csv", tables.CUSTOMERS, ["utf-8"] * 9 + ["cp1252"]),
        "products": goods.write(raw / "products.csv", tables.PRODUCTS, ["utf-8"]),
    }
    dirt, orphans = [], []
    for part in range(1, parts + 1):
        # By number modulo parts: an order that is sent twice is twice in the same file, so parts clean independently.
        export, unknown = orders(
            Random(f"{seed}/orders/{part}"),
            range(part, rows + 1, parts),
            rows,
            (customer_keys, usable_customers),
            (price_list, usable_products),
        )
        encodings = ["utf-8-sig"] if part % 2 else ["cp1252"]
        counts[f"orders-{part}"] = export.write(raw / f"orders-{part}.csv", tables.ORDERS, encodings)
        dirt.append(export.planted)
        orphans.append(unknown)
    planted = {"customers": buyers.planted, "products": goods.planted, "orders": total(dirt), "joined": total(orphans)}
    tables.write_json(raw / "planted.json", planted)
    tables.write_json(raw / "delivery.json", {"seed": seed, "orders": rows, "parts": parts, "rows": counts})
    print(f"generated {sum(counts.values())} rows in {len(counts)} files under {raw}")


if __name__ == "__main__":
    main()
