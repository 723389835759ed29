"""The checker accepts what may happen and names what must not: a bad history, made by hand, for every rule."""

from __future__ import annotations

import os
import subprocess

import pytest
from checker import RULES, check
from history import (
    NOTE,
    Acknowledged,
    Asked,
    Began,
    Cancelled,
    Ended,
    Fault,
    History,
    Listed,
    Refused,
    RetryAsked,
    Seen,
    SeenLost,
    Shape,
    Waited,
    Worked,
    now,
    read,
)

LOST_AFTER = 3.0


class Story:
    """A history, told one event after the other; every event is a tenth of a second after the one before."""

    def __init__(self):
        self.events = []
        self.clock = 100.0
        self.fences = 0
        for worker in ("w1", "w2"):
            self.say(Worked, worker=worker, slots=2)

    def say(self, event, **fields):
        self.clock = round(self.clock + 0.1, 3)
        self.events.append(event(at=self.clock, **fields))
        return self.events[-1]

    def pause(self, seconds):
        self.clock += seconds

    def submit(self, key, tasks, run=None):
        self.say(Asked, key=key, tasks={name: Shape(*shape) for name, shape in tasks.items()})
        if run is not None:
            self.say(Acknowledged, key=key, run=run)

    def fence(self):
        self.fences += 1
        return f"1.{self.fences}"

    def fault(self, kind, worker=""):
        """A short one, between the event before and the one after."""
        self.say(Fault, kind=kind, since=self.clock + 0.05, worker=worker)

    def begin(self, key, task, worker="w1", fence=None, attempt=1):
        fence = fence or self.fence()
        pid = 4000 + len(self.events)
        return self.say(Began, key=key, task=task, attempt=attempt, fence=fence, worker=worker, pid=pid)

    def end(self, began, code=0):
        fields = {name: getattr(began, name) for name in ("key", "task", "attempt", "fence", "worker", "pid")}
        return self.say(Ended, code=code, **fields)

    def do(self, key, task, worker="w1", **how):
        self.end(self.begin(key, task, worker, **how))

    def see(self, run, task, state="COMPLETED", worker="w1", generation=0, attempt=1, exit_code=0, finished_at=5.0):
        self.say(
            Seen,
            run=run,
            task=task,
            generation=generation,
            state=state,
            attempt=attempt,
            worker=worker,
            exit_code=exit_code,
            finished_at=finished_at,
        )

    def close(self, run, key, state="COMPLETED"):
        self.say(Waited, run=run, state=state)
        self.say(Listed, run=run, key=key, state=state)

    def without(self, kind, **fields):
        """Take an event out, as if nobody had written it."""
        found = [
            event
            for event in self.events
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
        ]
        assert found, "nothing to take out"
        for event in found:
            self.events.remove(event)

    @property
    def verdict(self):
        return check(self.events, LOST_AFTER)


def one_task():
    """A run of one task, still going on: what follows is the test's."""
    story = Story()
    story.submit("k", {"t": ()}, run=1)
    return story


def finish(story, worker="w1", attempt=1):
    story.see(1, "t", worker=worker, attempt=attempt)
    story.close(1, "k")
    return story


def quiet_day():
    """A chain with an array in its middle: everything as it should be."""
    story = Story()
    story.submit("day", {"first": (), "many": (3, ("first",)), "last": (0, ("many",))}, run=1)
    story.do("day", "1/first")
    held = [story.begin("day", f"1/many[{member}]", worker="w2") for member in range(2)]
    for began in held:
        story.end(began)
    story.do("day", "1/many[2]", worker="w2")
    story.do("day", "1/last")
    for _ in range(2):
        for task, worker in (("first", "w1"), *((f"many[{i}]", "w2") for i in range(3)), ("last", "w1")):
            story.see(1, task, worker=worker)
    story.close(1, "day")
    return story


# ---------------------------------------------------------------- good


def test_a_quiet_day_is_good():
    verdict = quiet_day().verdict
    assert (verdict.broken, verdict.excuses) == ({}, {})
    assert (verdict.counts["tasks"], verdict.counts["attempts"]) == (5, 5)


def test_a_killed_workers_task_may_run_again():
    story = one_task()
    story.begin("k", "1/t", worker="w2")
    story.fault("worker killed", "w2")
    story.do("k", "1/t", attempt=2)
    verdict = finish(story, attempt=2).verdict
    assert (verdict.broken, verdict.excuses) == ({}, {"run again: worker killed": 1})


