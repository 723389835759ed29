"""A storm over the scheduler: random graphs and random events from a seed, then quiet weather in which all must end.

Masters die in it with what they had not committed, workers come back late, anew or never, with all they hold. Every
invariant is checked after every event and every turn (by the harness). A failure is repeated with its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from titan_fast.errors import NothingToDo
from titan_fast.ids import Ending
from titan_fast.model.spec import Affinity, Retry, TaskSpec
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import invariants
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import Ended, Held, SchedulerHarness, task

CAPABILITIES = ((), (), ("GPU",), ("GPU", "HIGH_MEM"), ("DISK",))
ENDINGS = (Ending.EXIT, Ending.EXIT, Ending.EXIT, Ending.SIGNAL, Ending.TIMEOUT, Ending.NOT_STARTED)
REPLAY_EVERY = 60
DURATIONS = (0.0001, 0.001, 0.005, 0.05, 3.0)


class Storm:
    def __init__(
        self, seed: int, runs: int = 6, rng: random.Random | None = None, sabotage: Iterable[str] = ()
    ) -> None:
        self.rng = rng or random.Random(seed)
        self.h = SchedulerHarness(
            Tuning(crash_limit=self.rng.choice((2, 3, 5)), sabotage=frozenset(sabotage)), seed=seed
        )
        self.h.commits_itself = self.rng.random() < 0.4
        self.runs_left = runs
        self.slow_for = 0
        self.old_frames: list[ev.AttemptsFinished] = []
        self.counts: dict[str, int] = {}
        self.acts: list[tuple[int, Callable[[], None]]] = [
            (3, self.submit),
            (4, self.attach_new),
            (5, self.attach_again),
            (30, self.start),
            (30, self.finish),
            (10, self.fail),
            (8, self.obey),
            (2, self.cut),
            (2, self.suspect),
            (3, self.recover),
            (1, self.lose),
            (1, self.vanish),
            (1, self.drain),
            (2, self.leave),
            (2, self.cancel),
            (3, self.retry),
            (12, self.advance),
            (3, self.repeat_results),
            (4, self.progress_unseen),
            (15, self.commit),
            (2, self.disk_is_slow),
            (2, self.restart),
            (2, self.reincarnate),
            (2, self.stray),
            (1, self.give_up_and_die),
        ]
        if not self.h.commits_itself and self.rng.random() < 0.7:
            # Mostly work that gets on, under masters that die with much they had not committed.
            self.acts = [
                (40, self.all_work),
                (10, self.submit),
                (6, self.attach_new),
                (20, self.attach_again),
                (6, self.restart),
                (5, self.commit),
                (3, self.give_up_and_die),
                *((1, act) for _, act in self.acts),
            ]

    # ------------------------------------------------------------ the storm

    def rage(self, steps: int) -> None:
        self.attach_new()
        weights = [weight for weight, _ in self.acts]
        for step in range(steps):
            act = self.rng.choices(self.acts, weights)[0][1]
            self.counts[act.__name__] = self.counts.get(act.__name__, 0) + 1
            act()
            if step % REPLAY_EVERY == 0:
                self.h.check_replay()

    def calm(self) -> None:
        """No faults any more and a worker for everything: every run must end, and nothing may be left over."""
        h = self.h
        h.commits_itself = True
        h.commit()
        h.check_replay()
        for name in list(h.workers):
            if self.state_of(name) not in ("LOST", "LEFT"):
                if self.rng.random() < 0.7:
                    h.attach(name)
                else:
                    h.vanish(name)
        h.worker("all", slots=4, capabilities=("GPU", "HIGH_MEM", "DISK"))
        living = [name for name in h.workers if self.state_of(name) not in ("LOST", "LEFT")]
        for _ in range(20_000):
            for name in living:
                h.obey(name)
                h.start(name)
                running = [held for held in h.workers[name].held.values() if held.started]
                if running:
                    h.end(name, running, code=int(self.rng.random() < 0.1), duration=self.rng.choice(DURATIONS))
            if all(run.is_final for run in h.scheduler.state.runs.values()):
                break
            deadline = h.scheduler.next_deadline()
            if deadline is not None and not any(h.workers[name].held for name in living):
                h.advance(max(0.0, deadline - h.clock.now))
        h.advance(h.tuning.recovery_grace)
        invariants.check_rest(h.scheduler.state)
        h.check_replay()

    def state_of(self, name: str) -> str:
        worker = self.h.scheduler.state.workers.get(name)
        return worker.state if worker is not None else "LOST"

    def any_worker(self, *states: str) -> str | None:
        names = [name for name in self.h.workers if not states or self.state_of(name) in states]
        return self.rng.choice(names) if names else None

    def is_up(self, name: str) -> bool:
        worker = self.h.workers[name]
        return worker.connected and not worker.attaching

    def some(self, held: list[Held]) -> list[Held]:
        return self.rng.sample(held, self.rng.randint(1, len(held))) if held else []

    # ------------------------------------------------------------ users

    def submit(self) -> None:
        if not self.runs_left:
            return
        self.runs_left -= 1
        tasks: list[TaskSpec] = []
        for number in range(self.rng.randint(1, 9)):
            names = [item.name for item in tasks]
            needs = self.rng.sample(names, min(len(names), self.rng.choice((0, 1, 1, 2, 3))))
            tasks.append(self.a_task(f"t{number}", needs))
        self.rng.shuffle(tasks)
        self.h.submit(tasks)
        if self.rng.random() < 0.8:
            self.h.commit()

    def a_task(self, name: str, needs: list[str]) -> TaskSpec:
        rng = self.rng
        fields: dict[str, object] = {
            "requires": rng.choice(((), (), (), (), ("GPU",), ("GPU", "HIGH_MEM"))),
            "priority": rng.choice((1, 1, 1, 5)),
            "delay": rng.choice((0.0, 0.0, 0.0, 0.5)),
            "when": rng.choice(("success", "success", "success", "failure", "always")),
            "retry": rng.choice((Retry(), Retry(), Retry(max=2, backoff=0.3), Retry(max=1, on=(7, "timeout")))),
        }
        if rng.random() < 0.3:
            kind = rng.choice(("parent", "key")) if needs else "key"
            fields["affinity"] = Affinity(
                kind,
                rng.choice(("k1", "k2")) if kind == "key" else rng.choice(("", needs[0])),
                rng.choice(("prefer", "prefer", "require")),
                wait=rng.choice((0.2, 2.0)),
            )
        if rng.random() < 0.4:
            fields |= {"count": rng.choice((1, 3, 12, 40)), "array": True}
        return task(name, *needs, **fields)

    def a_target(self) -> tuple[int, str | None, int | None] | None:
        runs = self.h.scheduler.state.runs
        if not runs:
            return None
        run = runs[self.rng.choice(list(runs))]
        choice = self.rng.random()
        if choice < 0.25:
            return run.id, None, None
        spec = self.rng.randrange(len(run.names))
        if choice < 0.6 or spec not in run.arrays:
            return run.id, run.names[spec], None
        return run.id, run.names[spec], self.rng.randrange(run.count[spec])

    def cancel(self) -> None:
        target = self.a_target()
        if target is not None:
            try:
                self.h.cancel(*target, only_waiting=self.rng.random() < 0.3)
            except NothingToDo:
                return

    def retry(self) -> None:
        target = self.a_target()
        if target is not None:
            try:
                self.h.retry(*target)
            except NothingToDo:
                return

    def advance(self) -> None:
        self.h.advance(self.rng.choice((0.0005, 0.01, 0.03, 0.3, 1.0, 2.5)))

    # ------------------------------------------------------------ workers

    def attach_new(self) -> None:
        """A new worker, or a new incarnation of one, perhaps with other capabilities."""
        if self.rng.random() < 0.7:
            self.h.worker(f"w{self.rng.randrange(5)}", self.rng.choice((1, 2, 4)), self.rng.choice(CAPABILITIES))

    def attach_again(self) -> None:
        """The same incarnation attaches again; assignments that were on their way have not reached it."""
        name = self.any_worker()
        if name is None or self.state_of(name) == "LEFT":
            return
        worker = self.h.workers[name]
        for held in [held for held in worker.held.values() if not held.started]:
            if self.rng.random() < 0.3:
                del worker.held[held.fence]
        self.h.attach(name)

    def start(self) -> None:
        name = self.any_worker("READY", "SUSPECT", "DRAINING")
        if name is not None and self.is_up(name):
            self.h.start(name)

    def finish(self) -> None:
        self.end(Ending.EXIT, 0)

    def all_work(self) -> None:
        """Everybody starts what fits and ends some of it well."""
        for name in [name for name in self.h.workers if self.is_up(name)]:
            self.h.start(name)
            ended = self.some([held for held in self.h.workers[name].held.values() if held.started])
            if ended and self.rng.random() < 0.7:
                self.h.end(name, ended, duration=self.rng.choice(DURATIONS), result=b"r")

    def fail(self) -> None:
        self.end(self.rng.choice(ENDINGS), self.rng.choice((1, 7)))

    def end(self, ending: Ending, code: int) -> None:
        """Some attempts end; now and then the notice that they started is overtaken, or its worker is LOST by now."""
        name = self.any_worker()
        if name is None or not self.is_up(name):
            return
        worker = self.h.workers[name]
        early = self.rng.random() < 0.1
        ended = self.some([held for held in worker.held.values() if held.started or early])
        if ended:
            self.h.end(name, ended, ending, code, self.rng.choice(DURATIONS), b"r" if not code else b"")
            told = [held for held in ended if held.fence not in worker.undecided]
            self.old_frames.append(self.frame_of(name, told, ending, code))

    def frame_of(self, name: str, ended: list[Held], ending: Ending, code: int) -> ev.AttemptsFinished:
        n = len(ended)
        run, index = [held.run for held in ended], [held.index for held in ended]
        generation, fence = [held.generation for held in ended], [held.fence for held in ended]
        return ev.AttemptsFinished(
            name, run, index, generation, [ending] * n, fence, [code] * n, [0] * n, [0] * n, [b""] * n
        )

    def repeat_results(self) -> None:
        """A frame that was not acknowledged comes again: from its sender, or from somebody who never had it."""
        if self.old_frames:
            frame = self.rng.choice(self.old_frames)
            before = list(self.h.scheduler.state.totals)
            self.h.scheduler.handle(frame)
            assert self.h.scheduler.state.totals == before, "a repeated result changed something"
            self.h.do()

    def progress_unseen(self) -> None:
        """A worker that is cut off goes on alone."""
        name = self.any_worker("SUSPECT")
        if name is None or self.h.workers[name].connected:
            return
        worker = self.h.workers[name]
        for held in worker.to_start():
            held.started = True
        for held in self.some([held for held in worker.held.values() if held.started]):
            del worker.held[held.fence]
            worker.unsent.append(Ended(held, code=self.rng.choice((0, 0, 1)), result=b"r"))

    def obey(self) -> None:
        name = self.any_worker()
        if name is not None and self.is_up(name):
            self.h.obey(name)

    def cut(self) -> None:
        name = self.any_worker("READY", "DRAINING")
        if name is not None:
            self.h.cut(name)

    def suspect(self) -> None:
        name = self.any_worker("READY", "DRAINING")
        if name is not None:
            self.h.do(ev.WorkerSuspected(name))

    def recover(self) -> None:
        name = self.any_worker("SUSPECT")
        if name is not None and self.is_up(name):
            self.h.do(ev.WorkerRecovered(name))

    def lose(self) -> None:
        """The master gives a worker up that lives and holds everything still."""
        name = self.any_worker("SUSPECT")
        if name is not None:
            self.h.lose(name)

    def vanish(self) -> None:
        name = self.any_worker("READY", "SUSPECT", "DRAINING")
        if name is not None:
            self.h.vanish(name)

    def drain(self) -> None:
        name = self.any_worker("READY", "SUSPECT")
        if name is None or not self.is_up(name):
            return
        self.h.do(ev.WorkerDraining(name))
        waiting = [held for held in self.h.workers[name].held.values() if not held.started]
        if waiting:
            self.h.end(name, waiting, Ending.RECALLED)

    def leave(self) -> None:
        name = self.any_worker("DRAINING")
        if name is not None and self.is_up(name):
            self.h.workers[name].held.clear()
            self.h.do(ev.WorkerLeft(name))

    def reincarnate(self) -> None:
        """An agent dies; the next one adopted some of what ran."""
        name = self.any_worker("READY", "SUSPECT", "DRAINING")
        if name is None:
            return
        worker = self.h.workers[name]
        for held in [held for held in worker.held.values() if held.started and self.rng.random() < 0.3]:
            del worker.held[held.fence]
        self.h.reincarnate(name)

    def stray(self) -> None:
        """A worker holds something of another cluster that counted as far as this one."""
        name = self.any_worker("SUSPECT")
        run = self.rng.choice(list(self.h.scheduler.state.runs.values()) or [None])
        if name is None or run is None or self.h.workers[name].connected:
            return
        index = self.rng.randrange(len(run.state))
        fence = self.h.scheduler.state.last_fence() + 1_000_000 + len(self.h.facts)
        self.h.workers[name].held[fence] = Held(
            run.id, index, run.generation.get(index, 0), 1, fence, run.label(index), True, is_ours=False
        )

    # ------------------------------------------------------------ the master

    def commit(self) -> None:
        if self.slow_for:
            self.slow_for -= 1
        else:
            self.h.commit(self.rng.choice((1, 3, None)))

    def disk_is_slow(self) -> None:
        self.slow_for = self.rng.randrange(20)

    def restart(self) -> None:
        """What was not committed is forgotten; the next master waits for the workers, or loses patience at once. Most
        come back soon, in any order, some with another agent."""
        self.h.restart(grace=self.rng.choice((0.0, 0.5, 10.0)))
        self.old_frames.clear()
        names = list(self.h.workers)
        for name in self.rng.sample(names, self.rng.randint(0, len(names))):
            if self.rng.random() < 0.2:
                self.h.reincarnate(name)
            elif self.state_of(name) != "LEFT":
                self.h.attach(name)

    def give_up_and_die(self) -> None:
        """A worker that lives is given up, what it held goes elsewhere, and the master dies, who knew it."""
        name = self.any_worker("READY", "SUSPECT")
        if name is not None:
            before, self.h.commits_itself = self.h.commits_itself, False
            self.h.lose(name)
            self.all_work()
            self.restart()
            self.h.commits_itself = before
