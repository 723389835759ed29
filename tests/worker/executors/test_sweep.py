"""Ending trees, step by step: when is looked, who is signalled, when one is over. The processes are only numbers."""

from __future__ import annotations

import asyncio
import signal

import pytest
from executor_stage import DEADLINE

from titan_fast.worker.executors import sweep as sweep_module
from titan_fast.worker.executors.sweep import Sweep
from titan_fast.worker.executors.tree import Member, Tree


class System:
    """Processes by the number of their leader, what was done to them, and whose first process has ended."""

    def __init__(self, runner):
        self.runner = runner
        self.left = {}
        self.others = set()
        """Who may not be signalled."""
        self.looks = []
        self.log = []
        self.ended = set()
        self.gone = []
        self.sweep = None

    def play(self, scene):
        async def main():
            self.sweep = Sweep(self.ended.__contains__, self.gone.append, self)
            async with asyncio.timeout(DEADLINE):
                await scene()
            self.sweep.close()

        self.runner(main())

    def begin(self, leader, *members, grace=DEADLINE, output="", **options):
        self.left[leader] = [Member(pid, 1) for pid in (leader, *members)]
        self.sweep.begin(leader, Tree(leader, 0.0), -1, output, grace, **options)

    def end(self, leader, *left):
        """Its first process does, and these are left."""
        self.ended.add(leader)
        self.left[leader] = [Member(pid, 1) for pid in left]
        self.sweep.look_soon()

    async def until(self, condition):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    # what `tree` does

    def scan(self, trees):
        if trees:
            self.looks.append(trees)
            self.log.append("look")
        return [list(self.left[tree.leader]) for tree in trees]

    def ask_to_end(self, leader, pidfd, members, spare):
        self.log.append(("TERM", leader, *(member.pid for member in members)))

    def stop_and_kill(self, trees, spare):
        found = self.scan(trees)
        self.send_all([member for members in found for member in members], signal.SIGKILL, spare)
        return found

    def send_all(self, members, number, spare):
        self.log.append(("KILL", *(member.pid for member in members)))
        spare.update(member for member in members if member.pid in self.others)

    def send_group(self, pidfd, leader, number):
        self.log.append(("KILL group", leader))


@pytest.fixture(params=["asyncio", "uvloop"])
def system(request, uvloop):
    return System(uvloop.run if request.param == "uvloop" else asyncio.run)


def test_one_look_serves_all_of_a_turn_and_comes_before_the_first_signal(system):
    async def scene():
        for leader in (1, 2, 3):
            system.begin(leader, 10 * leader)
        assert not system.log, "asking sends nothing"
        await system.until(lambda: len(system.log) == 4)
        assert system.log == ["look", ("TERM", 1, 1, 10), ("TERM", 2, 2, 20), ("TERM", 3, 3, 30)]

    system.play(scene)


def test_in_its_grace_it_is_left_alone_and_its_end_is_seen_at_once(system):
    async def scene():
        system.begin(1)
        await system.until(lambda: system.log)
        system.begin(2, grace=0.01)
        await system.until(lambda: ("KILL group", 2) in system.log)
        assert [[tree.leader for tree in trees] for trees in system.looks] == [[1], [2], [2]]
        system.end(1)
        system.end(2)
        await system.until(lambda: len(system.gone) == 2)
        assert [tree.leader for tree in system.looks[-1]] == [1, 2] and not system.gone[2:]

    system.play(scene)


def test_who_was_found_once_stays_known(system):
    async def scene():
        system.begin(1, 10)
        await system.until(lambda: system.log)
        system.end(1, 11)
        await system.until(lambda: len(system.looks) > 2)
        assert system.looks[0][0].known == frozenset()
        assert system.looks[1][0].known == {Member(1, 1), Member(10, 1)}
        assert system.looks[2][0].known == {Member(1, 1), Member(10, 1), Member(11, 1)}

    system.play(scene)


def test_the_shorter_grace_counts(system):
    async def scene():
        system.begin(1, grace=1000.0)
        await system.until(lambda: system.log)
        system.sweep.hasten(1, 0.01)
        system.sweep.hasten(1, 2000.0)
        await system.until(lambda: ("KILL group", 1) in system.log)
        system.end(1)
        await system.until(lambda: system.gone)

    system.play(scene)


def test_without_a_grace_or_unasked_nobody_has_term(system):
    async def scene():
        system.begin(1, grace=0.0)
        system.ended.add(2)
        system.begin(2, 20, grace=0.005, ask=False)
        await system.until(lambda: ("KILL", 2, 20) in system.log)
        assert ("KILL group", 1) in system.log
        assert ("KILL group", 2) not in system.log, "its number may be another's"
        system.end(1)
        system.end(2)
        await system.until(lambda: len(system.gone) == 2)
        assert not [entry for entry in system.log if entry[0] == "TERM"]

    system.play(scene)


def test_who_may_not_be_signalled_is_not_waited_for(system):
    async def scene():
        system.others.add(10)
        system.begin(1, 10, grace=0.0)
        system.end(1, 10)
        await system.until(lambda: system.gone)

    system.play(scene)


def test_who_will_not_go_is_named_and_no_longer_waited_for(system, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_module, "GIVE_UP", 0.01)
    output = tmp_path / "output"
    output.touch()

    async def scene():
        system.begin(1, 10, grace=0.0, output=str(output))
        system.end(1, 10)
        await system.until(lambda: system.gone)
        assert "process 10 could not be ended" in output.read_text()
        assert system.log.count(("KILL", 10)) > 1, "it is not given up at once"

    system.play(scene)


def test_what_ends_in_another_way_is_forgotten(system):
    async def scene():
        system.begin(1, grace=0.005, ask=False)
        system.sweep.forget(1)
        system.begin(2, grace=0.01, ask=False)
        await system.until(lambda: ("KILL group", 2) in system.log)
        assert ("KILL group", 1) not in system.log

    system.play(scene)


def test_an_owner_that_fails_harms_nobody_else(system):
    caught = []

    async def scene():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context["exception"]))

        def fail(leader):
            system.gone.append(leader)
            if leader == 1:
                raise RuntimeError("mine")

        system.sweep = Sweep(system.ended.__contains__, fail, system)
        for leader in (1, 2):
            system.begin(leader)
            system.end(leader)
        await system.until(lambda: system.gone == [1, 2])

    system.play(scene)
    assert [str(error) for error in caught] == ["mine"]
