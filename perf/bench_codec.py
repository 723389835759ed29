"""The frame codec on RESULT records in frames of 1,000: compiled against pure, and against a bare struct loop.

The records are those of one run: most columns repeat or count up, times and sizes do not. The struct loop does less
(rows in, rows out, no prologue, no checks, no columns). Runs alternate; a figure is the median of the ratios of
neighbours. Run as a program it prints nanoseconds per record too.
"""

from __future__ import annotations

import random
import statistics
import struct
import time
from collections.abc import Callable
from types import ModuleType

from titan_fast import _layout

RECORDS = 1000
FRAMES = 20
ROUNDS = 21

_NAME, FIELDS = _layout.LAYOUTS[_layout.RESULT]
RECORD = struct.Struct(">" + "".join(code for _, code in FIELDS))


def measure() -> dict[str, float]:
    """Ratios of records per second; more is better."""
    from titan_fast import _proto, _proto_py

    columns, tail = results()
    rows = list(zip(*columns, strict=True))
    compiled = packed(_proto, columns, tail)
    whole, bare = framed(_proto, columns, tail), struct_loop(rows)
    return {
        "codec_compiled_vs_pure": compare(whole, framed(_proto_py, columns, tail)),
        "codec_compiled_vs_struct": compare(compiled, bare),
    }


def results() -> tuple[list[list[int]], bytes]:
    """Columns and tail of 1,000 results of one run, one in fifty of them failed."""
    rng = random.Random(3)
    codes = [0 if rng.random() < 0.98 else 1 for _ in range(RECORDS)]
    started = 1_763_890_000_000_000
    sizes = [rng.choice((0, 0, 8, 40)) for _ in range(RECORDS)]
    column = {
        "run": [12] * RECORDS,
        "index": list(range(70_000, 70_000 + RECORDS)),
        "generation": [0] * RECORDS,
        "ending": codes,
        "flags": [0] * RECORDS,
        "fence": [(5 << 32) + 90_000 + number for number in range(RECORDS)],
        "code": codes,
        "started": [(started := started + rng.randrange(2000)) for _ in range(RECORDS)],
        "duration": [rng.randrange(200, 90_000) for _ in range(RECORDS)],
        "output_size": [rng.choice((0, 0, rng.randrange(4000))) for _ in range(RECORDS)],
        "result_size": sizes,
    }
    return [column[name] for name, _ in FIELDS], bytes(sum(sizes))


def packed(module: ModuleType, columns: list[list[int]], tail: bytes) -> Callable[[], None]:
    pack, unpack = module.pack, module.unpack

    def work() -> None:
        for number in range(FRAMES):
            unpack(pack(_layout.RESULT, number, columns, tail))

    return work


def framed(module: ModuleType, columns: list[list[int]], tail: bytes) -> Callable[[], None]:
    """The whole way: pack, frame, cut, unpack."""
    pack, unpack, frame, framer = module.pack, module.unpack, module.frame, module.Framer()

    def work() -> None:
        for number in range(FRAMES):
            data = frame(32, 0, 0, pack(_layout.RESULT, number, columns, tail))
            for _, _, _, message in framer.feed(data):
                unpack(message)

    return work


def struct_loop(rows: list[tuple[int, ...]]) -> Callable[[], None]:
    pack, unpack_from, size = RECORD.pack, RECORD.unpack_from, RECORD.size

    def work() -> None:
        for _ in range(FRAMES):
            data = bytearray()
            for row in rows:
                data += pack(*row)
            found = []
            for at in range(0, len(data), size):
                found.append(unpack_from(data, at))

    return work


def seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(mine: Callable[[], None], other: Callable[[], None]) -> float:
    """How many times faster mine is than the other: the median over the rounds."""
    return statistics.median(1 / seconds(mine) * seconds(other) for _ in range(ROUNDS))


def main() -> None:
    from titan_fast import _proto, _proto_py

    columns, tail = results()
    for name, value in measure().items():
        print(f"{name:32} {value:8.2f}")
    works = {
        "compiled pack+unpack": packed(_proto, columns, tail),
        "compiled whole way": framed(_proto, columns, tail),
        "pure pack+unpack": packed(_proto_py, columns, tail),
        "pure whole way": framed(_proto_py, columns, tail),
        "struct loop": struct_loop(list(zip(*columns, strict=True))),
    }
    for name, work in works.items():
        each = statistics.median(seconds(work) for _ in range(ROUNDS)) / FRAMES / RECORDS
        print(f"{name + ', ns per record':32} {each * 1e9:8.1f}")


if __name__ == "__main__":
    main()
