"""All tables of the core. They hold ids, not pointers back, so there are no cycles and the collector may rest.

A run is columns: one row per spec, one byte per task, and small dictionaries for the few tasks that have something
to say (a failure, a retry, another generation). In-flight work is one `Lot` per stretch.
"""

from __future__ import annotations

import random
import re
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import msgspec

from titan_fast._accel import ReadyQueue, Timers
from titan_fast.ids import make_fence
from titan_fast.model.spec import Affinity, Retry
from titan_fast.scheduler.columns import Texts
from titan_fast.scheduler.commands import Command, RunChanged
from titan_fast.scheduler.events import HeldAttempt
from titan_fast.scheduler.facts import AttemptsEnded, Fact
from titan_fast.scheduler.lifecycle import N_STATES, TaskState

# Possessive, and without a back reference: otherwise ten million equal bytes cost half a second and 800 MB.
_STRETCH = re.compile(b"|".join(re.escape(bytes([state])) + b"++" for state in TaskState), re.DOTALL)
_STATES = tuple(TaskState)

_NO_EDGES_AT, _NO_EDGES = array("I", [0]), array("I")
"""Of every run that has none yet; a run's edges are replaced, never added to."""

# Marks of a lot's members.
WAITING, STARTED, RECALLING, DONE = 0, 1, 2, 3

NO_SLOT_SOON = 1e6
"""Added to the load of a worker behind whose tasks nothing should wait."""

# Bits of a spec's outcome, gathered from its members.
OK, BAD, CANCELLED, UPSTREAM, UNWANTED = 1, 2, 4, 8, 16


class Tuning(msgspec.Struct, frozen=True):
    """The core's settings; the names are those of the ``scheduler`` section of the configuration."""

    crash_limit: int = 5
    prefetch: float = 0.02
    """Seconds of work a worker may hold beyond its slots."""
    max_prefetch: int = 4096
    recall_after: float = 0.02
    """Seconds an assignment may wait at a busy worker before an idle one is given it."""
    keep_copies: float = 3600.0
    """Seconds workers keep the working copy of a finished run, for a retry."""
    keep_finished: int = 1000
    """Finished runs that stay in memory; the others are the store's."""
    recovery_grace: float = 10.0
    """Seconds after a restart for which runs of earlier epochs wait for the workers that were alive."""
    kv_bytes: int = 64 << 20
    """Of all keys and values together."""
    sabotage: frozenset[str] = frozenset()
    """Faults built in on purpose, by name, to see a test go red (`scheduler.sabotage`)."""


class Options(msgspec.Struct, frozen=True):
    """What a spec asks of the scheduler; equal ones are one object."""

    cls: int
    requires: frozenset[str]
    priority: int
    delay: float
    retry: Retry
    when: str
    affinity: Affinity | None


class Due(NamedTuple):
    """A stretch that waits for one timer: a delay, a backoff, or the wait of an affinity."""

    handle: int
    at: float
    members: int


