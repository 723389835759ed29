"""What an agent hears from its keeper of processes that lost their parent; the keeper's end is played here."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest

from titan_fast.worker.executors.base import Exit
from titan_fast.worker.exits import Exits, Told
from titan_fast.worker.keeper import KEEPER_EXITS, SYNC, TAKEN, UP


@pytest.fixture
def ends():
    mine, its = socket.socketpair()
    exits = Exits(its, os.getpid())
    yield mine, exits
    exits.close()
    mine.close()


def answer(line, *parts):
    """Wait for the agent's question, then say these one after the other."""

    def run():
        assert line.recv(1) == SYNC
        for part in parts:
            line.sendall(part)

    threading.Thread(target=run, daemon=True).start()


FIRST = Told(71, 9000, Exit(os.CLD_EXITED, 7, 12.5))
SECOND = Told(72, 9001, Exit(os.CLD_KILLED, 15, 13.25), b"/a")


def test_the_backlog_is_everything_up_to_the_answer(ends):
    line, exits = ends
    line.sendall(b"71 9000 7 12.500000 -\n")
    answer(line, b"72 9001 -1", b"5 13.25", b"0000 2f61\n", b"\n")
    assert exits.backlog() == [FIRST, SECOND]


def test_an_empty_backlog(ends):
    line, exits = ends
    answer(line, b"\n")
    assert exits.backlog() == []


def test_what_comes_right_behind_the_backlog_is_not_lost(ends):
    line, exits = ends

    async def scene():
        told = asyncio.get_running_loop().create_future()
        exits.listen(told.set_result)
        assert await asyncio.wait_for(told, 20) == [SECOND]

    answer(line, b"71 9000 7 12.500000 -\n\n72 9001 -15 13.250000 2f61\n")
    assert exits.backlog() == [FIRST]
    asyncio.run(scene())


def test_what_ends_later_is_told_in_whole_lines_and_taken_by_count(ends):
    line, exits = ends

    async def scene():
        told = asyncio.Queue()
        exits.listen(told.put_nowait)
        line.sendall(b"71 9000 7 12.5")
        await asyncio.sleep(0)
        line.sendall(b"00000 -\n72 9001 -15 13.250000 2f61\n")
        found = []
        while len(found) < 2:
            found += await asyncio.wait_for(told.get(), 20)
        assert found == [FIRST, SECOND]
        exits.taken(2)
        exits.up()
        assert line.recv(10) == TAKEN * 2 + UP
        line.close()
        exits.taken(1)  # the keeper is gone, and this process is about to be

    answer(line, b"\n")
    exits.backlog()
    asyncio.run(scene())


def test_only_the_one_this_process_was_started_with(ends):
    line, _ = ends
    assert Exits.of_keeper({}) is None
    assert Exits.of_keeper({KEEPER_EXITS: "x"}) is None
    assert Exits.of_keeper({KEEPER_EXITS: "987654"}) is None
    inherited = os.dup(line.fileno())
    os.set_inheritable(inherited, True)
    exits = Exits.of_keeper({KEEPER_EXITS: str(inherited)})
    assert exits.parent == os.getppid()
    assert not os.get_inheritable(inherited), "its attempts do not get it"
    exits.close()
