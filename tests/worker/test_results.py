"""Results that are files: at the master before anybody is told of them, whatever happens on the way, or refused with a
reason.
"""

from __future__ import annotations

import hashlib
import os

import pytest

from titan_fast._layout import RESULT_IS_FILE
from titan_fast.errors import BadMessage, DiskFull, InternalError, TooLarge
from titan_fast.ids import Ending, format_fence, make_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import send, send_error
from titan_fast.protocol.opcodes import Op
from titan_fast.worker.results import PIECE, RESULT_REFUSED

A, B, C = (make_fence(1, sequence) for sequence in range(1, 4))
CONTENT = bytes(range(256)) * (PIECE // 256) * 2 + b"and a rest"
ADDRESS = hashlib.sha256(CONTENT).hexdigest()
WORDS = b"some words\n"
FILE = (A, Ending.EXIT, 0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("titan_fast.worker.results.PAUSE", 0.001)


def place(stage, fence):
    return f"{stage.settings.work_dir}/attempts/{format_fence(fence)}"


def end_with_file(stage, fence, content=CONTENT):
    with open(f"{place(stage, fence)}/result", "wb") as file:
        file.write(content)
    with open(f"{place(stage, fence)}/output", "wb") as file:
        file.write(WORDS)
    stage.executor.end(fence, is_file=True, output_size=len(WORDS))


def asked(session):
    """What was said about files in this session."""
    return [each for each in session.said if each.op in (Op.BLOB_ASK, Op.BLOB_PUT)]


async def next_of(master, session, count):
    """The request after so many."""
    await master.until(lambda: len(asked(session)) > count)
    return asked(session)[count]


def answer(session, request, reply):
    if isinstance(reply, msg.BlobHeld):
        session.transport.write(send(reply, request=request.request, is_reply=True))
    else:
        session.transport.write(send_error(reply, request.request))


async def take(master, session, begin=0, size=-1):
    """Answer as a master does that does not hold the file, from the ``begin``th request on, until it has ``size``
    bytes of it or all; gives them."""
    content = b""
    while True:
        request = await next_of(master, session, begin)
        begin += 1
        if request.op is Op.BLOB_PUT:
            assert request.message.offset == len(content)
            content += request.attachments[0]
        is_whole = request.op is Op.BLOB_PUT and len(content) == request.message.size
        answer(session, request, msg.BlobHeld(request.message.digest, len(content) if is_whole else -1))
        if is_whole or len(content) == size:
            return content


async def begin(stage, master, *fences):
    session = await master.attached()
    session.keep_all()
    for fence in fences:
        session.assign(fence, first=fence & 0xFF)
    await stage.until(lambda: set(fences) <= {*stage.executor.started})
    return session


async def told(master, session, count=1):
    """(fence, ending, code), flags and bytes of the last of so many results."""
    await master.until(lambda: len(session.results()) >= count)
    frame = session.frames(Op.RESULT)[-1]
    assert len(frame.columns[0]) == 1
    return session.results()[-1], frame.columns[4][0], frame.tail


async def output_of(master, session):
    """What was said of the only attempt's output, once that is complete."""
    await master.until(lambda: any(frame.message.final for frame in session.frames(Op.OUTPUT)))
    pieces = session.frames(Op.OUTPUT)
    text = b"".join(piece.attachments[0] for piece in pieces if piece.attachments)
    assert pieces[-1].message.total == len(text)
    return text


def test_a_file_is_there_before_it_is_told_and_its_attempt_has_no_slot_meanwhile(make_stage):
    stage = make_stage(slots=1)

    async def scene(master):
        session = await begin(stage, master, A)
        session.assign(B, first=2)
        end_with_file(stage, A)
        await stage.until(lambda: B in stage.executor.started)
        assert await take(master, session, size=2 * PIECE) == CONTENT[: 2 * PIECE]
        await next_of(master, session, 3)
        stage.executor.end(B, 3)
        assert (await told(master, session))[0] == (B, Ending.EXIT, 3), "others do not wait for it"
        assert await rest(master, session, 3) == b"and a rest"
        assert await told(master, session, 2) == (FILE, RESULT_IS_FILE, ADDRESS.encode())
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        await stage.until(lambda: not stage.has_folder(A))

    async def rest(master, session, at):
        request = await next_of(master, session, at)
        answer(session, request, msg.BlobHeld(ADDRESS, len(CONTENT)))
        return request.attachments[0]

    stage.play(scene)


def test_what_the_master_holds_already_is_not_sent(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        answer(session, await next_of(master, session, 0), msg.BlobHeld(ADDRESS, len(CONTENT)))
        assert await told(master, session) == (FILE, RESULT_IS_FILE, ADDRESS.encode())
        assert [each.op for each in asked(session)] == [Op.BLOB_ASK]

    stage.play(scene)


def test_files_come_one_after_the_other(stage):
    """Two with the same content are one file at the master; sent side by side they would break each other off."""

    async def scene(master):
        session = await begin(stage, master, A, B)
        end_with_file(stage, A)
        end_with_file(stage, B)
        await take(master, session)
        await told(master, session)
        answer(session, await next_of(master, session, 4), msg.BlobHeld(ADDRESS, len(CONTENT)))
        assert await told(master, session, 2) == ((B, Ending.EXIT, 0), RESULT_IS_FILE, ADDRESS.encode())
        assert [each.op for each in asked(session)] == [Op.BLOB_ASK, *[Op.BLOB_PUT] * 3, Op.BLOB_ASK]

    stage.play(scene)


# ---------------------------------------------------------------- cut, killed, stopped


@pytest.mark.parametrize("pieces", range(3))
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_broken_off_in_the_middle_starts_over(stage, pieces, killed):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        if pieces:
            await take(master, session, size=pieces * PIECE)
        await next_of(master, session, pieces + bool(pieces))
        if killed:
            await stage.restart()
        else:
            session.cut()
        second = await master.attached(2)
        assert second.inventory == {A: 1}, "to the master it runs"
        second.keep_all()
        assert await take(master, second) == CONTENT
        assert await told(master, second) == (FILE, RESULT_IS_FILE, ADDRESS.encode())
        assert not session.results()
        assert await output_of(master, second) == WORDS

    stage.play(scene)


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_there_is_told_until_it_is_acknowledged_and_not_sent_again(stage, killed):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        await take(master, session)
        await told(master, session)
        if killed:
            await stage.restart()
        else:
            session.cut()
        second = await master.attached(2)
        assert second.inventory == {A: 2}
        second.keep_all()
        assert await told(master, second) == (FILE, RESULT_IS_FILE, ADDRESS.encode())
        assert not asked(second)

    stage.play(scene)


def test_an_agent_that_stops_brings_it_first(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        stage.agent.stop()
        assert await take(master, session) == CONTENT
        assert await told(master, session) == (FILE, RESULT_IS_FILE, ADDRESS.encode())
        session.ack(session.frames(Op.RESULT)[-1].sequence)
        await stage.running
        await master.until(lambda: session.is_lost)
        assert [frame.message.empty for frame in session.frames(Op.GOODBYE)] == [False, True]

    stage.play(scene)


def test_an_agent_that_has_to_go_at_once_says_no_goodbye_and_the_next_one_brings_it(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        await next_of(master, session, 0)
        stage.agent.stop()
        stage.agent.stop()
        await stage.running
        await master.until(lambda: session.is_lost)
        assert [frame.message.empty for frame in session.frames(Op.GOODBYE)] == [False]
        stage.start()
        second = await master.attached(2)
        second.keep_all()
        assert await take(master, second) == CONTENT
        assert (await told(master, second))[0] == FILE

    stage.play(scene)


# ---------------------------------------------------------------- what the master says


@pytest.mark.parametrize("error", [DiskFull("no room"), InternalError("a bad sector")])
def test_a_master_that_cannot_take_it_now_is_asked_again(stage, caplog, error):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        await take(master, session, size=PIECE)
        answer(session, await next_of(master, session, 2), error)
        answer(session, await next_of(master, session, 3), error)
        assert await take(master, session, begin=4) == CONTENT
        assert await told(master, session) == (FILE, RESULT_IS_FILE, ADDRESS.encode())

    stage.play(scene)
    (said,) = [record.message for record in caplog.records if "has to wait" in record.message]
    assert said == f"a result of {len(CONTENT)} bytes has to wait: {error}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            TooLarge("at most 7 bytes are taken", hint="raise it"),
            "the master does not take the result file: at most 7 bytes are taken; raise it",
        ),
        (BadMessage("it is another"), "the result file changed while it was sent (it is another)"),
    ],
)
def test_what_the_master_does_not_take_is_a_failure_that_says_why(stage, error, reason):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        answer(session, await next_of(master, session, 0), msg.BlobHeld(ADDRESS, -1))
        answer(session, await next_of(master, session, 1), error)
        assert await told(master, session) == ((A, Ending.EXIT, RESULT_REFUSED), 0, b"")
        text = await output_of(master, session)
        assert text == WORDS + f"\n[titan-fast] {reason}\n".encode()
        assert len(text) == session.frames(Op.RESULT)[-1].columns[9][0]
        await stage.restart()
        second = await master.attached(2)
        assert second.inventory == {A: 2}, "and stays one"

    stage.play(scene)


def test_a_file_that_becomes_shorter_on_the_way_is_a_failure(stage):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        await take(master, session, size=PIECE)
        request = await next_of(master, session, 2)
        os.truncate(f"{place(stage, A)}/result", PIECE + 1)
        answer(session, request, msg.BlobHeld(ADDRESS, -1))
        assert await told(master, session) == ((A, Ending.EXIT, RESULT_REFUSED), 0, b"")
        assert is_broken_off(await next_of(master, session, 3))

    stage.play(scene)


def is_broken_off(request):
    """A piece that makes the master let go of what is unfinished."""
    return request.op is Op.BLOB_PUT and (request.message.offset, request.message.size) == (0, 0)


# ---------------------------------------------------------------- not wanted, or not yet


@pytest.mark.parametrize("how", ["kill", "verdict"])
def test_a_kill_ends_it_as_if_it_still_ran(stage, how):
    async def scene(master):
        session = await begin(stage, master, A, B)
        end_with_file(stage, A)
        await take(master, session, size=PIECE)
        await next_of(master, session, 2)
        if how == "kill":
            session.kill(A)
            assert is_broken_off(await next_of(master, session, 3))
            count = 3
        else:
            session.cut()
            session = await master.attached(2)
            session.verdict(keep=[B], kill=[A])
            count = 0
        assert await told(master, session) == ((A, Ending.KILLED, 0), 0, b""), "a cancel waits for this"
        end_with_file(stage, B)
        await next_of(master, session, count)
        assert stage.executor.killed == [], "no process was there to be ended"

    stage.play(scene)


def test_one_that_has_to_wait_is_brought_and_told_when_the_master_has_decided(stage):
    async def scene(master):
        session = await begin(stage, master, A, B)
        session.cut()
        second = await master.attached(2)
        second.verdict(wait=[A], keep=[B])
        await stage.until(lambda: stage.agent._held)
        end_with_file(stage, A)
        assert await take(master, second) == CONTENT
        stage.executor.end(B)
        assert (await told(master, second))[0] == (B, Ending.EXIT, 0)
        second.verdict(keep=[A], later=True)
        assert await told(master, second, 2) == (FILE, RESULT_IS_FILE, ADDRESS.encode())

    stage.play(scene)


@pytest.mark.parametrize("runs", [False, True])
def test_another_master_of_the_same_epoch_hears_nothing_of_it(stage, runs):
    async def scene(master):
        session = await begin(stage, master, A)
        stage.executor.is_deaf = True
        if not runs:
            end_with_file(stage, A)
            await next_of(master, session, 0)
        master.nonce, master.history = "other", "h2"
        session.cut()
        if runs:
            await stage.until(lambda: stage.executor.killed)
            end_with_file(stage, A)
        second = await master.attached(2)
        assert second.inventory == {}
        second.keep_all()
        assert not stage.has_folder(A)

    stage.play(scene)


def test_its_run_keeps_its_files_under_another_history(stage, tmp_path):
    async def scene(master):
        session = await begin(stage, master, A)
        end_with_file(stage, A)
        await next_of(master, session, 0)
        master.epoch, master.nonce, master.history = 7, "n7", "h2"
        session.cut()
        second = await master.attached(2)
        second.verdict(keep=[A])
        await take(master, second)
        assert [path.name for path in (tmp_path / "work" / "runs").iterdir()] == ["1"]

    stage.play(scene)


def test_one_that_ends_in_the_turn_in_which_it_began_is_told_as_started_while_its_file_is_on_its_way(stage):
    async def scene(master):
        session = await master.attached()
        session.keep_all()
        real = stage.executor.observer.attempt_started

        def started(fence, pid, at):
            real(fence, pid, at)
            end_with_file(stage, fence)

        stage.executor.observer.attempt_started = started
        session.assign(A)
        await next_of(master, session, 0)
        await stage.until(lambda: session.frames(Op.STARTED))
        assert [list(frame.columns[3]) for frame in session.frames(Op.STARTED)] == [[A]]

    stage.play(scene)
