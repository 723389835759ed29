"""The output-commit rule at a session: what rests on a fact leaves when that fact is durable, work leaves at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from titan_fast.config import Settings
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg


class FakeTransport:
    def __init__(self):
        self.written = []

    def write(self, data):
        self.written.append(data)

    def get_write_buffer_size(self):
        return 0


@pytest.fixture
def session():
    pump = SimpleNamespace(position=0, durable=0, touched={})
    master = SimpleNamespace(settings=Settings(), pump=pump, sabotage=frozenset())
    session = Session(master)
    session._transport = FakeTransport()
    session.pump = pump
    return session


def written(session):
    data = b"".join(session._transport.written)
    session._transport.written.clear()
    return data


def test_a_reply_waits_for_the_facts_that_existed_when_it_was_made(session):
    session.pump.position = 5
    session.send_when_durable(b"reply")
    session.pump.position = 9
    session.flush(4)
    assert written(session) == b""
    session.flush(5)
    assert written(session) == b"reply"


def test_an_assignment_does_not_wait_and_overtakes_replies_that_do(session):
    session.pump.position = 5
    session.send_when_durable(b"reply")
    session.send(b"assign")
    session.flush(0)
    assert written(session) == b"assign"
    session.flush(5)
    assert written(session) == b"reply"


def test_what_may_leave_together_is_one_write_in_the_order_it_was_said(session):
    session.pump.position = 1
    session.send_when_durable(b"a")
    session.pump.position = 2
    session.send_when_durable(b"b")
    session.send(b"c")
    session.flush(2)
    assert session._transport.written == [b"abc"]


def test_nothing_overtakes_the_verdict_of_an_attach(session):
    session.attaching = True
    session.send(b"assign")
    session.flush(99)
    assert written(session) == b""
    session.pump.position = 3
    session.attach(msg.VerdictMessage((1,), ()), 2)
    session.flush(2)
    assert written(session) == b"", "the registration is not durable yet"
    session.flush(3)
    data = written(session)
    assert data.index(b'"keep"') < data.index(b"assign")


def test_an_acknowledgement_waits_for_the_disk_and_is_no_reason_for_a_commit(session):
    session.pump.position = 5
    session.send_when_durable(b"ack", is_urgent=False)
    assert session.promised == 0
    session.flush(4)
    assert written(session) == b""
    session.flush(5)
    assert written(session) == b"ack"
    session.send_when_durable(b"reply")
    assert session.promised == 5


def test_every_session_that_has_something_to_say_is_flushed(session):
    session.send(b"x")
    assert session in session.pump.touched
