"""The scheduler with a clock one turns by hand and workers made of paper. No sockets, no processes, no sleep.

    harness = SchedulerHarness()
    harness.worker("w1", slots=2)
    run = harness.submit(chain("a", "b"))
    harness.finish("w1")            # everything w1 holds succeeds
    assert harness.state(run, "b") == "RUNNING"
    harness.restart()               # the master is killed; the next one knows what was committed
    harness.attach("w1")

`invariants.check` runs after every event, so any test is also a test of those. What is told to workers and users waits
for the commit of its turn; by default every turn is committed at once (`SchedulerHarness.commits_itself`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from titan_fast.errors import NoSuchTask
from titan_fast.ids import Ending, TaskId
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import invariants
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.facts import (
    NO_KEY,
    AttemptsEnded,
    Fact,
    Key,
    KvChanged,
    RunAccepted,
    RunEnded,
    RunRecord,
    TasksReopened,
    WorkerGone,
    WorkerRegistered,
    head_of,
)
from titan_fast.scheduler.lifecycle import PUBLIC, TaskState
from titan_fast.scheduler.state import Tuning


class ManualClock:
    """Seconds that pass when told to. The wall clock goes along, and may be set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ahead = 0.0
        """By how much the wall clock is ahead of ``now``."""

    @property
    def wall(self) -> float:
        return self.now + self.ahead

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
    is_ours: bool = True
    """False: a master with another history gave it."""


class Ended(msgspec.Struct):
    """An attempt that ended at a paper worker and whose result has not been acknowledged."""

    held: Held
    ending: Ending = Ending.EXIT
    code: int = 0
    duration: float = 0.01
    result: bytes = b""


class PaperWorker:
    def __init__(self, name: str, slots: int, capabilities: tuple[str, ...], nonce: str) -> None:
        self.name = name
        self.slots = slots
        self.capabilities = capabilities
        self.nonce = nonce
        self.connected = True
        self.connection = 0
        self.attaching = 0
        """Ticket of the attach that has no verdict yet."""
        self.inbox: list[Held] = []
        """What was assigned on this connection before its verdict."""
        self.held: dict[int, Held] = {}
        self.asked: list[cmd.Recall | cmd.Kill] = []
        """What the master asked of it and it has not answered yet; `SchedulerHarness.obey` does."""
        self.copies: tuple[int, ...] = ()
        """Runs whose working copies it keeps."""
        self.unsent: list[Ended] = []
        """Ended while it was cut off, or under a wait verdict: told when the master says keep."""
        self.unacknowledged: list[Ended] = []
        """Sent; still in its inventory until the master has committed what they came to."""
        self.undecided: set[int] = set()
        """Fences with a wait verdict: nothing of them is started or told."""

    def to_start(self) -> list[Held]:
        """What a real worker would start now: the oldest that wait, as far as slots are free."""
        running = sum(1 for held in self.held.values() if held.started)
        waiting = [held for held in self.held.values() if not held.started and held.fence not in self.undecided]
        return waiting[: max(0, self.slots - running)]

    def disconnect(self) -> None:
        """What was on its way in either direction is lost; what it holds it holds."""
        self.connected = False
        self.connection += 1
        self.attaching = 0
        self.inbox.clear()
        self.asked.clear()
        self.unsent += self.unacknowledged
        self.unacknowledged = []


class _Turn(msgspec.Struct):
    """What a turn made, until it is committed."""

    facts: list[Fact]
    promises: list[tuple[cmd.Command, int]]
    """Commands that wait for the facts, with the number of the worker's connection they are for."""
    acknowledges: list[tuple[str, int, set[int]]]
    """(worker, connection, fences) of results."""


