"""A distributed run, through the real loop, equals Algorithm 1 in one process, parameter by parameter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.records import RoundRecord
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny
from .assembly import assemble
from .oracle import Oracle, cosine, initial_parameters

TOLERANCE = 1e-12
OF_OTHERS = 1e-10
"""A quotient by the root of a second moment makes more of what rounding leaves."""
ALL = ModelSettings(sections="2,2,5,2", width_factor=1 / 16, partition="all", zero_init_residual=False)
BOTTLENECK = ModelSettings(
    sections="1,1,5", width_factor=1 / 16, block="bottleneck", final_norm=False, zero_init_residual=False
)
ADAMW = OptimSettings(name="adamw", lr=0.01, weight_decay=0.1)
SLOW = OptimSettings(lr=0.01)

Snapshot = tuple[tuple[tuple[int, ...], ...], dict[str, Tensor]]


def distributed(settings: Settings, world: World, folder: Path) -> tuple[Run, list[Snapshot]]:
    """Train; return each round's partition, and the global network that it ended with."""
    data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size), enlarge=enlarged(settings))
    run = tiny.make_run(settings, world, folder, data=data, dtype=torch.float64)
    snapshots: list[Snapshot] = []

    def look(done: RoundRecord) -> None:
        snapshots.append((done.partition, assemble(run.method, world)))

    train(run, tiny.Watching(run, look))
    return run, snapshots


def enlarged(settings: Settings) -> int:
    """How far images are enlarged, so that norms see more than a number of each."""
    return 4 if settings.model.family == "torchvision" else 1


def make_oracle(settings: Settings, run: Run, *, keep_momentum: bool, scale: float = 1.0) -> Oracle:
    network = run.method.setup.network
    size = run.world.size
    sources = [tiny.source(settings, rank=rank, size=size) for rank in range(size)]
    streams = [tiny.doubled(source, enlarge=enlarged(settings)).train() for source in sources]
    iterations = run.progress.samples // (tiny.BATCH * size)
    return Oracle(
        network=network,
        parameters=initial_parameters(network, settings.seed),
        streams=streams,
        optim=settings.optim,
        rates=cosine(settings.optim.lr, iterations),
        keep_momentum=keep_momentum,
        scale=scale,
    )


def assert_equal(ours: dict[str, Tensor], oracles: dict[str, Tensor], when: str, tolerance: float = TOLERANCE) -> None:
    assert ours.keys() == oracles.keys()
    for name, value in ours.items():
        difference = (value - oracles[name]).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference:.2e} of {value.abs().max():.1e} {when}"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no-shared-blocks"),
        pytest.param({"min_blocks": 4}, id="shared-blocks"),
        pytest.param({"min_blocks": 6}, id="every-block-shared-by-all"),
        pytest.param({"min_blocks": 4, "momentum": "keep"}, id="momentum-kept"),
        pytest.param({"momentum": "keep", "local_iterations": 1}, id="momentum-kept-in-rounds-of-one-step"),
        pytest.param({"model": ALL}, id="all-sections-partitioned"),
        pytest.param({"model": ALL, "min_blocks": 2, "momentum": "keep"}, id="all-sections-shared-and-kept"),
        pytest.param({"model": tiny.VIT}, id="vit"),
        pytest.param({"model": tiny.VIT, "min_blocks": 4, "momentum": "keep"}, id="vit-shared-and-kept"),
        pytest.param({"model": tiny.VIT, "optim": ADAMW}, id="vit-by-adamw"),
        pytest.param(
            {"model": tiny.VIT, "optim": ADAMW, "min_blocks": 4, "momentum": "keep"}, id="vit-by-adamw-shared-and-kept"
        ),
        pytest.param({"model": tiny.POST_ACTIVATION, "optim": SLOW}, id="post-activation"),
        pytest.param({"model": tiny.POST_ACTIVATION, "optim": SLOW, "min_blocks": 4}, id="post-activation-shared"),
        pytest.param({"model": BOTTLENECK, "local_iterations": 5}, id="bottleneck-and-a-last-round-cut-short"),
    ],
)
def test_resist(changes: dict[str, Any], world: World, folder: Path) -> None:
    settings = tiny.settings(world, **changes)
    run, snapshots = distributed(settings, world, folder)
    assert len(snapshots) == -(-6 // settings.local_iterations)
    if not world.is_first:
        return
    oracle = make_oracle(settings, run, keep_momentum=settings.momentum == "keep")
    tolerance = TOLERANCE if settings.model.family == "preact" else OF_OTHERS
    for number, (partition, parameters) in enumerate(snapshots):
        oracle.round(partition, min(settings.local_iterations, 6 - oracle.iterations))
        assert_equal(parameters, oracle.parameters, f"after round {number}", tolerance)


@pytest.mark.parametrize("momentum", ["restart", "keep"])
def test_local_sgd(momentum: str, world: World, folder: Path) -> None:
    settings = tiny.settings(world, method="local-sgd", momentum=momentum)
    run, snapshots = distributed(settings, world, folder)
    if not world.is_first:
        return
    everything = [range(run.method.rule.blocks)] * world.size
    oracle = make_oracle(settings, run, keep_momentum=momentum == "keep")
    for number, (_, parameters) in enumerate(snapshots):
        oracle.round(everything, settings.local_iterations)
        assert_equal(parameters, oracle.parameters, f"after round {number}")


@pytest.mark.parametrize("momentum", ["restart", "keep"])
def test_resist_after_a_warm_up(momentum: str, world: World, folder: Path) -> None:
    settings = tiny.settings(world, iterations=12, min_blocks=3, momentum=momentum)
    settings = replace(settings, warmup_epochs=settings.epochs / 2)
    run, snapshots = distributed(settings, world, folder)
    if not world.is_first:
        return
    depth, blocks = len(run.method.blocks), run.method.rule.blocks
    oracle = make_oracle(settings, run, keep_momentum=momentum == "keep", scale=depth / blocks)
    for number, (partition, parameters) in enumerate(snapshots):
        if number == 3:
            assert len(partition[0]) == depth
            oracle.scale = 1.0
        oracle.round(partition, settings.local_iterations)
        assert_equal(parameters, oracle.parameters, f"after round {number}")
