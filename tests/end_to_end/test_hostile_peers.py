"""A live master and peers that mean no good, or no sense: each gets its error, the good client beside them notices
nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time

import pytest

from titan_fast.config import token_path
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send, send_hot
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.protocol.opening import Opening

MUTATIONS = 2_000
MUTATIONS_LONG = 200_000


@pytest.fixture
def address(cluster):
    host, _, port = cluster.address.rpartition(":")
    return host, int(port)


@pytest.fixture
def good(cluster):
    """A client that must go on working whatever the others do."""
    with cluster.client() as client:
        client.stats()
        yield client
        began = time.monotonic()
        client.stats()
        assert time.monotonic() - began < 1.0


def dial(address):
    link = socket.create_connection(address, timeout=10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def everything(link):
    """All bytes until the master hangs up."""
    data = b""
    try:
        while piece := link.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def proved(address, cluster, role):
    """A connection that has proved its token."""
    link = dial(address)
    token = token_path(*address, role, cluster.environ).read_text().strip()
    connection = Connection(Role.MASTER)
    opening = Opening(connection, role, token)
    link.sendall(opening.hello())
    while opening.welcome is None:
        for incoming in connection.receive(link.recv(65536)):
            link.sendall(opening.take(incoming))
    return link, connection


def answer(link, connection):
    while True:
        data = link.recv(65536)
        assert data, "the master hung up"
        for incoming in connection.receive(data):
            return incoming


HEADER = struct.Struct(">BBBBI")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (os.urandom(64)[:1].replace(b"\x02", b"\x07") + b"\x07" * 63, b"wrong_version"),
        (HEADER.pack(2, 1, 0, 0, 0xFFFFFFFF), b"frame_too_large"),
        (HEADER.pack(2, 1, 0, 0, 1 << 20), b"frame_too_large"),
        (HEADER.pack(2, 1, 0, 0, 0), b"bad_frame"),
        (HEADER.pack(2, 1, 0, 9, 8) + b"x" * 8, b"bad_frame"),
        (HEADER.pack(2, 1, 0x80, 0, 8) + b"x" * 8, b"bad_frame"),
        (HEADER.pack(2, 0x10, 0, 0, 6) + b"\0\0\0\1{}", b"wrong_role"),
        (HEADER.pack(2, 1, 0, 0, 6) + b"\0\0\0\1{}", b"bad_message"),
        (HEADER.pack(2, 3, 0, 0, 16) + b'\0\0\0\1{"proof":""}', b"unexpected_message"),
        (HEADER.pack(2, 0xEE, 0, 0, 6) + b"\0\0\0\1{}", b"bad_message"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"wrong_version"),
    ],
)
def test_a_stranger_that_talks_nonsense_is_told_so_and_dropped(address, good, sent, code):
    link = dial(address)
    link.sendall(sent)
    assert code in everything(link)


def test_a_version_1_frame_is_answered_in_version_1(address, good):
    link = dial(address)
    link.sendall(HEADER.pack(1, 0x10, 0, 0, 4) + b"ping")
    data = everything(link)
    version, _, _, _, length = HEADER.unpack_from(data)
    assert (version, length) == (1, len(data) - 8)
    assert b"TITAN_PROTO 2" in data


def test_a_wrong_proof_is_refused_and_nothing_else_is_said(address, good):
    link = dial(address)
    opening = Opening(Connection(Role.MASTER), "client", "guess")
    link.sendall(opening.hello())
    link.sendall(send(msg.Proof("0" * 64), request=1))
    assert b"bad_proof" in everything(link)


def test_half_a_frame_and_silence_end_after_the_time_for_hello(tmp_path):
    from titan_fast.testing.cluster import Cluster

    with Cluster(tmp_path / "home", environ={"TITAN_LIMITS_HELLO_TIMEOUT": "0.3"}) as cluster:
        host, _, port = cluster.address.rpartition(":")
        half, silent = dial((host, int(port))), dial((host, int(port)))
        half.sendall(b"\x02\x01\x00")
        for link in (half, silent):
            assert b"in time" in everything(link)


def test_strangers_from_one_address_are_limited(address, good):
    links = [dial(address) for _ in range(80)]
    refused = 0
    for link in links:
        link.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            refused += b"too many connections" in link.recv(65536)
    for link in links:
        link.close()
    assert refused >= 80 - 64


@pytest.mark.smoke
def test_a_client_with_a_bad_request_gets_a_typed_error_and_goes_on(address, cluster, good):
    link, connection = proved(address, cluster, "client")
    body = b'{"graph": {"name": "x", "tasks": [{"name": "a", "work": {}, "priority": "high"}]}}'
    link.sendall(HEADER.pack(2, Op.SUBMIT, 0, 0, len(body) + 4) + (7).to_bytes(4, "big") + body)
    refused = answer(link, connection)
    assert (refused.request, refused.message.code) == (7, "bad_message")
    assert refused.message.field == "graph.tasks[0].priority"
    link.sendall(send(msg.Attach("w", "w", "n", 1, 1), request=8))
    assert answer(link, connection).message.code == "wrong_role"
    link.sendall(send(msg.Stats(), request=9))
    assert isinstance(answer(link, connection).message, msg.Stated)


def test_a_worker_that_reports_what_it_was_never_given_changes_nothing(address, cluster, good):
    link, connection = proved(address, cluster, "worker")
    link.sendall(send(msg.Attach("w", "w", "n", 1, 1), request=2))
    assert isinstance(answer(link, connection).message, msg.VerdictMessage)
    columns = [[99], [0], [0], [0], [0], [123456], [0], [0], [0], [0], [0]]
    link.sendall(send_hot(Op.RESULT, 1, columns))
    assert answer(link, connection).op is Op.ACK
    columns[3] = [250]
    link.sendall(send_hot(Op.RESULT, 2, columns))
    assert answer(link, connection).message.code == "bad_records"


def mutated(rng, frames):
    data = bytearray(rng.choice(frames))
    for _ in range(rng.randint(1, 6)):
        how = rng.random()
        if how < 0.6 and data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif how < 0.8:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data += rng.randbytes(rng.randint(1, 40))
    return bytes(data)


def bombard(address, cluster, count, seed):
    rng = random.Random(seed)
    frames = [
        send(msg.Stats(), request=5),
        send(msg.List("runs"), request=6),
        send(msg.Show(1), request=7),
        send(msg.Logs(1, "a"), request=8),
        send(msg.Cancel(1), request=9),
        send(msg.Submit(graph=GraphSpec("x", ())), (b"abc",), request=10),
        send(msg.BlobPut(digest="0" * 64, offset=0, size=3), (b"abc",), request=11),
        send(msg.Attach("w", "w", "n", 1, 1), request=12),
        send_hot(Op.RESULT, 1, [[1]] * 11),
        send_hot(Op.STARTED, 1, [[1]] * 6),
        send_hot(Op.HEARTBEAT, 1, [[1], [1], [0.5], [1]]),
    ]
    hostile = None
    for _ in range(count):
        if hostile is None:
            hostile, _connection = proved(address, cluster, rng.choice(["client", "worker"]))
            hostile.setblocking(False)
        try:
            hostile.sendall(mutated(rng, frames))
            hostile.recv(1 << 20)
        except BlockingIOError:
            continue
        except OSError:
            hostile.close()
            hostile = None


def test_mutated_frames_hurt_nobody(address, cluster, good):
    before = good.stats().memory
    bombard(address, cluster, MUTATIONS, seed=1)
    assert good.stats().memory - before < 32 << 20
    assert cluster.ended() == ""
    assert "Traceback" not in (cluster.home / "log").read_text()


@pytest.mark.long
def test_many_mutated_frames_hurt_nobody(address, cluster, good):
    before = good.stats().memory
    bombard(address, cluster, MUTATIONS_LONG, seed=2)
    assert good.stats().memory - before < 64 << 20
    assert "Traceback" not in (cluster.home / "log").read_text()
