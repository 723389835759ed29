"""Every setting once: its default, its type, its one line of documentation.

Names derive from here: the option ``--slots``, the variable ``TITAN_WORKER_SLOTS``, the key ``slots`` of the
``[worker]`` table in ``titan.toml``. First found wins: option, environment, ``./titan.toml``,
``$TITAN_HOME/titan.toml``, default. docs/configuration.md is generated from this file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from titan_fast.errors import InvalidUsage, NoToken
from titan_fast.ids import make_fence

DEFAULT_PORT = 9090


class MasterSettings(msgspec.Struct, frozen=True):
    """``[master]``: the process that schedules."""

    host: Annotated[str, Meta(description="address to listen on; anything but loopback needs TLS")] = "127.0.0.1"
    port: Annotated[int, Meta(description="port to listen on; 0 picks a free one", ge=0, le=65535)] = DEFAULT_PORT
    state_dir: Annotated[str, Meta(description="where the master keeps its state; empty: $TITAN_HOME/state")] = ""
    uvloop: Annotated[bool, Meta(description="run on uvloop where it is installed")] = True
    drain: Annotated[float, Meta(description="seconds a stop waits for what runs", ge=0)] = 10.0


class WorkerSettings(msgspec.Struct, frozen=True):
    """``[worker]``: a machine's agent."""

    name: Annotated[str, Meta(description="name shown everywhere; empty: host name and a number")] = ""
    slots: Annotated[int, Meta(description="attempts at a time; 0: as many as CPUs", ge=0, le=65536)] = 0
    caps: Annotated[str, Meta(description="capabilities, separated by commas")] = ""
    permanent: Annotated[bool, Meta(description="permanent workers are never scaled down")] = True
    work_dir: Annotated[str, Meta(description="where it works; empty: $TITAN_HOME/work/NAME")] = ""
    environment: Annotated[
        str, Meta(description="further variables tasks inherit from the worker's environment, separated by commas")
    ] = ""
    output_limit: Annotated[int, Meta(description="bytes kept of an attempt's output", ge=4096)] = 64 << 20
    keep_outputs: Annotated[
        int, Meta(description="bytes of long outputs of ended attempts that a worker keeps to be read there", ge=0)
    ] = 1 << 30
    file_limit: Annotated[int, Meta(description="largest file a task may write, bytes; 0: no limit", ge=0)] = 1 << 40
    project_limit: Annotated[int, Meta(description="largest unpacked project, bytes", ge=1)] = 1 << 30
    unacknowledged: Annotated[int, Meta(description="bytes of unacknowledged results that stop new work", ge=1)] = (
        64 << 20
    )
    drain: Annotated[float, Meta(description="seconds a stopping worker waits for what runs", ge=0)] = 10.0
    uvloop: Annotated[bool, Meta(description="run on uvloop where it is installed")] = True


class ClientSettings(msgspec.Struct, frozen=True):
    """``[client]``: SDK and command line."""

    master: Annotated[str, Meta(description="addresses of the master, host:port[,host:port]")] = ""
    token: Annotated[str, Meta(description="the client token itself")] = ""
    token_file: Annotated[str, Meta(description="a file that holds the token")] = ""
    connect_timeout: Annotated[float, Meta(description="seconds to go on trying to reach a master", ge=0)] = 5.0
    reconnect_timeout: Annotated[
        float, Meta(description="seconds to go on trying when the master went away in the middle of a call", ge=0)
    ] = 60.0


class SchedulerSettings(msgspec.Struct, frozen=True):
    """``[scheduler]``: the decisions."""

    crash_limit: Annotated[int, Meta(description="lost workers until a task is DEAD", ge=1)] = 5
    prefetch: Annotated[float, Meta(description="seconds of work a worker may hold beyond its slots", ge=0)] = 0.02
    recall_after: Annotated[float, Meta(description="seconds until waiting work moves to an idle worker", ge=0)] = 0.02
    suspect_after: Annotated[float, Meta(description="seconds of silence until a worker gets nothing new", gt=0)] = 5.0
    lost_after: Annotated[float, Meta(description="seconds of silence until its work runs elsewhere", gt=0)] = 15.0
    heartbeat: Annotated[float, Meta(description="seconds between heartbeats", gt=0)] = 1.0
    recovery_grace: Annotated[
        float, Meta(description="seconds a restarted master waits for its workers before it runs old work anew", ge=0)
    ] = 10.0
    keep_copies: Annotated[float, Meta(description="seconds workers keep a finished run's files", ge=0)] = 3600.0


