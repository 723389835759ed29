"""The async client against a real cluster, and many submits from a blocking one."""

from __future__ import annotations

import asyncio

import pytest

from titan_fast import AsyncClient, Graph
from titan_fast.config import token_path
from titan_fast.errors import RunFailed
from titan_fast.testing.cluster import Cluster


def token_of(cluster):
    host, _, port = cluster.address.rpartition(":")
    return str(token_path(host, int(port), "client", cluster.environ))


def graph(text="true", name="g"):
    made = Graph(name)
    made.task("t", run=text)
    return made


@pytest.mark.smoke
def test_everything_that_can_be_awaited(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "say.py").write_text("print('said')\n")

    async def scenario(cluster):
        async with AsyncClient(cluster.address, token_file=token_of(cluster)) as client:
            run = await client.run(graph('echo words; echo 42 > "$TITAN_RESULT"'), timeout=30)
            assert (run.id, await run.result()) == (1, "42")
            assert await run["t"].logs() == "words\n"
            assert await run["t"].state() == await run.state() == "COMPLETED"
            failing = await client.submit(graph("exit 3"))
            with pytest.raises(RunFailed):
                await failing.wait(30)
            assert (await failing["t"].rows())[0].exit_code == 3
            shipped = Graph("p", project=project)
            shipped.task("say", file="say.py")
            many = await client.submit_many([shipped, shipped, graph()])
            await asyncio.gather(*(one.wait(60) for one in many))
            assert await many[1]["say"].logs() == "said\n"
            long = await client.submit(graph("sleep 100"))
            seen = [update.state async for update in long.watch(60) if await _cancel_when_running(long, update)]
            assert seen[-1] == "CANCELLED"
            assert [row.id for row in await client.runs(limit=2)] == [long.id, long.id - 1]
            assert [worker.name for worker in await client.workers()] == ["w1"]
            assert (await client.stats()).workers == 1
            assert (await client.explain(run.id)).state == "COMPLETED"
            await client.kv.set("k", "v")
            assert (await client.kv.get("k"), [row.name for row in await client.kv.ls()]) == (b"v", ["k"])
            (tmp_path / "f").write_bytes(b"x" * 5_000_000)
            put = await client.artifacts.put(tmp_path / "f")
            assert (await client.artifacts.get("f", tmp_path / "g")).digest == put.digest
            assert (tmp_path / "g").read_bytes() == await client.artifacts.read(put.digest[:12])
            assert (await client.backup(tmp_path / "backup")).size == (tmp_path / "backup").stat().st_size

    async def _cancel_when_running(run, update):
        if update.state == "RUNNING" and not update.final:
            await run.cancel()
        return True

    with Cluster(tmp_path / "home") as cluster:
        cluster.start_worker("w1", "--slots", "2")
        asyncio.run(asyncio.wait_for(scenario(cluster), 120))


def test_many_submits_over_a_master_that_is_killed(tmp_path):
    with Cluster(tmp_path / "home") as cluster:
        cluster.start_worker("w1", "--slots", "2")
        cluster.wait_for_workers(1)
        with cluster.client() as client:
            runs = client.submit_many([graph(name=f"g{number}") for number in range(40)])
            runs[3].wait(30)
            cluster.kill_master()
            cluster.restart_master()
            assert {run.wait(60).state for run in runs} == {"COMPLETED"}
            assert len({run.id for run in runs}) == 40
            assert len(client.runs(limit=1000)) == 40
