"""A client whose connection breaks, or whose master goes away, at any point: what it asked is done, once, and what it
reads has no gap and no double.
"""

from __future__ import annotations

import os
import threading

import pytest

from titan_fast import Client, Graph
from titan_fast.errors import (
    BadProof,
    Conflict,
    DiskFull,
    NoMaster,
    NoSuchBlob,
    NoSuchRun,
    NoToken,
    Stopping,
    WaitTimedOut,
)
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.handles import RunHandle
from titan_fast.sdk.line import AWAY, BACK
from titan_fast.testing.scripted_master import ScriptedMaster

GRAPH = Graph("g")
GRAPH.task("t", run="true")
ROW = msg.RunRow(12, "g", "RUNNING", "", 1.0, 1.0, 0.0, {"RUNNING": 1})


def update(final=False, run=12):
    state = "COMPLETED" if final else "RUNNING"
    return msg.Update(run, "g", state, {state: 1}, final=final)


# ---------------------------------------------------------------- what changes something

MUTATIONS = {
    "submit": (msg.Submit, msg.Accepted(12), lambda client: client.submit(GRAPH).id, 12),
    "cancel": (msg.Cancel, msg.Accepted(12), lambda client: client.cancel("12/t"), None),
    "retry": (msg.Retry, msg.Accepted(12), lambda client: client.retry(12), None),
    "drop": (msg.Drop, msg.Accepted(12), lambda client: client.drop("12/t"), None),
    "kv set": (msg.KvSet, msg.KvDone(5), lambda client: client.kv.set("k", b"v", expect=4), 5),
    "kv rm": (msg.KvSet, msg.KvDone(5), lambda client: client.kv.rm("k"), 5),
}
STEPS_OF_A_CALL = 3
"""It comes in, it is carried out, the answer leaves."""


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("step", range(STEPS_OF_A_CALL))
def test_a_change_is_carried_out_once_wherever_the_connection_breaks(master, client, told, name, step):
    cls, reply, do, answer = MUTATIONS[name]
    master.on(cls, reply)
    master.break_at(step)
    assert do(client) == answer
    assert len(master.carried_out) == 1
    first, second = master.asked
    assert (first.once.repeat, second.once.repeat) == (False, True)
    assert (first.once.client, first.once.counter) == (second.once.client, second.once.counter)
    assert told == [], "nobody noticed"


def test_a_change_is_carried_out_once_over_many_breaks(master, client):
    master.on(msg.Submit, msg.Accepted(12))
    master.break_at(0, 1, 3, 5)
    assert client.submit(GRAPH).id == 12
    assert len(master.asked) == 5
    assert len(master.carried_out) == 1


def test_each_request_has_a_key_of_its_own(master, client):
    master.on(msg.Submit, msg.Accepted(12))
    client.submit(GRAPH)
    client.submit(GRAPH)
    with Client(master.address, token=master.token) as another:
        another.submit(GRAPH)
    keys = {(asked.once.client, asked.once.counter) for asked in master.asked}
    assert len(keys) == len(master.carried_out) == 3


def test_a_forked_child_never_uses_the_keys_of_its_parent(master, client):
    """Two requests with one key would be one request."""
    master.on(msg.Submit, msg.Accepted(12))
    client.submit(GRAPH)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.submit(GRAPH).id == 12 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    client.submit(GRAPH)
    assert len({(asked.once.client, asked.once.counter) for asked in master.asked}) == 3


def test_a_master_that_is_stopping_is_asked_again(master, client):
    answers = iter([[Stopping()], [Stopping()], [msg.Accepted(12)]])
    master.script(msg.Submit, lambda asked: next(answers))
    assert client.submit(GRAPH).id == 12
    assert [asked.once.repeat for asked in master.asked] == [False, True, True]


@pytest.mark.parametrize("refusal", [DiskFull("no room"), Conflict("not as expected"), NoSuchBlob("d")])
def test_what_somebody_has_to_mend_is_told_at_once(master, client, refusal):
    master.on(msg.Submit, refusal)
    with pytest.raises(type(refusal)):
        client.submit(GRAPH)
    assert len(master.asked) == 1


@pytest.mark.parametrize("step", range(STEPS_OF_A_CALL))
def test_a_question_is_asked_again(master, client, step):
    master.on(msg.Show, msg.Shown(ROW, ()))
    master.break_at(step)
    assert client.run(12).id == 12
    assert len(master.asked) == 2


# ---------------------------------------------------------------- a master that is away


def open_client(master, told=None, **options):
    options = {"timeout": 5, "reconnect_timeout": 20, **options}
    return Client(master.address, token=master.token, tell=(told if told is not None else []).append, **options)