class StoreSettings(msgspec.Struct, frozen=True):
    """``[store]``: what is kept, how safely and for how long."""

    durability: Annotated[
        Literal["disk", "os", "memory"],
        Meta(description="a commit survives: disk a power cut, os a killed process, memory nothing"),
    ] = "disk"
    keep_runs: Annotated[int, Meta(description="finished runs kept at most", ge=0)] = 10_000
    keep_days: Annotated[float, Meta(description="days a finished run is kept at most", ge=0)] = 30.0
    free_space: Annotated[int, Meta(description="bytes that must be free to accept new work", ge=0)] = 256 << 20


class LimitSettings(msgspec.Struct, frozen=True):
    """``[limits]``: none of them can be turned off."""

    hello_timeout: Annotated[float, Meta(description="seconds a new connection has to prove itself", gt=0)] = 5.0
    strangers: Annotated[int, Meta(description="connections at a time that have not proved themselves", ge=1)] = 512
    strangers_per_address: Annotated[int, Meta(description="the same, from one address", ge=1)] = 64
    max_message: Annotated[int, Meta(description="longest message, bytes", ge=1 << 20)] = 192 << 20
    unfinished: Annotated[
        int, Meta(description="bytes of unfinished messages that all connections may hold together", ge=1 << 20)
    ] = 1 << 30
    undrained: Annotated[int, Meta(description="bytes a peer may leave unread before it is dropped", ge=1 << 16)] = (
        64 << 20
    )
    undrained_seconds: Annotated[float, Meta(description="seconds it may do so", gt=0)] = 30.0
    kv: Annotated[int, Meta(description="bytes of all keys and values together", ge=0)] = 64 << 20
    kv_value: Annotated[int, Meta(description="bytes of one value", ge=0)] = 1 << 20
    uncommitted: Annotated[int, Meta(description="bytes of uncommitted facts that stop new assignments", ge=1)] = (
        64 << 20
    )
    log_head: Annotated[int, Meta(description="bytes the master keeps of an output's beginning", ge=0)] = 1 << 20
    log_tail: Annotated[int, Meta(description="bytes the master keeps of an output's end", ge=0)] = 1 << 20
    project: Annotated[int, Meta(description="largest project archive, bytes", ge=1)] = 256 << 20


class Settings(msgspec.Struct, frozen=True):
    """All of it."""

    master: MasterSettings = MasterSettings()
    worker: WorkerSettings = WorkerSettings()
    client: ClientSettings = ClientSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    store: StoreSettings = StoreSettings()
    limits: LimitSettings = LimitSettings()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: type(field.default) for field in msgspec.structs.fields(Settings)
}

SHORT_NAMES = {"TITAN_ADDR": ("client", "master"), "TITAN_TOKEN": ("client", "token")}
"""Variables with a shorter name of their own."""


def load(options: Mapping[str, Mapping[str, Any]] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force. ``options`` are those given on the command line, by section; None means not given.

    Raises:
        InvalidUsage: a value of the wrong type or out of range, an unknown key; the message says where it stands.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, dict[str, _Given]] = {section: {} for section in SECTIONS}
    for path in (home(environ) / "titan.toml", Path("titan.toml")):
        _from_file(path, values)
    _from_environment(environ, values)
    for section, given in (options or {}).items():
        for key, value in given.items():
            if value is not None:
                values[section][key] = _Given(value, f"--{key.replace('_', '-')}")
    sections: dict[str, Any] = {section: _checked(cls, values[section]) for section, cls in SECTIONS.items()}
    return Settings(**sections)


class _Given(NamedTuple):
    value: Any
    where: str
    """The option, the variable, or the file with the key."""


def _checked(cls: type[msgspec.Struct], given: Mapping[str, _Given]) -> msgspec.Struct:
    types = get_type_hints(cls, include_extras=True)
    found = {}
    for key, (value, where) in given.items():
        try:
            found[key] = msgspec.convert(value, types[key], strict=False)
        except msgspec.ValidationError:
            raise InvalidUsage(f"{where}: {value!r} is not {_wanted(types[key])}") from None
    return cls(**found)


def _wanted(kind: Any) -> str:
    """What a setting may be, in words."""
    plain, *metas = get_args(kind)
    if get_origin(plain) is Literal:
        return f"one of {', '.join(get_args(plain))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[plain]
    bounds = {"ge": "at least", "gt": "above", "le": "at most"}
    limits = [(said, getattr(meta, name)) for meta in metas for name, said in bounds.items()]
    return ", ".join((words, *(f"{said} {limit}" for said, limit in limits if limit is not None)))


