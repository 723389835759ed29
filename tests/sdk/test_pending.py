"""Submits that nobody waits for: each is carried out once, each has its own answer or its own error, and few writes and
requests do for many of them.
"""

from __future__ import annotations

import itertools
import os
import pickle
import threading

import msgspec
import pytest

from titan_fast import Client, Graph
from titan_fast.errors import InvalidGraph, InvalidUsage, NoMaster, NoSuchRun, RunFailed, TooLarge, WaitTimedOut
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.sdk import client as client_module
from titan_fast.sdk import line as line_module
from titan_fast.sdk.parts import last_task
from titan_fast.sdk.wire import Wire


def graph(name="g"):
    made = Graph(name)
    made.task("t", run="true")
    return made


def update(run, state="COMPLETED", result=""):
    return msg.Update(run, "g", state, {state: 1}, final=True, task_state=state, result=result)


@pytest.fixture
def numbered(master):
    """Every submit is accepted, and ends at once."""
    numbers = itertools.count(1)

    def answer(asked):
        run = next(numbers)
        return [msg.Accepted(run), update(run, result=asked.graph.name)] if asked.watch else [msg.Accepted(run)]

    master.script(msg.Submit, answer)
    master.script(msg.Watch, lambda asked: [update(asked.run)])
    return master


def test_submit_and_wait_are_one_request(numbered, client):
    run = client.run(graph("first"))
    assert (run.id, run.result(), run.done()) == (1, "first", True)
    assert [type(asked) for asked in numbered.asked] == [msg.Submit]


def test_the_outcome_alone_is_an_answer(master, client):
    master.on(msg.Submit, update(7, result="x"))
    run = client.submit_nowait(graph())
    assert (run.id, run.wait().state, run.result()) == (7, "COMPLETED", "x")
    assert len(master.asked) == 1


def test_a_run_with_a_number_is_a_handle_to_what_is_there(master, client):
    row = msg.RunRow(12, "g", "RUNNING", "", 1.0, 1.0, 0.0, {"RUNNING": 1})
    master.on(msg.Show, msg.Shown(row, ()))
    assert client.run(12).id == client.run().id == 12


def test_a_failed_run_is_told_by_whoever_waits(master, client):
    master.on(msg.Submit, msg.Accepted(3), update(3, "FAILED"))
    with pytest.raises(RunFailed, match="run 3 is FAILED"):
        client.run(graph())
    run = client.submit_nowait(graph())
    assert isinstance(run.exception(), RunFailed)


def test_many_leave_in_few_writes_and_each_has_its_own_handle(numbered, client, monkeypatch):
    writes = []
    write = Wire.write
    monkeypatch.setattr(Wire, "write", lambda wire, frames: (writes.append(len(frames)), write(wire, frames)))
    runs = client.submit_many(graph(f"g{number}") for number in range(300))
    assert len(writes) == 3
    assert [run.result() for run in runs] == [f"g{number}" for number in range(300)]
    assert [run.id for run in runs] == list(range(1, 301))
    assert len({(asked.once.client, asked.once.counter) for asked in numbered.asked}) == 300
    assert all(type(asked) is msg.Submit for asked in numbered.asked)


def test_each_is_refused_by_itself(master, client):
    def answer(asked):
        return [InvalidGraph("no")] if asked.graph.name == "bad" else [msg.Accepted(5), update(5)]

    master.script(msg.Submit, answer)
    first, bad, third = client.submit_many([graph(), graph("bad"), graph()])
    assert first.wait().state == third.wait().state == "COMPLETED"
    assert bad.done()
    for ask in (bad.wait, bad.result, bad.cancel, lambda: bad.id, lambda: bad["t"]):
        with pytest.raises(InvalidGraph):
            ask()


def test_what_cannot_be_written_is_told_by_its_own_handle(numbered, client):
    first, bad, third = client.submit_many([graph(), GraphSpec("\ud800", graph().to_spec()[0].tasks), graph()])
    assert (first.id, third.id) == (1, 2)
    with pytest.raises(InvalidUsage, match="not Unicode"):
        bad.wait()


@pytest.mark.parametrize("step", [*range(0, 30, 3), 31, 35, 38, 40])
def test_many_are_carried_out_once_wherever_the_connection_breaks(numbered, client, step):
    numbered.break_at(step)
    runs = client.submit_many([graph() for _ in range(10)])
    assert sorted(run.wait().run for run in runs) == list(range(1, 11))
    submitted = [asked for asked in numbered.carried_out if isinstance(asked, msg.Submit)]
    assert len(submitted) == 10
    seen = set()
    for once in [asked.once for asked in numbered.asked if isinstance(asked, msg.Submit)]:
        assert once.repeat or once.counter not in seen, "what is sent again says so"
        seen.add(once.counter)


