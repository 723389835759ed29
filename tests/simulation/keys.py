"""Keys as the disk and the clients know them: what a client is told must have been so at some moment while it waited.

Changes that were acknowledged are on the disk, once each and in the order of their revisions; what is read is not older
than what was on the disk when it was asked for. A refusal promises nothing and does not wait for the disk, so it may
rest on a change that a crash took back (`_Key.believed`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import msgspec

from titan_fast.protocol import messages as msg
from titan_fast.scheduler.facts import NO_KEY, KvChanged
from titan_fast.testing.simulation.world import World

LATE = 0.1
"""Seconds that a timer may take to be noticed."""


class Wish(msgspec.Struct, frozen=True):
    """A change that a client asks for. ``value`` None takes the key away."""

    name: str
    value: bytes | None
    expect: int
    ttl: float
    since: float


class _Version(msgspec.Struct):
    """A value of a key on the disk. Times are the world's."""

    revision: int
    value: bytes | None
    since: float
    ttl: float = 0.0
    asked: float = 0.0
    acknowledged: float = 0.0
    """0.0: its client has not been told."""


class _Key:
    def __init__(self) -> None:
        self.versions = [_Version(0, None, 0.0)]
        self.believed = [(0.0, 0)]
        """(from when on, revision) as a master has it in memory, durable or not; revision 0 is no such key."""

    @property
    def revision(self) -> int:
        """On the disk; 0 is no such key."""
        last = self.versions[-1]
        return 0 if last.value is None else last.revision

    def believed_since(self, when: float) -> set[int]:
        """Every revision that a master had in memory at that time or later."""
        before = max(place for place, (since, _) in enumerate(self.believed) if since <= when)
        return {revision for _, revision in self.believed[before:]}


class Keys:
    """Ground truth about keys. ``must`` and ``has_jumped`` are the oracle's."""

    def __init__(self, world: World, must: Callable[..., None], has_jumped: Callable[[], bool]) -> None:
        self._world = world
        self._must = must
        self._has_jumped = has_jumped
        self._keys: dict[str, _Key] = defaultdict(_Key)
        self._wishes: dict[tuple[str, int], Wish] = {}
        self._done: dict[tuple[str, int], _Version] = {}
        """What requests were carried out, by the disk."""
        self._revision = 0

    # ------------------------------------------------------------ the disk

    def made(self, item: KvChanged) -> None:
        self._keys[item.name].believed.append((self._world.now, 0 if item.value is None else item.revision))

    def a_master_starts(self) -> None:
        for key in self._keys.values():
            key.believed.append((self._world.now, key.revision))

    def committed(self, item: KvChanged) -> None:
        key, name = self._keys[item.name], f"revision {item.revision} of key {item.name}"
        self._must(item.revision > self._revision, name, "comes after revision", self._revision)
        self._revision = item.revision
        version = _Version(item.revision, item.value, self._world.now, item.ttl)
        if item.key == NO_KEY:
            self._must(item.value is None, name, "was never asked for")
            self._is_over(name, key.versions[-1])
        else:
            request = item.key.client, item.key.counter
            wish = self._wishes[request]
            version.asked = wish.since
            self._must(request not in self._done, name, "was asked for once and is the second")
            self._must((item.name, item.value) == (wish.name, wish.value), name, "is not what was asked for")
            if wish.expect >= 0:
                self._must(wish.expect == key.revision, name, "expected", wish.expect, "and there was", key.revision)
            self._done[request] = version
        key.versions.append(version)

    def _is_over(self, name: str, version: _Version) -> None:
        over = version.asked + version.ttl
        self._must(version.ttl, name, "ends a value that lives for ever")
        if not self._has_jumped():
            self._must(self._world.now >= over, name, "ends a value before its time")

    # ------------------------------------------------------------ clients

    def asked(self, key: msg.Once, wish: Wish) -> None:
        self._wishes[key.client, key.counter] = wish

    def acknowledged(self, key: msg.Once, revision: int) -> None:
        done = self._done.get((key.client, key.counter))
        told = done.revision if done is not None else "nothing"
        self._must(told == revision, "a change of a key is acknowledged as", revision, "and the disk has", told)
        assert done is not None
        done.acknowledged = self._world.now

    def refused(self, key: msg.Once, why: str) -> None:
        """``why``: the code of the error."""
        wish = self._wishes[key.client, key.counter]
        name = f"a change of key {wish.name}"
        self._must((key.client, key.counter) not in self._done, name, "is made, and refused as", why)
        believed = self._keys[wish.name].believed_since(wish.since)
        if why == "conflict":
            self._must(believed != {wish.expect}, name, "expected", wish.expect, "as it is, and is refused")
        else:
            self._must(0 in believed, name, "is refused as", why, "and the key is there")

    def seen(self, name: str, since: float, revision: int, value: bytes) -> None:
        """A client asked at ``since``, and is told this now."""
        versions = self._keys[name].versions
        found = [version for version in versions if version.revision == revision]
        self._must(found, f"key {name} is shown with revision {revision}, which is not on the disk")
        version = found[0]
        self._must(version.value == value, f"key {name}, revision {revision}, is shown as {value!r}: {version}")
        later = [other.revision for other in versions if other.revision > revision and other.since < since]
        self._must(not later, f"key {name} is shown with revision {revision}, after revision {later}")
        if version.ttl and version.acknowledged and not self._has_jumped():
            over = version.acknowledged + version.ttl + LATE
            self._must(since < over, f"key {name}, revision {revision}, is shown after its time")

    def not_seen(self, name: str, since: float) -> None:
        self._must(0 in self._keys[name].believed_since(since), f"key {name} is there, and is not found")
