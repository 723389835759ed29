"""Long outputs stay with the worker for a while: as many as fit, the newest, and none of a run that is over."""

from __future__ import annotations

from titan_fast.worker.kept import KeptOutputs


def kept(limit=100):
    removed = []
    return KeptOutputs(limit, removed.append), removed


def test_what_is_kept_is_known_by_all_of_its_names():
    outputs, removed = kept()
    outputs.keep(7, run=1, index=2, size=50)
    assert outputs.has(7, 1, 2)
    assert not any(outputs.has(*other) for other in [(8, 1, 2), (7, 2, 2), (7, 1, 3)])
    assert removed == []


def test_the_oldest_go_when_there_is_no_room():
    outputs, removed = kept()
    for fence in range(1, 6):
        outputs.keep(fence, run=1, index=fence, size=40)
    assert removed == [1, 2, 3]
    assert outputs.has(4, 1, 4) and outputs.has(5, 1, 5)


def test_one_that_never_fits_is_not_kept():
    outputs, removed = kept()
    outputs.keep(1, run=1, index=0, size=101)
    assert removed == [1] and not outputs.has(1, 1, 0)
    outputs.keep(2, run=1, index=0, size=100)
    assert outputs.has(2, 1, 0), "the room of the other is free again"


def test_those_of_a_run_go_with_it():
    outputs, removed = kept()
    for fence, run in ((1, 1), (2, 2), (3, 1)):
        outputs.keep(fence, run, index=0, size=30)
    outputs.forget_run(1)
    assert removed == [1, 3] and outputs.has(2, 2, 0)
    outputs.keep(4, run=3, index=0, size=70)
    assert removed == [1, 3]
    outputs.clear()
    assert removed == [1, 3, 2, 4]