class SchedulerHarness:
    """Drives a `Scheduler` and checks every invariant after every event."""

    def __init__(self, tuning: Tuning | None = None, *, check: bool = True, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.tuning = tuning or Tuning()
        self.seed = seed
        self.scheduler = Scheduler(epoch=1, seed=seed, tuning=tuning)
        self.workers: dict[str, PaperWorker] = {}
        self.facts: list[Fact] = []
        """Those that a crash would lose are at the end."""
        self.commands: list[cmd.Command] = []
        self.check = check
        self.commits_itself = True
        """Every turn is durable when it is over. Otherwise `commit` makes it so."""
        self._turns: deque[_Turn] = deque()
        self._ticket = 0
        self._answers: dict[int, cmd.Answer | cmd.Refuse | cmd.Verdict] = {}
        self._incarnations = 0
        self._awaited: set[str] = set()
        self._held_runs: set[int] = set()
        self._held_until = 0.0
        self.witness = invariants.Witness()
        self.on_lot: Callable[[cmd.Assign], None] | None = None

    # ------------------------------------------------------------ turns

    def do(self, *events: ev.Event, acknowledges: tuple[str, set[int]] | None = None) -> list[cmd.Command]:
        """One turn: these events, one placement, all commands carried out on paper."""
        scheduler = self.scheduler
        scheduler.advance(self.clock.now, self.clock.wall)
        self._verify()
        for event in events:
            scheduler.handle(event)
            self._verify()
        scheduler.place()
        self._verify()
        facts, commands = scheduler.take()
        self.facts.extend(facts)
        self.commands.extend(commands)
        if self.check:
            self.witness.see(facts, commands, self.clock.wall)
            self.witness.agree(scheduler.state)
        turn = _Turn(facts, [], [])
        if acknowledges is not None:
            name, fences = acknowledges
            turn.acknowledges.append((name, self.workers[name].connection, fences))
        for command in commands:
            if isinstance(command, cmd.Assign):
                self._assign(command)
            else:
                worker = self.workers.get(getattr(command, "worker", ""))
                turn.promises.append((command, worker.connection if worker is not None else 0))
        self._turns.append(turn)
        if self.commits_itself:
            self.commit()
        return commands

    def commit(self, turns: int | None = None) -> None:
        """The oldest turns (all of them) become durable, and what waited for them is told."""
        left = len(self._turns) if turns is None else turns
        while left and self._turns:
            left -= 1
            turn = self._turns.popleft()  # what it tells may make another turn, and commit it
            for name, connection, fences in turn.acknowledges:
                worker = self.workers[name]
                if worker.connection == connection:
                    worker.unacknowledged = [e for e in worker.unacknowledged if e.held.fence not in fences]
            for command, connection in turn.promises:
                self._carry_out(command, connection)

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

    def _assign(self, command: cmd.Assign) -> None:
        if self.on_lot is not None:
            self.on_lot(command)
        is_early = command.run in self._held_runs and self._awaited and self.clock.now < self._held_until
        assert not is_early, f"{command} while {self._awaited} may still hold it"
        run = self.scheduler.state.runs[command.run]
        worker = self.workers[command.worker]
        for member in range(command.count):
            index, fence = command.first + member, command.fence + member
            held = Held(command.run, index, command.generation, command.attempt, fence, run.label(index))
            held.assigned_at = self.clock.now
            if worker.attaching:
                worker.inbox.append(held)
            else:
                worker.held[fence] = held

    def _carry_out(self, command: cmd.Command, connection: int) -> None:
        if isinstance(command, cmd.Answer | cmd.Refuse):
            self._answers[command.ticket] = command
            return
        worker = self.workers.get(getattr(command, "worker", ""))
        if worker is None or worker.connection != connection or not worker.connected:
            return
        if isinstance(command, cmd.Recall | cmd.Kill):
            worker.asked.append(command)
        elif isinstance(command, cmd.Verdict):
            self._answers[command.ticket] = command
            self._obey_verdict(worker, command)

    def _obey_verdict(self, worker: PaperWorker, verdict: cmd.Verdict) -> None:
        """The worker ends what is killed and says so, and sends the results that are kept."""
        if verdict.ticket:
            worker.attaching = 0
            worker.undecided = set(verdict.wait)
            worker.held.update((held.fence, held) for held in worker.inbox)
            worker.inbox.clear()
        else:
            worker.undecided -= {*verdict.keep, *verdict.kill}
        kill = set(verdict.kill)
        worker.unsent = [ended for ended in worker.unsent if ended.held.fence not in kill]
        self._give_up(worker.name, [worker.held[fence] for fence in verdict.kill if fence in worker.held])
        send = [ended for ended in worker.unsent if ended.held.fence not in worker.undecided]
        worker.unsent = [ended for ended in worker.unsent if ended.held.fence in worker.undecided]
        for ended in send:
            self.end(worker.name, [ended.held], ended.ending, ended.code, ended.duration, ended.result)

    def ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def answer(self, ticket: int) -> cmd.Answer | cmd.Refuse | cmd.Verdict | None:
        """None: the turn that answers it is not committed yet."""
        return self._answers.pop(ticket, None)

    def _ask(self, make: Callable[[int], ev.Event]) -> int:
        """One request; the number in its answer, 0 while there is none. Raises what it was refused with."""
        ticket = self.ticket()
        self.do(make(ticket))
        answer = self.answer(ticket)
        if isinstance(answer, cmd.Refuse):
            raise answer.error
        return answer.number if isinstance(answer, cmd.Answer) else 0

    # ------------------------------------------------------------ users

    def submit(self, graph: GraphSpec | Iterable[TaskSpec], payloads: tuple[bytes, ...] = (), key: Key = NO_KEY) -> int:
        spec = graph if isinstance(graph, GraphSpec) else GraphSpec("test", tuple(graph))
        return self._ask(lambda ticket: ev.RunSubmitted(ticket, spec, payloads, key))

    def cancel(
        self, run: int, task: str | None = None, member: int | None = None, *, only_waiting: bool = False
    ) -> None:
        self._ask(lambda ticket: ev.CancelRequested(ticket, run, task, member, only_waiting=only_waiting))

    def retry(self, run: int, task: str | None = None, member: int | None = None) -> None:
        self._ask(lambda ticket: ev.RetryRequested(ticket, run, task, member))

    def drop(self, run: int, task: str | None = None, member: int | None = None) -> None:
        self._ask(lambda ticket: ev.DropRequested(ticket, run, task, member))

    def set_key(self, name: str, value: bytes | None, expect: int = -1, ttl: float = 0.0) -> int:
        """The revision."""
        return self._ask(lambda ticket: ev.KvSetRequested(ticket, name, value, expect, ttl))

    def key(self, name: str) -> bytes | None:
        entry = self.scheduler.state.kv.get(name)
        return entry.value if entry is not None else None

    # ------------------------------------------------------------ the master's end

    def restart(self, grace: float | None = None) -> None:
        """The master is killed and the next one goes on from what was committed. Workers keep what they have, cut off;
        `attach` brings them back. ``grace``: seconds that the new master waits for them."""
        del self.facts[len(self.facts) - sum(len(turn.facts) for turn in self._turns) :]
        self._turns.clear()
        self._answers.clear()
        if grace is not None:
            self.tuning = msgspec.structs.replace(self.tuning, recovery_grace=grace)
        for worker in self.workers.values():
            worker.disconnect()
        epoch = self.scheduler.state.epoch + 1
        self.scheduler = Scheduler(epoch, self.seed + epoch, self.tuning)
        self.scheduler.advance(self.clock.now, self.clock.wall)
        known = Remembered(self.facts)
        self._awaited = {registered.worker for registered in known.workers}
        self._held_runs = set(known.unfinished)
        self._held_until = self.clock.now + self.tuning.recovery_grace
        if self.check:
            self.witness.forget(self.facts)
        runs = [known.records[run] for run in known.unfinished]
        self.scheduler.restore(known.next_run, known.revision, known.workers, known.keys, runs)
        self.do()

    def check_replay(self) -> None:
        """A restart now, with everything committed, would find every run as it is."""
        state = self.scheduler.state
        for number, record in Remembered(self.facts).records.items():
            if number in state.runs:
                invariants.check_replay(state, state.runs[number], record)

    def recall(self, run: int) -> None:
        """A finished run that has left memory comes back."""
        self.do(ev.RunRecalled(Remembered(self.facts).records[run]))

    # ------------------------------------------------------------ workers

    def worker(self, name: str, slots: int = 1, capabilities: Sequence[str] = ()) -> PaperWorker:
        """A new worker (or a new incarnation of one) attaches with nothing in hand."""
        before = self.workers.get(name)
        worker = self.workers[name] = PaperWorker(name, slots, tuple(capabilities), self._nonce())
        worker.connection = before.connection + 1 if before is not None else 0
        self.attach(name)
        return worker

    def _nonce(self) -> str:
        self._incarnations += 1
        return f"nonce-{self._incarnations}"

    def reincarnate(self, name: str) -> cmd.Verdict | None:
        """The worker's agent died. The next one adopted what ran and found the results nobody had acknowledged."""
        worker = self.workers[name]
        worker.disconnect()
        worker.nonce = self._nonce()
        worker.held = {fence: held for fence, held in worker.held.items() if held.started}
        return self.attach(name)

    def attach(self, name: str) -> cmd.Verdict | None:
        """The worker connects (again) and tells all it holds; it ends what the verdict kills and says so, then sends
        the results it could not send before. Returns None while the verdict is not committed."""
        worker = self.workers[name]
        worker.disconnect()
        worker.connected = True
        worker.attaching = ticket = self.ticket()
        inventory = [_line(held, int(held.started)) for held in worker.held.values()]
        inventory += [_line(ended.held, ev.ENDED) for ended in worker.unsent]
        self._awaited.discard(name)
        event = ev.WorkerAttached(
            ticket, name, name, worker.nonce, worker.capabilities, worker.slots, True, tuple(inventory), worker.copies
        )
        self.do(event)
        verdict = self.answer(ticket)
        if isinstance(verdict, cmd.Refuse):
            raise verdict.error
        assert verdict is None or isinstance(verdict, cmd.Verdict)
        return verdict

    def cut(self, name: str) -> None:
        """The worker's connection closes; it goes on with what it holds."""
        self.workers[name].disconnect()
        self.do(ev.WorkerSuspected(name))

    def lose(self, name: str) -> None:
        """The master gives the worker up, which may well live."""
        self._awaited.discard(name)
        self.do(ev.WorkerSuspected(name), ev.WorkerLost(name))

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
        """These attempts ended at the worker, all alike, in one frame; it keeps back what it must wait with."""
        worker = self.workers[name]
        for item in held:
            worker.held.pop(item.fence, None)
        ended = [Ended(item, ending, code, duration, result) for item in held]
        worker.unsent += [item for item in ended if item.held.fence in worker.undecided]
        worker.unacknowledged += [item for item in ended if item.held.fence not in worker.undecided]
        held = [item for item in held if item.fence not in worker.undecided]
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
            ),
            acknowledges=(name, {item.fence for item in held}),
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
        worker.disconnect()
        worker.held.clear()
        worker.unsent.clear()
        self.lose(name)

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