def _from_file(path: Path, values: dict[str, dict[str, _Given]]) -> None:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidUsage(f"{path}: {error}") from None
    for section, table in document.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise InvalidUsage(f"{path}: [{section}] is not a section; there are {', '.join(SECTIONS)}")
        known = SECTIONS[section].__struct_fields__
        for key, value in table.items():
            if key not in known:
                raise InvalidUsage(f"{path}: [{section}] has no key '{key}'; there are {', '.join(known)}")
            values[section][key] = _Given(value, f"{path}: [{section}] {key}")


def _from_environment(environ: Mapping[str, str], values: dict[str, dict[str, _Given]]) -> None:
    for section, cls in SECTIONS.items():
        for key in cls.__struct_fields__:
            name = f"TITAN_{section}_{key}".upper()
            if name in environ:
                values[section][key] = _Given(environ[name], name)
    for name, (section, key) in SHORT_NAMES.items():
        if environ.get(name):
            values[section][key] = _Given(environ[name], name)


def home(environ: Mapping[str, str] | None = None) -> Path:
    """TITAN_HOME: where state, work directories and tokens live unless told otherwise."""
    environ = os.environ if environ is None else environ
    if environ.get("TITAN_HOME"):
        return Path(environ["TITAN_HOME"]).expanduser()
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path("~/.local/state").expanduser()) / "titan-fast"


def parse_addresses(text: str) -> list[tuple[str, int]]:
    """``host:port[,host:port]``; an empty text is the default master on this machine.

    Raises:
        InvalidUsage: an address without a host or with an impossible port.
    """
    if not text.strip():
        return [("127.0.0.1", DEFAULT_PORT)]
    addresses = []
    for part in text.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not colon:
            host, port = part.strip(), str(DEFAULT_PORT)
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidUsage(
                f"'{part.strip()}' is not an address", hint="write host:port, for example 127.0.0.1:9090"
            )
        addresses.append((host.strip("[]"), int(port)))
    return addresses


class Door(msgspec.Struct, frozen=True):
    """How code inside a task reaches the master: through its worker's agent, for its own attempt."""

    path: str
    """A unix socket."""
    fence: int
    """The attempt."""
    token: str
    """What proves that one is part of it."""


def find_door(environ: Mapping[str, str] | None = None) -> Door | None:
    """The door of the task this process is part of. None outside of tasks, and where the environment names a master.

    Raises:
        InvalidUsage: the variables are not those a task was given.
    """
    environ = os.environ if environ is None else environ
    path = environ.get("TITAN_AGENT", "")
    if not path or environ.get("TITAN_ADDR") or environ.get("TITAN_CLIENT_MASTER"):
        return None
    fence = re.fullmatch("([0-9]{1,8})[.]([0-9]{1,13})", environ.get("TITAN_FENCE", ""))
    token = environ.get("TITAN_AGENT_TOKEN", "")
    if fence is None or not token:
        raise InvalidUsage(
            "TITAN_AGENT is set, but TITAN_FENCE and TITAN_AGENT_TOKEN are not what a task is given",
            hint="leave all three as they are inside of a task, and unset TITAN_AGENT elsewhere",
        )
    return Door(path, make_fence(int(fence[1]), int(fence[2])), token)


def token_path(host: str, port: int, role: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where a master that was started with this home wrote the token of a role."""
    return home(environ) / "tokens" / f"{host.replace(':', '_')}_{port}.{role}"


def find_token(settings: ClientSettings, addresses: list[tuple[str, int]], role: str) -> str:
    """The token for a role, in the order the documentation gives.

    Raises:
        NoToken: nowhere; the message lists where we looked.
    """
    if settings.token_file:
        return _read_token(Path(settings.token_file))
    if settings.token:
        return settings.token
    paths = [token_path(host, port, role) for host, port in addresses]
    for path in paths:
        if path.exists():
            return _read_token(path)
    where = ", ".join(str(path) for path in paths)
    raise NoToken(
        f"no {role} token: --token-file and TITAN_TOKEN are not set and there is no {where}",
        hint="is the master running, with the same TITAN_HOME? Copy its token file here, or name it with --token-file",
    )


def _read_token(path: Path) -> str:
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NoToken(f"cannot read the token file {path}: {error}") from None
    if not token:
        raise NoToken(f"the token file {path} is empty")
    return token


def capabilities(text: str) -> tuple[str, ...]:
    """``GPU,HIGH_MEM`` as a sorted tuple without doubles; GENERAL means none."""
    return tuple(sorted({cap.strip() for cap in text.split(",")} - {"", "GENERAL"}))
