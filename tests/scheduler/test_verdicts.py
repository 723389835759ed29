"""What becomes of an attempt that a worker holds: by its fence alone, as no assignment is ever written down."""

from __future__ import annotations

import pytest

from titan_fast.ids import Ending
from titan_fast.model.spec import Retry
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import Held, SchedulerHarness, array, chain, task


def attach(harness: SchedulerHarness, worker: str, *inventory: ev.HeldAttempt, nonce: str = "n") -> cmd.Verdict:
    """A worker of no more than one frame attaches with this."""
    harness.scheduler.advance(harness.clock.now, harness.clock.wall)
    harness.scheduler.handle(ev.WorkerAttached(1, worker, worker, nonce, (), 4, True, inventory))
    (verdict,) = [command for command in harness.scheduler.take()[1] if isinstance(command, cmd.Verdict)]
    return verdict


def told(held: Held, stage: int = ev.RUNS, **other: object) -> ev.HeldAttempt:
    fields = {"generation": held.generation, "fence": held.fence, "attempt": held.attempt} | other
    return ev.HeldAttempt(run=held.run, index=held.index, stage=stage, **fields)  # type: ignore[arg-type]


def late_verdicts(harness: SchedulerHarness) -> list[cmd.Verdict]:
    return [c for c in harness.commands if isinstance(c, cmd.Verdict) and not c.ticket]


# ---------------------------------------------------------------- floors


def check_floor(tuning: Tuning | None = None) -> None:
    """The worker was given up, which was written down; it comes back with everything after a restart."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w1")
    run = harness.submit([task("a")])
    (held,) = harness.start("w1")
    harness.lose("w1")
    harness.restart()
    assert harness.attach("w1").kill == (held.fence,)
    (again,) = harness.workers["w1"].held.values()
    assert again.fence > held.fence and again.attempt == 2
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_an_attempt_that_ended_for_the_books_is_killed() -> None:
    check_floor()


@pytest.mark.parametrize("ending", ["failed", "recalled", "lost"])
def test_every_end_of_an_attempt_raises_the_floor(ending: str) -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=5, backoff=50.0))])
    (held,) = harness.start("w")
    if ending == "failed":
        harness.end("w", [held], code=1)
    elif ending == "recalled":
        harness.end("w", [held], Ending.RECALLED)
    else:
        harness.lose("w")
    for _ in range(2):
        assert harness.scheduler.state.runs[run].floor_of(0) >= held.fence
        harness.restart()


def test_a_lost_worker_that_returns_in_the_same_epoch_ends_what_it_holds() -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("a")])
    (held,) = harness.start("w1")
    harness.lose("w1")
    assert harness.scheduler.state.workers["w1"].state == "LOST"
    assert harness.attach("w1").kill == (held.fence,)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_attempts_of_another_history_are_ended_whatever_their_fences() -> None:
    check_foreign()


def check_foreign(tuning: Tuning | None = None) -> None:
    """The state directory was copied, and both masters went on: fences of the other one look like ours."""
    harness = SchedulerHarness(tuning, check=False)
    harness.worker("w")
    run = harness.submit([task("a")])
    (held,) = harness.start("w")
    higher = told(held, fence=held.fence + 1000, is_ours=False)
    assert attach(harness, "w2", higher).kill == (held.fence + 1000,)
    assert harness.state(run, "a") == "RUNNING"


def test_a_fence_in_our_books_that_another_history_gave_is_not_taken_for_ours() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    (held,) = harness.start("w")
    harness.cut("w")
    verdict = attach(harness, "w", told(held, is_ours=False), nonce=harness.workers["w"].nonce)
    assert verdict.kill == (held.fence,)
    assert harness.inner_state(run, "a") is TaskState.READY, "what we assigned never arrived"


# ---------------------------------------------------------------- generations


def test_an_attempt_of_another_generation_is_killed() -> None:
    check_generation()


def check_generation(tuning: Tuning | None = None) -> None:
    """The fence would do."""
    harness = SchedulerHarness(tuning, check=False)
    harness.worker("w")
    run = harness.submit([task("a")])
    (held,) = harness.start("w")
    harness.restart()
    for generation in (1, 7):
        wrong = told(held, fence=held.fence + generation, generation=generation)
        assert attach(harness, "w2", wrong).kill == (wrong.fence,)
    assert harness.state(run, "a") == "PENDING"


def check_retry_floor(tuning: Tuning | None = None) -> None:
    """The retry was not committed, but what it started runs. It is asked for again: that is another one."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w")
    run = harness.submit([task("a"), task("b")])
    harness.end("w", harness.start("w"), code=1)
    harness.commits_itself = False
    harness.retry(run, "a")
    b = harness.start("w")
    harness.end("w", b)
    (held,) = harness.start("w")
    assert held.generation == 1
    harness.restart()
    harness.commits_itself = True
    harness.retry(run, "a")
    assert harness.scheduler.state.runs[run].generation == {0: 1}
    assert harness.attach("w").kill == (held.fence,)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_an_attempt_of_a_retry_that_was_forgotten_does_not_count_for_the_next_one() -> None:
    check_retry_floor()


