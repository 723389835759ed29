"""Cycles are found, and only where there are some."""

from hypothesis import given
from hypothesis import strategies as st

from titan_fast.model.edges import find_cycles, topological_order

GRAPHS = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, n - 1), max_size=4, unique=True), min_size=n, max_size=n)
)


@given(GRAPHS)
def test_a_cycle_is_found_exactly_when_no_order_exists(needs):
    cycles = list(find_cycles(needs))
    assert bool(cycles) == (len(topological_order(needs)) < len(needs))
    for cycle in cycles:
        assert len(set(cycle)) == len(cycle) and cycle[0] == min(cycle)
        for node, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert following in needs[node]


@given(GRAPHS)
def test_in_the_order_every_node_comes_after_what_it_needs(needs):
    order = topological_order(needs)
    place = {node: index for index, node in enumerate(order)}
    assert len(place) == len(order)
    assert all(place[parent] < place[node] for node in order for parent in needs[node])


def test_a_node_that_needs_itself_is_a_cycle():
    assert list(find_cycles([[], [1]])) == [[1]]


def test_two_knots_are_two_cycles():
    assert list(find_cycles([[1], [0], [], [4, 2], [5], [3]])) == [[0, 1], [3, 4, 5]]


def test_a_long_ring_needs_no_recursion_and_the_number_of_answers_is_limited():
    size = 200_000
    assert len(next(find_cycles([[(node + 1) % size] for node in range(size)]))) == size
    pairs = [[node ^ 1] for node in range(100)]
    assert len(list(find_cycles(pairs))) == 20