def test_who_waits_is_told_once_when_the_master_is_away_and_when_it_is_back(master, client, told):
    master.on(msg.Submit, msg.Accepted(12))
    master.break_at(1, away=4)
    assert client.submit(GRAPH).id == 12
    assert told == [AWAY, BACK]
    assert len(master.carried_out) == 1


def test_a_master_that_starts_again_is_found(master):
    """It starts when the client has noticed that it is gone."""
    told = []

    def tell(text):
        told.append(text)
        if text == AWAY:
            master.start()

    master.on(msg.Submit, msg.Accepted(12))
    with Client(master.address, token=master.token, tell=tell) as client:
        client.line.wire()
        master.stop()
        assert client.submit(GRAPH).id == 12
    assert told == [AWAY, BACK]


def test_a_master_that_stays_away_is_given_up_with_the_command_to_go_on(master):
    with open_client(master, reconnect_timeout=0.2) as client:
        client.line.wire()
        master.stop()
        with pytest.raises(NoMaster, match=r"went away and did not come back within 0\.2 s") as error:
            list(client.stream(calls.watch(TaskId(12), True)))
        assert error.value.exit_code == 3
        assert error.value.hint == "when it is back: titan-fast wait 12"
        with pytest.raises(NoMaster) as error:
            client.submit(GRAPH)
        assert "titan-fast ls" in error.value.hint


def test_the_first_connection_has_a_patience_of_its_own(master):
    master.stop()
    with open_client(master, timeout=0.1) as client, pytest.raises(NoMaster, match="no master answers") as error:
        client.stats()
    assert "titan-fast up" in error.value.hint


def test_a_master_that_went_away_is_waited_for_longer_than_a_first_one(master):
    master.on(msg.Submit, msg.Accepted(12))
    with open_client(master, timeout=0) as client:
        master.break_at(0, away=2)
        assert client.submit(GRAPH).id == 12


def test_a_master_that_is_just_starting_is_waited_for(master, client):
    master.on(msg.Submit, msg.Accepted(12))
    master.turn_away(3)
    assert client.submit(GRAPH).id == 12


def test_a_wait_ends_in_time_while_the_master_is_away(master):
    master.on(msg.Watch, update())
    with open_client(master) as client:
        updates = client.stream(calls.watch(TaskId(12), True), timeout=0.3)
        assert not next(updates).final
        master.stop()
        with pytest.raises(WaitTimedOut):
            next(updates)


def test_every_address_is_tried(master, told):
    master.on(msg.Submit, msg.Accepted(12))
    with ScriptedMaster() as standby:
        standby.token = master.token
        standby.on(msg.Submit, msg.Accepted(12))
        both = f"{master.address},{standby.address}"
        with Client(both, token=master.token, tell=told.append) as client:
            client.submit(GRAPH)
            master.stop()
            client.submit(GRAPH)
    assert (len(master.asked), len(standby.asked)) == (1, 1)
    assert told == [], "somebody was there all the time"


def test_a_token_file_that_comes_late_is_waited_for(master, tmp_path):
    """A stopped master takes its token file away, a starting one writes it last."""
    file = tmp_path / "token"
    file.write_text(master.token)
    master.on(msg.Show, msg.Shown(ROW, ()))
    with Client(master.address, token_file=str(file), reconnect_timeout=20) as client:
        client.line.wire()
        file.unlink()
        master.break_at(0)
        looked_for = threading.Event()
        find = client.line._find_token

        def find_and_say():
            looked_for.set()
            return find()

        client.line._find_token = find_and_say
        asking = threading.Thread(target=client.run, args=(12,))
        asking.start()
        assert looked_for.wait(10)
        file.write_text(master.token)
        asking.join(10)
        assert not asking.is_alive()
    assert len(master.asked) == 2


def test_a_wrong_token_is_told_at_once(master):
    with open_client(master, told=[], timeout=5) as client:
        client.line.wire()
        master.token = "another"
        master.break_at(0)
        with pytest.raises((BadProof, NoToken)):
            client.stats()


