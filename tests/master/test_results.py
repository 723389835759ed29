"""Results as the master takes them from a worker and passes them on: those that are files, and to other tasks."""

from __future__ import annotations

import asyncio
import hashlib
import logging

import pytest
from peer import Peer, a_master

from titan_fast._layout import RESULT_IS_FILE
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.opcodes import Op

CONTENT = b"\xff not a text"
ADDRESS = hashlib.sha256(CONTENT).hexdigest()
TEXT = f"artifact:{ADDRESS}"
GRAPH = GraphSpec(
    "g",
    (
        TaskSpec("a", Work(argv=("true",))),
        TaskSpec("b", Work(argv=("use", "${tasks.a.result}")), needs=("a",)),
    ),
)


class Worker(Peer):
    """It says how attempts ended, and remembers what was described to it."""

    def __init__(self, *connected):
        super().__init__(*connected)
        self._described = {}
        self.fence = 0

    async def given(self):
        """(task, generation) of the next assignment, and the results that its description names."""
        while (incoming := await self.next()).op is not Op.ASSIGN:
            if incoming.op is Op.SPEC:
                self._described[incoming.message.spec] = incoming.message.results
        _, (spec,), (index,), _, (generation,), _, (self.fence,), _ = incoming.columns
        return index, generation, self._described.get(spec, {})

    def end(self, fence, result, index=0, generation=0, code=0, flags=0):
        row = (1, index, generation, 0, flags, fence, code, 1, 1, 0, len(result))
        self.say_hot(Op.RESULT, 1, [[value] for value in row], result)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Plays a scene with a worker that was given the first task of a run, its fence, and a client."""
    monkeypatch.setenv("TITAN_HOME", str(tmp_path))

    async def main(scene, graph):
        async with a_master(tmp_path) as master:
            worker = await Worker.connect(master, "worker")
            await worker.ask(msg.Attach(worker="a" * 32, name="w", nonce="n1", connection=1, slots=1))
            client = await Peer.connect(master, "client")
            assert (await client.ask(msg.Submit(graph=graph))).message.run == 1
            fence = (await worker.hear(Op.ASSIGN)).columns[6][0]
            await scene(worker, fence, client)

    return lambda scene, graph=GRAPH: asyncio.run(main(scene, graph))


async def listed(client):
    found = (await client.ask(msg.ArtifactList(prefix="1/"))).message
    return [(row.name, row.digest, row.size) for row in found.artifacts]


def test_it_is_an_artifact_of_its_tasks_name_and_its_text_is_the_address(play):
    async def scene(worker, fence, client):
        held = await worker.ask(msg.BlobPut(digest=ADDRESS, size=len(CONTENT)), CONTENT)
        assert held.message == msg.BlobHeld(ADDRESS, len(CONTENT))
        worker.end(fence, ADDRESS.encode(), flags=RESULT_IS_FILE)
        assert (await worker.hear(Op.SPEC)).message.results == {"a": TEXT}, "the next task is given it"
        assert await listed(client) == [("1/a", ADDRESS, len(CONTENT))]
        assert (await client.ask(msg.Watch(run=1, task="a"))).message.task_state == "COMPLETED"

    play(scene)


def test_members_of_one_generation_are_given_what_the_latest_end_above_them_was(play):
    """Members of an array reach the same generation at different times, with another result above them each."""
    each = TaskSpec("each", Work(argv=("use", "${tasks.a.result}")), ("a",), when="always", count=2, array=True)

    async def scene(worker, fence, client):
        worker.end(fence, b"", code=1)
        assert await worker.given() == (1, 0, {"a": ""})
        worker.end(worker.fence, b"", index=1, code=1)
        assert await worker.given() == (2, 0, {"a": ""})
        worker.end(worker.fence, b"", index=2, code=1)
        await client.ask(msg.Watch(run=1))
        await client.ask(msg.Retry(run=1, task="each", member=1))
        assert await worker.given() == (2, 1, {"a": ""})
        worker.end(worker.fence, b"", index=2, generation=1)
        await client.ask(msg.Watch(run=1))
        await client.ask(msg.Retry(run=1))
        assert await worker.given() == (0, 1, {})
        worker.end(worker.fence, b"second", generation=1)
        assert await worker.given() == (1, 1, {"a": "second"})

    play(scene, GraphSpec("g", (TaskSpec("a", Work(argv=("true",))), each)))


def test_one_that_the_master_does_not_hold_is_taken_as_told(play, caplog):
    """The outcome was decided at the worker; a state that is older than the file does not undo it."""
    caplog.set_level(logging.WARNING)

    async def scene(worker, fence, client):
        worker.end(fence, ADDRESS.encode(), flags=RESULT_IS_FILE)
        assert (await worker.hear(Op.SPEC)).message.results == {"a": TEXT}
        assert await listed(client) == [("1/a", ADDRESS, 0)]

    play(scene)
    assert f"a result is the file {ADDRESS}, which is not here" in caplog.text


@pytest.mark.parametrize("nonsense", [b"", b"../../etc/passwd", ADDRESS[:-1].encode(), b"\xff" * 64])
def test_what_is_no_address_ends_the_connection(play, nonsense):
    async def scene(worker, fence, client):
        worker.end(fence, nonsense, flags=RESULT_IS_FILE)
        error = (await worker.hear(Op.ERROR)).message
        assert error.code == "bad_records" and "is not the address of a file" in error.message
        with pytest.raises(ConnectionError):
            await worker.hear(Op.ACK)
        assert await listed(client) == []

    play(scene)
