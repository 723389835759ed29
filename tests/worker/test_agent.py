"""The agent against a scripted master: what it tells, what it holds back, what it forgets, and what a kill costs."""

from __future__ import annotations

import asyncio

import pytest

from titan_fast.errors import BadProof
from titan_fast.ids import Ending, make_fence
from titan_fast.model.spec import Work
from titan_fast.protocol.opcodes import Op

A, B, C, D, E = (make_fence(1, sequence) for sequence in range(1, 6))


async def begin(stage, master, *fences, number=1):
    """A first session that has been assigned these, one by one."""
    session = await master.attached(number)
    session.keep_all()
    for fence in fences:
        session.assign(fence, first=fence & 0xFF)
    running = min(len(fences), stage.settings.slots)
    await master.until(lambda: sum(map(len, (each.columns[0] for each in session.frames(Op.STARTED)))) >= running)
    return session


async def again(master, session):
    """The session after this one is cut."""
    number = len([each for each in master.sessions if each.attach])
    session.cut()
    return await master.attached(number + 1)


# ---------------------------------------------------------------- inventory and acknowledgements


def test_results_are_told_until_they_are_acknowledged_and_then_never_again(stage):
    async def scene(master):
        session = await begin(stage, master, A, B, C)
        stage.executor.end(A, 3)
        await master.until(lambda: session.results())
        second = await again(master, session)
        assert second.inventory == {A: 2, B: 1, C: 1}
        assert {item.fence: item.index for item in second.attach.inventory} == {A: 1, B: 2, C: 3}
        assert {item.started for item in second.attach.inventory} == {1_000_000_000}
        second.keep_all()
        await master.until(lambda: second.results())
        assert second.results() == [(A, Ending.EXIT, 3)]
        (frame,) = second.frames(Op.RESULT)
        assert frame.sequence > session.frames(Op.RESULT)[0].sequence, "frames of other sessions have other numbers"
        second.ack(frame.sequence)
        stage.executor.end(B)
        await master.until(lambda: len(second.results()) == 2)
        third = await again(master, second)
        assert third.inventory == {B: 2, C: 1}

    stage.play(scene)


def test_what_waits_for_a_slot_is_told_and_given_back(stage):
    async def scene(master):
        session = await begin(stage, master, A, B, C, D)
        second = await again(master, session)
        assert second.inventory == {A: 1, B: 1, C: 0, D: 0}
        second.verdict(keep=[A, B, D], kill=[C])
        await master.until(lambda: second.results())
        second.recall(D)
        await master.until(lambda: len(second.results()) == 2)
        assert second.results() == [(C, Ending.DROPPED, 0), (D, Ending.RECALLED, 0)]

    stage.play(scene)


def test_an_acknowledgement_covers_all_frames_up_to_it(stage):
    async def scene(master):
        session = await begin(stage, master, A, B)
        for fence in (A, B):
            stage.executor.end(fence)
            await master.until(lambda fence=fence: fence in [each[0] for each in session.results()])
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        await stage.until(lambda: not stage.has_folder(A) and not stage.has_folder(B))
        assert (await again(master, session)).inventory == {}

    stage.play(scene)


def test_the_start_of_what_has_ended_is_not_told(stage, monkeypatch):
    monkeypatch.setattr("titan_fast.worker.agent.STARTED_AFTER", 3600.0)

    async def scene(master):
        session = await master.attached()
        session.keep_all()
        session.assign(A, first=A & 0xFF)
        session.assign(B, first=B & 0xFF)
        await stage.executor.until_running(A)
        await stage.executor.until_running(B)
        stage.executor.end(A)
        await master.until(lambda: session.results())
        assert session.results() == [(A, Ending.EXIT, 0)]
        assert not session.frames(Op.STARTED), "it is not time yet"
        stage.agent._tell_started()
        await master.until(lambda: session.frames(Op.STARTED))
        assert [list(frame.columns[3]) for frame in session.frames(Op.STARTED)] == [[B]]

    stage.play(scene)


