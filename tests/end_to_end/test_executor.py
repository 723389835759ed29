"""Calls by themselves on a real cluster: a slow one holds back nobody, a killed master loses none, each dies alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, as_completed, wait

import pytest

from titan_fast.errors import TaskFailed
from titan_fast.testing.cluster import until


def noop(item):
    return item


def together(a, *more, key=0):
    return a, more, key


def fail(text):
    raise KeyError(text)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def mark(folder, number):
    with open(f"{folder}/{number}", "a") as file:
        file.write("x")
    return number


def large(size):
    return b"x" * size


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


@pytest.fixture
def pool(cluster):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    with cluster.client() as client, client.executor("calls") as pool:
        yield pool


def test_every_call_has_its_own_end(pool, cluster):
    futures = [pool.submit(noop, number) for number in range(3000)]
    others = [
        pool.submit(together, 1, 2, 3, key=4),
        pool.submit(fail, "no"),
        pool.submit(die),
        pool.submit(large, 3 << 20),
    ]
    assert [future.result(60) for future in futures] == list(range(3000))
    assert others[0].result(60) == (1, (2, 3), 4)
    assert others[3].result(60) == b"x" * (3 << 20)
    raised = others[1].exception(60)
    assert isinstance(raised, TaskFailed) and isinstance(raised.__cause__, KeyError)
    assert "in fail" in raised.traceback
    died = others[2].exception(60)
    assert isinstance(died, TaskFailed) and died.reason == "signal:9"
    with cluster.client() as client:
        assert len(client.runs(limit=10_000)) < 500, "they went together"


def test_a_slow_call_holds_back_nobody(pool, tmp_path):
    """They are on their way together, and it ends when all others have."""
    pool.submit(noop, 0).result(60)
    futures = [pool.submit(noop, number) for number in range(500)]
    slow = pool.submit(wait_for, str(tmp_path / "go"))
    futures += [pool.submit(noop, number) for number in range(500)]
    assert wait(futures, 60).not_done == set()
    assert not slow.done()
    (tmp_path / "go").touch()
    assert slow.result(60)


def test_calls_that_wait_for_one_another_go_on(pool, tmp_path):
    """One that can only end after a later one: two slots are enough."""
    path = str(tmp_path / "mark" / "5")
    first = pool.submit(wait_for, path)
    os.mkdir(tmp_path / "mark")
    assert pool.submit(mark, str(tmp_path / "mark"), 5).result(60) == 5
    assert first.result(60) == path


@pytest.mark.kill
def test_a_killed_master_loses_no_call(pool, cluster):
    """Each future is done once, whatever had been told before the kill."""
    told = []
    futures = []
    for number in range(2000):
        futures.append(pool.submit(noop, number))
        futures[-1].add_done_callback(lambda future: told.append(future.result()))
        if number == 1000:
            until(lambda: told, "the first ones are back")
            cluster.kill_master()
            cluster.restart_master()
    done = [future.result() for future in as_completed(futures, 60)]
    assert sorted(done) == list(range(2000))
    assert [future.result() for future in futures] == list(range(2000))
    until(lambda: len(told) == 2000, "every callback ran")
    assert sorted(told) == list(range(2000))


def test_the_end_takes_back_what_no_worker_has_begun(pool, tmp_path):
    path = tmp_path / "go"
    futures = [pool.submit(wait_for, str(path)) for _ in range(200)]
    until(lambda: not pool._sender._queued, "all are sent")
    until(lambda: all(future.running() for future in futures), "all are on their way")
    pool.shutdown(wait=False, cancel_futures=True)
    until(lambda: sum(future.cancelled() for future in futures) >= 100, "most are taken back")
    path.touch()
    wait(futures, 60)
    kept = [future for future in futures if not future.cancelled()]
    assert 1 <= len(kept) < 100
    assert {future.result() for future in kept} == {str(path)}
    for future in futures:
        if future.cancelled():
            with pytest.raises(CancelledError):
                future.result()


def test_the_end_of_a_program_waits_for_its_calls(cluster, tmp_path):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    program = (
        "from titan_fast import Client\n"
        "import os\n"
        "pool = Client().executor()\n"
        f"futures = [pool.submit(os.mkdir, {str(tmp_path)!r} + f'/made-{{number}}') for number in range(5)]\n"
    )
    environ = {**os.environ, "TITAN_HOME": str(cluster.home), "TITAN_ADDR": cluster.address}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("made-*")) == [f"made-{number}" for number in range(5)]


def test_a_project_comes_along(cluster, tmp_path):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    project = tmp_path / "project"
    project.mkdir()
    (project / "data.txt").write_text("16 bytes of data")
    with cluster.client() as client, client.executor(project=project) as pool:
        futures = [pool.submit(os.path.getsize, "data.txt") for _ in range(20)]
        assert {future.result(60) for future in futures} == {16}
