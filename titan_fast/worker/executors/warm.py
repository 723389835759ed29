"""Python scripts as forks of a process that has Python up already: another way to begin, and nothing else.

What begins here is a child of this process as any other, so watching, ending and adopting it is `spawn`'s. A few
templates are kept (`_template`), each for one set of modules. Whatever cannot begin warm begins fresh: while there is
no template yet, when one dies or hangs, when the environment would have made another interpreter.

Each order to a template is answered by the child itself, before it runs anything, over a descriptor it then closes. So
when a template is gone and its socket has come to its end, what was not answered never ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import marshal
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from titan_fast.ids import Ending
from titan_fast.worker.executors.base import Attempt, Observer, Recorder
from titan_fast.worker.executors.spawn import FILE_LIMIT, SAFELY, Live, SpawnExecutor, encode, open_output, open_pidfd
from titan_fast.worker.exits import Exits
from titan_fast.worker.output import OUTPUT_NAME, note

log = logging.getLogger("titan_fast.worker")

MOST_TEMPLATES = 4
PATIENCE = 2.0
"""Seconds a template may take to answer."""
PATIENCE_AT_START = 60.0
"""Seconds it may take to load what it was asked for."""
MAX_ORDER = 1 << 18
"""Bytes a template reads of one order (`_template.MAX_ORDER`)."""
MOST_DEATHS = 3
"""Of templates, one after the other, before anything began in one: then there will be no more of that kind."""

_TEMPLATE = str(Path(__file__).with_name("_template.py"))
_FROM_THE_START = ("PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
_FROM_THE_START_TOO = frozenset({"TZ", "LANG", "LANGUAGE", "HOME"})
"""Variables that an interpreter or a library reads once, when it begins. HOME: where the user's own packages are."""
_PACKAGES = tuple(place for place in sys.path if place.endswith("-packages"))
"""Where what is installed lies."""
MOST_REFUSALS = 100
"""Kinds that are remembered because no template could be had of them."""
_UNBUFFERED = "PYTHONUNBUFFERED"
"""Every script is run with -u, which is the same."""


class Kind(NamedTuple):
    """What a template is for."""

    preload: tuple[str, ...]
    folder: str
    """Where scripts have modules of these names beside them; empty: they come from where all find them."""
    packages: tuple[int, ...]
    """When packages were installed or removed: what a fresh interpreter would not find, no template may have."""


class Owner(Protocol):
    """Who is told by a template; never from inside of what it calls itself, but for `Template.close`."""

    def began(self, number: int, pid: int) -> None: ...

    def failed(self, number: int, pid: int, error: OSError) -> None:
        """It could not begin; ``error.filename`` is the step. The child is yet to be waited for (0: there is none)."""

    def ended(self, template: Template, why: str, unanswered: Sequence[int]) -> None:
        """Of what it did not answer nothing ever ran. ``why``: as it said itself, or what was seen of it."""


