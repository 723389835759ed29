"""Data between tasks: keys and their values, names of artifacts."""

from __future__ import annotations

from titan_fast.errors import Conflict, NoSuchKey, Stopping, TitanError, TooLarge
from titan_fast.scheduler.commands import Answer, Refuse
from titan_fast.scheduler.events import ArtifactPublishRequested, KvSetRequested
from titan_fast.scheduler.facts import NO_KEY, ArtifactPublished, Key, KvChanged
from titan_fast.scheduler.state import Entry, Outbox, State


def on_kv_set_requested(state: State, event: KvSetRequested, out: Outbox) -> None:
    """Compare-and-set: all or nothing, and in the order of arrival, as there is one core."""
    old = state.kv.get(event.name)
    try:
        if state.stopping:
            raise Stopping
        found = old.revision if old is not None else 0
        if event.expect >= 0 and event.expect != found:
            raise Conflict(
                f"key '{event.name}' is at revision {found}, not at {event.expect}"
                if found
                else f"there is no key '{event.name}', revision {event.expect} was expected",
                hint=f"titan-fast kv get {event.name} tells what it is now",
            )
        if event.value is None and old is None:
            raise NoSuchKey(event.name)
        if event.value is not None:
            _check_room(state, event.name, event.value, old)
    except TitanError as error:
        out.command(Refuse(event.ticket, error))
        return
    revision = _change(state, event.name, event.value, event.ttl, event.key, out)
    if event.ttl:
        state.timer(event.ttl, ("kv_due", event.name, revision))
    out.command(Answer(event.ticket, revision))


def _check_room(state: State, name: str, value: bytes, old: Entry | None) -> None:
    more = len(value) - len(old.value) if old is not None else len(value) + len(name)
    if state.kv_size + more > state.tuning.kv_bytes:
        raise TooLarge(
            f"all keys together have {state.kv_size} bytes, {state.tuning.kv_bytes} are allowed",
            hint="publish large values as artifacts, or raise limits.kv",
        )


def _change(state: State, name: str, value: bytes | None, ttl: float, key: Key, out: Outbox) -> int:
    """Returns the revision."""
    old = state.kv.pop(name, None)
    if old is not None:
        state.kv_size -= len(name) + len(old.value)
    state.revision += 1
    expires_at = state.wall + ttl if ttl else 0.0
    if value is not None:
        state.kv[name] = Entry(value, state.revision, expires_at)
        state.kv_size += len(name) + len(value)
    out.fact(KvChanged(state.wall, name, value, state.revision, expires_at, ttl, key=key))
    return state.revision


def key_is_due(state: State, out: Outbox, name: str, revision: int) -> None:
    """Its time to live is over, unless it was set again since."""
    entry = state.kv.get(name)
    if entry is not None and entry.revision == revision:
        _change(state, name, None, 0.0, NO_KEY, out)


def on_artifact_publish_requested(state: State, event: ArtifactPublishRequested, out: Outbox) -> None:
    out.fact(ArtifactPublished(state.wall, event.name, event.digest, event.size, key=event.key))
    out.command(Answer(event.ticket, 0))
