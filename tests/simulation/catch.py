"""Who notices which broken promise: the first cluster-hour that does, and the tests of core, master and worker that
are there for it. Printed as a table, and written as build/reports/sabotage.json for docs/reliability.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "scheduler"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from hour import run_hour
from report import REPORTS
from sabotage import BREAKS, sabotaged
from test_sabotage import CAUGHT_BY

from titan_fast.scheduler.state import Tuning

TESTS = Path(__file__).parents[1]
PROMISES = "master/test_promises.py"
FUNCTIONS = "worker/test_functions.py"
LANES = "simulation/test_lanes.py"
WITNESSES = {
    "acknowledge_before_commit": (f"{PROMISES}::test_a_submit_is_answered_when_it_is_durable_and_not_before",),
    "assign_before_admission": (
        f"{PROMISES}::test_a_process_starts_when_its_submit_is_durable_and_the_next_ones_do_not_wait",
        f"{PROMISES}::test_a_process_starts_again_when_the_retry_is_durable",
    ),
    "durable_when_made": (f"{PROMISES}::test_a_submit_is_answered_when_it_is_durable_and_not_before",),
    "keys_consumed_by_failures": (f"{PROMISES}::test_a_refused_request_does_not_use_up_its_key",),
    "kill_before_commit": (f"{PROMISES}::test_a_kill_waits_for_the_cancel_it_rests_on",),
    "kills_ignored": ("worker/test_agent.py::test_a_kill_in_a_verdict_ends_what_runs_and_forgets_what_has_ended",),
    "one_slot_more": ("worker/test_slots.py::test_no_more_than_the_slots_run_at_a_time",),
    "replies_not_stored": (f"{PROMISES}::test_a_repeated_request_is_answered_as_it_was_and_carried_out_once",),
    "revisions_begin_anew": ("scheduler/test_kv.py::test_revisions_grow_over_all_keys_and_never_come_again",),
    "retries_without_end": ("scheduler/test_retries.py::test_by_default_a_failure_is_final",),
    "strangers_kept": (
        "worker/test_agent.py::test_another_master_that_counts_the_same_epoch_gets_none_of_the_first_ones_attempts",
    ),
    "taken_back_runs_on": (f"{FUNCTIONS}::test_what_has_not_begun_can_be_taken_back_at_any_moment",),
    "unrun_forgotten": (f"{LANES}::test_whatever_happens_at_whatever_moment_each_ends_once_and_for_its_own_reason",),
    "values_never_end": ("scheduler/test_kv.py::test_a_value_lives_as_long_as_asked",),
    "verdict_before_commit": (
        f"{PROMISES}::test_a_verdict_waits_for_the_registration_and_assignments_wait_for_the_verdict",
    ),
}
"""Tests that must fail while a promise is broken that the core has no check for of its own (`CAUGHT_BY`)."""


class Catch(msgspec.Struct, frozen=True):
    """A row of the table."""

    name: str
    breaks: str
    seed: int | None
    """Of the first hour that noticed; None: none did."""
    problem: str
    tests: tuple[str, ...]
    """Others that noticed, as paths from tests/."""

    @property
    def row(self) -> str:
        seed = "not caught" if self.seed is None else str(self.seed)
        return f"| {self.name} | {self.breaks} | {seed} | {', '.join(self.tests) or '–'} |"


class Catches(msgspec.Struct, frozen=True):
    """The report."""

    within: int
    """Hours that were tried at most."""
    catches: tuple[Catch, ...]


def first_catch(name: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """(seed, what was noticed). Failed assertions count, whoever's they are; any other error is one of ours."""
    for seed in seeds:
        try:
            run_hour(seed, name)
        except AssertionError as error:
            return seed, str(error).splitlines()[0]
    return None


def witnesses(name: str) -> Iterator[str]:
    """The tests that are there for this promise.

    Raises:
        AssertionError: one of them does not notice.
    """
    if (check := CAUGHT_BY.get(name)) is not None:
        where = f"{Path(check.__code__.co_filename).relative_to(TESTS)}::{check.__name__}"
        try:
            check(Tuning(sabotage=frozenset({name})))
        except AssertionError:
            yield where
        else:
            raise AssertionError(f"{where} does not notice {name}")
    for test in WITNESSES.get(name, ()):
        command = [sys.executable, __file__, name, test]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, f"{test} does not notice {name}:\n{done.stdout[-2000:]}"
        yield test


def catch_all(within: int) -> int:
    """Prints the table row by row; 1 when something went unnoticed."""
    catches = []
    print("| switch | what it breaks | caught by the simulation at seed | other tests that catch it |")
    print("|---|---|---|---|")
    for name, breaks in BREAKS.items():
        found = first_catch(name, range(within))
        seed, problem = found or (None, "")
        catches.append(Catch(name, breaks, seed, problem, tuple(witnesses(name))))
        print(catches[-1].row, flush=True)
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = msgspec.json.encode(Catches(within, tuple(catches)))
    (REPORTS / "sabotage.json").write_bytes(msgspec.json.format(report) + b"\n")
    return 1 if any(catch.seed is None for catch in catches) else 0


def main() -> int:
    """Run one test with a promise broken; what pytest says."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=list(BREAKS))
    parser.add_argument("test", help="from tests/")
    options = parser.parse_args()
    with sabotaged(options.name):
        return int(pytest.main([str(TESTS / options.test), "--rootdir", str(TESTS.parent), "-x"]))


if __name__ == "__main__":
    sys.exit(main())