class Template:
    """One template process, and what was ordered of it and not answered yet."""

    def __init__(self, kind: Kind, env: Mapping[str, str], owner: Owner) -> None:
        """Starts it.

        Raises:
            OSError: it cannot be started.
        """
        self.kind = kind
        self.is_up = False
        self.refusal = ""
        """Why it will never be up, in its own words."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, None] = {}
        self._why = ""
        self._heard = 0.0
        """When it answered last, or was asked after it had answered everything."""
        self._is_closed = False
        self._errors = os.memfd_create("template")
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                self.pid = _start(kind, env, its.fileno(), self._errors)
        except OSError:
            mine.close()
            os.close(self._errors)
            raise
        mine.setblocking(False)
        self._socket = mine
        self._loop.add_reader(mine.fileno(), self._ready)
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(PATIENCE_AT_START, self._lose_patience)

    def ask(self, number: int, order: tuple[Any, ...], journal: int) -> bool:
        """Order a process; False when that cannot be passed on, and then nothing was. ``order`` begins with argv."""
        try:
            data = marshal.dumps(order[0][2]) + marshal.dumps((number, *order))
            if len(data) > MAX_ORDER:
                return False
            rights = [journal] if journal >= 0 else []
            socket.send_fds(self._socket, [data], rights)
        except OSError:
            return False  # it has ended, or has too much to do, or this is too long
        self._asked[number] = None
        if self._timer is None:
            self._heard = self._loop.time()
            self._timer = self._loop.call_later(PATIENCE, self._lose_patience)
        return True

    def end(self) -> None:
        """Its children are not touched. What was not answered is told in `Owner.ended`, in its own time."""
        if self.pid:  # our child and not waited for
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self.end()
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self.pid = 0

    def _lose_patience(self) -> None:
        left = self._heard + PATIENCE - self._loop.time()
        if self.is_up and left > 0:
            self._timer = self._loop.call_later(left, self._lose_patience)  # it has answered others meanwhile
            return
        self._timer = None
        self._why = self._why or "it did not answer"
        self.end()

    def _ready(self) -> None:
        """Until there is nothing more to read: more than one may have answered."""
        while True:
            try:
                answer = self._socket.recv(4096)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # it ended with orders unread; what was answered before is still to come
            except OSError:
                answer = b""
            if not answer:
                self._is_over()
                return
            self._heard = self._loop.time()
            self._hear(answer.decode("utf-8", "replace"))
        if not self._asked and self.is_up and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hear(self, answer: str) -> None:
        match answer.split(" ", 4):
            case ["up"]:
                self.is_up = True
            case ["began", number, pid]:
                self._asked.pop(int(number), None)
                self._owner.began(int(number), int(pid))
            case ["failed", number, pid, code, step]:
                self._asked.pop(int(number), None)
                error = OSError(int(code), os.strerror(int(code)))
                error.filename = step
                self._owner.failed(int(number), int(pid), error)
            case _:
                self.refusal = answer.removeprefix("no ")

    def _is_over(self) -> None:
        """Nobody has the other end any more: neither it nor a child that has not answered."""
        self._is_closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        self._reap()
        said = os.pread(self._errors, 4096, 0).decode("utf-8", "replace").strip()
        why = self.refusal or self._why or said.rpartition("\n")[2]
        os.close(self._errors)
        self._owner.ended(self, why or "it ended", list(self._asked))

    def close(self) -> None:
        """End it and wait for its end."""
        self._reap()
        self._socket.setblocking(True)
        while not self._is_closed:
            self._ready()


def _start(kind: Kind, env: Mapping[str, str], line: int, errors: int) -> int:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, errors, 1),  # what its children write to is a file, too
        (os.POSIX_SPAWN_DUP2, errors, 2),
        (os.POSIX_SPAWN_DUP2, line, 3),
    ]
    argv = [sys.executable, "-u", "-P", _TEMPLATE, str(os.getpid()), kind.folder, *kind.preload]
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
    return os.posix_spawn(
        sys.executable, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=handled
    )


# ---------------------------------------------------------------- the executor


class WarmExecutor(SpawnExecutor):
    """Begins Python scripts as forks of templates where it can (the contract is `base.Executor`)."""

    def __init__(
        self,
        observer: Observer,
        *,
        env: Mapping[str, str],
        file_limit: int = FILE_LIMIT,
        recorder: Recorder | None = None,
        exits: Exits | None = None,
    ) -> None:
        """As `SpawnExecutor`.

        Args:
            env: of the templates: what attempts have that set nothing themselves.
        """
        super().__init__(observer, file_limit=file_limit, recorder=recorder, exits=exits)
        self._env = dict(env)
        self._settled = _settled(self._env)
        self._templates: dict[Kind, Template] = {}
        """The least recently used first."""
        self._retired: set[Template] = set()
        self._deaths: dict[Kind, int] = {}
        self._refused: dict[Kind, str] = {}
        """Kinds of which there will be no template; with why, until a task has been told."""
        self._asked: dict[int, tuple[Live, Template]] = {}
        """Attempts that were ordered and have not begun."""
        self._to_end: dict[int, tuple[Ending, float]] = {}
        """Those of them that are to be ended as soon as they have, and their grace."""

    def is_warm(self, preload: tuple[str, ...] = ()) -> bool:
        """Whether a script that asks for these modules would begin warm."""
        return any(template.is_up and kind.preload == preload for kind, template in self._templates.items())

    # ---------------------------------------------------------------- beginning

    def _begin(self, live: Live) -> None:
        if not self._order(live):
            super()._begin(live)

    def _order(self, live: Live) -> bool:
        """Order it of a template, if that can be had."""
        attempt = live.attempt
        if attempt.preload is None or attempt.argv[:2] != (sys.executable, "-u") or len(attempt.argv) < 3:
            return False
        if _settled(attempt.env) != self._settled:
            return False
        template = self._find_template(attempt)
        if template is None or not template.is_up:
            return False
        output = open_output(live)
        journal, head = self._recorder.spawn_note(attempt.fence) or (-1, b"")
        order = (
            [encode(text) for text in attempt.argv],
            [(encode(key), encode(value)) for key, value in attempt.env.items()],
            encode(attempt.cwd),
            output,
            self._file_limit,
            head,
        )
        if any(b"\0" in text for text in order[0]) or not template.ask(attempt.fence, order, journal):
            return False
        self._asked[attempt.fence] = (live, template)
        self._live[attempt.fence] = live
        return True

    def _find_template(self, attempt: Attempt) -> Template | None:
        """The one of the attempt's kind, made if there is none; None: there cannot be one."""
        kind = _kind(attempt)
        if kind in self._refused and kind.preload:
            self._tell_refusal(attempt, kind)
            kind = Kind((), "", kind.packages)
        if kind in self._refused:
            return None
        template = self._templates.pop(kind, None)
        if template is None:
            try:
                template = Template(kind, self._env, self)
            except OSError as error:
                log.warning("no process to fork Python scripts from could be started: %s", error)
                return None
        self._templates[kind] = template
        if len(self._templates) > MOST_TEMPLATES:
            self._retire(next(iter(self._templates)))
        return template

    def _retire(self, kind: Kind) -> None:
        template = self._templates.pop(kind)
        self._retired.add(template)
        template.end()

    def _tell_refusal(self, attempt: Attempt, kind: Kind) -> None:
        """Once, in the output of the first task that asked for it and does not get it."""
        if why := self._refused[kind]:
            self._refused[kind] = ""
            path = f"{attempt.attempt_dir}/{OUTPUT_NAME}"
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | SAFELY, 0o600))
            note(path, f"nothing is preloaded: {why}")

    # ---------------------------------------------------------------- what templates tell

    def began(self, number: int, pid: int) -> None:
        live, template = self._asked.pop(number)
        self._deaths.pop(template.kind, None)
        self._has_begun(live, pid, open_pidfd(pid))
        if number in self._to_end:
            super()._end(live, *self._to_end.pop(number))

    def failed(self, number: int, pid: int, error: OSError) -> None:
        live, _ = self._asked.pop(number)
        attempt = live.attempt
        if pid > 0:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            places = {"folder": attempt.cwd, "output": f"{attempt.attempt_dir}/{OUTPUT_NAME}"}
            error.filename = places.get(str(error.filename), attempt.argv[0])
            self._to_end.pop(number, None)
            self._cannot_begin(live, error)
        else:
            self._begin_fresh(live)

    def ended(self, template: Template, why: str, unanswered: Sequence[int]) -> None:
        kind = template.kind
        if template in self._retired:
            self._retired.discard(template)
        else:
            self._templates.pop(kind, None)
            self._deaths[kind] = self._deaths.get(kind, 0) + 1
            if not self._is_closed and (template.refusal or self._deaths[kind] >= MOST_DEATHS):
                del self._deaths[kind]
                self._refuse(kind, why)
            elif not self._is_closed:
                log.warning("a process that Python scripts are forked from is gone (%s); there will be another", why)
        for number in unanswered:
            live, _ = self._asked.pop(number)
            self._begin_fresh(live)

    def _refuse(self, kind: Kind, why: str) -> None:
        if kind.preload:
            log.warning("%s: not preloaded, scripts load it themselves (%s)", ", ".join(kind.preload), why)
        else:
            log.warning("every Python script has an interpreter of its own to start (%s)", why)
        self._refused[kind] = why
        if len(self._refused) > MOST_REFUSALS:
            del self._refused[next(iter(self._refused))]

    def _begin_fresh(self, live: Live) -> None:
        """It was ordered and nothing of it ever ran."""
        fence = live.attempt.fence
        wish = self._to_end.pop(fence, None)
        try:
            if self._is_closed:
                raise OSError(errno.ESHUTDOWN, "the worker is stopping")
            super()._begin(live)
        except (OSError, ValueError) as error:
            self._cannot_begin(live, error)
        else:
            if wish is not None:
                super()._end(live, *wish)

    # ---------------------------------------------------------------- ending

    def _end(self, live: Live, ending: Ending, grace: float) -> None:
        """What has not begun yet ends when it has; the shortest grace counts."""
        fence = live.attempt.fence
        if fence in self._asked:
            _, earlier = self._to_end.get(fence, (ending, grace))
            self._to_end[fence] = (ending, min(earlier, grace))
        else:
            super()._end(live, ending, grace)

    async def close(self, grace: float) -> None:
        await super().close(grace)
        for template in [*self._templates.values(), *self._retired]:
            template.close()


def _settled(env: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that is read once, when an interpreter or a library begins."""
    return {
        key: value
        for key, value in env.items()
        if (key in _FROM_THE_START_TOO or key.startswith(_FROM_THE_START)) and key != _UNBUFFERED
    }


def _kind(attempt: Attempt) -> Kind:
    """What a template for this script must be."""
    preload = attempt.preload or ()
    folder = ""
    if preload:
        beside = os.path.dirname(os.path.realpath(attempt.argv[2]))
        names = {name.partition(".")[0] for name in preload}
        if any(os.path.exists(f"{beside}/{name}{tail}") for name in names for tail in ("", ".py")):
            folder = beside
    return Kind(preload, folder, tuple(_changed(place) for place in _PACKAGES))


def _changed(place: str) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0
