"""A result that is a file is published under its task's name: with the outcome that is accepted, and with no other."""

from __future__ import annotations

from titan_fast.ids import Ending
from titan_fast.model.spec import Retry
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts
from titan_fast.testing.harness import Held, SchedulerHarness, array, task

DIGEST, NEWER = "ab" * 32, "cd" * 32


def end(
    harness: SchedulerHarness, held: Held, digest: str = DIGEST, ending: Ending = Ending.EXIT, code: int = 0
) -> None:
    """The worker tells an end that names a file of seven bytes."""
    harness.do(
        ev.AttemptsFinished(
            "w",
            [held.run],
            [held.index],
            [held.generation],
            [ending],
            [held.fence],
            [code],
            [1],
            [1],
            [f"artifact:{digest}".encode()],
            {0: 7},
        )
    )


def published(harness: SchedulerHarness) -> list[tuple[str, str, int]]:
    found = [fact for fact in harness.facts if isinstance(fact, facts.ArtifactPublished)]
    return [(fact.name, fact.digest, fact.size) for fact in found]


def started(*tasks: object) -> tuple[SchedulerHarness, int, list[Held]]:
    harness = SchedulerHarness()
    harness.worker("w", 4)
    run = harness.submit(tasks)  # type: ignore[arg-type]
    return harness, run, harness.start("w")


def test_it_has_the_name_of_its_task_and_the_text_of_its_address() -> None:
    harness, run, (extract, second) = started(task("extract"), array("part", 1))
    end(harness, extract)
    end(harness, second, NEWER)
    assert published(harness) == [(f"{run}/extract", DIGEST, 7), (f"{run}/part[0]", NEWER, 7)]
    results = [fact.result for fact in harness.facts if isinstance(fact, facts.AttemptsEnded)]
    assert results == [[f"artifact:{DIGEST}".encode()], [f"artifact:{NEWER}".encode()]]


def test_it_is_published_before_its_run_has_ended() -> None:
    """What survives a crash is a prefix of the facts, and a run that has ended keeps what it promised."""
    harness, _, (held,) = started(task("a"))
    end(harness, held)
    kinds = [type(fact) for fact in harness.facts]
    assert kinds.index(facts.ArtifactPublished) < kinds.index(facts.RunEnded)


def test_one_that_comes_twice_or_too_late_publishes_nothing() -> None:
    harness, run, (held,) = started(task("a"))
    end(harness, held)
    end(harness, held, NEWER)
    assert published(harness) == [(f"{run}/a", DIGEST, 7)]
    harness, run, (held,) = started(task("a"))
    harness.lose("w")
    end(harness, held)
    harness.worker("w", 4)
    (again,) = harness.start("w")
    end(harness, held)
    assert published(harness) == []
    end(harness, again, NEWER)
    assert published(harness) == [(f"{run}/a", NEWER, 7)]


def test_only_a_success_publishes() -> None:
    harness, run, (held,) = started(task("a", retry=Retry(max=1)))
    end(harness, held, code=3)
    harness.advance(100.0)
    (held,) = harness.start("w")
    harness.cancel(run)
    end(harness, held)
    assert harness.run_state(run) == "CANCELLED"
    assert published(harness) == []


def test_a_retry_publishes_the_newer_one_under_the_same_name() -> None:
    harness, run, held = started(task("a"), task("bad"))
    by_name = {item.name: item for item in held}
    end(harness, by_name["a"])
    harness.end("w", [by_name["bad"]], code=1)
    harness.retry(run)
    (again,) = harness.start("w")
    end(harness, again, NEWER)
    assert published(harness) == [(f"{run}/a", DIGEST, 7), (f"{run}/bad", NEWER, 7)]


def test_a_text_that_looks_like_an_address_is_a_text() -> None:
    harness, _, held = started(task("a"))
    harness.end("w", held, result=f"artifact:{DIGEST}".encode())
    assert published(harness) == []
