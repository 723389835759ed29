"""The scheduler with a clock one turns by hand and workers made of paper. No sockets, no processes, no sleep.

    harness = SchedulerHarness()
    harness.worker("w1", slots=2)
    run = harness.submit(chain("a", "b"))
    harness.finish("w1")            # everything w1 holds succeeds
    assert harness.state(run, "b") == "RUNNING"

`invariants.check` runs after every event, so any test is also a test of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from titan_fast.errors import NoSuchTask
from titan_fast.ids import Ending, TaskId
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import invariants
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.facts import Fact
from titan_fast.scheduler.lifecycle import PUBLIC, TaskState
from titan_fast.scheduler.state import Tuning


class ManualClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Held(msgspec.Struct):
    """An attempt as a paper worker holds it."""

    run: int
    index: int
    generation: int
    attempt: int
    fence: int
    name: str
    started: bool = False
    assigned_at: float = 0.0


class PaperWorker:
    def __init__(self, name: str, slots: int, capabilities: tuple[str, ...], nonce: str) -> None:
        self.name = name
        self.slots = slots
        self.capabilities = capabilities
        self.nonce = nonce
        self.connected = True
        self.held: dict[int, Held] = {}
        self.asked: list[cmd.Recall | cmd.Kill] = []
        """What the master asked of it and it has not answered yet; `SchedulerHarness.obey` does."""
        self.unsent: list[tuple[Held, Ending, int]] = []
        """Attempts that ended while it was cut off: still in its inventory, told after the next attach."""

    def to_start(self) -> list[Held]:
        """What a real worker would start now: the oldest that wait, as far as slots are free."""
        running = sum(1 for held in self.held.values() if held.started)
        return [held for held in self.held.values() if not held.started][: max(0, self.slots - running)]


class SchedulerHarness:
    """Drives a `Scheduler` and checks every invariant after every event."""

    def __init__(self, tuning: Tuning | None = None, *, check: bool = True, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.scheduler = Scheduler(epoch=1, seed=seed, tuning=tuning)
        self.workers: dict[str, PaperWorker] = {}
        self.facts: list[Fact] = []
        self.commands: list[cmd.Command] = []
        self.check = check
        self._ticket = 0
        self._answers: dict[int, cmd.Answer | cmd.Refuse | cmd.Verdict] = {}
        self._incarnations = 0
        self.witness = invariants.Witness()
        self.on_lot: Callable[[cmd.Assign], None] | None = None

    # ------------------------------------------------------------ turns

    def do(self, *events: ev.Event) -> list[cmd.Command]:
        """One turn: these events, one placement, all commands carried out on paper."""
        scheduler = self.scheduler
        scheduler.advance(self.clock.now, self.clock.now)
        for event in events:
            scheduler.handle(event)
            self._verify()
        scheduler.place()
        self._verify()
        facts, commands = scheduler.take()
        self.facts.extend(facts)
        self.commands.extend(commands)
        if self.check:
            self.witness.see(facts, commands)
            self.witness.agree(scheduler.state)
        for command in commands:
            self._carry_out(command)
        return commands

    def _verify(self) -> None:
        if self.check:
            invariants.check(self.scheduler.state)

    def advance(self, seconds: float) -> list[cmd.Command]:
        """Time passes, stopping at every deadline on the way."""
        end = self.clock.now + seconds
        commands: list[cmd.Command] = []
        while True:
            deadline = self.scheduler.next_deadline()
            if deadline is None or deadline > end:
                break
            self.clock.now = max(self.clock.now, deadline)
            commands += self.do()
        self.clock.now = end
        return commands + self.do()

    def _carry_out(self, command: cmd.Command) -> None:
        if isinstance(command, cmd.Answer | cmd.Refuse | cmd.Verdict):
            self._answers[command.ticket] = command
        elif isinstance(command, cmd.Assign):
            if self.on_lot is not None:
                self.on_lot(command)
            run = self.scheduler.state.runs[command.run]
            worker = self.workers[command.worker]
            for member in range(command.count):
                index, fence = command.first + member, command.fence + member
                worker.held[fence] = Held(
                    command.run,
                    index,
                    command.generation,
                    command.attempt,
                    fence,
                    run.label(index),
                    assigned_at=self.clock.now,
                )
        elif isinstance(command, cmd.Recall | cmd.Kill) and self.workers[command.worker].connected:
            self.workers[command.worker].asked.append(command)

    def ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def answer(self, ticket: int) -> cmd.Answer | cmd.Refuse | cmd.Verdict:
        return self._answers.pop(ticket)

    def _ask(self, make: Callable[[int], ev.Event]) -> int:
        """One request; its answer's run. Raises what it was refused with."""
        ticket = self.ticket()
        self.do(make(ticket))
        answer = self.answer(ticket)
        if isinstance(answer, cmd.Refuse):
            raise answer.error
        return answer.number if isinstance(answer, cmd.Answer) else 0

    # ------------------------------------------------------------ users

    def submit(self, graph: GraphSpec | Iterable[TaskSpec], payloads: tuple[bytes, ...] = ()) -> int:
        spec = graph if isinstance(graph, GraphSpec) else GraphSpec("test", tuple(graph))
        return self._ask(lambda ticket: ev.RunSubmitted(ticket, spec, payloads))

    def cancel(self, run: int, task: str | None = None, member: int | None = None) -> None:
        self._ask(lambda ticket: ev.CancelRequested(ticket, run, task, member))

    def retry(self, run: int, task: str | None = None, member: int | None = None) -> None:
        self._ask(lambda ticket: ev.RetryRequested(ticket, run, task, member))

    # ------------------------------------------------------------ workers

    def worker(self, name: str, slots: int = 1, capabilities: Sequence[str] = ()) -> PaperWorker:
        """A new worker (or a new incarnation of one) attaches with nothing in hand."""
        self._incarnations += 1
        worker = PaperWorker(name, slots, tuple(capabilities), f"nonce-{self._incarnations}")
        self.workers[name] = worker
        self.attach(name)
        return worker

    def attach(self, name: str) -> cmd.Verdict:
        """The worker connects (again) and tells all it holds; it ends what the verdict kills and says so, then sends
        the results it could not send before."""
        worker = self.workers[name]
        worker.connected = True
        worker.asked.clear()
        ticket = self.ticket()
        inventory = [
            ev.HeldAttempt(held.run, held.index, held.generation, held.fence, int(held.started), held.attempt)
            for held in worker.held.values()
        ]
        inventory += [
            ev.HeldAttempt(held.run, held.index, held.generation, held.fence, ev.ENDED, held.attempt)
            for held, _, _ in worker.unsent
        ]
        event = ev.WorkerAttached(
            ticket, name, name, worker.nonce, worker.capabilities, worker.slots, True, tuple(inventory)
        )
        self.do(event)
        verdict = self.answer(ticket)
        if isinstance(verdict, cmd.Refuse):
            raise verdict.error
        assert isinstance(verdict, cmd.Verdict)
        self._give_up(name, [worker.held[fence] for fence in verdict.kill if fence in worker.held])
        unsent, worker.unsent = worker.unsent, []
        for held, ending, code in unsent:
            self.end(name, [held], ending, code)
        return verdict

    def cut(self, name: str) -> None:
        """The worker's connection closes; it goes on with what it holds."""
        worker = self.workers[name]
        worker.connected = False
        worker.asked.clear()
        self.do(ev.WorkerSuspected(name))

    def obey(self, name: str) -> None:
        """The worker does what it was asked: gives back what it has not started, ends what it should end."""
        worker = self.workers[name]
        asked, worker.asked = worker.asked, []
        for command in asked:
            if isinstance(command, cmd.Kill):
                self._give_up(name, [held for held in worker.held.values() if held.fence == command.fence])
                continue
            fences = range(command.fence, command.fence + command.count)
            back = [held for held in worker.held.values() if held.fence in fences and not held.started]
            if back:
                self.end(name, back, Ending.RECALLED)

    def _give_up(self, name: str, doomed: Sequence[Held]) -> None:
        for ending, group in (
            (Ending.KILLED, [held for held in doomed if held.started]),
            (Ending.DROPPED, [held for held in doomed if not held.started]),
        ):
            if group:
                self.end(name, group, ending)

    def start(self, name: str) -> list[Held]:
        """The worker starts what fits its slots and says so."""
        started = self.workers[name].to_start()
        for held in started:
            held.started = True
        if started:
            self.do(
                ev.AttemptsStarted(
                    name,
                    [held.run for held in started],
                    [held.index for held in started],
                    [held.generation for held in started],
                    [held.fence for held in started],
                    [1] * len(started),
                    [int(self.clock.now * 1e6)] * len(started),
                )
            )
        return started

    def end(
        self,
        name: str,
        held: Sequence[Held],
        ending: Ending = Ending.EXIT,
        code: int = 0,
        duration: float = 0.01,
        result: bytes = b"",
    ) -> list[cmd.Command]:
        """These attempts ended at the worker, all in the same way, in one frame."""
        for item in held:
            self.workers[name].held.pop(item.fence, None)
        return self.do(
            ev.AttemptsFinished(
                name,
                [item.run for item in held],
                [item.index for item in held],
                [item.generation for item in held],
                [int(ending)] * len(held),
                [item.fence for item in held],
                [code] * len(held),
                [int(self.clock.now * 1e6)] * len(held),
                [int(duration * 1e6)] * len(held),
                [result] * len(held),
            )
        )

    def finish(self, name: str, only: str | None = None, **how: object) -> list[Held]:
        """Start and end everything the worker holds now (or the tasks with one name); returns what ended."""
        self.start(name)
        held = [item for item in self.workers[name].held.values() if only is None or item.name == only]
        self.end(name, held, **how)  # type: ignore[arg-type]
        return held

    def vanish(self, name: str) -> None:
        """The worker is gone and everything with it; the master has noticed."""
        worker = self.workers[name]
        worker.connected = False
        worker.held.clear()
        worker.asked.clear()
        worker.unsent.clear()
        self.do(ev.WorkerSuspected(name), ev.WorkerLost(name))

    def run_to_end(self, limit: int = 100_000) -> None:
        """Every connected worker goes on succeeding until nothing is held or due."""
        for _ in range(limit):
            busy = [name for name, worker in self.workers.items() if worker.held and worker.connected]
            for name in busy:
                self.obey(name)
                self.finish(name)
            if busy:
                continue
            deadline = self.scheduler.next_deadline()
            if deadline is None or not any(not run.is_final for run in self.scheduler.state.runs.values()):
                return
            self.clock.now = max(self.clock.now, deadline)
            self.do()
        raise AssertionError("it never came to rest")

    # ------------------------------------------------------------ looking

    def run_state(self, run: int) -> str:
        return self.scheduler.state.runs[run].status

    def state(self, run: int, name: str) -> str:
        """Public state of a task by its label (``a`` or ``a[3]``)."""
        return PUBLIC[TaskState(self._value(run, name))]

    def inner_state(self, run: int, name: str) -> TaskState:
        return TaskState(self._value(run, name))

    def _value(self, run_id: int, label: str) -> int:
        return self.scheduler.state.runs[run_id].state[self.index(run_id, label)]

    def index(self, run_id: int, label: str) -> int:
        """The index of a task within its run, by its label."""
        run = self.scheduler.state.runs[run_id]
        name, _, member = label.rstrip("]").partition("[")
        spec = run.find(name)
        if spec is None:
            raise NoSuchTask(TaskId(run_id, name))
        return run.first[spec] + (int(member) if member else 0)

    def states(self, run_id: int) -> dict[str, str]:
        run = self.scheduler.state.runs[run_id]
        return {run.label(index): PUBLIC[TaskState(value)] for index, value in enumerate(run.state)}

    def held_names(self, name: str) -> list[str]:
        return [held.name for held in self.workers[name].held.values()]


def task(name: str, *needs: str, **fields: object) -> TaskSpec:
    """A task that would run ``true``, for tests."""
    return TaskSpec(name=name, work=Work(argv=("true",)), needs=needs, **fields)  # type: ignore[arg-type]


def array(name: str, count: int, *needs: str, **fields: object) -> TaskSpec:
    return task(name, *needs, count=count, array=True, **fields)


def chain(*names: str) -> list[TaskSpec]:
    return [task(name, *names[max(0, at - 1) : at]) for at, name in enumerate(names)]
