"""What a run says of each rank: where its seconds went, and a trace on one clock."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.comm.probe import clock_offsets
from resist_hvd.comm.world import World
from resist_hvd.training.loop import train
from resist_hvd.training.trace import TRACED_ROUNDS

from . import tiny

RANK = ["seconds_compute", "seconds_data", "seconds_sync", "seconds_trunk", "seconds_blocks"]


@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout"])
def test_every_ranks_seconds(method: Any, world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, method=method, min_blocks=3), world, folder)
    train(run, tiny.Watching(run))
    if not world.is_first:
        return
    for line in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines()):
        ranks = line["ranks"]
        assert list(ranks) == RANK
        assert all(len(values) == world.size and min(values) >= 0 for values in ranks.values())
        for name in RANK[:3]:
            assert sum(ranks[name]) / world.size == pytest.approx(line[name], abs=2e-6)
        communicates = world.size > 1 and method != "ensemble"
        assert (sum(ranks["seconds_trunk"]) > 0) == communicates
        assert (sum(ranks["seconds_blocks"]) > 0) == (method == "resist")
        within = "seconds_compute" if method == "data-parallel" else "seconds_sync"
        for trunk, blocks, whole in zip(ranks["seconds_trunk"], ranks["seconds_blocks"], ranks[within], strict=True):
            assert trunk + blocks <= whole + 3e-6


@pytest.mark.world_size(2)
@pytest.mark.parametrize("method", ["resist", "local-sgd"])
def test_seconds_that_steps_hide(method: Any, world: World, folder: Path) -> None:
    settings = tiny.settings(world, method=method, overlap=1, min_blocks=3, iterations=5, trace=True)
    run = tiny.make_run(settings, world, folder)
    with tiny.Watching(run) as journal:
        train(run, journal)
    if not world.is_first:
        return
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    # The last round is of one iteration, with nothing to hide behind.
    assert ["seconds_hidden" in line for line in lines] == [True, True, False]
    assert all(line["seconds_hidden"] > 0 for line in lines[:2])
    assert sum(line.get("seconds_hidden", 0.0) for line in lines) == pytest.approx(run.progress.seconds_hidden)
    assert run.progress.seconds == pytest.approx(
        sum(line[name] for line in lines for name in ("seconds_compute", "seconds_data", "seconds_sync"))
    )
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    for rank in range(world.size):
        names = [event["name"] for event in events if event["pid"] == rank and event["ph"] == "b"]
        assert names.count("hidden") == 2


def test_clocks_that_differ(world: World) -> None:
    ahead = 1000.0 * world.rank
    offsets = clock_offsets(world, lambda: time.perf_counter() + ahead)
    assert (world.gather(offsets) == offsets).all()
    assert offsets == pytest.approx([1000.0 * rank for rank in range(world.size)], abs=0.5)


def test_a_trace_has_what_every_rank_did(world: World, folder: Path) -> None:
    settings = tiny.settings(world, iterations=14, trace=True, min_blocks=3)
    run = tiny.make_run(settings, world, folder)
    with tiny.Watching(run) as journal:
        train(run, journal)
    assert world.stopwatch.spans is None
    if not world.is_first:
        return
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    for rank in range(world.size):
        mine = [event for event in events if event["pid"] == rank]
        complete = [event for event in mine if event["ph"] == "X"]
        counts = {name: sum(event["name"] == name for event in complete) for name in ("data", "compute", "synchronise")}
        assert counts == {"data": 2 * TRACED_ROUNDS, "compute": 2 * TRACED_ROUNDS, "synchronise": TRACED_ROUNDS}
        begun = [event for event in mine if event["ph"] == "b"]
        assert len(begun) == (TRACED_ROUNDS if world.size > 1 else 0)
        assert min(event["ts"] for event in mine if "ts" in event) >= 0
        steps = [event for event in complete if event["name"] in ("data", "compute", "synchronise")]
        for before, after in pairwise(sorted(steps, key=lambda event: event["ts"])):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.01


def test_a_run_that_ends_early_leaves_its_trace(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, iterations=4, trace=True), world, folder)
    with tiny.Watching(run) as journal:
        train(run, journal)
        assert not (folder / "trace.json").exists()
    world.barrier()
    assert (folder / "trace.json").exists()