def test_a_worker_that_was_frozen_for_long_may_come_back_with_a_late_result():
    story = one_task()
    stale = story.begin("k", "1/t", worker="w2")
    since = story.clock
    story.pause(4.0)
    story.do("k", "1/t", attempt=2)
    story.say(Fault, kind="agent frozen", since=since, worker="w2")
    story.end(stale)
    verdict = finish(story, attempt=2).verdict
    assert (verdict.broken, verdict.excuses) == ({}, {"run again: agent frozen for long": 1})
    assert verdict.counts["ended well and not counted"] == 1


def test_a_worker_that_a_client_saw_lost_is_a_reason():
    story = one_task()
    story.begin("k", "1/t", worker="w2")
    story.pause(4.0)
    story.say(SeenLost, worker="w2")
    story.do("k", "1/t", attempt=2)
    verdict = finish(story, attempt=2).verdict
    assert (verdict.broken, verdict.excuses) == ({}, {"run again: seen lost": 1})


def test_a_retry_is_a_reason():
    story = one_task()
    story.end(story.begin("k", "1/t"), code=1)
    story.see(1, "t", state="FAILED", exit_code=1)
    story.say(Waited, run=1, state="FAILED")
    story.say(RetryAsked, run=1)
    story.do("k", "1/t")
    story.see(1, "t", generation=1)
    story.close(1, "k")
    verdict = story.verdict
    assert (verdict.broken, verdict.excuses) == ({}, {})


def test_a_submit_that_nobody_acknowledged_may_come_to_nothing():
    story = quiet_day()
    story.submit("lost", {"t": ()})
    assert story.verdict.broken == {}
    assert (story.verdict.counts["submits"], story.verdict.counts["acknowledged submits"]) == (2, 1)


def test_a_process_that_outlives_its_agent_is_adopted():
    story = one_task()
    began = story.begin("k", "1/t")
    story.fault("agent killed", "w1")
    story.end(began)
    verdict = finish(story).verdict
    assert verdict.broken == {}
    assert verdict.counts["adopted by a new agent"] == 1


def test_a_worker_that_could_not_be_told_may_start_what_was_cancelled():
    story = Story()
    story.submit("k", {"t": (2,)}, run=1)
    fences = [story.fence(), story.fence()]
    story.begin("k", "1/t[0]", fence=fences[0])
    since = story.clock
    story.say(Cancelled, run=1)
    story.pause(4.0)
    story.say(Fault, kind="worker frozen", since=since, worker="w1")
    story.begin("k", "1/t[1]", fence=fences[1])
    for member in range(2):
        story.see(1, f"t[{member}]", state="CANCELLED", exit_code=None)
    story.close(1, "k", "CANCELLED")
    verdict = story.verdict
    assert (verdict.broken, verdict.excuses) == ({}, {"started after a cancel: could not be told": 1})


# ---------------------------------------------------------------- bad


def acknowledged_and_gone():
    story = quiet_day()
    story.without(Listed, run=1)
    return story


def submitted_once_and_there_twice():
    story = quiet_day()
    story.say(Listed, run=2, key="day", state="COMPLETED")
    return story


def a_number_given_twice():
    story = quiet_day()
    story.submit("other", {"t": ()})
    story.do("other", "1/t")
    return story


def a_run_nobody_asked_for():
    story = quiet_day()
    story.say(Listed, run=2, key="ghost", state="COMPLETED")
    return story


def a_run_that_hangs():
    story = quiet_day()
    story.without(Listed, run=1)
    story.say(Listed, run=1, key="day", state="RUNNING")
    return story


def a_task_that_hangs():
    story = quiet_day()
    story.see(1, "last", state="RUNNING", exit_code=None)
    return story


def a_member_that_is_not_there():
    story = quiet_day()
    story.without(Seen, task="many[1]")
    return story


def an_outcome_that_changes():
    story = quiet_day()
    story.see(1, "first", state="FAILED", exit_code=1)
    return story


def a_second_accepted_result():
    story = quiet_day()
    story.see(1, "first", finished_at=6.0)
    return story


def a_run_that_ends_twice():
    story = quiet_day()
    story.say(Waited, run=1, state="FAILED")
    return story


def a_result_that_no_process_wrote():
    story = quiet_day()
    story.without(Ended, task="1/last")
    return story