def _line(held: Held, stage: int) -> ev.HeldAttempt:
    started = 1 if stage else 0
    return ev.HeldAttempt(held.run, held.index, held.generation, held.fence, stage, held.attempt, started, held.is_ours)


class Remembered:
    """Facts as a store gives them back."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        workers: dict[str, WorkerRegistered] = {}
        keys: dict[str, KvChanged] = {}
        accepted: dict[int, RunAccepted] = {}
        happened: dict[int, list[Any]] = {}
        finished: set[int] = set()
        self.revision = 0
        for fact in facts:
            match fact:
                case WorkerRegistered():
                    workers[fact.worker] = fact
                case WorkerGone():
                    workers.pop(fact.worker, None)
                case KvChanged():
                    self.revision = fact.revision
                    keys[fact.name] = fact
                case RunAccepted():
                    accepted[fact.run], happened[fact.run] = fact, []
                case _ if (number := getattr(fact, "run", 0)) in accepted:
                    happened[number].append(head_of(fact) if isinstance(fact, AttemptsEnded) else fact)
                    if isinstance(fact, RunEnded):
                        finished.add(number)
                    elif isinstance(fact, TasksReopened):
                        finished.discard(number)
        self.workers = list(workers.values())
        self.keys = [key for key in keys.values() if key.value is not None]
        self.records = {number: RunRecord(accepted[number], happened[number]) for number in accepted}
        self.unfinished = [number for number in self.records if number not in finished]
        self.next_run = max(self.records, default=0) + 1


def task(name: str, *needs: str, **fields: object) -> TaskSpec:
    """A task that would run ``true``, for tests."""
    return TaskSpec(name=name, work=Work(argv=("true",)), needs=needs, **fields)  # type: ignore[arg-type]


def array(name: str, count: int, *needs: str, **fields: object) -> TaskSpec:
    return task(name, *needs, count=count, array=True, **fields)


def chain(*names: str) -> list[TaskSpec]:
    return [task(name, *names[max(0, at - 1) : at]) for at, name in enumerate(names)]