class Run:
    """One execution of a graph.

    Per spec (row ``s``): names[s], first[s], count[s], option[s], unmet[s] (parents not finished), open[s] (members
    not final), outcome[s] (bits), works[s] (the encoded work). Edges are rows of ``parents`` / ``children`` between
    ``*_at[s]`` and ``*_at[s + 1]``. Per task: one byte of ``state``.
    """

    __slots__ = (
        "arrays",
        "attempts",
        "best",
        "cancel_asked",
        "cancelled",
        "children",
        "children_at",
        "costs",
        "count",
        "counts",
        "crashes",
        "dropped",
        "due",
        "env",
        "failures",
        "finished_at",
        "first",
        "floor",
        "floors",
        "functions",
        "generation",
        "held",
        "id",
        "last",
        "lots",
        "name",
        "names",
        "open",
        "option",
        "options",
        "outcome",
        "parents",
        "parents_at",
        "payloads",
        "pins",
        "places",
        "project",
        "reasons",
        "released_at",
        "results",
        "returning",
        "started_at",
        "state",
        "status",
        "stretch_reasons",
        "submitted_at",
        "tracks_places",
        "unmet",
        "visited",
        "wanted",
        "works",
    )

    def __init__(self, run_id: int, name: str, submitted_at: float, floor: int) -> None:
        self.id = run_id
        self.name = name
        self.status = "PENDING"
        self.submitted_at = submitted_at
        self.started_at = 0.0
        self.finished_at = 0.0
        self.floor = floor
        self.cancelled = False
        self.env: dict[str, str] = {}
        self.project = ""
        # columns by spec
        self.names = Texts()
        self.first = array("I")
        self.count = array("I")
        self.option = array("I")
        self.options: list[Options] = []
        self.unmet = array("I")
        self.open = array("I")
        self.outcome = bytearray()
        self.best = array("Q")
        """The highest accepted fence of each spec: an attempt of a child must be above it."""
        self.works = Texts()
        self.parents_at = self.children_at = _NO_EDGES_AT
        self.parents = self.children = _NO_EDGES
        self.arrays: set[int] = set()
        self.last = -1
        """The only sink, if there is only one and it is one task: its result is the run's."""
        self.payloads: dict[int, bytes] = {}
        self.functions: dict[int, bytes] = {}
        """Of the specs that are functions: it, pickled. Nobody here looks inside."""
        # columns by task
        self.state = bytearray()
        self.counts = [0] * N_STATES
        # tasks with something to say, by index
        self.generation: dict[int, int] = {}
        self.attempts: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        self.crashes: dict[int, int] = {}
        self.reasons: dict[int, str] = {}
        self.stretch_reasons: list[tuple[int, int, str]] = []
        self.due: dict[int, Due] = {}
        self.pins: dict[int, str] = {}
        """Index -> the worker a PINNED task waits for."""
        self.results: dict[int, bytes] = {}
        """Of the specs in ``wanted``."""
        self.wanted: set[int] = set()
        """Specs whose result another task asks for, and the one whose result is the run's."""
        self.floors: dict[int, int] = {}
        """Where it is above the run's own: the last fence of an attempt that ended, or of the retry."""
        self.dropped: set[int] = set()
        """DEAD tasks that are no longer listed as such."""
        # after a restart
        self.held = False
        """Nothing of it is released until the workers that were alive are back, or it has been long enough."""
        self.cancel_asked: set[int] = set()
        """Tasks that somebody cancelled and whose end nobody has confirmed."""
        self.returning: dict[int, tuple[float, float]] = {}
        """Tasks that were out, or opened again, and go on when the hold is over: (wall clock when due, seconds)."""
        self.released_at: dict[int, float] = {}
        """Spec -> when its last parent ended (wall clock): its delay began then."""
        # expected seconds, by spec for arrays and by option (negative) for named tasks
        self.costs: dict[int, float] = {}
        self.lots: dict[int, Lot] = {}
        self.tracks_places = False
        self.places: dict[int, str] = {}
        self.visited: set[str] = set()

    def spec_of(self, index: int) -> int:
        """The row of the spec a task belongs to."""
        return bisect_right(self.first, index) - 1 if len(self.first) != len(self.state) else index

    def label(self, index: int) -> str:
        """The task's name within the run: ``extract`` or ``square[417]``."""
        spec = self.spec_of(index)
        name = self.names[spec]
        return f"{name}[{index - self.first[spec]}]" if spec in self.arrays else name

    def find(self, name: str) -> int | None:
        return self.names.find(name)

    def parents_of(self, spec: int) -> array[int]:
        return self.parents[self.parents_at[spec] : self.parents_at[spec + 1]]

    def children_of(self, spec: int) -> array[int]:
        return self.children[self.children_at[spec] : self.children_at[spec + 1]]

    def options_of(self, spec: int) -> Options:
        return self.options[self.option[spec]]

    def stretches(self, first: int, count: int) -> Iterator[tuple[TaskState, int, int]]:
        """(state, first, count) of each uniform stretch; a snapshot, so the caller may move tasks meanwhile."""
        if count == 1:
            yield _STATES[self.state[first]], first, 1
            return
        column = bytes(self.state[first : first + count])
        for match in _STRETCH.finditer(column):
            yield _STATES[column[match.start()]], first + match.start(), match.end() - match.start()

    def reason_of(self, index: int) -> str:
        """Why the task is what it is, where that was written down."""
        own = self.reasons.get(index)
        if own is not None:
            return own
        if self.state[index] in (TaskState.SKIPPED, TaskState.CANCELLED):
            for first, count, reason in reversed(self.stretch_reasons):
                if first <= index < first + count:
                    return reason
        return ""

    def floor_of(self, index: int) -> int:
        """No fence at or below it can be accepted for this task any more."""
        return self.floors.get(index, self.floor)

    def cost_key(self, spec: int) -> int:
        return spec if spec in self.arrays else -1 - self.option[spec]

    def payload_slice(self, spec: int, member: int, count: int) -> bytes:
        """The payloads of consecutive members: (count + 1) offsets as stored, then the bytes they cut."""
        blob = self.payloads.get(spec)
        if blob is None:
            return b""
        base = 4 * (self.count[spec] + 1)
        offsets = blob[4 * member : 4 * (member + count + 1)]
        start = int.from_bytes(offsets[:4], "big")
        end = int.from_bytes(offsets[-4:], "big")
        return offsets + blob[base + start : base + end]

    @property
    def is_final(self) -> bool:
        return self.status in ("COMPLETED", "FAILED", "CANCELLED")

    @property
    def unfinished(self) -> int:
        return sum(self.counts[: TaskState.COMPLETED])