def a_result_of_another_worker():
    story = one_task()
    story.do("k", "1/t", worker="w1")
    return finish(story, worker="w2")


def a_child_before_its_parents_last_member():
    story = Story()
    story.submit("k", {"many": (2,), "t": (0, ("many",))}, run=1)
    first, second = (story.begin("k", f"1/many[{member}]", worker="w2") for member in range(2))
    story.end(first)
    story.do("k", "1/t")
    story.end(second)
    return story


def a_child_of_a_failed_parent():
    story = Story()
    story.submit("k", {"p": (), "t": (0, ("p",))}, run=1)
    story.end(story.begin("k", "1/p"), code=1)
    story.do("k", "1/t")
    return story


def run_twice_for_no_reason():
    story = one_task()
    story.do("k", "1/t")
    story.do("k", "1/t", worker="w2")
    return finish(story)


def run_twice_after_a_master_was_killed():
    story = one_task()
    began = story.begin("k", "1/t")
    story.fault("master killed")
    story.do("k", "1/t", worker="w2", attempt=2)
    story.end(began)
    return finish(story)


def run_twice_after_an_agent_was_killed():
    story = one_task()
    story.begin("k", "1/t")
    story.fault("agent killed", "w1")
    story.do("k", "1/t", attempt=2)
    return finish(story)


def run_twice_after_a_short_freeze():
    story = one_task()
    story.begin("k", "1/t")
    story.fault("agent frozen", "w1")
    story.do("k", "1/t", worker="w2", attempt=2)
    return finish(story, worker="w2")


def run_twice_after_another_worker_was_killed():
    story = one_task()
    story.begin("k", "1/t")
    story.fault("worker killed", "w2")
    story.do("k", "1/t", attempt=2)
    return finish(story)


def run_twice_before_its_worker_was_killed():
    story = one_task()
    story.begin("k", "1/t", worker="w2")
    story.do("k", "1/t", attempt=2)
    story.fault("worker killed", "w2")
    return finish(story)


def started_long_after_its_cancel():
    story = Story()
    story.submit("k", {"t": (2,)}, run=1)
    story.do("k", "1/t[0]")
    story.say(Cancelled, run=1)
    story.pause(5.0)
    story.begin("k", "1/t[1]")
    return story


def assigned_after_its_cancel():
    story = Story()
    story.submit("k", {"t": (2,)}, run=1)
    story.say(Cancelled, run=1)
    story.submit("later", {"t": ()}, run=2)
    story.do("later", "2/t")
    story.begin("k", "1/t[1]")
    return story


def one_fence_for_two_processes():
    story = one_task()
    story.do("k", "1/t", fence="1.7")
    story.do("k", "1/t", fence="1.7", worker="w2")
    return finish(story)


def an_end_without_a_beginning():
    story = one_task()
    began = story.begin("k", "1/t")
    story.end(began)
    story.say(Ended, key="k", task="1/t", attempt=1, fence=began.fence, worker="w1", pid=began.pid + 1, code=0)
    return finish(story)


def more_than_its_slots():
    story = Story()
    story.submit("k", {"t": (3,)}, run=1)
    for began in [story.begin("k", f"1/t[{member}]") for member in range(3)]:
        story.end(began)
    return story


def a_killed_workers_slots_before_the_kill():
    story = Story()
    story.submit("k", {"t": (3,)}, run=1)
    for member in range(3):
        story.begin("k", f"1/t[{member}]")
    story.fault("worker killed", "w1")
    return story


def a_client_that_was_told_nonsense():
    story = quiet_day()
    story.say(Refused, call="wait", code="not_found", message="there is no run 1")
    return story


