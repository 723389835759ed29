"""Sessions that speak for an attempt: what they may say, and for how long."""

from __future__ import annotations

import asyncio

import pytest
from peer import Peer, a_master

from titan_fast.errors import BadProof, Refused
from titan_fast.ids import make_fence
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.opcodes import Op

DEADLINE = 20.0
GRAPH = GraphSpec("g", (TaskSpec("t", Work(argv=("true",)), count=2, array=True),))
"""Both members are at the worker, in one lot: one of them ends, the other goes on."""
NEVER_GIVEN = make_fence(1, 99)


def end_attempt(worker, run, fence):
    worker.say_hot(Op.RESULT, 1, ([run], [0], [0], [0], [0], [fence], [0], [1], [1], [0], [0]))


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Plays a scene with a master, a worker, and the run and fence of the first of two attempts that are open there."""
    monkeypatch.setenv("TITAN_HOME", str(tmp_path))

    async def main(scene):
        async with a_master(tmp_path) as master:
            worker = await Peer.connect(master, "worker")
            await worker.ask(msg.Attach(worker="a" * 32, name="w", nonce="n1", connection=1, slots=2))
            client = await Peer.connect(master, "client")
            run = (await client.ask(msg.Submit(graph=GRAPH))).message.run
            assigned = (await worker.hear(Op.ASSIGN)).columns
            assert list(assigned[3]) == [2], "one lot"
            fence = assigned[6][0]
            await scene(master, worker, run, fence)

    return lambda scene: asyncio.run(main(scene))


def test_a_task_has_keys_and_files(play):
    async def scene(master, worker, run, fence):
        task = await Peer.connect(master, "worker", fence=fence)
        revision = (await task.ask(msg.KvSet(name="k"), b"v")).message.revision
        found = await task.ask(msg.KvGet(name="k"))
        assert (found.message.revision, found.attachments) == (revision, (b"v",))
        assert [row.name for row in (await task.ask(msg.KvList())).message.keys] == ["k"]
        digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        assert (await task.ask(msg.BlobPut(digest=digest, size=4), b"test")).message.size == 4
        assert (await task.ask(msg.BlobAsk(digest))).message.size == 4
        await task.ask(msg.ArtifactPublish(name="a", digest=digest))
        assert (await task.ask(msg.ArtifactList(name="a"))).message.artifacts[0].digest == digest
        assert (await task.ask(msg.BlobGet(digest))).attachments == (b"test",)

    play(scene)


@pytest.mark.parametrize(
    "message",
    [
        msg.Submit(graph=GRAPH),
        msg.Cancel(1),
        msg.Retry(1),
        msg.List("runs"),
        msg.Show(1),
        msg.Logs(1, "t"),
        msg.Watch(1),
        msg.Backup(),
        msg.Attach("w", "w", "n", 1, 1),
        msg.Output(run=1, index=0, fence=1),
        msg.Goodbye(True),
    ],
    ids=lambda message: message.op.name,
)
def test_a_task_may_do_nothing_else(play, message):
    async def scene(master, worker, run, fence):
        task = await Peer.connect(master, "worker", fence=fence)
        refused = (await task.ask(message)).message
        assert (refused.code, refused.message) == ("wrong_role", f"a task may not send {message.op.name}")
        assert len(master.worker_sessions) == 1, "it is no session of a worker"

    play(scene)


def test_an_attempt_that_was_never_given_has_no_voice(play):
    async def scene(master, worker, run, fence):
        with pytest.raises(Refused, match=r"attempt 1\.99 is not open at this master"):
            await Peer.connect(master, "worker", fence=NEVER_GIVEN)

    play(scene)


def test_who_only_has_a_clients_token_cannot_speak_for_an_attempt(play):
    async def scene(master, worker, run, fence):
        with pytest.raises(Refused, match="only a worker may speak for an attempt"):
            await Peer.connect(master, "client", fence=fence)
        with pytest.raises(BadProof):
            await Peer.connect(master, "worker", fence=fence, token=master.tokens["client"])

    play(scene)


def test_a_task_has_no_token_that_a_master_knows(play):
    async def scene(master, worker, run, fence):
        with pytest.raises(BadProof):
            await Peer.connect(master, "task", token="t")
        with pytest.raises(Refused):
            await Peer.connect(master, "task", fence=fence, token="t")

    play(scene)


def test_the_session_ends_with_its_attempt_and_nothing_of_it_counts_any_more(play):
    async def scene(master, worker, run, fence):
        task, silent, other = [await Peer.connect(master, "worker", fence=each) for each in (fence, fence, fence + 1)]
        await task.ask(msg.KvSet(name="k"), b"in time")
        end_attempt(worker, run, fence)
        await worker.hear(Op.ACK)
        await other.ask(msg.KvSet(name="other"), b"goes on")
        for peer in (task, silent):
            with pytest.raises(ConnectionError):
                await peer.ask(msg.KvSet(name="k"), b"too late")
        with pytest.raises(Refused, match="is not open"):
            await Peer.connect(master, "worker", fence=fence)
        client = await Peer.connect(master, "client")
        assert (await client.ask(msg.KvGet(name="k"))).attachments == (b"in time",)

    play(scene)


def test_an_attempt_whose_worker_has_gone_is_fenced_out(play):
    async def scene(master, worker, run, fence):
        task = await Peer.connect(master, "worker", fence=fence)
        await task.ask(msg.KvSet(name="k"), b"in time")
        worker.say(msg.Goodbye(empty=True))
        worker.cut()
        client = await Peer.connect(master, "client")
        async with asyncio.timeout(DEADLINE):
            while [row.state for row in (await client.ask(msg.List("workers"))).message.workers] == ["READY"]:
                pass
        with pytest.raises(ConnectionError):
            await task.ask(msg.KvSet(name="k"), b"too late")
        assert (await client.ask(msg.KvGet(name="k"))).attachments == (b"in time",)

    play(scene)
