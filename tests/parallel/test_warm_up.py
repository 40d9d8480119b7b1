"""The warm-up by local SGD hands over to ResIST without losing anything."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from resist_hvd.comm.world import World
from resist_hvd.data.source import Shard
from resist_hvd.methods.resist import Resist, WarmUp
from resist_hvd.records import RoundRecord
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.export import export
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from .. import plain_network
from . import tiny
from .assembly import assemble


def warm_up(world: World, folder: Path, **changes: Any) -> Run:
    """A run of three rounds, two of which are warm-up."""
    settings = tiny.settings(world, **changes)
    return tiny.make_run(replace(settings, warmup_epochs=settings.epochs / 2), world, folder)


@pytest.mark.parametrize("min_blocks", [0, 3])
def test_the_network_is_the_same_before_and_after(min_blocks: int, world: World, folder: Path) -> None:
    run = warm_up(world, folder, min_blocks=min_blocks, max_rounds=1)
    train(run, tiny.Watching(run))
    before = run.method
    assert before.successor(run.progress.samples) is None
    after = before.successor(2 * run.progress.samples)
    assert isinstance(after, Resist)
    assert len(after.blocks) == max(-(-5 // world.size), min_blocks)
    one, other = assemble(before, world), assemble(after, world)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # It was trained with the scale that it is evaluated with from now on.
    evaluations = [evaluate(method, run.source, run.task, world, run.autocast) for method in (before, after)]
    assert evaluations[0].accuracy == pytest.approx(evaluations[1].accuracy)
    assert evaluations[0].loss == pytest.approx(evaluations[1].loss, rel=1e-5)


def test_it_hands_over_at_the_end_of_a_round(world: World, folder: Path) -> None:
    run = warm_up(world, folder)
    methods, depths = [], []

    def look(done: RoundRecord) -> None:
        methods.append(type(run.method))
        depths.append(len(done.partition[0]))

    train(run, tiny.Watching(run, look))
    assert methods == [WarmUp, WarmUp, Resist]
    assert depths == [5, 5, -(-5 // world.size)]
    assert [run.progress.samples, run.progress.round] == [6 * tiny.BATCH * world.size, 3]


def test_its_network_is_scaled_and_whole(world: World, folder: Path) -> None:
    run, unscaled = warm_up(world, folder), tiny.make_run(tiny.settings(world, method="local-sgd"), world, folder)
    assert run.method.blocks == unscaled.method.blocks == (0, 1, 2, 3, 4)
    (scale,) = run.method.scales
    assert scale == -(-5 // world.size) / 5
    one, other = run.method.subnet, unscaled.method.subnet
    assert torch.equal(one.parameters_flat, other.parameters_flat)
    x = torch.rand(2, 16, 2, 2)
    for scaled, plain in zip(one.slot_modules, other.slot_modules, strict=True):
        torch.testing.assert_close(scaled(x), x + scale * (plain(x) - x))


def test_what_it_exports_is_what_it_evaluates(world: World, folder: Path) -> None:
    # The scales that it trains with lie beside the weights, and in an export in them.
    run = warm_up(world, folder, min_blocks=3, max_rounds=1)
    train(run, tiny.Watching(run))
    assert isinstance(run.method, WarmUp)
    found = evaluate(run.method, run.source, run.task, world, run.autocast)
    export(folder, run.method, run.source, run.task, world, run.autocast)
    world.barrier()
    model = plain_network.load_plain(folder)
    batches = run.source.test(Shard(rank=0, size=1))
    accuracy, loss = plain_network.evaluate_plain(model, batches, "fp32")
    assert (found.accuracy, found.loss) == (pytest.approx(accuracy, abs=1e-9), pytest.approx(loss, rel=1e-4))
    parameters, exported = assemble(run.method, world), load_file(folder / "model.safetensors")
    for name, parameter in parameters.items():
        scale = run.method.scales[0] if re.fullmatch(r"sections\.2\.[1-9]\.units\.1\.conv\.weight", name) else 1.0
        assert torch.equal(exported[name], parameter * scale), name