# ---------------------------------------------------------------- several attempts of one task


def two_attempts(tuning: Tuning | None = None) -> tuple[SchedulerHarness, int, Held, Held]:
    """w1 was given up and runs on, w2 has the next attempt; then the master is killed, and knows of neither."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w1")
    run = harness.submit([task("a")])
    (early,) = harness.start("w1")
    harness.worker("w2")
    harness.commits_itself = False
    harness.lose("w1")
    (late,) = harness.start("w2")
    harness.restart()
    harness.commits_itself = True
    return harness, run, early, late


def test_a_later_attempt_replaces_an_earlier_one_which_is_killed() -> None:
    harness, run, early, late = two_attempts()
    assert harness.attach("w1").keep == (early.fence,)
    assert harness.attach("w2").keep == (late.fence,)
    assert harness.workers["w1"].asked == [cmd.Kill("w1", run, 0, early.fence)]
    harness.obey("w1")
    assert harness.state(run, "a") == "RUNNING"
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"
    assert not harness.scheduler.state.runs[run].failures


def check_higher_fence(tuning: Tuning | None = None) -> None:
    harness, run, early, late = two_attempts(tuning)
    assert harness.attach("w2").keep == (late.fence,)
    assert harness.attach("w1").kill == (early.fence,)
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_an_earlier_attempt_than_the_one_we_know_is_killed() -> None:
    check_higher_fence()


def test_of_two_attempts_in_one_inventory_the_later_counts() -> None:
    harness, run, early, late = two_attempts()
    harness.lose("w1")
    verdict = attach(harness, "w2", told(early), told(late))
    assert (verdict.keep, verdict.kill) == ((late.fence,), (early.fence,))
    assert harness.state(run, "a") == "RUNNING"


def test_what_is_final_counts_no_more() -> None:
    harness, run, _, late = two_attempts()
    harness.attach("w1")
    harness.finish("w1")
    assert harness.state(run, "a") == "COMPLETED"
    assert harness.attach("w2").kill == (late.fence,)


# ---------------------------------------------------------------- parents


def child_and_parent(tuning: Tuning | None = None, **fields: object) -> tuple[SchedulerHarness, int, Held, Held]:
    """w1 has the result of `a`, w2 runs `b` because of it; the master forgot both. Returns the attempts of a and b."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w1")
    run = harness.submit([task("a"), task("b", "a", **fields)])
    (a,) = harness.start("w1")
    harness.worker("w2")
    harness.do(ev.WorkerDraining("w1"))
    harness.commits_itself = False
    harness.end("w1", [a])
    (b,) = harness.start("w2")
    harness.restart(grace=10.0)
    harness.commits_itself = True
    return harness, run, a, b


def test_a_child_waits_for_the_word_of_its_parent_and_is_kept() -> None:
    harness, run, a, b = child_and_parent()
    assert harness.attach("w2").wait == (b.fence,)
    assert harness.state(run, "b") == "PENDING"
    assert harness.attach("w1").keep == (a.fence,)
    assert [(v.worker, v.keep) for v in late_verdicts(harness)] == [("w2", (b.fence,))]
    assert harness.state(run, "b") == "RUNNING"
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_that_ended_meanwhile_holds_its_result_back_until_then() -> None:
    harness, run, _, b = child_and_parent()
    harness.attach("w2")
    harness.end("w2", [b])
    assert len(harness.workers["w2"].unsent) == 1
    harness.attach("w1")
    assert harness.run_state(run) == "COMPLETED"
    assert not harness.workers["w2"].unsent