class Lot:
    """Consecutive tasks of one spec at one worker, with consecutive fences."""

    __slots__ = (
        "assigned_at",
        "attempt",
        "count",
        "fence",
        "first",
        "generation",
        "is_long",
        "marks",
        "open",
        "priority",
        "run",
        "spec",
        "started",
        "worker",
    )

    def __init__(
        self,
        run: int,
        spec: int,
        first: int,
        count: int,
        fence: int,
        worker: str,
        generation: int,
        attempt: int,
        priority: int,
        assigned_at: float,
    ) -> None:
        self.run = run
        self.spec = spec
        self.first = first
        self.count = count
        self.fence = fence
        self.worker = worker
        self.generation = generation
        self.attempt = attempt
        self.priority = priority
        self.assigned_at = assigned_at
        self.is_long = True
        """Nothing is to wait behind it: when it was given out it was not known to be short."""
        self.open = count
        self.marks = bytearray(count)
        self.started: dict[int, int] = {}


class Worker:
    """A registered worker. ``held`` counts its unfinished attempts, ``running`` those it said it started."""

    __slots__ = (
        "alone",
        "attached_at",
        "capabilities",
        "draining",
        "ended_at",
        "fences",
        "gone_at",
        "heard",
        "held",
        "id",
        "is_stuck",
        "long",
        "lots",
        "name",
        "nonce",
        "permanent",
        "pins",
        "priorities",
        "running",
        "slots",
        "state",
        "view",
    )

    def __init__(self, worker_id: str, name: str, nonce: str, capabilities: frozenset[str], slots: int) -> None:
        self.id = worker_id
        self.name = name
        self.nonce = nonce
        self.capabilities = capabilities
        self.slots = slots
        self.permanent = True
        self.state = "READY"
        self.draining = False
        """It asked to go. Kept beside ``state``, which says SUSPECT while a draining worker is silent."""
        self.view = -1
        self.held = 0
        self.long = 0
        """Of these the members of lots that are long."""
        self.priorities: dict[int, int] = {}
        """Of these how many there are of each priority."""
        self.running = 0
        self.ended_at = 0.0
        """When one of them ended, or it was given one and had a slot for it."""
        self.is_stuck = False
        """It holds more than its slots and none has ended for longer than that should have taken."""
        self.fences: list[int] = []
        self.lots: list[Lot] = []
        self.pins: deque[tuple[int, int]] = deque()
        """(run, index) of tasks that wait for this worker, first come first served; those that wait for it no more
        (``run.pins`` knows) are passed over."""
        self.alone: tuple[int, int] | None = None
        """The (run, index) that must run here with nothing beside it."""
        self.attached_at = 0.0
        self.heard = False
        """It has attached to this master. One that was alive before a restart has not yet."""
        self.gone_at = 0.0

    def find_lot(self, fence: int) -> Lot | None:
        at = bisect_right(self.fences, fence) - 1
        if at < 0:
            return None
        lot = self.lots[at]
        return lot if fence < lot.fence + lot.count else None

    @property
    def load(self) -> float:
        """What it holds for each slot. Who has no slot free and will not have one soon comes after all others."""
        if self.held >= self.slots and (self.is_stuck or self.long >= self.slots):
            return NO_SLOT_SOON + self.held / self.slots
        return self.held / self.slots

    @property
    def is_placeable(self) -> bool:
        return self.state == "READY"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One key of the key-value space."""

    value: bytes
    revision: int
    expires_at: float
    """Wall clock; 0: never."""


class View:
    """The workers with one set of capabilities: which classes they may serve is the queue's knowledge.

    ``heap`` is a lazy heap of (load, order of arrival, worker id): an entry counts only when its load is the worker's
    load now.
    """

    __slots__ = ("capabilities", "heap", "workers")

    def __init__(self, capabilities: frozenset[str]) -> None:
        self.capabilities = capabilities
        self.heap: list[tuple[float, float, str]] = []
        self.workers: set[str] = set()


class Outbox:
    """What the core has to say since it was last asked: facts in order, commands in order."""

    __slots__ = ("_changed", "_ended", "commands", "facts", "position")

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.commands: list[Command] = []
        self.position = 0
        """Facts made before the ones that are in here now."""
        self._changed: set[int] = set()
        self._ended: dict[int, AttemptsEnded] = {}

    def fact(self, fact: Fact) -> None:
        self._ended.clear()
        self.facts.append(fact)

    def command(self, command: Command) -> None:
        self.commands.append(command)

    def changed(self, run: int) -> None:
        self._changed.add(run)

    def ended(self, at: float, run: int) -> AttemptsEnded:
        """The open batch of ended attempts of a run: one fact per run as long as no other fact comes between."""
        batch = self._ended.get(run)
        if batch is None:
            batch = self._ended[run] = AttemptsEnded(at, run, [], [], [], [], [], [], [], [], [], [], [])
            self.facts.append(batch)
        return batch

    def here(self) -> int:
        """The position of the newest fact."""
        return self.position + len(self.facts)

    def take(self) -> tuple[list[Fact], list[Command]]:
        facts, commands = self.facts, self.commands
        self.position += len(facts)
        commands.extend(RunChanged(run) for run in sorted(self._changed))
        self.facts, self.commands = [], []
        self._changed = set()
        self._ended = {}
        return facts, commands


class State:
    """Everything the core knows."""

    def __init__(self, epoch: int, rng: random.Random, tuning: Tuning) -> None:
        self.epoch = epoch
        self.tuning = tuning
        self.rng = rng
        self.now = 0.0
        """Seconds of a clock that does not jump; given with each turn."""
        self.wall = 0.0
        """Wall clock, seconds; for people, never for decisions."""
        self.next_run = 1
        self.sequence = 0
        self.stopping = False
        self.runs: dict[int, Run] = {}
        self.workers: dict[str, Worker] = {}
        self.queue = ReadyQueue()
        self.timers = Timers()
        self.totals = [0] * N_STATES
        self.ended = 0
        """Tasks that became final here, for people: it never falls, whatever leaves memory."""
        self.classes: dict[frozenset[str], int] = {}
        self.views: dict[frozenset[str], int] = {}
        self.view_rows: list[View] = []
        self.view_order: list[int] = []
        """Views by number of capabilities: general tasks go to general workers while those have room."""
        self.pinned: set[str] = set()
        """Workers with pins, or with a task that must run there alone."""
        self.homeless: list[tuple[int, int]] = []
        """Pinned tasks whose worker is not known yet."""
        self.overfull: set[str] = set()
        """Workers that hold more than their slots."""
        self.keys: dict[str, str] = {}
        """Affinity key -> the worker where its tasks gather."""
        self.balance_timer: tuple[int, float] | None = None
        self.recalling = 0
        """Attempts asked back and not yet answered."""
        self.in_flight: dict[int, int] = {}
        """Priority -> open attempts of it, at all workers."""
        self.costs: dict[int, float] = {}
        """Kind of function -> expected seconds: a call by itself is a run of its own and would never be known."""
        self.needs_placement = False
        self.is_stuck = False
        """Too much waits for the disk: nothing new is assigned."""
        self.awaited: set[str] | None = None
        """During recovery: workers that were alive and have not attached yet. None: there is no recovery."""
        self.undecided: dict[str, dict[int, HeldAttempt]] = {}
        """Worker -> fence -> what it holds and must wait with, because a parent is not known to have ended."""
        self.questions: dict[tuple[int, int], list[tuple[str, int]]] = {}
        """(run, spec) -> (worker, fence) of what is undecided there, or was."""
        self.to_decide: set[tuple[int, int]] = set()
        """Of these (run, spec) something ended that what is undecided may have waited for."""
        self.unnoted: deque[tuple[float, Lot, int]] = deque()
        """Attempts that started, oldest first, and are not in a fact as running yet."""
        self.finished: deque[tuple[int, int, float]] = deque()
        """(run, position of the fact that ended it, when) of the finished runs in memory, oldest first."""
        self.forgotten: dict[int, int] = {}
        """Run -> position of the fact that forgot it, until that is durable: so long the store still shows it."""
        self.copies: deque[tuple[float, int, float, tuple[str, ...]]] = deque()
        """(when they may go, run, when it ended, workers) of the working copies of finished runs, oldest first."""
        self.kv: dict[str, Entry] = {}
        self.kv_size = 0
        self.revision = 0

    def last_fence(self) -> int:
        """The newest fence given so far: everything admitted now gets higher ones."""
        return make_fence(self.epoch, self.sequence)

    def next_fence(self, count: int) -> int:
        """The first of ``count`` new consecutive fences."""
        first = self.sequence + 1
        self.sequence += count
        return make_fence(self.epoch, first)

    def class_of(self, requires: frozenset[str]) -> int:
        cls = self.classes.get(requires)
        if cls is None:
            cls = self.classes[requires] = self.queue.add_class()
            for capabilities, view in self.views.items():
                if requires <= capabilities:
                    self.queue.link(view, cls)
        return cls

    def view_of(self, capabilities: frozenset[str]) -> int:
        view = self.views.get(capabilities)
        if view is None:
            view = self.views[capabilities] = self.queue.add_view()
            self.view_rows.append(View(capabilities))
            self.view_order = sorted(range(len(self.view_rows)), key=lambda row: len(self.view_rows[row].capabilities))
            for requires, cls in self.classes.items():
                if requires <= capabilities:
                    self.queue.link(view, cls)
        return view

    def timer(self, after: float, key: Hashable) -> int:
        return self.timers.add(self.now + after, key)
