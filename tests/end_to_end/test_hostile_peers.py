"""A live master and peers that mean no good, or no sense: each gets its error, the good client beside them notices
nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import select
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from report import Report

from titan_fast import Graph
from titan_fast.config import token_path
from titan_fast.errors import Busy
from titan_fast.master.server import SPARE_FILES
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send, send_hot
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.protocol.opening import Opening
from titan_fast.testing.cluster import until

MUTATIONS, MUTATIONS_LONG = 10_000, 1_000_000
NOTICED = 2.0
"""Seconds a task may take beside them."""
PAUSE = 0.05
"""Seconds between two of them."""
LEFT = 16 << 20
"""Bytes by which the master may be larger afterwards, however many they were,"""
OF_A_RUN = 1024
"""and for each run of the client beside them, which is listed until it is forgotten."""
NOBODYS = 4_000_000_000
"""Number of a run that nobody has, mutated or not."""


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
    return last_words(link)[0]


def last_words(link):
    """(all bytes until the master hangs up, whether it did with a reset: what it said last may be lost then)."""
    data = b""
    try:
        while piece := link.recv(65536):
            data += piece
    except ConnectionError:
        return data, True
    return data, False


def dialled(address, cluster, role="client"):
    """A connection, and what it needs to prove its token."""
    connection = Connection(Role.MASTER)
    token = token_path(*address, role, cluster.environ).read_text().strip()
    return dial(address), connection, Opening(connection, role, token)


def proved(address, cluster, role):
    """A connection that has proved its token."""
    link, connection, opening = dialled(address, cluster, role)
    link.sendall(opening.hello())
    while opening.welcome is None:
        link.sendall(opening.take(answer(link, connection)))
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
    refused = until(lambda: len(spoken := readable(links)) >= 80 - 64 and spoken, "some are refused")
    assert len(refused) == 80 - 64
    for link in refused:
        assert b"too many connections" in everything(link)
    for link in links:
        link.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_when_files_run_out_newcomers_are_told_so_and_the_others_are_served(address, cluster, good):
    """A store that cannot open a file would end the master."""
    resource.prlimit(cluster.master.pid, resource.RLIMIT_NOFILE, (SPARE_FILES + 20, SPARE_FILES + 20))
    links = []
    with pytest.raises(Busy, match=r"connections are all that this master has open files for"):
        while True:
            links.append(proved(address, cluster, "client")[0])
    large = Graph("large")
    for number in range(3000):
        large.task(f"t{number}", run=["echo", "x" * 200])
    assert good.submit(large).id == 1
    for link in links:
        link.close()
    until(lambda: good.stats().connections == 1, "they are gone")
    proved(address, cluster, "client")[0].close()


def readable(links):
    return select.select(links, [], [], 0)[0]


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


# ---------------------------------------------------------------- every byte


@pytest.mark.smoke
def test_what_a_client_says_may_arrive_cut_at_every_byte(address, cluster, good):
    """The handshake and a request with an attachment; a piece on its own is a segment of its own, most of the time."""
    value = os.urandom(40)
    good.kv.set("k", value)
    for at in itertools.count(1):
        link, connection, opening = dialled(address, cluster)
        with link:
            longest = 0
            say = opening.hello()
            while say:
                longest = max(longest, len(say))
                link.sendall(say[:at])
                link.sendall(say[at:])
                say = opening.take(answer(link, connection))
            said = send(msg.KvGet(name="k"), request=9)
            link.sendall(said[:at])
            link.sendall(said[at:])
            assert answer(link, connection).attachments == (value,)
        if at > longest:
            return


def test_what_ends_at_any_byte_leaves_nothing_behind(address, cluster, good):
    before = good.stats()
    hello = Opening(Connection(Role.MASTER), "client", "token").hello()
    for at in range(len(hello)):
        with dial(address) as link:
            link.sendall(hello[:at])
    until(lambda: good.stats().connections == before.connections, "the master knows that they are gone")
    link, _ = proved(address, cluster, "client")
    with link:
        assert good.stats().connections == before.connections + 1


@pytest.mark.parametrize(
    ("name", "capability"), [("../etc", "GPU"), ("w\n", "GPU"), ("", "GPU"), ("w", "GPU,BIG"), ("w", "a b"), ("w", "")]
)
def test_a_worker_whose_name_or_capabilities_are_none_is_refused(address, cluster, name, capability):
    link, connection = proved(address, cluster, "worker")
    with link:
        link.sendall(send(msg.Attach("id", name, "n", 1, 1, (capability,)), request=2))
        assert answer(link, connection).message.code == "bad_message"


# ---------------------------------------------------------------- mutated frames


class Neighbour:
    """A client that runs a task after the other meanwhile. What it meets is raised when the block ends."""

    def __init__(self, cluster):
        self.seconds = []
        self._cluster = cluster
        self._pool = ThreadPoolExecutor(1)
        self._stop = threading.Event()

    def _work(self):
        graph = Graph("neighbour")
        graph.task("a", run=["true"], requires=["REAL"])
        with self._cluster.client() as client:
            while not self._stop.wait(PAUSE):
                began = time.monotonic()
                client.submit(graph).wait(30)
                self.seconds.append(time.monotonic() - began)

    def __enter__(self):
        self._working = self._pool.submit(self._work)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._pool.shutdown()
        self._working.result()


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


FRAMES = [
    send(msg.Stats(), request=5),
    send(msg.List("runs"), request=6),
    send(msg.Show(NOBODYS), request=7),
    send(msg.Logs(NOBODYS, "a"), request=8),
    send(msg.Cancel(NOBODYS), request=9),
    send(msg.Watch(NOBODYS), request=9),
    send(msg.Submit(graph=GraphSpec("x", ())), (b"abc",), request=10),
    send(msg.BlobPut(digest="0" * 64, offset=0, size=3), (b"abc",), request=11),
    send(msg.KvSet(name="k"), (b"v",), request=11),
    send(msg.Attach("w", "w", "n", 1, 1), request=12),
    send(msg.Output(run=NOBODYS, index=0, fence=1), (b"text",)),
    send_hot(Op.RESULT, 1, [[1]] * 11),
    send_hot(Op.STARTED, 1, [[1]] * 6),
    send_hot(Op.HEARTBEAT, 1, [[1], [1], [0.5], [1]]),
]


def endings(judge, data):
    """Codes of the errors with which a stream ends that goes on so, any of which may be told; none: it goes on."""
    codes = [said.error.code for said in judge.receive(data) if said.error is not None and said.op.hot]
    return codes if judge.broken is None else [*codes, judge.broken.code]


def bombard(address, cluster, count, seed):
    """So many frames, on as many connections as it takes. A codec of our own judges each: when it says that the stream
    has ended, the master must say so, too, for the same reason.

    Returns:
        How many connections that were, and on how many of them its reason was lost: it had hung up for an earlier
        frame, and what we sent after that made it a reset.
    """
    rng = random.Random(seed)
    connections = sent = resets = 0
    while sent < count:
        role = rng.choice([Role.CLIENT, Role.WORKER])
        link, connection = proved(address, cluster, role)
        connections += 1
        with link, contextlib.suppress(ConnectionError):
            if role is Role.WORKER:
                link.sendall(send(msg.Attach("w", "w", "n", connections, 1), request=2))
                if not isinstance(answer(link, connection).message, msg.VerdictMessage):
                    continue  # one of the frames has said that there is a later one
            judge = Connection(role)
            judge.open(role)
            said, codes = b"", []
            while sent < count and not codes and not judge.held:
                data = mutated(rng, FRAMES)
                codes = endings(judge, data)
                link.sendall(data)
                sent += 1
                if readable([link]):
                    said += link.recv(1 << 20)
            if codes:
                last, is_reset = last_words(link)
                said += last
                # What a worker's records mean no codec knows: the master may have ended it for an earlier frame.
                codes += ["bad_records"] if role is Role.WORKER else []
                told = [code for code in codes if f'"code":"{code}"'.encode() in said]
                resets += is_reset and not told
                assert told or is_reset, (
                    f"seed {seed}, frame {sent}, {data.hex()}: {codes}, and the master says {said[-200:]}"
                )
    return connections, resets


@pytest.mark.kill
@pytest.mark.parametrize("count", [MUTATIONS, pytest.param(MUTATIONS_LONG, marks=pytest.mark.long)])
def test_mutated_frames_hurt_nobody(address, cluster, good, count):
    is_long = count == MUTATIONS_LONG
    command = f"pytest tests/end_to_end/test_hostile_peers.py{' --long' if is_long else ''}"
    cluster.start_worker("real", "--slots", "1", "--caps", "REAL")
    cluster.wait_for_workers(1)
    with Report("frames-master", command, is_long) as report, Neighbour(cluster) as neighbour:
        bombard(address, cluster, count // 10, seed=1)
        before = good.stats().memory
        connections, resets = bombard(address, cluster, count, seed=2)
        grown = good.stats().memory - before
        report.figures |= {"mutated frames": count, "connections": connections}
        report.excused["hung up on with a reset, so its reason was lost"] = resets
        assert resets <= connections // 100
        report.figures["more memory at the end, MiB"] = grown / (1 << 20)
        report.figures |= {"tasks of the client beside them": len(neighbour.seconds)}
        report.figures |= {"the slowest of them, s": max(neighbour.seconds)}
        assert grown < LEFT + OF_A_RUN * len(neighbour.seconds)
        assert max(neighbour.seconds) < NOTICED
        assert cluster.ended() == ""
        assert "Traceback" not in (cluster.home / "log").read_text()
