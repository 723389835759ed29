"""The judge of keys: histories that may be, and for each of its rules one that must not be."""

from __future__ import annotations

import pytest
from keys import Keys, Wish

from titan_fast.protocol import messages as msg
from titan_fast.scheduler.facts import NO_KEY, Key, KvChanged
from titan_fast.testing.simulation.world import World


class Broken(AssertionError):
    pass


class Story:
    """One client and one key, second by second."""

    def __init__(self) -> None:
        self.world = World(1)
        self.keys = Keys(self.world, self.must, lambda: False)
        self.counter = 0

    @staticmethod
    def must(holds: object, *words: object) -> None:
        if not holds:
            raise Broken(*words)

    def later(self, seconds: float = 1.0) -> None:
        self.world.now += seconds

    def ask(self, value: bytes | None = b"v", expect: int = -1, ttl: float = 0.0) -> msg.Once:
        self.counter += 1
        once = msg.Once("c", self.counter)
        self.keys.asked(once, Wish("k", value, expect, ttl, self.world.now))
        return once

    def change(self, once: msg.Once | None, revision: int, value: bytes | None = b"v", ttl: float = 0.0) -> KvChanged:
        key = NO_KEY if once is None else Key(once.client, once.counter)
        made = KvChanged(0.0, "k", value, revision, ttl=ttl, key=key)
        self.keys.made(made)
        return made

    def set(self, revision: int, value: bytes | None = b"v", expect: int = -1, ttl: float = 0.0) -> msg.Once:
        """Asked, made, on the disk and acknowledged, a second later."""
        once = self.ask(value, expect, ttl)
        self.keys.committed(self.change(once, revision, value, ttl))
        self.later()
        self.keys.acknowledged(once, revision)
        return once


def test_what_may_be() -> None:
    story = Story()
    story.keys.not_seen("k", 0.0)
    story.set(1, b"one", expect=0)
    story.keys.seen("k", story.world.now, 1, b"one")
    late = story.world.now
    story.later()
    story.set(2, b"two", expect=1)
    story.keys.seen("k", late, 1, b"one")
    story.keys.refused(story.ask(expect=1), "conflict")
    story.set(3, None)
    story.keys.not_seen("k", story.world.now)
    story.set(4, b"short", ttl=5.0)
    story.later(5.0)
    story.keys.committed(story.change(None, 5, None))
    story.keys.not_seen("k", story.world.now)


def test_an_acknowledged_change_is_on_the_disk() -> None:
    story = Story()
    once = story.ask()
    story.change(once, 1)
    with pytest.raises(Broken, match="acknowledged"):
        story.keys.acknowledged(once, 1)


def test_a_request_makes_one_change() -> None:
    story = Story()
    once = story.set(1)
    with pytest.raises(Broken, match="second"):
        story.keys.committed(story.change(once, 2))


def test_nothing_changes_that_nobody_asked_for() -> None:
    story = Story()
    with pytest.raises(Broken, match="never asked"):
        story.keys.committed(story.change(None, 1))
    with pytest.raises(Broken, match="not what"):
        story.keys.committed(story.change(story.ask(b"v"), 2, b"w"))


def test_revisions_grow() -> None:
    story = Story()
    story.set(2)
    with pytest.raises(Broken, match="comes after"):
        story.keys.committed(story.change(story.ask(), 2))


def test_of_two_who_expect_one_revision_one_wins() -> None:
    story = Story()
    story.set(1)
    story.set(2, expect=1)
    with pytest.raises(Broken, match="expected"):
        story.keys.committed(story.change(story.ask(expect=1), 3))


def test_who_expects_what_is_there_is_not_refused() -> None:
    story = Story()
    story.set(1)
    story.later()
    with pytest.raises(Broken, match="as it is"):
        story.keys.refused(story.ask(expect=1), "conflict")
    with pytest.raises(Broken, match="is there"):
        story.keys.refused(story.ask(None), "no_such_key")


def test_a_change_that_was_made_is_not_refused() -> None:
    story = Story()
    once = story.ask()
    story.keys.committed(story.change(once, 1))
    with pytest.raises(Broken, match="is made, and refused"):
        story.keys.refused(once, "conflict")


def test_nobody_sees_what_is_old_or_not_on_the_disk() -> None:
    story = Story()
    story.set(1, b"one")
    story.later()
    story.set(2, b"two")
    story.later()
    with pytest.raises(Broken, match="after revision"):
        story.keys.seen("k", story.world.now, 1, b"one")
    with pytest.raises(Broken, match="is shown as"):
        story.keys.seen("k", story.world.now, 2, b"one")
    story.change(story.ask(b"three"), 3, b"three")
    with pytest.raises(Broken, match="not on the disk"):
        story.keys.seen("k", story.world.now, 3, b"three")


def test_nobody_misses_what_is_there() -> None:
    story = Story()
    story.set(1)
    story.later()
    with pytest.raises(Broken, match="not found"):
        story.keys.not_seen("k", story.world.now)


def test_a_refusal_may_rest_on_what_a_crash_took_back_but_not_after_it() -> None:
    story = Story()
    story.set(1)
    since = story.world.now
    story.later()
    story.change(story.ask(None), 2, None)
    story.keys.not_seen("k", since)
    story.later()
    story.keys.a_master_starts()
    story.later()
    with pytest.raises(Broken, match="not found"):
        story.keys.not_seen("k", story.world.now)


def test_a_value_lives_as_long_as_it_was_given_to_live() -> None:
    story = Story()
    story.set(1, ttl=5.0)
    with pytest.raises(Broken, match="before its time"):
        story.keys.committed(story.change(None, 2, None))
    story = Story()
    story.set(1, ttl=5.0)
    story.later(6.0)
    with pytest.raises(Broken, match="after its time"):
        story.keys.seen("k", story.world.now, 1, b"v")
