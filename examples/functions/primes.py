"""How many primes there are below a million, counted by functions on the workers of a cluster.

    titan-fast up            # in one terminal
    python primes.py         # in another

A map is one array of tasks, a call takes the results of its parents as arguments. The one who fails says why.
"""

from __future__ import annotations

from titan_fast import Client, Graph, TaskFailed

LIMIT = 1_000_000
PARTS = 50


def sieve(limit: int) -> list[int]:
    """The primes below the root of the limit."""
    size = int(limit**0.5) + 1
    marks = bytearray([1]) * size
    for number in range(2, int(size**0.5) + 1):
        marks[number * number :: number] = bytes(len(range(number * number, size, number)))
    return [number for number in range(2, size) if marks[number]]


def count(part: tuple[list[int], int]) -> int:
    """How many primes there are in one part of the range."""
    small, number = part
    first, end = LIMIT // PARTS * number, LIMIT // PARTS * (number + 1)
    marks = bytearray([1]) * (end - first)
    for prime in small:
        start = max(prime * prime, -(-first // prime) * prime) - first
        marks[start::prime] = bytes(len(range(start, end - first, prime)))
    found = sum(marks) - (2 if first == 0 else 0)  # 0 and 1 are none
    print(f"{first:,} to {end:,}: {found:,}")
    return found


def main() -> None:
    graph = Graph("primes")
    small = graph.call(sieve, LIMIT)
    counted = graph.map(count, [(small, number) for number in range(PARTS)])
    total = graph.call(sum, counted)
    with Client() as client:
        run = client.submit(graph)
        try:
            print(f"{total.result(run, timeout=60):,} primes below {LIMIT:,}")
        except TaskFailed as error:
            raise SystemExit(str(error)) from None
        print(run["count"][3].logs(), end="")
        print(run["count"].results()[:5])


if __name__ == "__main__":
    main()
