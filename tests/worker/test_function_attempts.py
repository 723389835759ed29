"""Attempts of functions in the agent: what it tells of them, holds back and gives back. Their processes are real."""

from __future__ import annotations

import pickle
import time

from titan_fast.ids import Ending, make_fence
from titan_fast.model.spec import Work
from titan_fast.protocol.opcodes import Op

A = make_fence(1, 1)
FUNCTION = Work(function=0)


def payload(*items):
    parts = [pickle.dumps(item, 5) for item in items]
    ends = [sum(map(len, parts[:n])) for n in range(len(parts) + 1)]
    return b"".join(end.to_bytes(4, "big") for end in ends) + b"".join(parts)


def give(session, function, items, fence=A, **fields):
    items = list(items)
    parts = (pickle.dumps(function, 5),)
    session.assign(fence, count=len(items), work=FUNCTION, parts=parts, payload=payload(*items), **fields)


async def begin(master, number=1):
    session = await master.attached(number)
    session.keep_all()
    return session


async def again(master, session):
    number = len([each for each in master.sessions if each.attach])
    session.cut()
    return await master.attached(number + 1)


def test_results_are_told_without_a_start_and_again_until_they_are_acknowledged(stage):
    async def scene(master):
        session = await begin(master)
        give(session, abs, range(-50, 0))
        await master.until(lambda: len(session.results()) == 50)
        assert {(ending, code) for _, ending, code in session.results()} == {(Ending.EXIT, 0)}
        assert not session.frames(Op.STARTED)
        second = await again(master, session)
        assert second.inventory == {A + n: 2 for n in range(50)}
        second.verdict(keep=[A + n for n in range(2, 50)], kill=[A], wait=[A + 1])
        await master.until(lambda: len(second.results()) == 48)
        assert sorted(fence for fence, _, _ in second.results()) == [A + n for n in range(2, 50)]
        told = [fence - A for fence, _, _ in second.results()]
        assert b"".join(second.texts()) == b"".join(pickle.dumps(50 - n, 5) for n in told)
        second.ack(second.frames(Op.RESULT)[-1].sequence)
        second.verdict(keep=[A + 1], later=True)
        await master.until(lambda: len(second.results()) == 49)
        third = await again(master, second)
        assert third.inventory == {A + 1: 2}

    stage.play(scene)


def test_an_acknowledged_result_is_held_no_more(stage):
    async def scene(master):
        session = await begin(master)
        give(session, abs, range(500))
        await master.until(lambda: len(session.results()) == 500)
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        await stage.until(lambda: stage.agent._unacknowledged_size == 0)
        assert (await again(master, session)).inventory == {}

    stage.play(scene)


def test_what_ends_while_the_master_is_away_is_told_when_it_is_back(stage):
    async def scene(master):
        session = await begin(master)
        give(session, time.sleep, [0.4, 0.4])
        await master.until(lambda: session.frames(Op.STARTED))
        second = await again(master, session)
        assert set(second.inventory) == {A, A + 1} and 1 in second.inventory.values()
        await stage.until(lambda: len(stage.agent._unacknowledged) == 2)
        second.keep_all()
        await master.until(lambda: len(second.results()) == 2)

    stage.play(scene)


def test_what_waits_is_given_back_also_from_a_lane(stage):
    async def scene(master):
        session = await begin(master)
        give(session, time.sleep, [0.05] * 100)
        session.recall(A + 10, 90)
        await master.until(lambda: len(session.results()) == 100)
        back = {fence - A for fence, ending, _ in session.results() if ending is Ending.RECALLED}
        assert back == set(range(10, 100))

    stage.play(scene)


def test_a_kill_ends_what_runs_and_drops_what_waits(stage):
    async def scene(master):
        session = await begin(master)
        give(session, time.sleep, [60] * 4)
        await master.until(lambda: sum(len(frame.columns[3]) for frame in session.frames(Op.STARTED)) == 2)
        session.kill(A)
        session.kill(A + 3)
        await master.until(lambda: len(session.results()) == 2)
        assert {fence: ending for fence, ending, _ in session.results()} == {
            A: Ending.KILLED,
            A + 3: Ending.DROPPED,
        }

    stage.play(scene)


def test_commands_and_functions_have_the_same_slots(stage):
    async def scene(master):
        session = await begin(master)
        session.assign(A + 100)
        session.assign(A + 101, first=1)
        give(session, abs, range(10), spec=1)
        await master.until(lambda: session.frames(Op.STARTED))
        assert session.results() == [], "both slots are taken"
        stage.executor.end(A + 100)
        await master.until(lambda: len(session.results()) == 11)
        stage.executor.end(A + 101)

    stage.play(scene)


def test_a_function_that_the_master_cannot_send_does_not_start(stage):
    async def scene(master):
        session = await begin(master)
        session.assign(A, work=FUNCTION, problem="it is too large")
        await master.until(lambda: session.results())
        assert session.results() == [(A, Ending.NOT_STARTED, 0)]
        assert session.texts() == [b"it is too large"]

    stage.play(scene)


def test_nothing_is_written_for_a_function_that_writes_nothing(stage):
    async def scene(master):
        session = await begin(master)
        size = stage.journal_size()
        give(session, abs, range(200))
        await master.until(lambda: len(session.results()) == 200)
        assert not stage.has_folder(A) and not stage.has_folder(A + 199)
        assert stage.journal_size() == size

    stage.play(scene)
