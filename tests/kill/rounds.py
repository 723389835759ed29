"""Rounds: a fresh cluster under load, a list of faults in an order by chance, an end in time, a verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from chaos import Chaos
from figures import Figures

CLIENTS = 4


def play(folder: Path, figures: Figures, faults: Sequence[str], rounds: int) -> None:
    """The same faults in every round; seeds count from 1. A good round's folder goes, a bad one stays and is named."""
    with figures:
        for seed in range(1, rounds + 1):
            place = folder / f"round{seed}"
            place.mkdir()
            play_one(place, figures, faults, seed)
            shutil.rmtree(place)


def play_one(place: Path, figures: Figures, faults: Sequence[str], seed: int) -> None:
    with Chaos(place, seed) as chaos:
        chaos.submit_for_ever(CLIENTS)
        chaos.break_things(faults)
        quiet = time.monotonic()
        verdict = chaos.finish()
        figures.add(verdict, time.monotonic() - quiet)
    print(f"seed {seed}: {verdict.counts} excused: {verdict.excuses}")
    assert not verdict.broken, f"seed {seed}, {place / 'history'}:\n{verdict.story()}"
