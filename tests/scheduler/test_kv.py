"""The key-value space: compare-and-set in the order of arrival, values that live as long as asked, and all of it is
there after a restart. Names of artifacts are facts, no more."""

from __future__ import annotations

import pytest

from titan_fast.errors import Conflict, NoSuchKey, Stopping, TooLarge
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import SchedulerHarness


def changes(harness: SchedulerHarness) -> list[facts.KvChanged]:
    return [fact for fact in harness.facts if isinstance(fact, facts.KvChanged)]


def test_a_key_is_set_changed_and_taken_away() -> None:
    harness = SchedulerHarness()
    assert harness.set_key("a", b"1") == 1
    assert harness.set_key("a", b"2") == 2
    assert harness.key("a") == b"2"
    assert harness.set_key("a", None) == 3
    assert harness.key("a") is None
    assert [(fact.name, fact.value, fact.revision) for fact in changes(harness)] == [
        ("a", b"1", 1),
        ("a", b"2", 2),
        ("a", None, 3),
    ]


def test_revisions_grow_over_all_keys_and_never_come_again() -> None:
    harness = SchedulerHarness()
    seen = [harness.set_key("a", b"1"), harness.set_key("b", b"1"), harness.set_key("a", None)]
    seen += [harness.set_key("a", b"1"), harness.set_key("b", None)]
    harness.restart()
    seen.append(harness.set_key("b", b"1"))
    assert seen == sorted(set(seen))


def test_of_two_who_expect_the_same_revision_one_wins() -> None:
    harness = SchedulerHarness()
    revision = harness.set_key("counter", b"0")
    harness.set_key("counter", b"1", expect=revision)
    with pytest.raises(Conflict, match=f"is at revision {revision + 1}, not at {revision}"):
        harness.set_key("counter", b"1", expect=revision)
    assert harness.key("counter") == b"1"


def test_expecting_nothing_is_how_a_key_is_made_once() -> None:
    harness = SchedulerHarness()
    harness.set_key("lock", b"me", expect=0)
    with pytest.raises(Conflict):
        harness.set_key("lock", b"you", expect=0)
    with pytest.raises(Conflict, match="there is no key 'other', revision 7 was expected"):
        harness.set_key("other", b"x", expect=7)
    assert harness.key("lock") == b"me"


def test_what_is_not_there_cannot_be_taken_away() -> None:
    harness = SchedulerHarness()
    with pytest.raises(NoSuchKey):
        harness.set_key("nothing", None)
    assert not harness.facts


def test_a_refused_change_leaves_nothing_behind() -> None:
    harness = SchedulerHarness(Tuning(kv_bytes=10))
    harness.set_key("abc", b"1234567")
    for value in (b"12345678", b"x" * 100):
        with pytest.raises(TooLarge):
            harness.set_key("abc", value)
    with pytest.raises(TooLarge):
        harness.set_key("d", b"")
    assert len(changes(harness)) == 1
    harness.set_key("abc", None)
    harness.set_key("d", b"123456789")
    harness.set_key("d", b"")
    harness.set_key("abc", b"123456")
    assert harness.scheduler.state.kv_size == 10


def test_a_value_lives_as_long_as_asked() -> None:
    harness = SchedulerHarness()
    harness.set_key("a", b"1", ttl=5.0)
    harness.set_key("b", b"1")
    harness.advance(4.9)
    assert harness.key("a") == b"1"
    harness.advance(0.2)
    assert (harness.key("a"), harness.key("b")) == (None, b"1")
    assert changes(harness)[-1].value is None, "that it is gone survives a crash too"
    assert harness.scheduler.state.kv_size == 2


def test_a_value_that_was_set_again_does_not_die_of_the_old_one_s_age() -> None:
    harness = SchedulerHarness()
    harness.set_key("a", b"1", ttl=5.0)
    harness.advance(3.0)
    harness.set_key("a", b"2", ttl=5.0)
    harness.advance(3.0)
    assert harness.key("a") == b"2"
    harness.set_key("a", b"3")
    harness.advance(100.0)
    assert harness.key("a") == b"3"


def test_all_keys_are_there_after_a_restart_but_those_whose_time_is_over() -> None:
    harness = SchedulerHarness()
    harness.set_key("stays", b"1")
    harness.set_key("gone", b"1")
    harness.set_key("gone", None)
    harness.set_key("lives", b"1", ttl=10.0)
    harness.set_key("dies", b"1", ttl=1.0)
    harness.advance(0.5)
    harness.restart()
    assert harness.scheduler.state.kv_size == len("stays1lives1dies1")
    harness.advance(0.6)
    assert set(harness.scheduler.state.kv) == {"stays", "lives"}
    harness.advance(8.8)
    assert harness.key("lives") == b"1"
    harness.advance(0.2)
    assert harness.key("lives") is None


def test_a_wall_clock_that_was_set_back_makes_no_value_live_longer_than_asked() -> None:
    harness = SchedulerHarness()
    harness.set_key("a", b"1", ttl=10.0)
    harness.clock.ahead = -5000.0
    harness.restart()
    harness.advance(10.1)
    assert harness.key("a") is None


def test_a_change_that_was_not_committed_was_not_made() -> None:
    harness = SchedulerHarness()
    revision = harness.set_key("a", b"1")
    harness.commits_itself = False
    lost = harness.set_key("a", b"2")
    harness.restart()
    harness.commits_itself = True
    assert harness.key("a") == b"1"
    assert harness.set_key("a", b"3", expect=revision) > lost, "nobody meets that revision again with another value"


def test_a_request_is_stored_with_its_fact() -> None:
    harness = SchedulerHarness()
    key = facts.Key("client", 7)
    harness.do(
        ev.KvSetRequested(1, "a", b"1", key=key),
        ev.ArtifactPublishRequested(2, "report", "d" * 64, 12, key=key),
    )
    assert [fact.key for fact in harness.facts if isinstance(fact, facts.KEYED)] == [key, key]


def test_an_artifact_is_a_name_for_a_digest() -> None:
    harness = SchedulerHarness()
    harness.do(ev.ArtifactPublishRequested(5, "report", "d" * 64, 12))
    assert harness.facts == [facts.ArtifactPublished(harness.clock.wall, "report", "d" * 64, 12)]
    assert harness.commands == [cmd.Answer(5)]


def test_a_stopping_master_changes_no_keys() -> None:
    harness = SchedulerHarness()
    harness.do(ev.StopRequested())
    with pytest.raises(Stopping):
        harness.set_key("a", b"1")
