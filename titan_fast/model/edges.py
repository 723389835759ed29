"""Cycles in "who needs whom", for a file's author who wants to see the path. Knows numbers, no names or files.

The scheduler counts parents and finds out *that* there is a cycle; this walks it, to say *which* one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_NEW, _OPEN, _DONE = 0, 1, 2


def find_cycles(needs: Sequence[Sequence[int]], limit: int = 20) -> Iterator[list[int]]:
    """Cycles, each as the nodes on it in the order "needs", from its smallest number on; O(nodes + edges).

    Args:
        needs: for each node the nodes it needs.
        limit: how many at most. They share no node at their ends, so one per knot is the usual answer; cutting a
            path out costs its length, and the limit keeps the whole linear.
    """
    state = bytearray(len(needs))
    told: set[int] = set()
    for root in range(len(needs)):
        if state[root] != _NEW:
            continue
        state[root] = _OPEN
        path = [root]
        ahead = [iter(needs[root])]
        while path:
            node = next(ahead[-1], None)
            if node is None:
                state[path.pop()] = _DONE
                ahead.pop()
            elif state[node] == _NEW:
                state[node] = _OPEN
                path.append(node)
                ahead.append(iter(needs[node]))
            elif state[node] == _OPEN and node not in told and path[-1] not in told:
                cycle = path[path.index(node) :]
                told.update(cycle)
                start = cycle.index(min(cycle))
                yield cycle[start:] + cycle[:start]
                limit -= 1
                if limit == 0:
                    return


def topological_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """Every node after the nodes it needs; the nodes of a cycle, and what needs them, are missing."""
    waiting = [len(parents) for parents in needs]
    children: list[list[int]] = [[] for _ in needs]
    for node, parents in enumerate(needs):
        for parent in parents:
            children[parent].append(node)
    order = [node for node, count in enumerate(waiting) if count == 0]
    for node in order:
        for child in children[node]:
            waiting[child] -= 1
            if waiting[child] == 0:
                order.append(child)
    return order


def find_unrelated(needs: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]], at_once: int = 4096) -> list[int]:
    """Places in ``pairs`` of those (node, other) whose node does not need the other, directly or over others.

    A node that waits for a cycle counts as needing everything: the cycle is what its author has to hear of. One walk
    over the nodes answers ``at_once`` different others, a bit for each: O((nodes + edges) · others / at_once).
    """
    order = topological_order(needs)
    others = list(dict.fromkeys(other for _, other in pairs))
    unrelated = []
    for start in range(0, len(others), at_once):
        bits = {other: 1 << place for place, other in enumerate(others[start : start + at_once])}
        above = [-1] * len(needs)
        for node in order:
            above[node] = 0
            for parent in needs[node]:
                above[node] |= above[parent] | bits.get(parent, 0)
        for place, (node, other) in enumerate(pairs):
            if other in bits and not above[node] & bits[other]:
                unrelated.append(place)
    return sorted(unrelated)
