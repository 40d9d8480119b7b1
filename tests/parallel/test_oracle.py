"""A distributed run, through the real loop, equals Algorithm 1 in one process, parameter by parameter."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from .assembly import assemble, named_parameters
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

Partition = tuple[tuple[int, ...], ...]


class Snapshot(NamedTuple):
    """The end of a round: its partition, the global network, and each worker's own."""

    partition: Partition
    parameters: dict[str, Tensor]
    own: list[dict[str, Tensor]]


def distributed(settings: Settings, world: World, folder: Path) -> tuple[Run, list[Snapshot]]:
    """Train; return how each round ended."""
    data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size), enlarge=enlarged(settings))
    run = tiny.make_run(settings, world, folder, data=data, dtype=torch.float64)
    snapshots: list[Snapshot] = []

    def look(done: RoundRecord) -> None:
        everyone = world.gather_objects({name: value.numpy() for name, value in named_parameters(run.method).items()})
        own = [{name: torch.from_numpy(array) for name, array in theirs.items()} for theirs in everyone]
        with run.method.averaged():
            snapshots.append(Snapshot(done.partition, assemble(run.method, world), own))

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
        overlap=settings.overlap,
        outer=settings.outer_momentum,
        outer_blocks=settings.outer_momentum_blocks,
    )


def assert_equal(ours: dict[str, Tensor], oracles: dict[str, Tensor], when: str, tolerance: float = TOLERANCE) -> None:
    assert ours.keys() == oracles.keys()
    for name, value in ours.items():
        difference = (value - oracles[name]).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference:.2e} of {value.abs().max():.1e} {when}"


def assert_own(snapshot: Snapshot, oracle: Oracle, number: int, tolerance: float = TOLERANCE) -> None:
    """Compare each worker's own network with the oracle's, and see that they differ where it has any."""
    for worker, own in enumerate(snapshot.own):
        expected = {**{name: oracle.parameters[name] for name in own}, **oracle.own.get(worker, {})}
        assert_equal(own, expected, f"on rank {worker} after round {number}", tolerance)
    if len(oracle.own) > 1:
        assert any(not torch.equal(snapshot.own[0][name], snapshot.own[1][name]) for name in oracle.own[0])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no-shared-blocks"),
        pytest.param({"min_blocks": 4}, id="shared-blocks"),
        pytest.param({"min_blocks": 6}, id="every-block-shared-by-all"),
        pytest.param({"min_blocks": 4, "momentum": "keep"}, id="momentum-kept"),
        pytest.param({"momentum": "keep", "local_iterations": 1}, id="momentum-kept-in-rounds-of-one-step"),
        pytest.param({"min_blocks": 4, "momentum": "keep", "outer_momentum": 0.4}, id="outer-momentum"),
        pytest.param({"outer_momentum_blocks": 0.5, "local_iterations": 1}, id="outer-momentum-of-blocks-alone"),
        pytest.param(
            {"min_blocks": 4, "outer_momentum": 0.4, "outer_momentum_blocks": 0.5, "local_iterations": 1},
            id="outer-momentum-of-shared-blocks",
        ),
        pytest.param({"min_blocks": 6, "outer_momentum_blocks": 0.4}, id="outer-momentum-of-blocks-that-all-have"),
        pytest.param(
            {"model": ALL, "min_blocks": 2, "momentum": "keep", "outer_momentum_blocks": 0.4},
            id="all-sections-with-outer-momentum",
        ),
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
    nexts = [*(snapshot.partition for snapshot in snapshots[1:]), run.method.partition.held]
    for number, (snapshot, following) in enumerate(zip(snapshots, nexts, strict=True)):
        oracle.round(snapshot.partition, min(settings.local_iterations, 6 - oracle.iterations), following)
        assert_equal(snapshot.parameters, oracle.parameters, f"after round {number}", tolerance)
        assert_own(snapshot, oracle, number, tolerance)


