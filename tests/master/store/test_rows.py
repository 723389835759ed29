"""What is known to be plain is written as the rest is: whole, and without a look at each row."""

from __future__ import annotations

import random

import msgspec
import pytest

from titan_fast.ids import make_fence
from titan_fast.master.store import rows
from titan_fast.scheduler.facts import AttemptsEnded, head_of


def a_fact(rng: random.Random, large: bool) -> AttemptsEnded:
    """Neighbours that succeeded, in stretches of all lengths, with others in between."""
    fact = AttemptsEnded(1.0, 7, [], [], [], [], [], [], [], [], [], [], [])
    index, fence = rng.randrange(3000), make_fence(2, 1)
    for _ in range(rng.randrange(1, 8)):
        is_plain = rng.random() < 0.7
        count = rng.randrange(1, 2500) if is_plain else rng.randrange(1, 4)
        worker = rng.choice(("w1", "w2"))
        if is_plain:
            fact.stretches.append((len(fact.index), count))
        fact.index.extend(range(index, index + count))
        fact.generation.extend([0 if is_plain else rng.randrange(2)] * count)
        fact.attempt.extend([1 if is_plain else rng.randrange(1, 3)] * count)
        fact.fence.extend(range(fence, fence + count))
        fact.worker.extend([worker] * count)
        fact.state.extend(["COMPLETED" if is_plain else rng.choice(("FAILED", "PENDING", "COMPLETED"))] * count)
        fact.reason.extend(["exit:0"] * count)
        fact.code.extend([0] * count)
        fact.started.extend(rng.randrange(1 << 40) for _ in range(count))
        fact.duration.extend([rng.randrange(9)] * count)
        size = rows.PIECE // 3 if large else 3
        fact.result.extend(rng.randbytes(rng.choice((0, 0, size))) for _ in range(count))
        index += count + rng.randrange(2)
        fence += count + rng.randrange(2)
    return fact


def told(fact: AttemptsEnded) -> dict[int, list[object]]:
    """What the pieces say of each task, results included."""
    found: dict[int, list[object]] = {}
    for piece in rows.pieces(fact):
        assert piece.first // rows.BLOCK == piece.last // rows.BLOCK == piece.block
        for index, row in rows.attempt_rows(piece.detail, piece.first, piece.last - piece.first + 1):
            found.setdefault(index, []).append(row)
            place = rows.place_of_result(piece.detail, index)
            if place is not None:
                found[index].append(piece.body[place[0] - 1 : place[0] - 1 + place[1]])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_plain_stretches_change_nothing_of_what_is_kept(seed: int) -> None:
    rng = random.Random(seed)
    fact = a_fact(rng, large=False)
    same = msgspec.structs.replace(fact, stretches=[])
    assert head_of(fact) == head_of(same)
    assert told(fact) == told(same)


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED"])
@pytest.mark.parametrize(("generation", "attempt"), [(0, 1), (0, 2), (1, 1)])
def test_a_fact_of_one_row_is_kept_as_a_row_among_others(state: str, generation: int, attempt: int) -> None:
    one = AttemptsEnded(1.0, 7, [5], [generation], [attempt], [90], ["w"], [state], ["r"], [0], [1], [2], [b"gave"])
    columns = {name: value * 2 for name in one.__struct_fields__ if isinstance(value := getattr(one, name), list)}
    two = msgspec.structs.replace(one, **{**columns, "index": [5, 3], "fence": [90, 70]})
    assert told(one)[5] == told(two)[5]
    head, both = head_of(one), head_of(two)
    assert [row for row in both.clean if row[0] == 5] == list(head.clean)
    assert [row for row in both.rest if row[0] == 5] == list(head.rest)


def test_large_results_of_neighbours_are_cut_into_pieces() -> None:
    rng = random.Random(1)
    while len((fact := a_fact(rng, large=True)).index) > 60:
        pass
    assert told(fact) == told(msgspec.structs.replace(fact, stretches=[]))
    assert max(len(piece.body) for piece in rows.pieces(fact)) <= rows.PIECE