def test_many_are_carried_out_once_over_many_breaks(numbered, client):
    numbered.break_at(*range(5, 400, 23))
    runs = client.submit_many([graph() for _ in range(40)])
    assert sorted(run.id for run in runs) == list(range(1, 41))
    assert sorted(run.wait().run for run in runs) == list(range(1, 41))
    assert len([asked for asked in numbered.carried_out if isinstance(asked, msg.Submit)]) == 40


def test_after_a_break_all_go_along_in_one_write(master, client, monkeypatch):
    """The first that is waited for takes the others to the new connection."""
    numbers = itertools.count(1)
    master.script(msg.Submit, lambda asked: [msg.Accepted(next(numbers))])
    master.break_at(0)
    runs = client.submit_many([graph() for _ in range(20)])
    writes = []
    write = Wire.write
    monkeypatch.setattr(Wire, "write", lambda wire, frames: (writes.append(frames), write(wire, frames)))
    assert sorted(run.id for run in runs) == list(range(1, 21))
    assert len([frames for frames in writes if frames]) == 1


def test_of_a_run_that_was_accepted_only_the_end_is_asked_for_again(master, client):
    master.on(msg.Submit, msg.Accepted(4))
    master.on(msg.Watch, update(4))
    run = client.submit_nowait(graph())
    assert run.id == 4
    master.stop()
    master.start()
    assert run.wait(10).run == 4
    assert [type(asked) for asked in master.asked] == [msg.Submit, msg.Watch]


def test_a_run_of_a_lost_state_is_not_taken_for_another_one(master, client):
    master.on(msg.Submit, msg.Accepted(4))
    run = client.submit_nowait(graph())
    assert run.id == 4
    master.history = "second"
    master.stop()
    master.start()
    with pytest.raises(NoSuchRun, match="no run 4 any more"):
        run.wait(10)


def test_a_run_belongs_to_the_state_that_accepted_it(numbered, client):
    """Written to a master that was gone already, it is carried out by the next one."""
    assert client.submit(graph()).id == 1
    numbered.history = "second"
    numbered.stop()
    numbered.start()
    run = client.submit_nowait(graph())
    assert (run.id, run.history) == (2, "second")


def test_a_master_that_stays_away_is_given_up_and_may_be_asked_again(master):
    master.on(msg.Submit, msg.Accepted(4))
    master.on(msg.Watch, update(4))
    with Client(master.address, token=master.token, reconnect_timeout=0.2) as client:
        run = client.submit_nowait(graph())
        assert run.id == 4
        master.stop()
        with pytest.raises(NoMaster) as error:
            run.wait()
        assert error.value.hint == "when it is back: titan-fast wait 4"
        master.start()
        assert run.wait().state == "COMPLETED"


def test_a_timed_out_wait_may_be_repeated(master, client):
    go_on = threading.Event()

    def answer(asked):
        yield msg.Accepted(4)
        go_on.wait(10)
        yield update(4)

    master._replies = lambda incoming: answer(incoming.message)
    run = client.submit_nowait(graph())
    with pytest.raises(WaitTimedOut):
        run.wait(0.05)
    assert not run.done()
    go_on.set()
    assert run.wait(10).state == "COMPLETED"
    assert run.done()


def test_no_more_than_so_many_are_unanswered(master, client, monkeypatch):
    monkeypatch.setattr(client_module, "UNANSWERED", 4)
    numbers = itertools.count(1)
    master.script(msg.Submit, lambda asked: [msg.Accepted(next(numbers))])
    for _ in range(20):
        client.submit_nowait(graph())
        assert len(client._unanswered) <= 4


def test_beyond_a_bound_the_outcome_is_asked_for_and_not_pushed(numbered, client, monkeypatch):
    monkeypatch.setattr(client_module, "WATCHED", 2)
    runs = [client.submit_nowait(graph()) for _ in range(4)]
    assert [run.wait().state for run in runs] == ["COMPLETED"] * 4
    watched = [asked.watch for asked in numbered.asked if isinstance(asked, msg.Submit)]
    assert watched == [True, True, False, False]


def test_many_outcomes_are_asked_for_in_one_write(numbered, client, monkeypatch):
    monkeypatch.setattr(client_module, "WATCHED", 4)
    runs = client.submit_many([graph() for _ in range(4)]) + client.submit_many([graph() for _ in range(4)])
    for run in runs:
        run.settle()
    for run in runs[:4]:
        run.wait()
    writes = []
    write = Wire.write
    monkeypatch.setattr(Wire, "write", lambda wire, frames: writes.append(frames) or write(wire, frames))
    assert [run.wait().run for run in reversed(runs[4:])] == [8, 7, 6, 5]
    assert len(writes) == 1
    assert sorted(asked.run for asked in numbered.asked if isinstance(asked, msg.Watch)) == [5, 6, 7, 8]