def test_a_child_is_judged_with_its_parent_when_one_worker_holds_both() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit(chain("a", "b"))
    harness.commits_itself = False
    harness.end("w", harness.start("w"))
    (b,) = harness.start("w")
    harness.restart()
    harness.commits_itself = True
    verdict = harness.attach("w")
    assert verdict.wait == (b.fence,) and len(verdict.keep) == 1
    assert harness.state(run, "b") == "RUNNING"
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_is_killed_when_the_hold_is_over_and_nobody_has_its_parent() -> None:
    harness, run, _, b = child_and_parent()
    harness.attach("w2")
    harness.advance(9.9)
    assert not late_verdicts(harness)
    harness.advance(0.2)
    assert [v.kill for v in late_verdicts(harness)] == [(b.fence,)]
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def check_parents_fence(tuning: Tuning | None = None) -> None:
    """The parent ran anew, as its worker took its result along; then the child's worker comes back."""
    harness, run, a, b = child_and_parent(tuning)
    harness.vanish("w1")
    harness.worker("w3")
    harness.advance(10.1)
    harness.do(ev.WorkerDraining("w3"))  # so that the child waits
    harness.finish("w3", only="a")
    assert harness.state(run, "a") == "COMPLETED"
    assert harness.attach("w2").kill == (b.fence,)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"
    assert harness.scheduler.state.runs[run].best[0] > b.fence > a.fence


def test_a_child_that_ran_before_its_parent_ran_anew_is_killed() -> None:
    check_parents_fence()


def test_the_parents_fence_counts_when_it_failed_the_second_time() -> None:
    """`b` runs whatever became of `a`; but it ran after another end of `a` than the one that counts."""
    harness, run, _, b = child_and_parent(when="always")
    harness.vanish("w1")
    harness.worker("w3")
    harness.advance(10.1)
    harness.do(ev.WorkerDraining("w3"))
    harness.end("w3", harness.start("w3"), code=1)
    assert harness.state(run, "a") == "FAILED"
    assert harness.attach("w2").kill == (b.fence,)
    harness.run_to_end()
    assert harness.states(run) == {"a": "FAILED", "b": "COMPLETED"}


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_parent_that_ended_without_an_attempt_is_above_what_ran_after_it_had_run(restarts: int) -> None:
    """`top` succeeded, `a` ran, then `b`. After the restart `top` fails, so `a` is skipped: `b` must run after that."""
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("top"), task("a", "top"), task("b", "a", when="always")])
    harness.commits_itself = False
    harness.finish("w1")
    harness.finish("w1")
    harness.worker("w2")
    (b,) = harness.start("w1")
    assert b.name == "b"
    harness.restart(grace=1.0)
    harness.commits_itself = True
    harness.workers["w1"].unsent.clear()
    harness.worker("w2")
    harness.advance(1.1)
    harness.do(ev.WorkerDraining("w2"))
    harness.end("w2", harness.start("w2"), code=1)
    assert harness.state(run, "a") == "SKIPPED"
    if restarts == 2:
        harness.restart()
    assert harness.attach("w1").kill == (b.fence,)
    harness.attach("w2")
    harness.worker("w3")
    harness.run_to_end()
    assert harness.states(run) == {"top": "FAILED", "a": "SKIPPED", "b": "COMPLETED"}


def test_a_late_child_waits_while_an_older_attempt_of_its_parent_is_kept() -> None:
    """After the hold: what is kept of the parent may have ended before the child was given out."""
    harness, run, _, b = child_and_parent()
    harness.commits_itself = False
    harness.attach("w1")
    harness.advance(10.1)
    assert harness.inner_state(run, "a") in (TaskState.RUNNING, TaskState.ASSIGNED)
    assert harness.scheduler.state.awaited is None
    harness.attach("w2")
    harness.commits_itself = True
    harness.commit()
    assert [v.keep for v in late_verdicts(harness)] == [(b.fence,)]
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_is_killed_as_soon_as_the_attempt_it_waits_for_does_not_count() -> None:
    harness, _, _, b = child_and_parent()
    harness.commits_itself = False
    harness.attach("w1")
    harness.advance(10.1)
    harness.attach("w2")
    assert harness.scheduler.state.undecided == {"w2": {b.fence: told(b, started=1)}}
    harness.lose("w1")
    assert not harness.scheduler.state.undecided
    assert [v.kill for v in late_verdicts(harness)] == [(b.fence,)]


