"""A connection that breaks in the middle costs time and nothing else: what runs goes on, results come late, once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from titan_fast import Graph
from titan_fast.testing.cluster import until


class Proxy:
    """Passes bytes between a worker and the master until it is told to cut."""

    def __init__(self, target):
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while not self._closed:
            try:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._target)
            except OSError:
                return
            self._pairs.append((inner, outer))
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        return len(pairs)

    def close(self):
        self._closed = True
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy(cluster):
    proxy = Proxy(cluster.address)
    yield proxy
    proxy.close()


@pytest.mark.smoke
def test_tasks_go_on_over_cut_connections_and_run_once(cluster, proxy, tmp_path):
    ran = tmp_path / "ran"
    cluster.start_worker("w1", "--slots", "4", "--master", proxy.address, "--token-file", str(worker_token(cluster)))
    cluster.wait_for_workers(1)
    graph = Graph("cut")
    for i in range(40):
        graph.task(f"t{i}", run=f"sleep 0.15; echo t{i} >> {ran}; echo out{i}")
    with cluster.client() as client:
        run = client.submit(graph)
        cuts = 0
        while run.state in ("PENDING", "RUNNING"):
            time.sleep(0.25)
            cuts += proxy.cut()
        rows = run.tasks()
        for i in range(40):
            assert run[f"t{i}"].logs() == f"out{i}\n"
    assert cuts >= 2
    assert {row.state for row in rows} == {"COMPLETED"}
    lines = ran.read_text().split()
    assert sorted(lines) == sorted(f"t{i}" for i in range(40)), "a task was lost or ran twice"


def worker_token(cluster):
    return next((cluster.home / "tokens").glob("*.worker"))


def test_a_worker_waits_for_a_master_that_is_not_there_yet(cluster, proxy):
    proxy.close()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    cluster.start_worker("early", "--master", f"127.0.0.1:{port}", "--token-file", str(worker_token(cluster)))
    until(lambda: "trying on" in (cluster.home / "log").read_text(), "the worker says that nobody is there")
    assert cluster.ended() == ""


def test_a_second_agent_in_the_same_work_directory_is_refused(cluster):
    cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    first = cluster.workers.pop("w1")
    second = cluster.start_worker("w1", "--slots", "1")
    assert second.wait(20) == 5
    assert "is in use by another worker" in (cluster.home / "log").read_text()
    cluster.workers["w1"] = first