def test_the_outcome_of_a_lost_run_is_not_asked_for_along_with_others(numbered, client, monkeypatch):
    monkeypatch.setattr(client_module, "WATCHED", 1)
    lost = client.submit_many([graph(), graph()])[1]
    assert lost.id == 2
    numbered.history = "second"
    numbered.stop()
    numbered.start()
    run = client.submit_many([graph(), graph()])[0]
    assert run.id == 3
    monkeypatch.setattr(client_module, "WATCHED", 10)
    assert run.wait().run == 3
    with pytest.raises(NoSuchRun, match="no run 2 any more"):
        lost.wait(10)


def test_what_has_its_outcome_takes_no_room_though_nobody_reads_it(numbered, client, monkeypatch):
    monkeypatch.setattr(client_module, "WATCHED", 4)
    monkeypatch.setattr(line_module, "LOOK_AGAIN", 1)
    runs = client.submit_many([graph() for _ in range(4)])
    client.submit(graph())  # answered after all of them
    runs += client.submit_many([graph() for _ in range(4)])
    assert [run.wait().state for run in runs] == ["COMPLETED"] * 8
    assert not any(isinstance(asked, msg.Watch) for asked in numbered.asked)


def test_the_result_of_the_last_task_comes_with_the_end(master, client):
    def answer(asked):
        return [msg.Accepted(3), (msgspec.structs.replace(update(3), gave="t"), pickle.dumps(42))]

    master.script(msg.Submit, answer)
    run = client.submit_nowait(graph())
    assert run["t"].result() == 42
    assert run["t"].result() == 42
    assert [type(asked) for asked in master.asked] == [msg.Submit]


def test_what_came_with_the_end_is_of_the_last_task_alone(master, client):
    both = graph()
    both.task("last", run="true", needs=["t"])
    master.on(msg.Submit, msg.Accepted(3), (msgspec.structs.replace(update(3), gave="last"), pickle.dumps(42)))
    master.on(msg.Watch, update(3))
    master.script(msg.Results, lambda asked: [(msg.Given(), b"text")])
    run = client.submit_nowait(both)
    assert (run["last"].result(), run["t"].result()) == (42, "text")


def test_a_result_that_did_not_come_with_the_end_is_asked_for(numbered, client):
    numbered.script(msg.Results, lambda asked: [(msg.Given(), b"text")])
    assert client.submit_nowait(graph())["t"].result() == "text"
    assert [type(asked) for asked in numbered.asked] == [msg.Submit, msg.Results]


@pytest.mark.parametrize(
    ("needs", "last"), [({"a": ()}, "a"), ({"a": (), "b": ("a",)}, "b"), ({"a": (), "b": ()}, ""), ({}, "")]
)
def test_the_task_that_ends_with_its_run(needs, last):
    work = Work(argv=("true",))
    assert last_task(GraphSpec("g", tuple(TaskSpec(name, work, needs=of) for name, of in needs.items()))) == last


def test_a_retry_forgets_the_outcome(master, client):
    master.on(msg.Submit, msg.Accepted(3), update(3, "FAILED"))
    master.on(msg.Retry, msg.Accepted(3))
    master.on(msg.Watch, update(3))
    run = client.submit_nowait(graph())
    assert run.outcome().state == "FAILED"
    run.retry()
    assert run.wait().state == "COMPLETED"


def test_a_watch_that_the_master_cannot_keep_is_told_and_the_run_is_there(master, client):
    master.on(msg.Submit, msg.Accepted(3), TooLarge("too many"))
    run = client.submit_nowait(graph())
    assert run.id == 3
    with pytest.raises(TooLarge):
        run.wait()


def test_threads_that_share_a_client_submit_at_once(numbered, client):
    numbered.break_at(*range(7, 400, 41))
    got = []

    def work():
        got.extend(run.id for run in client.submit_many([graph() for _ in range(15)]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == list(range(1, 61))


def test_a_forked_child_does_not_read_the_answers_of_its_parent(numbered, client):
    run = client.submit_nowait(graph())
    child = os.fork()
    if child == 0:
        try:
            run.wait()
        except InvalidUsage:
            os._exit(0 if client.run(graph()).id > 0 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert run.wait().state == "COMPLETED"


def test_a_dropped_handle_leaves_nothing_behind(numbered):
    with Client(numbered.address, token=numbered.token) as client:
        runs = client.submit_many([graph() for _ in range(5)])
        assert not client.line.has_room(0, 4)
        runs[0].wait()
        assert not client.line.has_room(0, 3) and client.line.has_room(0, 4)
        client._unanswered.clear()
        runs.clear()
        assert client.line.has_room(0, 0)
        assert not client.line.wire()._inboxes