BAD = {
    acknowledged_and_gone: ("acknowledged_submits_exist", "run 1 of day was acknowledged and is gone"),
    submitted_once_and_there_twice: ("acknowledged_submits_exist", "day was submitted once and runs as 1, 2"),
    a_number_given_twice: ("acknowledged_submits_exist", "run number 1 was given to day and to other"),
    a_run_nobody_asked_for: ("acknowledged_submits_exist", "run 2 is ghost, which nobody asked for"),
    a_run_that_hangs: ("everything_finishes", "run 1 is RUNNING at the end"),
    a_task_that_hangs: ("everything_finishes", "1/last is RUNNING at the end"),
    a_member_that_is_not_there: ("everything_finishes", "1/many[1] is not there at the end"),
    an_outcome_that_changes: ("outcomes_never_change", "1/first of generation 0 was shown as ('COMPLETED'"),
    a_second_accepted_result: ("outcomes_never_change", "1/first of generation 0 was shown as"),
    a_run_that_ends_twice: ("outcomes_never_change", "run 1 was COMPLETED, then FAILED"),
    a_result_that_no_process_wrote: ("outcomes_were_earned", "1/last is COMPLETED with exit code 0 on w1"),
    a_result_of_another_worker: ("outcomes_were_earned", "1/t is COMPLETED with exit code 0 on w2"),
    a_child_before_its_parents_last_member: (
        "children_wait_for_their_parents",
        "1/t of k began before its parent many[1] had ended well",
    ),
    a_child_of_a_failed_parent: ("children_wait_for_their_parents", "1/t of k began before its parent p"),
    run_twice_for_no_reason: ("no_task_runs_twice", "1/t ran twice: 1.1 on w1"),
    run_twice_after_a_master_was_killed: ("no_task_runs_twice", "1/t ran twice"),
    run_twice_after_an_agent_was_killed: ("no_task_runs_twice", "1/t ran twice"),
    run_twice_after_a_short_freeze: ("no_task_runs_twice", "1/t ran twice"),
    run_twice_after_another_worker_was_killed: ("no_task_runs_twice", "1/t ran twice"),
    run_twice_before_its_worker_was_killed: ("no_task_runs_twice", "1/t ran twice"),
    started_long_after_its_cancel: ("nothing_starts_after_a_cancel", "1/t[1] began 5.1 s after its cancel"),
    assigned_after_its_cancel: ("nothing_starts_after_a_cancel", "1/t[1] was assigned (1.2) after its cancel"),
    one_fence_for_two_processes: ("an_attempt_is_one_process", "attempt 1.7 was started 2 times"),
    an_end_without_a_beginning: ("an_attempt_is_one_process", "which it never began"),
    more_than_its_slots: ("slots_hold", "w1 ran 3 attempts at a time in 2 slots"),
    a_killed_workers_slots_before_the_kill: ("slots_hold", "w1 ran 3 attempts at a time in 2 slots"),
    a_client_that_was_told_nonsense: ("clients_are_never_refused", "wait: not_found: there is no run 1"),
}


@pytest.mark.parametrize(
    ("story", "rule", "sentence"), [(s, *said) for s, said in BAD.items()], ids=[story.__name__ for story in BAD]
)
def test_a_bad_history_is_named(story, rule, sentence):
    said = story().verdict.broken.get(rule, [])
    assert any(sentence in line for line in said), f"{rule} said {said}"


def test_every_rule_has_a_history_that_breaks_it():
    assert {rule for rule, _ in BAD.values()} == {rule.__name__ for rule in RULES}


# ---------------------------------------------------------------- the file


def test_a_task_notes_itself_in_whole_lines(tmp_path):
    """As many shells as a busy worker has, all at once: no line is torn, and the clock is that of the clients."""
    history = History(tmp_path / "history")
    environ = {
        "HISTORY": str(history.path),
        "KEY": "k",
        "TITAN_TASK": "1/t[3]",
        "TITAN_ATTEMPT": "1",
        "TITAN_FENCE": "1.2",
        "TITAN_WORKER": "w1",
    }
    before = now()
    text = NOTE + "for i in 1 2 3 4 5 6 7 8 9 10; do note began 0; note ended 3; done"
    shells = [subprocess.Popen(["/bin/sh", "-c", text], env={**os.environ, **environ}) for _ in range(8)]
    for shell in shells:
        assert shell.wait(30) == 0
    history.note(SeenLost(now(), "w1"))
    events = history.read()
    history.close()
    assert len(events) == 8 * 20 + 1
    assert {event.pid for event in events[:-1]} == {shell.pid for shell in shells}
    assert events[0].task == "1/t[3]"
    assert all(before - 0.02 <= event.at <= now() for event in events)
    assert {event.code for event in events if isinstance(event, Ended)} == {3}


def test_a_line_that_is_no_event_is_named():
    with pytest.raises(ValueError, match="line 2 of the history is no event"):
        read(b'{"event":"cancelled","at":1.0,"run":1}\n{"event":"cancelled"}\n')
