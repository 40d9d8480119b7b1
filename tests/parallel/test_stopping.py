"""A run that is told to stop, on any rank, stops after that round on all; resumed, it is the run that never stopped."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.errors import Stopped
from resist_hvd.methods.resist import WarmUp
from resist_hvd.settings.run import Settings
from resist_hvd.training import loop, rounds
from resist_hvd.training.run import Run

from . import tiny

ROUNDS = 4


def run_of(settings: Settings, world: World, *, told_in_batch: int | None = None, rank: int = 0) -> Run:
    """A run at its beginning or at its checkpoint, in which one rank is told to stop as it takes a batch."""

    def alter(images: torch.Tensor, batch: int) -> torch.Tensor:
        if batch == told_in_batch and world.rank == rank:
            world.stop.signal = signal.SIGUSR2
        return images

    data = tiny.Altered(tiny.source(settings, rank=world.rank, size=world.size), alter)
    return tiny.make_stored_run(settings, world, data)


def train(run: Run) -> Run:
    with tiny.Watching(run) as journal:
        loop.train(run, journal)
    return run


def stopped(run: Run) -> str:
    """Train until the run stops; return what it says."""
    world = run.world
    try:
        with pytest.raises(Stopped) as caught:
            train(run)
    finally:
        world.stop.signal = 0
    assert not world.stop.heeded
    sentences = world.gather_objects(str(caught.value))
    assert len(set(sentences)) == 1
    return sentences[0]


def assert_same(whole: Run, resumed: Run) -> None:
    assert torch.equal(whole.method.subnet.parameters_flat, resumed.method.subnet.parameters_flat)
    assert whole.method.partition == resumed.method.partition
    for name in ("round", "samples", "accuracy", "best_accuracy", "bytes_sent", "evaluated_round"):
        assert getattr(whole.progress, name) == getattr(resumed.progress, name), name
    if whole.world.is_first:
        for name in ("rounds.jsonl", "eval.jsonl"):
            assert tiny.timeless_lines(whole.folder / name) == tiny.timeless_lines(resumed.folder / name), name
        numbers = [line["round"] for line in tiny.timeless_lines(resumed.folder / "rounds.jsonl")]
        assert numbers == list(range(ROUNDS))


def settings_of(world: World, **changes: Any) -> Settings:
    """Four rounds of two local iterations, evaluated after each; no checkpoint before the end."""
    return replace(tiny.settings(world, iterations=8, evaluate_every=1, momentum="keep", min_blocks=3), **changes)


@pytest.fixture(scope="module")
def whole(world: World, folder_of_module: Path) -> Run:
    """The run that never stopped."""
    return train(run_of(settings_of(world, output=folder_of_module / "whole"), world))


@pytest.mark.parametrize(("batch", "culprit"), [(0, "last"), (3, "first"), (7, "last")])
def test_told_on_one_rank_all_stop_after_the_round_and_go_on(
    batch: int, culprit: str, whole: Run, world: World, folder: Path
) -> None:
    settings = settings_of(world, output=folder / "cut")
    rank = 0 if culprit == "first" else world.size - 1
    sentence = stopped(run_of(settings, world, told_in_batch=batch, rank=rank))
    done = batch // 2 + 1
    place = folder / "cut"
    assert sentence == (
        f"Stopped by USR2 after round {done}; checkpoint {place}/checkpoints/round-{done:06d}; "
        f"go on with --resume --output {place}"
    )
    assert (place / "checkpoints" / f"round-{done:06d}" / "manifest.json").is_file()
    world.barrier()
    resumed = train(run_of(replace(settings, resume=True), world))
    assert_same(whole, resumed)


def test_stopped_in_each_round_it_still_gets_there(whole: Run, world: World, folder: Path) -> None:
    settings = settings_of(world, output=folder / "cut", resume=True)
    for done in range(1, ROUNDS + 1):
        assert f"after round {done};" in stopped(run_of(settings, world, told_in_batch=1, rank=world.size - 1))
        world.barrier()
    assert_same(whole, train(run_of(settings, world)))


def test_told_while_it_evaluates_it_stops_when_that_is_done(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(world, output=folder)
    evaluate = loop.evaluate

    def told(*arguments: Any) -> Any:
        if world.rank == world.size - 1:
            world.stop.signal = signal.SIGTERM
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", told)
    assert stopped(run_of(settings, world)).startswith("Stopped by TERM after round 1; checkpoint ")
    if world.is_first:
        assert [line["round"] for line in tiny.timeless_lines(folder / "eval.jsonl")] == [1]


def test_a_run_that_stops_early_leaves_its_trace(world: World, folder: Path) -> None:
    stopped(run_of(settings_of(world, output=folder, trace=True), world, told_in_batch=1, rank=world.size - 1))
    assert world.stopwatch.spans is None
    if world.is_first:
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        assert {event["pid"] for event in events if event["name"] == "synchronise"} == set(range(world.size))


def test_a_trace_that_cannot_be_written_does_not_hide_that_the_run_was_stopped(
    world: World, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(settings_of(world, output=folder, trace=True), world, told_in_batch=1)
    if world.is_first:
        (folder / "trace.json").mkdir()
    world.barrier()
    stopped(run)
    assert ("There is no trace: Cannot write: Is a directory" in capfd.readouterr().err) == world.is_first
    assert (folder / "checkpoints/latest").is_file()


def test_what_lies_between_rounds_is_no_rounds_time(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(world, output=folder, checkpoint_every=1)
    settings = replace(settings, warmup_epochs=settings.epochs / 4)
    # A clock on which evaluations, checkpoints and the hand-over by the warm-up take an hour each.
    hour, hours = 3600.0, [0.0]
    now = rounds.perf_counter
    monkeypatch.setattr(rounds, "perf_counter", lambda: now() + hours[0] * hour)

    def lasting(action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            hours[0] += 1
            return action(*arguments)

        return act

    for name in ("evaluate", "save"):
        monkeypatch.setattr(loop, name, lasting(getattr(loop, name)))
    monkeypatch.setattr(WarmUp, "successor", lasting(WarmUp.successor))
    world.activity.rounds.clear()
    stopped(run_of(settings, world, told_in_batch=2))
    world.barrier()
    # It was to be evaluated as it stopped: the resumed run begins with that.
    run = train(run_of(replace(settings, resume=True), world))
    assert hours[0] >= 2 * ROUNDS + 1
    assert max(world.activity.rounds) < hour
    assert run.progress.seconds < hour
    if world.is_first:
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert len(lines) == ROUNDS
        assert max(value for line in lines for name, value in line.items() if name.startswith("seconds")) < hour
