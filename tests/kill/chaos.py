"""A real cluster that is broken on purpose: the real programs, each worker behind a connection that can be cut, and one
method for each fault. What was broken, and from when to when, goes into the history.

Processes are started by the main thread alone: they ask to be told when the thread that started them ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from checker import Verdict, check
from history import Fault, History, Worked, now
from load import Submitter, Watcher, Worker, look_at_everything

from titan_fast.testing.cluster import Cluster, until

SLOTS = 4
LOST_AFTER = 3.0
QUICK = {
    "TITAN_SCHEDULER_HEARTBEAT": "0.2",
    "TITAN_SCHEDULER_SUSPECT_AFTER": "1",
    "TITAN_SCHEDULER_LOST_AFTER": str(LOST_AFTER),
    "TITAN_SCHEDULER_RECOVERY_GRACE": "3",
}
"""Times of a cluster that has no time to lose."""
SHORT = 0.6
"""Seconds of a freeze that nobody may take for a loss."""
PROGRESS = 30.0
"""Seconds within which work must be seen to go on after a fault."""
FINISH = 120.0
"""Seconds within which everything must be finished once nothing is broken any more."""


class Chaos(Cluster):
    """A cluster in ``folder``, with workers w1, w2, …; faults are its methods, and their order comes from ``seed``."""

    def __init__(self, folder: Path, seed: int, workers: int = 4) -> None:
        super().__init__(folder / "home", environ=QUICK, options=["-v"])
        self.rng = random.Random(seed)
        self.between = 24_000
        """Bytes of history between two faults, at most."""
        self.history = History(folder / "history")
        self._seed = seed
        self._names = [f"w{number}" for number in range(1, workers + 1)]
        self._proxies: dict[str, Proxy] = {}
        self._frozen: list[psutil.Process] = []
        self._clients: list[Worker] = []

    def __enter__(self) -> Chaos:
        self.start_master()
        self._watcher = Watcher(self.client(), self.history)
        try:
            for name in self._names:
                self._proxies[name] = Proxy(self.address)
                self._start_worker(name)
            self.wait_for_workers(len(self._names))
        except BaseException:
            self.stop()
            raise
        self._run(self._watcher)
        return self

    def _start_worker(self, name: str) -> None:
        token = self.home / "tokens" / f"{self.address.replace(':', '_')}.worker"
        self.history.note(Worked(now(), name, SLOTS))
        address = self._proxies[name].address
        # The name is known from the command line: --master again is the last one, and that counts.
        self.start_worker(name, "--slots", str(SLOTS), "--token-file", str(token), "--master", address)

    # ------------------------------------------------------------ load

    def submit_for_ever(self, clients: int) -> None:
        for number in range(clients):
            self._run(Submitter(f"c{number}", self.client(), self.history, self._seed))

    def _run(self, client: Worker) -> None:
        self._clients.append(client)
        client.start()

    def let_work_go_on(self, or_until: Callable[[], bool] = lambda: False) -> None:
        """Until enough has been said since the last fault; how much is by chance."""
        goal = self.history.size + self.rng.randrange(1, self.between)
        until(lambda: self.history.size >= goal or or_until(), "work goes on after a fault", PROGRESS)

    def finish(self) -> Verdict:
        """Break nothing more: everything ends in time, and then the history is judged."""
        deadline = time.monotonic() + FINISH
        for client in self._clients:
            client.stopping.set()
        for client in self._clients:
            client.join(max(0.0, deadline - time.monotonic()))
            assert not client.is_alive(), f"{client.name} still waits {FINISH:.0f} s after the last fault"
        with self.client() as client:
            look_at_everything(client, self.history)
        return check(self.history.read(), LOST_AFTER)

    def stop(self, timeout: float = 30.0) -> None:
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        for client in self._clients:
            client.stopping.set()
        for client in self._clients:  # while there is a master to answer: nothing talks or writes when we are gone
            client.join(timeout)
        super().stop(timeout)
        for proxy in self._proxies.values():
            proxy.close()
        self.history.close()

    # ------------------------------------------------------------ faults

    def break_things(self, faults: Sequence[str]) -> None:
        """Each fault once (the names of methods), in an order by chance, with work going on in between."""
        for fault in self.rng.sample(faults, len(faults)):
            self.let_work_go_on()
            getattr(self, fault)()

    def kill_master(self) -> None:
        with self._fault("master killed"):
            self._end_master()
            self.start_master(self._port)

    def kill_master_while_it_starts(self) -> None:
        with self._fault("master killed"):
            self._end_master()
        with self._fault("master killed while it started"):
            self.master = self._start(["master", "--port", str(self._port), *self._options])
            time.sleep(self.rng.uniform(0.05, 0.8))  # anywhere between its first instruction and its first answer
            self._end_master()
            self.start_master(self._port)

    def kill_master_and_agent(self) -> None:
        """An agent that dies while nobody is there to tell."""
        name = self._some_worker()
        with self._fault("master killed"):
            self._end_master()
            self._kill_agent(name)
            self.start_master(self._port)

    def kill_master_and_worker(self) -> None:
        """The restarted master waits for a worker that never comes back as it was."""
        name = self._some_worker()
        with self._fault("master killed"):
            self._end_master()
            self._kill_worker(name)
            self.start_master(self._port)
        self._start_worker(name)

    @property
    def _port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def _end_master(self) -> None:
        assert self.master is not None
        self.master.kill()
        self.master.wait()

    def kill_agent(self) -> None:
        """Its keeper starts another one, which finds what still runs."""
        self._kill_agent(self._some_worker())

    def _kill_agent(self, name: str) -> None:
        agent = self._agent(name)
        with self._fault("agent killed", name):
            agent.kill()
            self._agent(name, started_after=now())

    def kill_worker(self) -> None:
        """The whole machine at once: keeper, agent, tasks. Another one takes its place."""
        name = self._some_worker()
        self._kill_worker(name)
        self._start_worker(name)

    def _kill_worker(self, name: str) -> None:
        with self._fault("worker killed", name):
            tree = self._freeze_tree(name)
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.workers[name].wait()
            psutil.wait_procs(tree, timeout=10)
            self._frozen.clear()

    def kill_keeper(self) -> None:
        """The agent goes with it, the tasks do not: the worker that takes its place has to end them."""
        name = self._some_worker()
        agent = self._agent(name)
        with self._fault("keeper killed", name):
            self.workers[name].kill()
            self.workers[name].wait()
            psutil.wait_procs([agent], timeout=10)
        self._start_worker(name)

    def freeze_agent(self) -> None:
        """Too short to be lost."""
        name = self._some_worker()
        agent = self._agent(name)
        with self._fault("agent frozen", name):
            self._freeze(agent)
            time.sleep(self.rng.uniform(0.1, SHORT))
            self._thaw()

    def freeze_worker(self) -> None:
        """Keeper, agent and tasks, too short to be lost."""
        name = self._some_worker()
        with self._fault("worker frozen", name):
            self._freeze_tree(name)
            time.sleep(self.rng.uniform(0.1, SHORT))
            self._thaw()

    def lose_agent(self) -> None:
        """Frozen until it is given up, with its tasks going on; then it comes back."""
        name = self._some_worker()
        agent = self._agent(name)
        with self._fault("agent frozen", name):
            self._freeze(agent)
            self._wait_until_lost(name)
            self._thaw()

    def lose_worker(self) -> None:
        """As a machine that sleeps: frozen with its tasks until it is given up; then it goes on where it was."""
        name = self._some_worker()
        with self._fault("worker frozen", name):
            self._freeze_tree(name)
            self._wait_until_lost(name)
            self._thaw()

    def cut_connection(self) -> None:
        name = self._some_worker()
        proxy = self._proxies[name]
        before = proxy.connections
        with self._fault("cut", name):
            proxy.cut()
            until(lambda: proxy.connections > before, f"{name} connects again")

    def stall_connection(self) -> None:
        """Nothing passes for a moment, too short to be lost."""
        name = self._some_worker()
        with self._fault("stalled", name), self._stalled(name):
            time.sleep(self.rng.uniform(0.1, SHORT))

    def lose_connection(self) -> None:
        """Nothing passes until the worker is given up; then everything that was said arrives."""
        name = self._some_worker()
        with self._fault("stalled", name), self._stalled(name):
            self._wait_until_lost(name)

    def half_open_connection(self) -> None:
        """The master knows that the connection is gone; the worker has to find out."""
        name = self._some_worker()
        proxy = self._proxies[name]
        before = proxy.connections
        with self._fault("half open", name):
            proxy.cut_half()
            until(lambda: proxy.connections > before, f"{name} connects again")

    # ------------------------------------------------------------ how

    @contextlib.contextmanager
    def _fault(self, kind: str, worker: str = "") -> Iterator[None]:
        since = now()
        yield
        self.history.note(Fault(now(), kind, since, worker))

    def _some_worker(self) -> str:
        """One that is connected: what is broken already teaches nothing."""
        name = self.rng.choice(self._names)
        with self.client() as client:
            until(
                lambda: any(worker.name == name and worker.state == "READY" for worker in client.workers()),
                f"{name} is ready again; {self.home / 'log'} has what it said",
                PROGRESS,
            )
        return name

    def _agent(self, name: str, started_after: float = 0.0) -> psutil.Process:
        """The keeper has other children too: what a killed agent ran, and for a moment what it was about to run, which
        is called as itself until it becomes something else. Those are older than the next agent."""
        keeper = psutil.Process(self.workers[name].pid)

        def find() -> psutil.Process | None:
            for child in keeper.children():
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                    if child.cmdline()[2:5] == ["-m", "titan_fast", "agent"] and _started(child) > started_after:
                        return child
            return None

        return until(find, f"{name} has an agent")  # type: ignore[return-value]

    def _freeze(self, process: psutil.Process) -> None:
        self._frozen.append(process)
        process.suspend()

    def _freeze_tree(self, name: str) -> list[psutil.Process]:
        """From the root down, so that nobody frozen can start what is not seen."""
        keeper = psutil.Process(self.workers[name].pid)
        todo = [keeper]
        while todo:
            process = todo.pop()
            with contextlib.suppress(psutil.NoSuchProcess):
                self._freeze(process)
                todo += process.children()
        return list(self._frozen)

    def _thaw(self) -> None:
        while self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._frozen.pop().resume()

    def _wait_until_lost(self, name: str) -> None:
        until(lambda: name in self._watcher.lost, f"{name} is taken for lost")

    @contextlib.contextmanager
    def _stalled(self, name: str) -> Iterator[None]:
        self._proxies[name].hold()
        try:
            yield
        finally:
            self._proxies[name].go_on()


def _started(process: psutil.Process) -> float:
    """Seconds since the machine started, in whole hundredths."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Proxy:
    """Passes bytes between one worker and the master, until it is told to do something else."""

    def __init__(self, master: str) -> None:
        host, _, port = master.rpartition(":")
        self._master = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        """How often the worker has reached the master."""
        self._pipes: list[Pipe] = []
        self._flowing = threading.Event()
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                master = socket.create_connection(self._master)
            except OSError:
                worker.close()
                continue
            self._pipes.append(Pipe(worker, master, self._flowing))
            self.connections += 1

    def cut(self) -> None:
        """Both sides are told."""
        for pipe in self._take_pipes():
            pipe.cut()

    def cut_half(self) -> None:
        """The master is told. What the worker says goes nowhere, and nothing comes back."""
        for pipe in self._take_pipes():
            pipe.cut_half()

    def hold(self) -> None:
        """Nothing passes, and nobody is told."""
        self._flowing.clear()

    def go_on(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self._listener.close()
        self.go_on()
        self.cut()

    def _take_pipes(self) -> list[Pipe]:
        pipes, self._pipes = self._pipes, []
        return pipes


class Pipe:
    """One connection of a worker, and ours to the master for it."""

    def __init__(self, worker: socket.socket, master: socket.socket, flowing: threading.Event) -> None:
        self._worker, self._master = worker, master
        self._flowing = flowing
        self._is_half = False
        for source, sink in ((worker, master), (master, worker)):
            threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if not self._is_half:
                    sink.sendall(data)
        _hang_up(source)
        if not self._is_half:
            _hang_up(sink)

    def cut(self) -> None:
        _hang_up(self._worker)
        _hang_up(self._master)

    def cut_half(self) -> None:
        self._is_half = True
        _hang_up(self._master)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
