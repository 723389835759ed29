"""What must hold, whatever happened. Tests ask at each step; production never does.

`check` looks at the state after an event, `Witness` at everything that came out over time, restarts included: it knows
the facts and commands alone, so what it says does not rest on the books it judges. `check_replay` asks whether a
restart now would find a run as it is. `check_rest` is for a core with nothing to do. Cost is linear in everything the
state holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from titan_fast.ids import FENCE_SEQUENCE_BITS
from titan_fast.scheduler import facts as fact
from titan_fast.scheduler.commands import Assign, Command, Verdict
from titan_fast.scheduler.lifecycle import FINAL, IN_FLIGHT, N_STATES, PUBLIC, TaskState
from titan_fast.scheduler.recovery import UNCOUNTED, rebuild
from titan_fast.scheduler.state import DONE, RECALLING, STARTED, Run, State, Worker

S = TaskState
FINAL_NAMES = frozenset(PUBLIC[value] for value in FINAL)


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
        held = running = long = 0
        mine: dict[int, int] = {}
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
            long += lot.open if lot.is_long else 0
            mine[lot.priority] = mine.get(lot.priority, 0) + lot.open
            priorities[lot.priority] = priorities.get(lot.priority, 0) + lot.open
        assert held == worker.held, f"{worker.name} holds {held}, says {worker.held}"
        assert long == worker.long, f"{worker.name} holds {long} long ones, says {worker.long}"
        assert mine == worker.priorities, f"{worker.name} holds {mine} by priority, says {worker.priorities}"
        assert running == worker.running, f"{worker.name} runs {running}, says {worker.running}"
        # What ended but was not acknowledged counts as running after an attach, so slots are no bound for it.
        assert held <= worker.slots + state.tuning.max_prefetch, f"{worker.name} holds {held}, far beyond its slots"
        assert (held > worker.slots) == (worker.id in state.overfull), f"{worker.name} holds {held}: overfull is wrong"
        if worker.state in ("LOST", "LEFT"):
            assert not held, f"{worker.name} is {worker.state} and holds {held}"
        _check_alone(state, worker)
    assert priorities == state.in_flight, f"in flight by priority: {priorities}, says {state.in_flight}"
    assert recalling == state.recalling, f"{recalling} recalls open, says {state.recalling}"
    in_flight = sum(totals[value] for value in IN_FLIGHT)
    assert len(fences) == in_flight, f"{len(fences)} open attempts, {in_flight} tasks in flight"
    for worker_id, items in state.undecided.items():
        for fence, item in items.items():
            assert fence not in fences, f"fence {fence} is undecided and in the books"
            undecided_run = state.runs.get(item.run)
            if undecided_run is not None:
                asked = state.questions.get((item.run, undecided_run.spec_of(item.index)), [])
                assert (worker_id, fence) in asked, f"nobody asks about fence {fence} of {worker_id} again"


def _check_alone(state: State, worker: Worker) -> None:
    """Nothing is put beside a task that must be alone; what was found there after a restart may be."""
    if worker.alone is None:
        return
    run = state.runs.get(worker.alone[0])
    if run is None or run.state[worker.alone[1]] not in IN_FLIGHT:
        return
    for lot in worker.lots:
        for member in _open(lot.marks):
            is_itself = (lot.run, lot.first + member) == worker.alone
            is_given_now = lot.fence >> FENCE_SEQUENCE_BITS == state.epoch
            assert is_itself or not is_given_now, f"{worker.name} should run one task alone, holds {worker.held}"


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
            assert unmet or run.held, f"{run.id}/{run.names[spec]} is BLOCKED by nobody"
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
    assert state.awaited is None, f"the hold is not over, {state.awaited} are awaited"
    assert not state.undecided, f"undecided: {state.undecided}"


def check_replay(state: State, run: Run, record: fact.RunRecord) -> None:
    """The facts of a run, replayed, give what is in memory, as far as facts tell it.

    Raises:
        AssertionError: with what a restart would get wrong.
    """
    again = rebuild(state, record)
    where = f"run {run.id} replayed"
    for index, value in enumerate(run.state):
        name = f"{where}, {run.label(index)} ({TaskState(value).name})"
        told = TaskState(again.state[index])
        assert told == (value if value in FINAL else S.BLOCKED), f"{name}: {told.name}"
        assert again.generation.get(index, 0) == run.generation.get(index, 0), f"{name}: generation"
        assert again.attempts.get(index, 1) == run.attempts.get(index, 1), f"{name}: attempts"
        if value == S.COMPLETED:
            continue
        assert again.floor_of(index) == run.floor_of(index), f"{name}: floor {again.floor_of(index)}"
        assert again.failures.get(index, 0) == run.failures.get(index, 0), f"{name}: failures"
        assert again.crashes.get(index, 0) == run.crashes.get(index, 0), f"{name}: crashes"
        assert again.reason_of(index) == run.reason_of(index), f"{name}: '{again.reason_of(index)}'"
        asked = value == S.CANCELLING or (value == S.BLOCKED and index in run.cancel_asked)
        assert (index in again.cancel_asked) == asked, f"{name}: cancel"
    for spec, spec_name in enumerate(run.names):
        name = f"{where}, {spec_name}"
        assert again.open[spec] == run.open[spec], f"{name}: {again.open[spec]} open, {run.open[spec]} are"
        assert again.outcome[spec] == run.outcome[spec], f"{name}: outcome {again.outcome[spec]}"
        assert again.best[spec] == run.best[spec], f"{name}: accepted fence {again.best[spec]}"
        if run.state.find(S.BLOCKED, run.first[spec], run.first[spec] + run.count[spec]) >= 0:
            assert again.unmet[spec] == run.unmet[spec], f"{name}: waits for {again.unmet[spec]} parents"
    assert again.cancelled == run.cancelled, f"{where}: cancelled is {again.cancelled}"
    assert again.dropped == run.dropped, f"{where}: dropped"
    assert not run.is_final or again.status == run.status, f"{where}: {again.status}"
    assert again.finished_at == run.finished_at, f"{where}: finished at {again.finished_at}"


class _Ledger:
    """One run as its facts and assignments tell it."""

    def __init__(self, accepted: fact.RunAccepted) -> None:
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
        self.due = [0.0] * size
        """Wall clock: no attempt before."""
        self.floor = [accepted.floor] * size
        self.asked = [False] * size
        """Somebody asked to cancel it in this generation."""

    def settle(self, index: int, to: str, fence: int) -> None:
        assert self.state[index] not in FINAL_NAMES, f"task {index} was {self.state[index]} and becomes {to}"
        self.state[index] = to
        if to in FINAL_NAMES:
            spec = self.spec_of[index]
            self.open[spec] -= 1
            self.best_fence[spec] = max(self.best_fence[spec], fence)


class _Attempt(msgspec.Struct, frozen=True):
    run: int
    index: int
    generation: int
    attempt: int


class Witness:
    """Sees every fact and command in order and objects to what must never happen over time.

    One accepted outcome for each task and generation, and final states that stay; fences that only grow, a child's
    above those of its parents; at most one open attempt of a task, and none kept that was superseded; no attempt after
    a cancel that was asked or before a backoff is over; no child before its parents; a crash only where an agent ended;
    and the facts, replayed, give what the core has in memory. A restart (`forget`) takes back what was not committed;
    that fences were given it does not.
    """

    def __init__(self) -> None:
        self.fence = 0
        self.given: dict[int, _Attempt] = {}
        """Every fence ever given."""
        self._begin()

    def _begin(self) -> None:
        self.runs: dict[int, _Ledger] = {}
        self.open: dict[int, _Attempt] = {}
        self.possible: dict[int, _Attempt] = {}
        """Attempts that the core may have in its books, and need not: said to run before a restart, or found at a
        worker and ended there because of a cancel."""
        self.busy: set[tuple[int, int]] = set()
        self.nonces: dict[str, str] = {}
        """Worker -> the incarnation that is registered."""
        self.names: dict[str, str] = {}
        self.fallen: set[str] = set()
        """Names of workers whose agent ended, or was given up, in this turn."""

    def forget(self, facts: Iterable[fact.Fact]) -> None:
        """A restart: these facts were committed, and nothing that happened after them."""
        self._begin()
        for item in facts:
            match item:
                case fact.AttemptsEnded():
                    for row, fence in enumerate(item.fence):
                        self.open[fence] = _Attempt(item.run, item.index[row], item.generation[row], item.attempt[row])
                    self.fallen.update(item.worker)
                case fact.AttemptsRunning():
                    rows = zip(item.index, item.generation, item.attempt, strict=True)
                    self.possible.update(zip(item.fence, (_Attempt(item.run, *row) for row in rows), strict=True))
            self._fact(item)
        self.fallen.clear()

    def see(self, facts: Iterable[fact.Fact], commands: Iterable[Command], wall: float) -> None:
        """One turn. Assignments are decided after everything that happened in it."""
        self.fallen.clear()
        adopted = self._adopted(commands)
        for item in facts:
            if isinstance(item, fact.RunAccepted | fact.TasksReopened):
                assert item.floor >= self.fence, f"run {item.run}: floor {item.floor} after fence {self.fence}"
            self._fact(item)
        for fence in adopted:
            if fence in self.open:
                self._check_adopted(fence)
        for command in commands:
            if isinstance(command, Assign):
                self._assigned(command, wall)

    def _adopted(self, commands: Iterable[Command]) -> list[int]:
        """Fences that the core keeps though it did not give them, or does not remember that it did."""
        adopted = []
        for command in commands:
            if isinstance(command, Verdict):
                for fence in command.keep:
                    assert fence in self.given, f"fence {fence} of {command.worker} is kept, and was never given"
                    if fence not in self.open:
                        self.open[fence] = self.given[fence]
                        self.possible.pop(fence, None)
                        adopted.append(fence)
                self.possible.update((fence, self.given[fence]) for fence in command.kill if fence in self.given)
        return adopted

    def _check_adopted(self, fence: int) -> None:
        found = self.open[fence]
        name = f"{found.run}/{found.index}, kept with fence {fence}"
        ledger = self.runs.get(found.run)
        assert ledger is not None, f"{name}: no such run"
        assert ledger.state[found.index] not in FINAL_NAMES, f"{name}: is {ledger.state[found.index]}"
        assert found.generation == ledger.generation[found.index], f"{name}: is of generation {found.generation}"
        assert fence > ledger.floor[found.index], f"{name}: floor is {ledger.floor[found.index]}"
        assert (found.run, found.index) not in self.busy, f"{name}: is open twice"
        for parent in ledger.parents[ledger.spec_of[found.index]]:
            if not ledger.reopened[parent]:
                assert not ledger.open[parent], f"{name}: parent {parent} has not ended"
                assert ledger.best_fence[parent] < fence, f"{name}: a parent's is {ledger.best_fence[parent]}"
        self.busy.add((found.run, found.index))

    def _fact(self, item: fact.Fact) -> None:
        match item:
            case fact.RunAccepted():
                assert item.run not in self.runs, f"run {item.run} was accepted twice"
                self.runs[item.run] = _Ledger(item)
            case fact.AttemptsEnded():
                for row in range(len(item.index)):
                    self._ended(item, row)
            case fact.TasksSettled():
                for index in range(item.first, item.first + item.count):
                    assert (item.run, index) not in self.busy, f"{item.run}/{index} is settled while it runs"
                    self.runs[item.run].settle(index, item.state, item.floor)
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
            case fact.WorkerRegistered():
                assert self.nonces.get(item.worker) != item.nonce, f"{item.name} {item.nonce} is registered twice"
                self.nonces[item.worker], self.names[item.worker] = item.nonce, item.name
                self.fallen.add(item.name)
            case fact.WorkerGone():
                self.fallen.add(self.names.pop(item.worker, item.worker))
                self.nonces.pop(item.worker, None)
            case _:
                pass

    def _ended(self, item: fact.AttemptsEnded, row: int) -> None:
        index, fence, to, reason = item.index[row], item.fence[row], item.state[row], item.reason[row]
        possible = self.possible.pop(fence, None)
        known = self.open.pop(fence, possible)
        began = bool(item.attempt[row])
        number = item.attempt[row] if began or known is None else known.attempt
        expected = _Attempt(item.run, index, item.generation[row], number)
        assert known == expected, f"{expected} with fence {fence} was not open"
        assert began or to in ("PENDING", "CANCELLED"), f"{item.run}/{index} is {to} by what never started"
        self.busy.discard((item.run, index))
        ledger = self.runs[item.run]
        assert fence > ledger.floor[index], f"{item.run}/{index}: fence {fence} is not above its floor"
        ledger.floor[index] = fence
        ledger.due[index] = item.due.get(row, (0.0, 0.0))[0]
        if began:
            ledger.attempt[index] = number
        if reason == "worker_lost":
            assert item.worker[row] in self.fallen, f"{item.run}/{index} counts a crash, {item.worker[row]} lives"
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
                ledger.floor[index] = max(ledger.floor[index], item.floor)
                ledger.due[index] = 0.0
                ledger.asked[index] = False

    def _assigned(self, command: Assign, wall: float) -> None:
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
            for parent in ledger.parents[ledger.spec_of[index]]:
                assert not ledger.open[parent] or ledger.reopened[parent], f"{name} starts before its parent {parent}"
                assert ledger.best_fence[parent] < fence, f"{name}: fence {fence} is not above its parent's"
            assert wall >= ledger.due[index] - 0.001, f"{name} is assigned before {ledger.due[index]}, at {wall}"
            self.busy.add((command.run, index))
            self.open[fence] = self.given[fence] = _Attempt(command.run, index, command.generation, command.attempt)

    def agree(self, state: State) -> None:
        """The facts seen so far, replayed, are what the core has in memory."""
        for run_id, ledger in self.runs.items():
            run = state.runs.get(run_id)
            if run is None:
                assert FINAL_NAMES.issuperset(ledger.state), f"run {run_id} left memory unfinished"
                continue
            for index, told in enumerate(ledger.state):
                value = TaskState(run.state[index])
                name = f"{run_id}/{run.label(index)}"
                assert (PUBLIC[value] if value in FINAL else "PENDING") == told, f"{name}: {value.name}, facts {told}"
                assert run.generation.get(index, 0) == ledger.generation[index], f"{name}: generation"
                if value is not S.COMPLETED:
                    assert run.failures.get(index, 0) == ledger.failures[index], f"{name}: failures"
                    assert run.crashes.get(index, 0) == ledger.crashes[index], f"{name}: crashes"
        held = {lot.fence + m for run in state.runs.values() for lot in run.lots.values() for m in _open(lot.marks)}
        apart = (held ^ self.open.keys()) - self.possible.keys()
        assert not apart, f"open attempts: {sorted(apart)} are known to one side only"


def _open(marks: bytearray) -> list[int]:
    return [member for member, mark in enumerate(marks) if mark != DONE]