def test_a_late_child_does_not_wait_for_a_later_attempt_of_its_parent() -> None:
    harness, _, a, b = child_and_parent()
    harness.vanish("w1")
    harness.worker("w3")
    harness.advance(10.1)
    (anew,) = harness.start("w3")
    assert anew.name == a.name and anew.fence > b.fence
    assert harness.attach("w2").kill == (b.fence,)


@pytest.mark.parametrize("lost", ["w1", "w2"])
def test_grandchildren_are_killed_with_the_children_they_wait_for(lost: str) -> None:
    """w1 has the result of `a`, w2 of `b`, and w3 runs `c`. With w1 or w2 goes what the rest waited for."""
    harness = SchedulerHarness()
    places = {"w1": "A", "w2": "B", "w3": "C"}
    for name, capability in places.items():
        harness.worker(name, 1, [capability])
    run = harness.submit([task("a", requires=("A",)), task("b", "a", requires=("B",)), task("c", "b", requires=("C",))])
    harness.commits_itself = False
    for name in ("w1", "w2"):
        harness.finish(name)
    (last,) = harness.start("w3")
    harness.restart(grace=1.0)
    for name in ("w1", "w2", "w3"):
        harness.attach(name)
    assert harness.scheduler.state.undecided.keys() == {"w2", "w3"}
    harness.lose(lost)
    # While `a` may still fail, `b` may have been skipped: then `c` would have been right.
    assert bool(harness.scheduler.state.undecided) == (lost == "w2")
    harness.commits_itself = True
    harness.commit()
    assert not harness.scheduler.state.undecided
    assert last.fence in [fence for verdict in late_verdicts(harness) for fence in verdict.kill]
    harness.worker("w4", 1, list(places.values()))
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_whose_worker_is_lost_is_waited_for_no_more() -> None:
    harness, run, _, _ = child_and_parent()
    harness.attach("w2")
    harness.lose("w2")
    assert not harness.scheduler.state.undecided
    harness.worker("w3")
    harness.attach("w1")
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_that_is_cancelled_while_it_waits_is_killed_at_once() -> None:
    harness, run, _, b = child_and_parent()
    harness.attach("w2")
    harness.cancel(run, "b")
    assert [v.kill for v in late_verdicts(harness)] == [(b.fence,)]
    harness.attach("w1")
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "b": "CANCELLED"}


def test_an_array_waits_for_its_last_parent_and_is_then_decided_whole() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 8)
    run = harness.submit([array("a", 4), array("b", 4, "a")])
    harness.commits_itself = False
    harness.finish("w")
    held = harness.start("w")
    assert {item.name for item in held} == {f"b[{n}]" for n in range(4)}
    harness.restart()
    harness.commits_itself = True
    verdict = harness.attach("w")
    assert (len(verdict.keep), len(verdict.wait)) == (4, 4)
    assert sum(len(late.keep) for late in late_verdicts(harness)) == 4
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def test_what_ran_below_a_skipped_parent_is_kept_when_the_skip_has_to_be_decided_again():
    """a -> s (skipped) -> t (skipped) -> c: the results of a and c, and with them the skips, were not written yet."""
    harness = SchedulerHarness()
    harness.worker("w1", slots=1)
    run = harness.submit(
        [
            task("a"),
            task("s", "a", when="failure"),
            task("t", "s", when="failure"),
            task("c", "t", when="always"),
            task("d", "c"),
        ]
    )
    harness.commits_itself = False
    harness.finish("w1", only="a")
    harness.finish("w1", only="c")
    harness.start("w1")
    (held,) = harness.workers["w1"].held.values()
    assert held.name == "d"
    harness.restart()
    harness.commits_itself = True
    harness.attach("w1")
    assert harness.states(run) == {
        "a": "COMPLETED",
        "s": "SKIPPED",
        "t": "SKIPPED",
        "c": "COMPLETED",
        "d": "RUNNING",
    }
    assert [item.fence for item in harness.workers["w1"].held.values()] == [held.fence]
