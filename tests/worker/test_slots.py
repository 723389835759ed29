"""The worker's own small scheduler: what waits starts in order, as slots are free, and can be taken back until then."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from titan_fast.worker.slots import Slots, Stretch


def lot(fence, count=1, first=0, payloads=None):
    blob = b""
    if payloads is not None:
        offsets = [0]
        for payload in payloads:
            offsets.append(offsets[-1] + len(payload))
        blob = struct.pack(f">{len(offsets)}I", *offsets) + b"".join(payloads)
    return Stretch(1, 0, first, count, 0, 1, fence, blob, count)


def drain(slots):
    """Start and end everything that waits, in order."""
    seen = []
    while (start := slots.next_start()) is not None:
        seen.append(start)
        slots.ended(start.fence)
    return seen


def test_no_more_than_the_slots_run_at_a_time():
    slots = Slots(2)
    slots.assign(lot(10, 5))
    assert [slots.next_start().fence for _ in range(2)] == [10, 11]
    assert slots.next_start() is None
    assert (len(slots.running), slots.queued) == (2, 3)
    slots.ended(11)
    assert slots.next_start().fence == 12


def test_lots_start_in_the_order_they_came_with_their_indices():
    slots = Slots(1)
    slots.assign(lot(10, 2, first=7))
    slots.assign(lot(50, 1, first=3))
    assert [(start.fence, start.index) for start in drain(slots)] == [(10, 7), (11, 8), (50, 3)]
    assert slots.is_empty


def test_each_member_gets_its_own_payload_also_after_a_recall_from_the_middle():
    slots = Slots(1)
    slots.assign(lot(10, 5, payloads=[b"a", b"", b"ccc", b"d", b"ee"]))
    assert [start.fence for start in slots.withdraw(11, 2)] == [11, 12]
    assert [(start.fence, start.payload) for start in drain(slots)] == [(10, b"a"), (13, b"d"), (14, b"ee")]


def test_a_slice_of_a_blob_whose_offsets_do_not_start_at_zero_is_read_right():
    blob = struct.pack(">3I", 100, 101, 103) + b"xyz"
    slots = Slots(1)
    slots.assign(Stretch(1, 0, 40, 2, 0, 1, 7, blob, 2))
    assert [start.payload for start in drain(slots)] == [b"x", b"yz"]


def test_what_runs_cannot_be_withdrawn():
    slots = Slots(1)
    slots.assign(lot(10, 2))
    running = slots.next_start()
    assert [start.fence for start in slots.withdraw(0, 1 << 63)] == [11]
    assert slots.running == {running.fence: running}


def test_an_unknown_fence_ends_nothing():
    assert Slots(1).ended(99) is None


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=8),
    st.integers(1, 4),
)
def test_whatever_is_withdrawn_every_attempt_is_started_or_given_back_exactly_once(counts, withdrawals, n):
    slots = Slots(n)
    fence, fences = 1, []
    for count in counts:
        slots.assign(lot(fence, count))
        fences += range(fence, fence + count)
        fence += count + 2
    back, started = [], []
    for at, count in withdrawals:
        if (start := slots.next_start()) is not None:
            started.append(start.fence)
        back += [item.fence for item in slots.withdraw(at, count)]
        if started and len(started) % 2:
            slots.ended(started[-1])
    for running in list(slots.running):
        slots.ended(running)
    started += [start.fence for start in drain(slots)]
    assert sorted(started + back) == fences
    assert started == sorted(started), "out of order"
