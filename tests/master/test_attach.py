"""Which connection speaks for a worker."""

from __future__ import annotations

import asyncio

import pytest
from peer import Peer, a_master

from titan_fast.protocol import messages as msg
from titan_fast.protocol.opcodes import Op

PATIENCE = 20.0


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.setenv("TITAN_HOME", str(tmp_path))

    async def main(scene):
        async with a_master(tmp_path) as master:
            await scene(master)

    return lambda scene: asyncio.run(main(scene))


async def attach(peer, connection, nonce="n1"):
    return await peer.ask(msg.Attach(worker="a" * 32, name="w", nonce=nonce, connection=connection, slots=1))


async def gone(master):
    """The master has seen that nobody is there."""
    async with asyncio.timeout(PATIENCE):
        while master.worker_sessions:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_an_inventory_that_was_on_its_way_for_too_long_is_refused(play):
    """Its agent has opened another connection since. Whether that is still there makes no difference."""

    async def scene(master):
        early, late = [await Peer.connect(master, "worker") for _ in range(2)]
        assert (await attach(late, 2)).op is Op.VERDICT
        late.cut()
        await gone(master)
        refused = await attach(early, 1)
        assert (refused.op, refused.message.code) == (Op.ERROR, "refused")
        assert "a newer connection" in refused.message.message
        again = await Peer.connect(master, "worker")
        assert (await attach(again, 3)).op is Op.VERDICT

    play(scene)


def test_the_next_agent_of_a_worker_counts_its_connections_anew(play):
    async def scene(master):
        before, after = [await Peer.connect(master, "worker") for _ in range(2)]
        assert (await attach(before, 7)).op is Op.VERDICT
        before.cut()
        await gone(master)
        assert (await attach(after, 1, nonce="n2")).op is Op.VERDICT

    play(scene)


def test_a_copied_work_directory_is_told_who_has_its_id_and_a_dead_agent_does_not_keep_it(play):
    async def scene(master):
        first, second = [await Peer.connect(master, "worker") for _ in range(2)]
        assert (await attach(first, 1)).op is Op.VERDICT
        copy = msg.Attach(worker="a" * 32, name="copy", nonce="n2", connection=1, slots=1)
        refused = (await second.ask(copy)).message
        assert refused.code == "refused"
        assert f"({'a' * 32}) is that of w at 127.0.0.1, which is connected" in refused.message
        assert "remove the file `id`" in refused.hint and "--work-dir" in refused.hint
        master.liveness.silence = lambda worker: 1e9
        after = await Peer.connect(master, "worker")
        assert (await after.ask(copy)).op is Op.VERDICT

    play(scene)


def test_connections_are_remembered_of_known_workers_only(play):
    async def scene(master):
        for number in range(3):
            peer = await Peer.connect(master, "worker")
            await peer.ask(msg.Attach(worker=f"{number:032x}", name=f"w{number}", nonce="n", connection=1, slots=1))
            peer.cut()
            await gone(master)
        master.scheduler.state.workers.clear()
        await attach(await Peer.connect(master, "worker"), 1)
        assert list(master.newest_connections) == ["a" * 32]

    play(scene)
