"""`--overlap auto`: all ranks choose alike, and a run that is resumed goes on with its choice, exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.settings.run import Settings
from resist_hvd.training import hiding
from resist_hvd.training.hiding import MEASURED, SKIPPED, Choice
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny
from .test_resume import assert_same_run, finished, run_of, stopped

FIRST = SKIPPED + MEASURED
"""Rounds before the choice."""


@pytest.fixture
def _chooses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hiding, "choose", lambda *_: Choice(1, "as a test has it"))


def settings_of(world: World, rounds: int = FIRST + 2, **changes: Any) -> Settings:
    return tiny.settings(world, iterations=2 * rounds, overlap="auto", min_blocks=3, **changes)


def overlaps(run: Run) -> list[int]:
    """T of each round on record."""
    return [line.get("overlap", 0) for line in tiny.timeless_lines(run.folder / "rounds.jsonl")]


@pytest.mark.world_size(2)
@pytest.mark.parametrize("method", ["resist", "local-sgd"])
def test_all_ranks_choose_what_was_measured(
    method: Any, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hiding, "LOST", {(2, 1): 0.0})
    monkeypatch.setattr(hiding, "WORTHWHILE", 0.0)  # however long steps take on a busy machine
    run = tiny.make_run(settings_of(world, method=method), world, folder)
    said: list[str] = []
    with tiny.Watching(run) as journal:
        monkeypatch.setattr(journal, "remark", said.append)
        train(run, journal)
    chosen = run.progress.overlap
    assert chosen == 1
    assert set(world.gather([chosen]).ravel()) == {chosen}
    assert [f"T = {chosen} " in sentence for sentence in said] == [True]
    assert run.method.overlaps
    if world.is_first:
        assert overlaps(run) == [0] * FIRST + [1] * 2


@pytest.mark.world_size(2)
@pytest.mark.usefixtures("_chooses_one")
@pytest.mark.parametrize("changes", [{"momentum": "keep"}, {"method": "local-sgd"}])
def test_a_resumed_run_goes_on_with_the_choice(changes: dict[str, Any], world: World, folder: Path) -> None:
    settings = settings_of(world, rounds=FIRST + 3, checkpoint_every=FIRST + 1, **changes)
    whole = finished(replace(settings, output=folder / "whole"), world)
    stopped(replace(settings, output=folder / "cut"), world, before_batch=2 * FIRST + 3)
    resumed = run_of(replace(settings, output=folder / "cut", resume=True), world)
    assert resumed.progress.round == FIRST + 1
    assert resumed.progress.overlap == 1
    said: list[object] = []
    journal = tiny.Watching(resumed)
    journal.remark = said.append  # type: ignore[method-assign]
    train(resumed, journal)
    assert said == []  # it does not choose again
    assert_same_run(whole, resumed, world)
    if world.is_first:
        assert overlaps(resumed) == [0] * FIRST + [1] * 3


@pytest.mark.world_size(2)
@pytest.mark.usefixtures("_chooses_one")
def test_a_run_that_was_stopped_while_measuring_measures_anew(world: World, folder: Path) -> None:
    settings = settings_of(world, rounds=2 + FIRST + 1, checkpoint_every=2, output=folder)
    stopped(settings, world, before_batch=5)
    resumed = finished(replace(settings, resume=True), world)
    if world.is_first:
        assert overlaps(resumed) == [0] * (2 + FIRST) + [1]
    # Up to there it is what it would have been without a choice.
    without = finished(replace(settings, overlap=0, output=folder / "without", max_rounds=2 + FIRST), world)
    finished(replace(settings, output=folder / "until", max_rounds=2), world)
    until = finished(replace(settings, output=folder / "until", max_rounds=2 + FIRST, resume=True), world)
    assert torch.equal(until.method.subnet.parameters_flat, without.method.subnet.parameters_flat)


@pytest.mark.world_size(2)
@pytest.mark.usefixtures("_chooses_one")
def test_rounds_of_another_length_are_measured_anew(world: World, folder: Path) -> None:
    settings = settings_of(world, output=folder, max_rounds=FIRST)
    assert finished(settings, world).progress.overlap == 1
    assert run_of(replace(settings, resume=True), world).method.overlaps
    other = run_of(replace(settings, resume=True, local_iterations=3), world)
    assert other.progress.overlap is None
    assert not other.method.overlaps
    assert run_of(replace(settings, resume=True, overlap=0), world).overlap == 0


@pytest.mark.world_size(2)
@pytest.mark.usefixtures("_chooses_one")
def test_a_warm_up_is_not_measured(world: World, folder: Path) -> None:
    settings = settings_of(world, rounds=2 + FIRST + 1)
    run = finished(replace(settings, warmup_epochs=settings.epochs * 2 / (2 + FIRST + 1), output=folder), world)
    if world.is_first:
        assert overlaps(run) == [0] * (2 + FIRST) + [1]