def test_results_wait_for_each_other_only_while_much_work_waits_here(make_stage, monkeypatch):
    monkeypatch.setattr("titan_fast.worker.agent.HELD_FOR", 0.5)
    stage = make_stage(slots=1)

    async def scene(master):
        fences = [make_fence(1, number) for number in range(1, 8)]
        session = await begin(stage, master, *fences)
        for fence in fences[:3]:
            await stage.executor.until_running(fence)
            stage.executor.end(fence)
        await master.until(lambda: session.results())
        assert [fence for fence, _, _ in session.results()] == fences[:3]
        assert len(session.frames(Op.RESULT)) == 1, "five waited when the first one ended"
        monkeypatch.setattr("titan_fast.worker.agent.HELD_FOR", 3600.0)
        await stage.executor.until_running(fences[3])
        stage.executor.end(fences[3])
        await master.until(lambda: len(session.results()) == 4)

    stage.play(scene)


def test_what_starts_between_inventory_and_verdict_is_told_after_it(stage):
    async def scene(master):
        session = await begin(stage, master, A, B, C)
        second = await again(master, session)
        assert second.inventory == {A: 1, B: 1, C: 0}
        stage.executor.end(A)
        await stage.until(lambda: C in stage.executor.started)
        second.keep_all()
        await master.until(lambda: second.frames(Op.RESULT) and second.frames(Op.STARTED))
        assert [list(frame.columns[3]) for frame in second.frames(Op.STARTED)] == [[C]]
        assert second.results() == [(A, Ending.EXIT, 0)]

    stage.play(scene)


# ---------------------------------------------------------------- verdicts


def test_a_result_that_has_to_wait_is_sent_when_the_master_has_decided(stage):
    async def scene(master):
        session = await begin(stage, master, A, B)
        stage.executor.end(A, 7)
        await master.until(lambda: session.results())
        second = await again(master, session)
        second.verdict(wait=[A, B])
        second.assign(C, first=3)
        await master.until(lambda: second.frames(Op.STARTED))
        stage.executor.end(B, 8)
        stage.executor.end(C, 9)
        await master.until(lambda: second.results())
        assert second.results() == [(C, Ending.EXIT, 9)], "only what nobody has to decide about"
        second.verdict(keep=[A, B], later=True)
        await master.until(lambda: len(second.results()) == 3)
        assert sorted(second.results()[1:]) == [(A, Ending.EXIT, 7), (B, Ending.EXIT, 8)]

    stage.play(scene)