def test_threads_that_share_a_client_lose_nothing_together(master, client):
    numbers = iter(range(1, 100))
    master.script(msg.Submit, lambda asked: [msg.Accepted(next(numbers))])
    master.break_at(*range(7, 200, 11))
    got = []
    threads = [threading.Thread(target=lambda: got.extend(client.submit(GRAPH).id for _ in range(5))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == list(range(1, 31))
    assert len(master.carried_out) == 30
    assert len(master.asked) > 30


# ---------------------------------------------------------------- a master that came back with another state


def test_a_run_of_a_lost_state_is_not_taken_for_another_one(master, client):
    master.on(msg.Submit, msg.Accepted(12))
    master.on(msg.Show, msg.Shown(ROW, ()))
    master.on(msg.Watch, update(), update(final=True))
    run = client.submit(GRAPH)
    master.history = "second"
    master.break_at(master.steps + 3)
    with pytest.raises(NoSuchRun, match="there is no run 12 any more") as error:
        run.wait()
    assert "another state" in error.value.hint
    for ask in (run.wait, run.cancel, run["t"].logs, lambda: run.state):
        with pytest.raises(NoSuchRun):
            ask()
    assert len(master.carried_out) == 2, "nobody was asked about somebody else's run"


def test_new_work_goes_on_with_the_new_state(master, client):
    master.on(msg.Submit, msg.Accepted(1))
    master.on(msg.Watch, update(final=True, run=1))
    client.submit(GRAPH)
    master.history = "second"
    master.break_at(master.steps)
    assert client.submit(GRAPH).wait().state == "COMPLETED"


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("step", range(5))
def test_a_watch_goes_on_wherever_the_connection_breaks(master, client, step):
    """In: it comes in, is understood, three updates leave."""
    master.on(msg.Watch, update(), update(), update(final=True))
    master.break_at(step)
    updates = list(client.stream(calls.watch(TaskId(12), True)))
    assert updates[-1].final
    assert [asked.run for asked in master.asked] == [12, 12]
    assert len(updates) == max(0, step - 2) + 3


def test_the_newest_run_stays_the_same_run(master, client):
    """Whoever waits for `last` has meant the one that was the newest then."""
    master.on(msg.Show, msg.Shown(ROW, ()))
    master.on(msg.Watch, update(), update(final=True))
    master.break_at(6)
    target = client.exact(calls.task_id("last/t"))
    list(client.stream(calls.watch(target, True)))
    assert [asked.run for asked in master.asked] == [0, 12, 12]


OUTPUT = {41: b"one two three ", 42: b"four five"}
"""By fence: of two attempts of one task."""


def piece_by_piece(asked):
    fences = [fence for fence in OUTPUT if fence >= asked.fence]
    offset = asked.offset
    for fence in fences:
        while offset < len(OUTPUT[fence]):
            data = OUTPUT[fence][offset : offset + 4]
            yield msg.Logged(offset=offset, fence=fence), data
            offset += len(data)
        last, offset = offset, 0
    yield msg.Logged(offset=last, fence=fence, final=True, state="COMPLETED", attempt=2)


STEPS_OF_THE_OUTPUT = 2 + 4 + 3 + 1


@pytest.mark.parametrize("step", range(STEPS_OF_THE_OUTPUT))
def test_no_byte_of_an_output_is_missing_or_doubled(master, client, step):
    master.script(msg.Logs, piece_by_piece)
    master.break_at(step)
    pieces = list(client.stream(calls.logs(TaskId(12, "t"), True, -1, 0)))
    assert b"".join(piece.data for piece in pieces) == b"one two three four five"
    assert pieces[-1].final
    assert len(master.asked) == 2
    assert master.steps > STEPS_OF_THE_OUTPUT


def test_an_output_survives_a_break_at_every_piece(master, client):
    master.script(msg.Logs, piece_by_piece)
    master.break_at(*range(3, 60, 4))
    pieces = client.stream(calls.logs(TaskId(12, "t"), True, -1, 0))
    assert b"".join(piece.data for piece in pieces) == b"one two three four five"
    assert len(master.asked) == 8


def test_the_last_lines_are_asked_for_once(master, client):
    """What was read is not cut to its last lines again."""
    master.script(msg.Logs, piece_by_piece)
    master.break_at(3)
    list(client.stream(calls.logs(TaskId(12, "t"), True, 10, 0)))
    first, second = master.asked
    assert (first.tail, first.fence, first.offset) == (10, 0, 0)
    assert (second.tail, second.fence, second.offset) == (-1, 41, 4)


def test_a_handle_shows_where_output_is_missing(client, master):
    master.script(
        msg.Logs,
        lambda asked: [
            (msg.Logged(offset=0, fence=41), b"begin"),
            (msg.Logged(offset=105, dropped=100, fence=41), b"end"),
            msg.Logged(offset=108, fence=41, final=True),
        ],
    )
    task = RunHandle(client, 12)["t"]
    assert task.logs() == "begin\n[… 100 bytes not kept …]\nend"
    assert b"".join(task.follow()).decode() == task.logs()
