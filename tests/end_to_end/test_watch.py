"""Submit and wait as one request: the outcome is pushed to whoever asked for it with SUBMIT."""

from __future__ import annotations

import socket

import pytest

from titan_fast.config import token_path
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening


@pytest.mark.smoke
def test_a_submit_that_watches_is_told_the_outcome_without_asking(cluster):
    cluster.start_worker("w1", "--slots", "1")
    host, _, port = cluster.address.rpartition(":")
    token = token_path(host, int(port), "client", cluster.environ).read_text().strip()
    with socket.create_connection((host, int(port)), timeout=20) as link:
        connection = Connection(Role.MASTER)
        opening = Opening(connection, "client", token)
        link.sendall(opening.hello())
        while opening.welcome is None:
            for incoming in connection.receive(link.recv(65536)):
                link.sendall(opening.take(incoming))
        work = Work(shell='echo words; echo 42 > "$TITAN_RESULT"')
        graph = GraphSpec("one", (TaskSpec("answer", work),))
        link.sendall(send(msg.Submit(graph=graph, watch=True), request=7))
        said = []
        while not (said and isinstance(said[-1], msg.Update)):
            said += [incoming.message for incoming in connection.receive(link.recv(65536)) if incoming.request == 7]
    accepted, update = said
    assert isinstance(accepted, msg.Accepted)
    assert (update.run, update.state, update.final, update.result) == (accepted.run, "COMPLETED", True, "42")
    assert update.exit_code == 0