def test_what_is_held_back_stays_so_over_a_new_session_only_if_the_master_says_so_again(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        second = await again(master, session)
        second.verdict(wait=[A])
        await stage.until(lambda: stage.agent._held)
        stage.executor.end(A)
        third = await again(master, second)
        assert third.inventory == {A: 2}
        third.keep_all()
        await master.until(lambda: third.results())

    stage.play(scene)


def test_a_kill_in_a_verdict_ends_what_runs_and_forgets_what_has_ended(stage):
    async def scene(master):
        session = await begin(stage, master, A, B)
        stage.executor.end(A)
        await master.until(lambda: session.results())
        second = await again(master, session)
        second.verdict(kill=[A, B])
        await master.until(lambda: second.results())
        assert [each[:2] for each in second.results()] == [(B, Ending.KILLED)], "and nothing of what is forgotten"
        assert not stage.has_folder(A) and stage.has_folder(B)
        third = await again(master, second)
        assert third.inventory == {B: 2}

    stage.play(scene)


def test_a_kill_of_what_has_ended_since_the_inventory_is_answered_with_its_end(stage):
    """The master waits for it, if the task was cancelled."""

    async def scene(master):
        session = await begin(stage, master, A)
        session.cut()
        second = await master.attached(2)
        assert second.inventory == {A: 1}
        stage.executor.end(A)
        second.verdict(kill=[A])
        await master.until(lambda: second.results())
        assert second.results() == [(A, Ending.EXIT, 0)]

    stage.play(scene)


def test_a_later_kill_of_what_was_held_back_is_answered_with_its_end(stage):
    async def scene(master):
        session = await begin(stage, master, A, B)
        second = await again(master, session)
        second.verdict(wait=[A, B])
        await stage.until(lambda: stage.agent._held)
        stage.executor.end(A)
        second.verdict(kill=[A, B], later=True)
        await master.until(lambda: len(second.results()) == 2)
        assert [each[:2] for each in second.results()] == [(A, Ending.EXIT), (B, Ending.KILLED)]

    stage.play(scene)


def test_a_kill_of_what_is_held_back_is_a_decision(stage):
    """Its end is what a cancel waits for."""

    async def scene(master):
        session = await begin(stage, master, A)
        second = await again(master, session)
        second.verdict(wait=[A])
        second.kill(A)
        await master.until(lambda: second.results())
        assert second.results() == [(A, Ending.KILLED, -9)]

    stage.play(scene)


def test_results_that_have_to_wait_do_not_stop_new_work(make_stage):
    stage = make_stage(unacknowledged=1)

    async def scene(master):
        session = await begin(stage, master, A)
        second = await again(master, session)
        second.verdict(wait=[A])
        await stage.until(lambda: stage.agent._held)
        stage.executor.end(A, result=b"x" * 100)
        second.assign(B, first=2)
        await master.until(lambda: second.frames(Op.STARTED))
        stage.executor.end(B, result=b"x" * 100)
        second.assign(C, first=3)
        await master.until(lambda: second.results())
        assert stage.executor.started == [A, B], "one that the master could acknowledge does stop it"
        second.ack(second.frames(Op.RESULT)[-1].sequence)
        await master.until(lambda: len(second.frames(Op.STARTED)) == 2)

    stage.play(scene)


# ---------------------------------------------------------------- epochs and histories


def test_it_says_which_master_assigned_what_it_holds(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        assert (session.hello.epoch, session.attach.nonces) == (0, {})
        master.epoch, master.nonce = 4, "n4"
        second = await again(master, session)
        assert second.hello.epoch == 1
        assert second.attach.nonces == {"1": "n1"}
        second.keep_all()
        second.assign(make_fence(4, 1), first=2)
        await master.until(lambda: second.frames(Op.STARTED))
        third = await again(master, second)
        assert third.hello.epoch == 4
        assert third.attach.nonces == {"1": "n1", "4": "n4"}

    stage.play(scene)


def test_another_master_that_counts_the_same_epoch_gets_none_of_the_first_ones_attempts(stage):
    """Its fences are the same numbers: what they name here has to be gone before it may assign."""

    async def scene(master):
        session = await begin(stage, master, A, B, C)
        stage.executor.end(A)
        await master.until(lambda: session.results())
        stage.executor.is_deaf = True
        master.nonce, master.history = "other", "h2"
        session.cut()
        await master.until(lambda: len([each for each in master.sessions if each.hello]) >= 3)
        assert len([each for each in master.sessions if each.attach]) == 1, "while something of the first one lives"
        assert set(stage.executor.killed) == {B, C}
        for fence in (B, C):
            stage.executor.end(fence, -9, Ending.KILLED)
        second = await master.attached(2)
        assert second.inventory == {}
        second.keep_all()
        second.assign(A, first=9)
        await master.until(lambda: second.frames(Op.STARTED))
        stage.executor.end(A)
        await master.until(lambda: second.results())
        assert second.results() == [(A, Ending.EXIT, 0)]

    stage.play(scene)


def test_runs_of_another_history_lose_their_files_unless_something_of_them_is_kept(make_stage, tmp_path):
    stage = make_stage(slots=4)

    async def scene(master):
        session = await master.attached()
        session.keep_all()
        for fence, run in ((A, 1), (B, 2), (C, 3)):
            session.assign(fence, run=run)
        await master.until(lambda: len(stage.executor.started) == 3)
        stage.executor.end(C)
        await master.until(lambda: session.results())
        session.ack(session.frames(Op.RESULT)[0].sequence)
        copies = tmp_path / "work" / "runs"
        assert sorted(path.name for path in copies.iterdir()) == ["1", "2", "3"]
        (copies / "1" / "mark").touch()
        master.epoch, master.nonce, master.history = 7, "n7", "h2"
        second = await again(master, session)
        second.verdict(keep=[B], kill=[A])
        second.assign(make_fence(7, 1), run=1)
        await master.until(lambda: len(stage.executor.started) == 4)
        assert sorted(path.name for path in copies.iterdir()) == ["1", "2"]
        assert not (copies / "1" / "mark").exists(), "the new run 1 has the old one's files"
        assert (tmp_path / "work" / "history").read_text() == "h2"

    stage.play(scene)


# ---------------------------------------------------------------- what a killed agent leaves


def test_the_next_agent_goes_on_with_everything_but_what_had_not_started(make_stage):
    stage = make_stage(slots=3)

    async def scene(master):
        session = await begin(stage, master, A, B, C, D, E)
        stage.executor.end(A, 3, result="é".encode())
        await master.until(lambda: session.results())
        await stage.until(lambda: D in stage.executor.started)
        await stage.restart()
        second = await master.attached(2)
        assert second.attach.nonce != session.attach.nonce
        assert second.hello.epoch == 1 and second.attach.nonces == {"1": "n1"}
        assert second.inventory == {A: 2, B: 1, C: 1, D: 1}, "E had not started"
        second.keep_all()
        await master.until(lambda: second.results())
        assert (second.results(), second.texts()) == ([(A, Ending.EXIT, 3)], ["é".encode()])
        second.assign(make_fence(1, 9), first=9)
        stage.executor.end(B, 5)
        await master.until(lambda: len(second.results()) == 2)
        assert second.results()[1] == (B, Ending.EXIT, 5)
        second.ack(second.frames(Op.RESULT)[-1].sequence)
        await master.until(lambda: second.frames(Op.STARTED))
        await stage.restart()
        third = await master.attached(3)
        assert third.inventory == {C: 1, D: 1, make_fence(1, 9): 1}

    stage.play(scene)


def test_attempts_without_a_trace_are_not_in_the_inventory(stage):
    async def scene(master):
        await begin(stage, master, A, B)
        del stage.executor.running[A]
        await stage.restart()
        second = await master.attached(2)
        assert second.inventory == {B: 1}
        second.keep_all()
        second.assign(C, first=3)
        await master.until(lambda: second.frames(Op.STARTED))

    stage.play(scene)


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_gives_an_attempt_back_once_and_starts_nothing_until_there_is_room(stage, monkeypatch, caplog):
    monkeypatch.setattr("titan_fast.worker.agent.ROOM_INTERVAL", 0.01)

    async def scene(master):
        session = await master.attached()
        session.keep_all()
        stage.executor.full_disk = True
        session.assign(A, first=1)
        await master.until(lambda: session.results())
        assert session.results() == [(A, Ending.RECALLED, 0)]
        for fence in (B, C):
            session.assign(fence, first=fence & 0xFF)
        session.recall(C)
        await master.until(lambda: len(session.results()) == 2)
        assert session.results()[1] == (C, Ending.RECALLED, 0), "what waits is given back when asked for, no sooner"
        assert stage.executor.started == []
        stage.executor.full_disk = False
        await master.until(lambda: session.frames(Op.STARTED))
        assert stage.executor.started == [B]

    stage.play(scene)
    assert [record.message for record in caplog.records if "disk" in record.message] == [
        "the disk of the work directory is full (No space left on device): nothing is started until there is room",
        "the disk of the work directory has room again",
    ]


# ---------------------------------------------------------------- results of other tasks


def test_results_are_put_in_and_the_newest_spec_counts(stage):
    async def scene(master):
        session = await master.attached()
        session.keep_all()
        work = Work(argv=("say", "${tasks.extract.result}"), env={"X": "<${tasks.extract.result}>"})
        session.assign(A, work=work, results={"extract": "one"})
        session.assign(B, work=work, results={"extract": "two"})
        await master.until(lambda: len(stage.executor.started) == 2)
        first, second = (stage.executor.running[fence] for fence in (A, B))
        assert (first.argv, first.env["X"]) == (("say", "one"), "<one>")
        assert (second.argv, second.env["X"]) == (("say", "two"), "<two>")

    stage.play(scene)


def test_a_result_that_is_not_there_is_a_sentence(stage):
    async def scene(master):
        session = await master.attached()
        session.keep_all()
        session.assign(A, work=Work(shell="echo ${tasks.extract.result}"), results={"load": "x"})
        await master.until(lambda: session.results())
        assert session.results()[0][:2] == (A, Ending.NOT_STARTED)
        assert session.texts() == [b"'${tasks.extract.result}' has no value; there are results of: load"]

    stage.play(scene)


def test_any_number_of_attempts_that_cannot_start_end_one_after_the_other(make_stage):
    stage = make_stage(slots=2)

    async def scene(master):
        session = await master.attached()
        session.keep_all()
        session.assign(A, count=3000, work=Work(file="missing.py"))
        await master.until(lambda: len(session.results()) == 3000)
        assert {each[1] for each in session.results()} == {Ending.NOT_STARTED}

    stage.play(scene)


# ---------------------------------------------------------------- stopping


def test_a_stopped_agent_gives_back_what_waits_lets_the_rest_finish_and_says_goodbye(stage):
    async def scene(master):
        session = await begin(stage, master, A, B, C)
        stage.agent.stop()
        await master.until(lambda: session.results())
        assert session.results() == [(C, Ending.RECALLED, 0)]
        session.assign(D, first=4)
        await master.until(lambda: len(session.results()) == 2)
        assert session.results()[1] == (D, Ending.RECALLED, 0)
        stage.executor.end(A, 1)
        stage.executor.end(B, 2)
        await master.until(lambda: len(session.results()) == 4)
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        assert await asyncio.wait_for(stage.running, 20) == 0
        await master.until(lambda: session.is_lost)
        assert [frame.message.empty for frame in session.frames(Op.GOODBYE)] == [False, True]

    stage.play(scene)


def test_an_agent_that_is_let_in_no_more_begins_nothing_while_it_ends_what_runs(stage):
    async def scene(master):
        session = await begin(stage, master, A, B, C, D)
        stage.agent._link._find_token = lambda: "another token"
        session.cut()
        await asyncio.wait([stage.running])
        with pytest.raises(BadProof):
            stage.running.result()
        assert stage.executor.started == [A, B]

    stage.play(scene)


# ---------------------------------------------------------------- the log


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "titan_fast.worker"]


def test_the_log_tells_when_it_comes_goes_and_is_back_and_nothing_of_attempts(stage, caplog):
    caplog.set_level("INFO", "titan_fast.worker")

    async def scene(master):
        session = await begin(stage, master, A, B)
        stage.executor.end(A)
        await master.until(lambda: session.results())
        second = await again(master, session)
        second.keep_all()
        await master.until(lambda: second.results())
        second.ack(second.frames(Op.RESULT)[-1].sequence)
        stage.agent.stop()
        await master.until(lambda: second.frames(Op.GOODBYE))
        stage.agent.stop()
        await master.until(lambda: len(second.results()) == 2)
        second.ack(second.frames(Op.RESULT)[-1].sequence)
        assert await asyncio.wait_for(stage.running, 20) == 0

    stage.play(scene)
    address = "{}:{}".format(*stage.master.address)
    lines = said(caplog)
    assert lines[0] == f"attached to the master at {address} as w1, 2 slots"
    assert lines[1].startswith("lost the master") and lines[1].endswith("; connecting again")
    assert lines[2:] == [
        f"back at the master at {address}",
        "draining: takes nothing new, 1 attempts have 10 s to finish",
        "ending 1 attempts that still run",
    ]


def test_a_drain_in_which_everything_finishes_ends_nothing(stage, caplog):
    caplog.set_level("INFO", "titan_fast.worker")

    async def scene(master):
        session = await begin(stage, master, A)
        stage.agent.stop()
        stage.executor.end(A)
        await master.until(lambda: session.results())
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        assert await asyncio.wait_for(stage.running, 20) == 0

    stage.play(scene)
    assert said(caplog)[1:] == ["draining: takes nothing new, 1 attempts have 10 s to finish"]


@pytest.mark.parametrize("second_life", [False, True])
def test_results_that_nobody_acknowledged_are_told_by_the_next_agent(make_stage, monkeypatch, second_life):
    monkeypatch.setattr("titan_fast.worker.agent.LAST_WORDS", 0.01)
    stage = make_stage()

    async def scene(master):
        session = await begin(stage, master, A)
        stage.agent.stop()
        stage.executor.end(A, 6)
        assert await asyncio.wait_for(stage.running, 20) == 0
        await master.until(lambda: session.is_lost)
        assert [frame.message.empty for frame in session.frames(Op.GOODBYE)] == [False], "it does hold something"
        stage.agent = None
        if second_life:
            stage.executor = type(stage.executor)()
        stage.start()
        second = await master.attached(2)
        assert second.inventory == {A: 2}
        second.keep_all()
        await master.until(lambda: second.results())
        assert second.results() == [(A, Ending.EXIT, 6)]

    stage.play(scene)
