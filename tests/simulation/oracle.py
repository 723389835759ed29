"""What must always hold, judged from outside: by what processes did, what clients were told and what is on the disk.

The oracle believes no master and no worker. Processes and commits are written down where nobody who is tested can
reach (`Ledger`, `on_commit`); clients write down what they were told. Everything is checked as it happens, what can
only be seen in the end by `at_rest`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from graphs import GRACES, payload_of
from keys import Keys, Wish

from titan_fast.ids import Ending, format_fence
from titan_fast.master.store.base import Opened
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.scheduler import facts as fact
from titan_fast.testing.simulation.machines import Process
from titan_fast.testing.simulation.world import SimulationFailed, World

FINAL = frozenset({"COMPLETED", "FAILED", "SKIPPED", "CANCELLED", "DEAD"})
NOT_ITS_OWN = frozenset({"recalled", "killed", "absent", "replaced", "worker_lost"})
"""Reasons for which an attempt ended without any fault of its task."""


CANCEL_TIME = 60.0
"""Seconds after which whatever was cancelled is being ended."""
RECENT = 150.0
"""Seconds after which some trouble with a worker has had all its consequences; a master that suspects itself takes its
time."""
AFTERMATH = 5.0
"""Seconds after some trouble with a worker in which it may still do what others were given meanwhile."""


class Broken(SimulationFailed):
    """A promise was broken."""


class Task:
    """One task as the disk, the processes and the clients know it."""

    __slots__ = (
        "attempts",
        "cancel_kept",
        "cancelled_at",
        "crashes",
        "ended",
        "failures",
        "fence",
        "floor",
        "generation",
        "good",
        "kept_not_before",
        "not_before",
        "not_before_above",
        "reopening",
        "result",
        "returned",
        "settled_above",
        "state",
        "told",
    )

    def __init__(self, floor: int) -> None:
        self.state = "PENDING"
        self.generation = 0
        self.floor = floor
        self.fence = 0
        """Of its accepted outcome."""
        self.failures = 0
        self.crashes = 0
        self.ended = False
        """A process of it has ended by itself, well or badly."""
        self.good = False
        """A process of it has succeeded."""
        self.cancel_kept = False
        """That somebody asked for its end is on the disk."""
        self.cancelled_at = 0
        """The newest fence there was when a client was told that it is cancelled; 0: it is not."""
        self.not_before = 0.0
        """World time at which its backoff is over."""
        self.not_before_above = 0
        """The fence of what failed: another attempt that was given out before, to who is away, knows of no backoff."""
        self.kept_not_before = 0.0
        """The same, as far as the disk knows: a crash takes the rest back."""
        self.reopening = 0
        """The newest fence there was when a retry was made of which the disk does not know; 0: there is none."""
        self.settled_above = 0
        """The newest fence there was when it ended without an outcome of its own: a child has to be above it."""
        self.result = b""
        """Of its accepted outcome."""
        self.returned: set[bytes] = set()
        """What attempts of it gave that have succeeded."""
        self.attempts: list[Process] = []
        self.told: dict[int, str] = {}
        """Generation -> the final state clients were told."""


class Book:
    """One run."""

    def __init__(self, accepted: fact.RunAccepted) -> None:
        self.graph: GraphSpec = accepted.graph
        self.floor = accepted.floor
        self.key = accepted.key
        self.names = [spec.name for spec in self.graph.tasks]
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.first: list[int] = []
        self.tasks: list[Task] = []
        self.spec_of: list[int] = []
        for row, spec in enumerate(self.graph.tasks):
            self.first.append(len(self.tasks))
            self.tasks += [Task(accepted.floor) for _ in range(spec.count)]
            self.spec_of += [row] * spec.count
        self.parents = [[self.rows[name] for name in dict.fromkeys(spec.needs)] for spec in self.graph.tasks]
        self.open = [spec.count for spec in self.graph.tasks]
        self.unresolved = [spec.count for spec in self.graph.tasks]
        """Members of which no process has ended and whose end is not on the disk either."""
        self.without_success = [spec.count for spec in self.graph.tasks]
        """Members of which no process has succeeded and that are not SKIPPED on the disk."""
        self.is_reopened = False
        self.state = ""
        """Of the run, once it has ended."""

    def above(self, spec: int) -> set[int]:
        """All ancestors."""
        found: set[int] = set()
        todo = list(self.parents[spec])
        while todo:
            parent = todo.pop()
            if parent not in found:
                found.add(parent)
                todo += self.parents[parent]
        return found

    def index(self, label: str) -> int:
        name, _, member = label.partition("[")
        return self.first[self.rows[name]] + int(member[:-1] or 0 if member else 0)

    def label(self, index: int) -> str:
        spec = self.spec_of[index]
        name = self.names[spec]
        return f"{name}[{index - self.first[spec]}]" if self.graph.tasks[spec].array else name


class Oracle:
    """Ground truth, and what it is compared with."""

    def __init__(self, world: World, crash_limit: int) -> None:
        self.world = world
        self.books: dict[int, Book] = {}
        self.processes: dict[int, Process] = {}
        """All there ever were, by fence."""
        self.running: dict[str, int] = defaultdict(int)
        """Host -> processes now."""
        self.slots: dict[str, int] = {}
        self.newest_fence = 0
        """Highest fence that was ever seen in a process or on the disk."""
        self.asked: dict[tuple[str, int], GraphSpec] = {}
        self.acknowledged: dict[tuple[str, int], int] = {}
        self.by_key: dict[tuple[str, int], int] = {}
        self.epochs: dict[str, int] = defaultdict(int)
        self.registered: set[tuple[str, str]] = set()
        """(worker, nonce) of agents whose registration is durable."""
        self.trouble: dict[str, float] = {}
        """Host -> when something last went wrong with it that may cost it its work."""
        self.keys = Keys(world, self.must, lambda: self.has_jumped())
        self.nonces: set[str] = set()
        """Of all epochs of the one state that counts; what was assigned under another one is no part of it."""
        self.strays: set[str] = set()
        """Hosts that listen to another master."""
        self._rests_on: dict[int, set[str]] = {}
        """Fence -> where tasks above it had ended whose ends were not on the disk when it started."""
        self.starts = 0
        self.facts = 0
        self._crash_limit = crash_limit
        self.without_beginning: dict[int, str] = {}
        """Fence of a function whose process ended before it came to it -> what its agent said then."""
        self._early: dict[int, list[Callable[[Book], None]]] = {}
        """What became of runs that are not durable yet: what the master decided, and functions, which do not wait."""
        self._book_of: dict[int, Book] = {}
        """By the fence of a process."""
        self._backoffs: dict[int, float] = {}
        """Fence of an attempt that failed and is not durable yet -> when the backoff after it is over."""
        self._fences_before: dict[fact.Key, int] = {}
        """Of retries: the newest fence there was."""

    def asks(self) -> None:
        """Of no interest to a judge; those who make the weather listen."""

    def runs_ahead(self, host: str, parents: set[str]) -> None:
        """A process starts on a host, and how a task above it ended on those others is not on the disk yet. A good
        moment for the weather."""

    def has_jumped(self) -> bool:
        """Whether a wall clock did; replaced by who makes the weather."""
        return False

    def must(self, holds: object, *words: object) -> None:
        """Raises Broken, and tells the world: whoever called us may catch what he is given."""
        if not holds:
            broken = Broken(" ".join(map(str, words)))
            self.world.fail(broken)
            raise broken

    # ------------------------------------------------------------ processes

    def started(self, process: Process) -> None:
        """The ledger's: a process begins."""
        world = self.world
        world.note("start", process.task, format_fence(process.fence), process.host)
        name = f"{process.task} ({format_fence(process.fence)} at {process.host})"
        self.starts += 1
        self.running[process.host] += 1
        self.must(self.running[process.host] <= self.slots[process.host], name, "has no slot")
        if not self.is_ours(process):
            return
        self.must(process.fence not in self.processes, name, "starts again under one fence")
        self.processes[process.fence] = process
        self.newest_fence = max(self.newest_fence, process.fence)
        agent = (process.host, process.agent)
        self.must(agent in self.registered, name, "starts though its agent's registration is not durable")
        number = int(process.task.partition("/")[0])
        book = self.books.get(number)
        if book is not None and process.fence > book.floor:
            self._started(book, process)
            return
        # It is of a run that may never have been: another one may have its number meanwhile.
        self.must(process.is_function, name, "starts though its submit is not durable")
        self._early.setdefault(number, []).append(lambda book: self._started(book, process))

    def _started(self, book: Book, process: Process) -> None:
        if process.fence <= book.floor:
            return
        name = f"{process.task} ({format_fence(process.fence)} at {process.host})"
        self._book_of[process.fence] = book
        index = book.index(process.task.partition("/")[2])
        task = book.tasks[index]
        self._its_time_has_come(name, book, book.spec_of[index])
        if not self.has_jumped() and process.fence > task.not_before_above:
            self.must(process.started >= task.not_before, name, "starts before its backoff is over")
        self.must(
            not task.cancelled_at or process.fence <= task.cancelled_at, name, "is a new attempt after its cancel"
        )
        self.must(not task.reopening or process.fence <= task.reopening, name, "starts though its retry is not durable")
        for before in task.attempts:
            self._is_no_double(name, book, index, before, process)
        task.attempts.append(process)
        if process.is_function:
            self._is_given_what_was_returned(name, book, index, process)
        if undone := self._undone_above(book, book.spec_of[index]):
            hosts = {before.host for before in undone}
            self.runs_ahead(process.host, hosts)
            self._rests_on[process.fence] = hosts.union(*(self._rests_on.get(before.fence, ()) for before in undone))

    def _is_given_what_was_returned(self, name: str, book: Book, index: int, process: Process) -> None:
        """Its own item, and of each task among its arguments what that gave, or nothing."""
        spec = book.spec_of[index]
        self.must(process.payload == payload_of(index - book.first[spec]), name, "is given", process.payload)
        for parent, given in self._arguments(book, spec, process):
            members = self._members(book, parent)
            self.must(len(given) == len(members), name, "is given", len(given), "results of", book.names[parent])
            for task, result in zip(members, given, strict=True):
                self.must(not result or result in task.returned, name, "is given", result, "by", book.names[parent])

    @staticmethod
    def _arguments(book: Book, spec: int, process: Process) -> Iterable[tuple[int, list[bytes]]]:
        names = book.graph.tasks[spec].work.arguments
        return zip((book.rows[name] for name in names), process.given, strict=True)

    def _undone_above(self, book: Book, spec: int) -> list[Process]:
        """Of tasks right above: those whose ends are not on the disk."""
        return [
            task.attempts[-1]
            for parent in book.parents[spec]
            if book.open[parent]
            for task in self._members(book, parent)
            if task.state not in FINAL and task.attempts
        ]

    def is_ours(self, process: Process) -> bool:
        """It was assigned by a master of the one state that counts."""
        return process.nonce in self.nonces

    def _its_time_has_come(self, name: str, book: Book, spec: int) -> None:
        when = book.graph.tasks[spec].when
        for parent in book.parents[spec]:
            self.must(not book.unresolved[parent], name, "starts before", book.names[parent], "has ended")
            if when == "success":
                self.must(not book.without_success[parent], name, "starts though", book.names[parent], "failed")

    def _is_no_double(self, name: str, book: Book, index: int, before: Process, process: Process) -> None:
        """A second process of a task needs a reason: the first failed, its worker was in trouble, or one of the tasks
        above had to end again, or seemed to: where that had ended was in trouble, and nobody else knew."""
        failed = before.asked is None and (before.ending is not Ending.EXIT or before.code)
        if not before.is_running and (failed or before.asked is Ending.TIMEOUT):
            return
        hosts = {before.host, process.host, *self._rests_on.get(before.fence, ())}
        trouble = max(self.world.now if host in self.strays else self.trouble.get(host, -AFTERMATH) for host in hosts)
        self.must(
            trouble + AFTERMATH >= before.started or self._ended_again_above(book, book.spec_of[index], before.fence),
            name,
            f"runs though {format_fence(before.fence)} at {before.host}",
            "is running" if before.is_running else "was ended" if before.asked else "succeeded",
        )

    def _ended_again_above(self, book: Book, spec: int, fence: int) -> bool:
        """By a later attempt, or by a cancel whose first end a master took with it."""
        return any(
            task.settled_above > fence or any(process.fence > fence for process in task.attempts)
            for ancestor in book.above(spec)
            for task in self._members(book, ancestor)
        )

    def ended(self, process: Process) -> None:
        """The ledger's: a process is over."""
        self.world.note("end", process.task, format_fence(process.fence), process.ending.name.lower(), process.code)
        self.running[process.host] -= 1
        if process.is_power_cut or process.asked is Ending.KILLED or not self.is_ours(process):
            return
        book = self._book_of.get(process.fence)
        if book is not None:
            self._ended(book, process)
        else:
            number = int(process.task.partition("/")[0])
            self._early.setdefault(number, []).append(lambda book: self._ended(book, process))

    def _ended(self, book: Book, process: Process) -> None:
        if process.fence <= book.floor:
            return
        index = book.index(process.task.partition("/")[2])
        is_good = process.ending is Ending.EXIT and not process.code
        if is_good:
            book.tasks[index].returned.add(process.result)
        self._resolve(book, index, good=is_good)

    def never_began(self, fence: int, why: str) -> None:
        """The ledger's: the process that was to run this function ended before it came to it."""
        self.world.note("never began", format_fence(fence), why)
        self.without_beginning[fence] = why

    def _resolve(self, book: Book, index: int, good: bool) -> None:
        task, spec = book.tasks[index], book.spec_of[index]
        if not task.ended:
            task.ended = True
            book.unresolved[spec] -= 1
        if good and not task.good:
            task.good = True
            book.without_success[spec] -= 1

    def asked_to_end(self, process: Process, why: Ending, grace: float) -> None:
        """The ledger's: an agent begins to end a process. What the master asks for has its reason on the disk."""
        self.world.note("ends", process.task, format_fence(process.fence), why.name.lower(), grace)
        if why is not Ending.KILLED or grace not in GRACES:
            return  # its own timeout, the end of its agent, or the verdict on an inventory
        if process.host in self.strays or not self.is_ours(process):
            return
        name = f"{process.task} ({format_fence(process.fence)} at {process.host})"
        book = self._book_of.get(process.fence)
        self.must(book is not None, name, "is ended, and its submit is not durable")
        assert book is not None
        task = book.tasks[book.index(process.task.partition("/")[2])]
        self.must(
            task.cancel_kept or task.floor >= process.fence or task.state in FINAL,
            name,
            "is ended and nothing durable says why",
        )

    def had_trouble(self, host: str, until: float | None = None) -> None:
        """Something happens to a host, up to now or up to a time to come."""
        self.trouble[host] = max(self.trouble.get(host, 0.0), self.world.now if until is None else until)

    # ------------------------------------------------------------ the disk

    def on_facts_made(self, facts: Sequence[fact.Fact]) -> None:
        """These facts are on their way to the disk. Work does not wait for it, so processes are judged by them."""
        for item in facts:
            if isinstance(item, fact.TasksSettled | fact.AttemptsEnded | fact.TasksReopened):
                book = self.books.get(item.run)
                if book is None:
                    made = functools.partial(self._made, item=item, when=self.world.now)
                    self._early.setdefault(item.run, []).append(made)
                else:
                    self._made(book, item, self.world.now)
            elif isinstance(item, fact.KvChanged):
                self.keys.made(item)
            if isinstance(item, fact.TasksReopened):
                self._fences_before[item.key] = self.newest_fence

    def a_master_starts(self) -> None:
        self._early.clear()
        self._backoffs.clear()
        for book in self.books.values():
            for task in book.tasks:
                task.not_before = task.kept_not_before
                task.reopening = 0  # no retry is on its way any more: the next one may be of fewer tasks
        self.keys.a_master_starts()

    def _made(self, book: Book, item: fact.TasksSettled | fact.AttemptsEnded | fact.TasksReopened, when: float) -> None:
        match item:
            case fact.TasksSettled():
                for index in range(item.first, item.first + item.count):
                    book.tasks[index].settled_above = item.floor
                    self._resolve(book, index, good=item.state == "SKIPPED")
            case fact.AttemptsEnded():
                for row, (index, state) in enumerate(zip(item.index, item.state, strict=True)):
                    if state in FINAL:
                        self._resolve(book, index, good=state == "COMPLETED")
                    elif row in item.due:
                        over = when + item.due[row][1] - 0.01
                        book.tasks[index].not_before = self._backoffs[item.fence[row]] = over
                        book.tasks[index].not_before_above = item.fence[row]
            case fact.TasksReopened():
                for first, count in item.stretches:
                    for task in book.tasks[first : first + count]:
                        task.cancelled_at = 0
                        task.not_before = 0.0
                        task.reopening = item.floor
                        task.attempts.clear()  # it runs again, and that is what was asked for

    def on_open(self, opened: Opened) -> None:
        """A master begins an epoch of the one state that counts."""
        self.nonces.add(opened.nonce)

    def on_commit(self, facts: Sequence[fact.Fact]) -> None:
        """These facts are durable now."""
        for item in facts:
            self.facts += 1
            self._fact(item)

    def _fact(self, item: fact.Fact) -> None:
        match item:
            case fact.RunAccepted():
                self.must(item.run not in self.books, "run", item.run, "is accepted twice")
                key = (item.key.client, item.key.counter)
                self.must(key in self.asked, "run", item.run, "was never asked for")
                self.must(key not in self.by_key, "request", key, "made two runs")
                self.by_key[key] = item.run
                book = self.books[item.run] = Book(item)
                for happened in self._early.pop(item.run, ()):
                    happened(book)
            case fact.AttemptsEnded():
                for row in range(len(item.index)):
                    self._attempt_ended(item, row)
            case fact.TasksSettled():
                book = self.books[item.run]
                for index in range(item.first, item.first + item.count):
                    self._settle(item.run, book, index, item.state, 0)
            case fact.CancelAsked():
                for task in self.books[item.run].tasks[item.first : item.first + item.count]:
                    task.cancel_kept = True
            case fact.WorkerRegistered():
                self.registered.add((item.name, item.nonce))
            case fact.TasksReopened():
                self._reopened(item)
            case fact.RunEnded():
                self._run_ended(item)
            case fact.KvChanged():
                self.keys.committed(item)
            case _:
                pass

    def _attempt_ended(self, item: fact.AttemptsEnded, row: int) -> None:
        book = self.books[item.run]
        index, fence, state, reason = item.index[row], item.fence[row], item.state[row], item.reason[row]
        task, spec = book.tasks[index], book.spec_of[index]
        name = f"{item.run}/{book.label(index)} ({format_fence(fence)})"
        self.newest_fence = max(self.newest_fence, fence)
        self.must(fence > task.floor, name, "counts though it is not above the floor", format_fence(task.floor))
        self.must(item.generation[row] == task.generation, name, "counts for generation", item.generation[row])
        task.floor = fence
        task.kept_not_before = self._backoffs.pop(fence, 0.0)
        process = self.processes.get(fence)
        self.must(process is None or self._book_of.get(fence) is book, name, "counts, and is of another run")
        if reason == "worker_lost":
            task.crashes += 1
            host = item.worker[row]
            trouble = self.trouble.get(host, -RECENT) + RECENT
            self.must(trouble >= self.world.now, name, "counts as a crash, and nothing happened to", host)
            self.must(task.crashes <= self._crash_limit, name, "crashed", task.crashes, "times")
            self.must(state in ("PENDING", "DEAD"), name, "is", state, "because its worker was lost")
        elif state in ("PENDING", "FAILED") and reason not in NOT_ITS_OWN:
            task.failures += 1
            budget = book.graph.tasks[spec].retry.max + 1
            self.must(task.failures <= budget, name, "failed", task.failures, "times of", budget)
            self._really_ended(name, fence, process, reason)
        if state == "COMPLETED":
            self._really_ended(name, fence, process, "exit:0")
            assert process is not None
            task.result = item.result[row]
            self.must(task.result == process.result, name, "gave", process.result, "and counts with", task.result)
            if process.is_function:
                self._was_given_what_counts(name, book, spec, process)
        if state != "PENDING":
            for parent in book.parents[spec]:
                if state != "CANCELLED" and not book.is_reopened:
                    self.must(not book.open[parent], name, "is accepted before", book.names[parent])
                    best = max(t.fence for t in self._members(book, parent))
                    self.must(best < fence, name, "is not above its parent's fence", format_fence(best))
            self._settle(item.run, book, index, state, fence)

    def _was_given_what_counts(self, name: str, book: Book, spec: int, process: Process) -> None:
        for parent, given in self._arguments(book, spec, process):
            members = self._members(book, parent)
            if book.is_reopened and (book.open[parent] or max(task.fence for task in members) > process.fence):
                continue  # it was opened again after this began
            for task, result in zip(members, given, strict=True):
                counts = task.result if task.state == "COMPLETED" else b""
                self.must(result == counts, name, "counts and was given", result, "where", counts, "counts")

    def _really_ended(self, name: str, fence: int, process: Process | None, reason: str) -> None:
        if process is None and fence in self.without_beginning:
            why = f"not_started: {self.without_beginning[fence]}"
            self.must(reason == why, name, "was not started:", why, "and counts as", reason)
            return
        self.must(process is not None and not process.is_running, name, "never ended, and counts as", reason)
        assert process is not None
        self.must(not process.is_hit, name, "was ended in the place of another one, and counts as", reason)
        ending = process.said or f"{process.ending.name.lower()}:{process.code}"
        if process.asked is not None:
            ending = process.asked.name.lower()
        self.must(ending == reason, name, "ended with", ending, "and counts as", reason)

    def _settle(self, run: int, book: Book, index: int, state: str, fence: int) -> None:
        task, spec = book.tasks[index], book.spec_of[index]
        self.must(task.state not in FINAL, f"{run}/{book.label(index)} was {task.state} and becomes {state}")
        self.must(
            not task.cancelled_at or state == "CANCELLED", f"{run}/{book.label(index)} becomes {state} after its cancel"
        )
        task.state, task.fence = state, fence
        book.open[spec] -= 1

    def _reopened(self, item: fact.TasksReopened) -> None:
        book = self.books[item.run]
        book.is_reopened = True
        book.state = ""
        floor = max(item.floor, self._fences_before[item.key])
        for first, count in item.stretches:
            for index in range(first, first + count):
                task = book.tasks[index]
                self.must(
                    task.state in FINAL and task.state != "COMPLETED",
                    f"{item.run}/{book.label(index)} is {task.state} and opened again",
                )
                task.state, task.generation, task.floor = "PENDING", task.generation + 1, max(task.floor, floor)
                task.failures = task.crashes = task.cancelled_at = 0
                task.kept_not_before = 0.0
                task.reopening = 0
                task.cancel_kept = False
                book.open[book.spec_of[index]] += 1

    def _run_ended(self, item: fact.RunEnded) -> None:
        book = self.books[item.run]
        states = {task.state for task in book.tasks}
        self.must(states <= FINAL, "run", item.run, "ends with", sorted(states))
        bad = bool(states & {"FAILED", "DEAD"})
        self.must((item.state == "FAILED") == bad, "run", item.run, "is", item.state, "with", sorted(states))
        book.state = item.state

    @staticmethod
    def _members(book: Book, spec: int) -> list[Task]:
        return book.tasks[book.first[spec] : book.first[spec] + book.graph.tasks[spec].count]

    # ------------------------------------------------------------ clients

    def welcomed(self, client: str, welcome: msg.Welcome) -> None:
        self.must(welcome.epoch >= self.epochs[client], client, "sees epoch", welcome.epoch, "after a higher one")
        self.epochs[client] = welcome.epoch

    def key_asked(self, key: msg.Once, wish: Wish) -> None:
        self.keys.asked(key, wish)

    def key_acknowledged(self, key: msg.Once, revision: int) -> None:
        self.keys.acknowledged(key, revision)

    def key_refused(self, key: msg.Once, why: str) -> None:
        self.keys.refused(key, why)

    def key_seen(self, name: str, since: float, revision: int, value: bytes) -> None:
        self.keys.seen(name, since, revision, value)

    def key_not_seen(self, name: str, since: float) -> None:
        self.keys.not_seen(name, since)

    def submit_asked(self, key: msg.Once, graph: GraphSpec) -> None:
        self.asked[key.client, key.counter] = graph

    def submit_acknowledged(self, key: msg.Once, run: int) -> None:
        self.acknowledged[key.client, key.counter] = run
        book = self.books.get(run)
        self.must(book is not None, "run", run, "is acknowledged and not durable")
        assert book is not None
        asked = self.asked[key.client, key.counter]
        self.must(book.graph.name == asked.name, "run", run, "is acknowledged and is", book.graph.name)
        self.must(book.graph == asked, "run", run, "is not what was asked for")

    def cancel_acknowledged(self, run: int, task: str, member: int) -> None:
        book = self.books[run]
        if not task:
            indexes: Iterable[int] = range(len(book.tasks))
        else:
            first = book.first[book.rows[task]]
            count = book.graph.tasks[book.rows[task]].count
            indexes = range(first, first + count) if member < 0 else (first + member,)
        for index in indexes:
            task = book.tasks[index]
            if task.state in FINAL:
                continue
            task.cancelled_at = self.newest_known_fence()
            for process in task.attempts:
                if process.is_running:
                    self.world.after(CANCEL_TIME, self._is_being_ended, process, self.world.now)

    def _is_being_ended(self, process: Process, since: float) -> None:
        is_left_alone = process.is_running and process.asked is None
        self.must(
            not is_left_alone or self.trouble.get(process.host, 0.0) + AFTERMATH > since,
            f"{process.task} ({format_fence(process.fence)} at {process.host}) runs on after its cancel",
        )

    def newest_known_fence(self) -> int:
        """The newest fence there can be now: replaced by the cluster, which can look at the counter itself."""
        return self.newest_fence

    def told(self, run: int, update: msg.Update) -> None:
        book = self.books[run]
        self.must(book.state == update.state, "run", run, "is told to be", update.state, "and is", book.state or "open")
        counts: dict[str, int] = defaultdict(int)
        for task in book.tasks:
            counts[task.state] += 1
        said = {state: n for state, n in update.counts.items() if n}
        self.must(said == dict(counts), "run", run, "is told to have", said, "and has", dict(counts))

    def shown(self, shown: msg.Shown) -> None:
        if not shown.durable:
            return
        book = self.books[shown.run.id]
        for row in shown.tasks:
            if row.state not in FINAL:
                continue
            label = row.id.partition("/")[2]
            task = book.tasks[book.index(label)]
            before = task.told.setdefault(row.generation, row.state)
            self.must(before == row.state, row.id, "was shown as", before, "and now as", row.state)
            if row.generation == task.generation:
                self.must(task.state == row.state, row.id, "is shown as", row.state, "and is", task.state)

    def given(self, run: int, task: str, first: int, given: msg.Given, results: Sequence[bytes]) -> None:
        """A page of results, from this member of an array on."""
        book = self.books[run]
        first += book.first[book.rows[task]]
        missing = {item.place: item for item in given.missing}
        for place, result in enumerate(results):
            known, name = book.tasks[first + place], f"{run}/{book.label(first + place)}"
            item = missing.get(place)
            said = "COMPLETED" if item is None else item.state
            self.must(said == known.state, name, "is told to be", said, "and is", known.state)
            if item is None:
                self.must(result == known.result, name, "gave", known.result, "and that is told as", result)

    # ------------------------------------------------------------ in the end

    def at_rest(self) -> None:
        """Nothing goes wrong any more and everything had time to end."""
        for key, run in self.acknowledged.items():
            self.must(self.by_key.get(key) == run, "run", run, "was acknowledged and is gone")
        for number, book in self.books.items():
            left = [book.label(index) for index, task in enumerate(book.tasks) if task.state not in FINAL]
            self.must(not left, f"run {number} never ends: {', '.join(left[:5])} of {len(left)} are open")
            self.must(book.state, f"run {number} never ends though all its tasks have")
            if not book.is_reopened:
                self._judge(number, book)
        left = [process.task for process in self.processes.values() if process.is_running]
        self.must(not left, "processes are left:", left)

    def _verdict(self, book: Book, spec: int) -> str:
        """What an array is for its children: the worst of its members."""
        states = {"FAILED" if task.state == "DEAD" else task.state for task in self._members(book, spec)}
        return next(state for state in ("FAILED", "CANCELLED", "SKIPPED", "COMPLETED") if state in states)

    def _judge(self, number: int, book: Book) -> None:
        """Every task is what its parents make it."""
        was_cancelled = any(task.state == "CANCELLED" for task in book.tasks)
        for spec, described in enumerate(book.graph.tasks):
            above = {self._verdict(book, parent) for parent in book.parents[spec]}
            mine = {task.state for task in self._members(book, spec)}
            name = f"{number}/{described.name}"
            failed = "FAILED" in above
            if "CANCELLED" in above:
                self.must(mine == {"CANCELLED"}, name, "is", mine, "below a cancelled task")
            elif described.when == "success" and failed:
                self.must(mine <= {"SKIPPED", "CANCELLED"}, name, "is", mine, "below a failed task")
            elif described.when == "always" or (described.when == "failure" and failed) or not above:
                wanted = described.when != "failure" or failed
                if wanted and not was_cancelled:
                    self.must("SKIPPED" not in mine, name, "is skipped though it had to run")
            if described.when == "failure" and not failed and not was_cancelled:
                self.must(mine == {"SKIPPED"}, name, "is", mine, "though nothing failed")
