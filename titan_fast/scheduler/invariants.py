"""What must hold, whatever happened. Tests ask at each step; production never does.

`check` looks at the state after an event, `Witness` at everything that came out over time: it knows the facts and
commands alone, so what it says does not rest on the books it judges. `check_rest` is for a core with nothing to do.
Cost is linear in everything the state holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from titan_fast.scheduler import facts as fact
from titan_fast.scheduler.commands import Assign, Command
from titan_fast.scheduler.lifecycle import FINAL, IN_FLIGHT, N_STATES, PUBLIC, TaskState
from titan_fast.scheduler.state import DONE, RECALLING, STARTED, Run, State

S = TaskState
FINAL_NAMES = frozenset(PUBLIC[value] for value in FINAL)
UNCOUNTED = frozenset({"recalled", "killed", "absent"})
"""Reasons of attempts that ended without any fault of their task."""


def check(state: State) -> None:
    """Raises AssertionError with what is broken."""
    totals = [0] * N_STATES
    ready = 0
    recalling = 0
    for run in state.runs.values():
        _check_run(state, run)
        totals = [a + b for a, b in zip(totals, run.counts, strict=True)]
        ready += run.counts[S.READY]
    assert totals == state.totals, f"state counts {state.totals} are not the runs' sum {totals}"
    assert len(state.queue) == ready, f"{len(state.queue)} tasks queued, {ready} READY"
    fences: set[int] = set()
    priorities: dict[int, int] = {}
    for worker in state.workers.values():
        held = running = 0
        assert worker.fences == [lot.fence for lot in worker.lots], f"{worker.name}: fences and lots differ"
        assert worker.fences == sorted(worker.fences), f"{worker.name}: fences out of order"
        for lot in worker.lots:
            open_members = 0
            run = state.runs[lot.run]
            assert run.lots.get(lot.fence) is lot, f"run {run.id} does not know lot {lot.fence} of {worker.name}"
            for member, mark in enumerate(lot.marks):
                if mark == DONE:
                    continue
                open_members += 1
                recalling += mark == RECALLING
                running += mark == STARTED
                fence, index = lot.fence + member, lot.first + member
                assert fence not in fences, f"fence {fence} is open twice"
                fences.add(fence)
                value = TaskState(run.state[index])
                assert value in IN_FLIGHT, f"{run.id}/{run.label(index)} is {value.name} but at {worker.name}"
            assert open_members == lot.open > 0, f"lot {lot.fence}: {open_members} open members, says {lot.open}"
            held += lot.open
            priorities[lot.priority] = priorities.get(lot.priority, 0) + lot.open
        assert held == worker.held, f"{worker.name} holds {held}, says {worker.held}"
        assert running == worker.running, f"{worker.name} runs {running}, says {worker.running}"
        # What ended but was not acknowledged counts as running after an attach, so slots are no bound for it.
        assert held <= worker.slots + state.tuning.max_prefetch, f"{worker.name} holds {held}, far beyond its slots"
        assert (held > worker.slots) == (worker.id in state.overfull), f"{worker.name} holds {held}: overfull is wrong"
        if worker.state in ("LOST", "LEFT"):
            assert not held, f"{worker.name} is {worker.state} and holds {held}"
        if worker.alone is not None and worker.held:
            run = state.runs.get(worker.alone[0])
            if run is not None and run.state[worker.alone[1]] in IN_FLIGHT:
                assert worker.held == 1, f"{worker.name} should run one task alone, holds {worker.held}"
    assert priorities == state.in_flight, f"in flight by priority: {priorities}, says {state.in_flight}"
    assert recalling == state.recalling, f"{recalling} recalls open, says {state.recalling}"
    in_flight = sum(totals[value] for value in IN_FLIGHT)
    assert len(fences) == in_flight, f"{len(fences)} open attempts, {in_flight} tasks in flight"


def _check_run(state: State, run: Run) -> None:
    counts = [run.state.count(value) for value in TaskState]
    assert counts == run.counts, f"run {run.id}: counts {run.counts}, states {counts}"
    for spec in range(len(run.names)):
        first, count = run.first[spec], run.count[spec]
        column = run.state[first : first + count]
        still_open = sum(1 for value in column if value not in FINAL)
        assert still_open == run.open[spec], f"{run.id}/{run.names[spec]}: {still_open} open, says {run.open[spec]}"
        if S.BLOCKED in column:
            unmet = sum(1 for parent in run.parents_of(spec) if run.open[parent])
            assert unmet == run.unmet[spec], f"{run.id}/{run.names[spec]}: {unmet} unmet, says {run.unmet[spec]}"
            assert unmet, f"{run.id}/{run.names[spec]} is BLOCKED by nobody"
        elif any(value in IN_FLIGHT or value in (S.READY, S.DELAYED, S.PINNED) for value in column):
            # A retry may open a parent again under a child that runs because it had failed.
            waiting = [
                run.names[parent]
                for parent in run.parents_of(spec)
                if run.open[parent] and not _was_reopened(run, parent)
            ]
            assert not waiting, f"{run.id}/{run.names[spec]} was released before {waiting}"
        for index in range(first, first + count):
            assert run.crashes.get(index, 0) <= state.tuning.crash_limit, f"{run.id}/{index}: crash limit"
            retry = run.options_of(spec).retry
            assert run.failures.get(index, 0) <= retry.max + 1, f"{run.id}/{index}: retries"
    assert run.is_final == (run.unfinished == 0), f"run {run.id} is {run.status} with {run.unfinished} unfinished"
    for index, worker_id in run.pins.items():
        assert run.state[index] == S.PINNED, f"{run.id}/{run.label(index)} is pinned to {worker_id} and not PINNED"
        assert worker_id in state.pinned, f"{run.id}/{run.label(index)} waits for {worker_id}, which nobody looks at"
    for first, due in run.due.items():
        for index in range(first, first + due.members):
            assert run.state[index] in (S.DELAYED, S.PINNED), f"{run.id}/{run.label(index)} has a timer and no wait"


def _was_reopened(run: Run, spec: int) -> bool:
    return any(index in run.generation for index in range(run.first[spec], run.first[spec] + run.count[spec]))


def check_rest(state: State) -> None:
    """When every run is final nothing is left over: nothing queued, held, pinned, waited for or asked back."""
    for run in state.runs.values():
        assert run.is_final, f"run {run.id} is {run.status}: {run.counts}"
        assert not run.lots and not run.due and not run.pins, f"run {run.id} left something over"
    assert not len(state.queue) and not state.recalling, f"{len(state.queue)} queued, {state.recalling} recalls"
    left = [worker.name for worker in state.workers.values() if worker.held or worker.running or worker.lots]
    assert not left, f"{left} hold something"
    assert not state.overfull, f"overfull: {state.overfull}"
    homeless = [(r, index) for r, index in state.homeless if r in state.runs and state.runs[r].state[index] == S.PINNED]
    assert not homeless, f"without a worker: {homeless}"


class _Ledger:
    """One run as its facts and assignments tell it."""

    def __init__(self, accepted: fact.RunAccepted, fence: int) -> None:
        tasks = accepted.graph.tasks
        row = {task.name: at for at, task in enumerate(tasks)}
        self.parents = [[row[name] for name in task.needs] for task in tasks]
        self.spec_of = [spec for spec, task in enumerate(tasks) for _ in range(task.count)]
        self.open = [task.count for task in tasks]
        self.best_fence = [0] * len(tasks)
        """The highest accepted fence of each spec."""
        self.reopened = [False] * len(tasks)
        size = len(self.spec_of)
        self.state = ["PENDING"] * size
        self.generation = [0] * size
        self.attempt = [0] * size
        self.failures = [0] * size
        self.crashes = [0] * size
        self.floor = [fence] * size
        self.asked = [False] * size
        """Somebody asked to cancel it in this generation."""

    def settle(self, index: int, to: str, fence: int) -> None:
        assert self.state[index] not in FINAL_NAMES, f"task {index} was {self.state[index]} and becomes {to}"
        self.state[index] = to
        if to in FINAL_NAMES:
            spec = self.spec_of[index]
            self.open[spec] -= 1
            self.best_fence[spec] = max(self.best_fence[spec], fence)


class Witness:
    """Sees every fact and command in order and objects to what must never happen over time.

    One accepted outcome for each task and generation, and final states that stay; fences that only grow, a child's
    above those of its parents; at most one open attempt of a task; no attempt after a cancel that was asked; no
    child before its parents; and the facts, replayed, give what the core has in memory.
    """

    def __init__(self) -> None:
        self.fence = 0
        self.runs: dict[int, _Ledger] = {}
        self.open: dict[int, tuple[int, int, int, int]] = {}
        """Open attempts: fence -> (run, index, generation, attempt)."""
        self.busy: set[tuple[int, int]] = set()

    def see(self, facts: Iterable[fact.Fact], commands: Iterable[Command]) -> None:
        """One turn. Assignments are decided after everything that happened in it."""
        for item in facts:
            self._fact(item)
        for command in commands:
            if isinstance(command, Assign):
                self._assigned(command)

    def _fact(self, item: fact.Fact) -> None:
        match item:
            case fact.RunAccepted():
                assert item.run not in self.runs, f"run {item.run} was accepted twice"
                self.runs[item.run] = _Ledger(item, self.fence)
            case fact.AttemptsEnded():
                for row in range(len(item.index)):
                    self._ended(item, row)
            case fact.TasksSettled():
                for index in range(item.first, item.first + item.count):
                    assert (item.run, index) not in self.busy, f"{item.run}/{index} is settled while it runs"
                    self.runs[item.run].settle(index, item.state, 0)
            case fact.CancelAsked():
                ledger = self.runs[item.run]
                for index in range(item.first, item.first + item.count):
                    ledger.asked[index] = ledger.state[index] not in FINAL_NAMES
            case fact.TasksReopened():
                self._reopened(item)
            case fact.RunEnded():
                states = set(self.runs[item.run].state)
                assert states <= FINAL_NAMES, f"run {item.run} ended with {states}"
                bad = bool(states & {"FAILED", "DEAD"})
                assert (item.state == "FAILED") == bad, f"run {item.run} is {item.state} with {states}"
            case _:
                pass

    def _ended(self, item: fact.AttemptsEnded, row: int) -> None:
        index, fence, to, reason = item.index[row], item.fence[row], item.state[row], item.reason[row]
        expected = (item.run, index, item.generation[row], item.attempt[row])
        assert self.open.pop(fence, None) == expected, f"{expected} with fence {fence} was not open"
        self.busy.discard((item.run, index))
        ledger = self.runs[item.run]
        assert fence > ledger.floor[index], f"{item.run}/{index}: fence {fence} is not above its floor"
        ledger.floor[index] = fence
        if reason == "worker_lost":
            ledger.crashes[index] += 1
        elif to in ("PENDING", "FAILED") and reason not in UNCOUNTED:
            ledger.failures[index] += 1
        if to != "PENDING":
            ledger.settle(index, to, fence)

    def _reopened(self, item: fact.TasksReopened) -> None:
        ledger = self.runs[item.run]
        for first, count in item.stretches:
            for index in range(first, first + count):
                was = ledger.state[index]
                assert was in FINAL_NAMES and was != "COMPLETED", f"{item.run}/{index} is {was} and opened again"
                spec = ledger.spec_of[index]
                ledger.state[index] = "PENDING"
                ledger.open[spec] += 1
                ledger.reopened[spec] = True
                ledger.generation[index] += 1
                ledger.failures[index] = ledger.crashes[index] = 0
                ledger.asked[index] = False

    def _assigned(self, command: Assign) -> None:
        ledger = self.runs[command.run]
        for member in range(command.count):
            index, fence = command.first + member, command.fence + member
            name = f"{command.run}/{index}"
            assert fence > self.fence, f"{name}: fence {fence} after {self.fence}"
            self.fence = fence
            assert ledger.state[index] not in FINAL_NAMES, f"{name} is {ledger.state[index]} and assigned"
            assert not ledger.asked[index], f"{name} is assigned after its cancel"
            assert (command.run, index) not in self.busy, f"{name} is assigned twice"
            assert command.generation == ledger.generation[index], f"{name}: generation {command.generation}"
            assert command.attempt == ledger.attempt[index] + 1, f"{name}: attempt {command.attempt}"
            ledger.attempt[index] = command.attempt
            for parent in ledger.parents[ledger.spec_of[index]]:
                assert not ledger.open[parent] or ledger.reopened[parent], f"{name} starts before its parent {parent}"
                assert ledger.best_fence[parent] < fence, f"{name}: fence {fence} is not above its parent's"
            self.busy.add((command.run, index))
            self.open[fence] = (command.run, index, command.generation, command.attempt)

    def agree(self, state: State) -> None:
        """The facts seen so far, replayed, are what the core has in memory."""
        for run_id, ledger in self.runs.items():
            run = state.runs[run_id]
            for index, told in enumerate(ledger.state):
                value = TaskState(run.state[index])
                name = f"{run_id}/{run.label(index)}"
                assert (PUBLIC[value] if value in FINAL else "PENDING") == told, f"{name}: {value.name}, facts {told}"
                assert run.generation.get(index, 0) == ledger.generation[index], f"{name}: generation"
                if value is not S.COMPLETED:
                    assert run.failures.get(index, 0) == ledger.failures[index], f"{name}: failures"
                    assert run.crashes.get(index, 0) == ledger.crashes[index], f"{name}: crashes"
        held = {lot.fence + m for run in state.runs.values() for lot in run.lots.values() for m in _open(lot.marks)}
        assert held == self.open.keys(), f"open attempts: {sorted(held ^ self.open.keys())} are known to one side only"


def _open(marks: bytearray) -> list[int]:
    return [member for member, mark in enumerate(marks) if mark != DONE]
