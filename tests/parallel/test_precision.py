"""The global network is the same in either precision, and so is its exported model, rebuilt in plain PyTorch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.data.memory import digits
from resist_hvd.data.memory.images import LabelledImages
from resist_hvd.data.memory.resident import ResidentSource
from resist_hvd.data.source import Shard
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.export import export
from resist_hvd.training.run import Run

from .. import plain_network
from . import tiny

# Numbers of either precision are computed by each rank by itself; what it sends has its full precision anyway.
pytestmark = pytest.mark.world_sizes(1, 3)

STEPS = 64
"""Each worker's local iterations, after which most digits are told apart."""

POINTS = 0.5
"""How far accuracies may lie apart, in percent; 9 of 1,797 images."""

DIGITS = DataSettings(name="digits", image_size=8, batch_size=32, calibration_images=256)
# Blocks that begin as the identity would still be much alike: one that is taken for another might not be noticed.
MODEL = ModelSettings(sections="1,1,6", width_factor=1 / 8, zero_init_residual=False)
CASES = [
    pytest.param({"min_blocks": 3}, id="third-section"),
    pytest.param({"model": replace(MODEL, sections="3,3,4", partition="all")}, id="all-sections"),
    pytest.param({"warmup_epochs": 1.0}, id="handed-over-by-a-warm-up"),
]


@pytest.fixture(scope="module")
def source(world: World) -> ResidentSource:
    """scikit-learn's digits, 8 x 8, all of which are the test set: what one image decides is little."""
    images = digits.read(DIGITS)
    pixels = torch.cat([part.images for part in (images.train, images.test)])
    labels = torch.cat([part.labels for part in (images.train, images.test)])
    images = replace(images, test=LabelledImages.of(pixels, labels, padding=0))
    shard = Shard(rank=world.rank, size=world.size)
    return ResidentSource(images, DIGITS, shard=shard, seed=tiny.SEED, device=torch.device("cpu"))


def trained(source: ResidentSource, changes: dict[str, Any], world: World, folder: Path) -> Run:
    """A run at its end, trained in single precision."""
    settings = replace(
        tiny.settings(world, data=DIGITS, optim=OptimSettings(lr=0.1), momentum="keep", **{"model": MODEL, **changes}),
        local_iterations=8,
        epochs=STEPS * world.size * DIGITS.batch_size / source.spec.train_size,
    )
    run = tiny.make_run(settings, world, folder, data=source)
    tiny.train_on(run, run.rounds())
    assert run.finished
    return run


@pytest.mark.parametrize("changes", CASES)
def test_one_network_in_both_precisions(
    changes: dict[str, Any], source: ResidentSource, world: World, folder: Path
) -> None:
    run = trained(source, changes, world, folder)
    reported: dict[str, tuple[float, float]] = {}
    for precision in ("fp32", "bf16"):
        run.settings = replace(run.settings, precision=precision)  # type: ignore[arg-type]
        ours = evaluate(run.method, source, run.task, world, run.autocast)
        reported[precision] = ours.accuracy, ours.loss
        export(folder / precision, run.method, source, run.task, world, run.autocast)
        world.barrier()
        if world.rank < 2:  # ranks share out the work: each rebuilds the model, for a precision of its own
            computed = ("fp32", "bf16")[world.rank]
            model = plain_network.load_plain(folder / precision)
            everything = source.test(Shard(rank=0, size=1))
            exported = plain_network.evaluate_plain(model, everything, computed)
            assert exported == close_to(reported[precision]), f"the export of {precision}, computed in {computed}"
    assert reported["bf16"] == close_to(reported["fp32"])


def close_to(found: tuple[float, float]) -> Any:
    """What an accuracy and a loss may be where these were found."""
    accuracy, loss = found
    return pytest.approx(accuracy, abs=POINTS), pytest.approx(loss, rel=0.02)