OVERLAP = [
    pytest.param({"local_iterations": 3, "overlap": 1}, id="by-1-of-3"),
    pytest.param({"local_iterations": 3, "overlap": 2, "momentum": "keep"}, id="by-2-of-3-and-momentum-kept"),
    pytest.param({"local_iterations": 4, "overlap": 3}, id="by-3-of-4-and-a-shorter-last-round"),
    pytest.param({"local_iterations": 5, "overlap": 2, "momentum": "keep"}, id="by-2-of-5-and-a-last-round-of-1"),
]


@pytest.mark.parametrize(
    "changes",
    [
        *OVERLAP,
        pytest.param({"local_iterations": 3, "overlap": 1, "min_blocks": 4}, id="shared-blocks"),
        pytest.param({"local_iterations": 3, "overlap": 2, "min_blocks": 3, "momentum": "keep"}, id="shared-and-kept"),
        pytest.param({"local_iterations": 3, "overlap": 2, "min_blocks": 6}, id="every-block-shared-by-all"),
        pytest.param(
            {"local_iterations": 3, "overlap": 2, "model": ALL, "min_blocks": 2, "momentum": "keep"},
            id="all-sections-shared-and-kept",
        ),
        pytest.param(
            {"local_iterations": 3, "overlap": 1, "model": tiny.VIT, "optim": ADAMW, "momentum": "keep"},
            id="vit-by-adamw-and-kept",
        ),
    ],
)
def test_resist_that_overlaps(changes: dict[str, Any], world: World, folder: Path) -> None:
    test_resist(changes, world, folder)


@pytest.mark.parametrize("changes", OVERLAP)
def test_local_sgd_that_overlaps(changes: dict[str, Any], world: World, folder: Path) -> None:
    settings = tiny.settings(world, method="local-sgd", **changes)
    run, snapshots = distributed(settings, world, folder)
    if not world.is_first:
        return
    everything = [range(run.method.rule.blocks)] * world.size
    oracle = make_oracle(settings, run, keep_momentum=settings.momentum == "keep")
    for number, snapshot in enumerate(snapshots):
        oracle.round(everything, min(settings.local_iterations, 6 - oracle.iterations))
        assert_equal(snapshot.parameters, oracle.parameters, f"after round {number}")
        assert_own(snapshot, oracle, number)


@pytest.mark.parametrize(("momentum", "outer"), [("restart", 0.0), ("keep", 0.0), ("restart", 0.4)])
def test_local_sgd(momentum: str, outer: float, world: World, folder: Path) -> None:
    settings = tiny.settings(world, method="local-sgd", momentum=momentum, outer_momentum=outer)
    run, snapshots = distributed(settings, world, folder)
    if not world.is_first:
        return
    everything = [range(run.method.rule.blocks)] * world.size
    oracle = make_oracle(settings, run, keep_momentum=momentum == "keep")
    for number, snapshot in enumerate(snapshots):
        oracle.round(everything, settings.local_iterations)
        assert_equal(snapshot.parameters, oracle.parameters, f"after round {number}")


@pytest.mark.parametrize(
    ("momentum", "outer", "blocks_outer"), [("restart", 0, 0), ("keep", 0, 0), ("keep", 0.4, 0), ("keep", 0.4, 0.3)]
)
def test_resist_after_a_warm_up(momentum: str, outer: float, blocks_outer: float, world: World, folder: Path) -> None:
    settings = tiny.settings(
        world,
        iterations=12,
        min_blocks=3,
        momentum=momentum,
        outer_momentum=outer,
        outer_momentum_blocks=blocks_outer,
    )
    settings = replace(settings, warmup_epochs=settings.epochs / 2)
    run, snapshots = distributed(settings, world, folder)
    if not world.is_first:
        return
    depth, blocks = len(run.method.blocks), run.method.rule.blocks
    oracle = make_oracle(settings, run, keep_momentum=momentum == "keep", scale=depth / blocks)
    for number, snapshot in enumerate(snapshots):
        if number == 3:
            assert len(snapshot.partition[0]) == depth
            oracle.scale = 1.0
        oracle.round(snapshot.partition, settings.local_iterations, () if number < 3 else snapshot.partition)
        assert_equal(snapshot.parameters, oracle.parameters, f"after round {number}")
