"""Images that stay on disk, trained on by all ranks: shared out, and resumed with the very next batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.data import DataSource, Shard, load
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from .. import photographs
from . import tiny

CLASSES, IMAGES = 5, 7


class StoppedError(Exception):
    """Stands for whatever ends a run in its midst."""


@pytest.fixture(scope="module")
def root(world: World, folder_of_module: Path) -> Path:
    """A data folder of 35 training images, which no number of workers' batches divides."""
    path = folder_of_module / "data"
    if world.is_first:
        photographs.make_root(path, classes=CLASSES, train=IMAGES)
    world.barrier()
    return path


def settings_of(root: Path, loader: str, world: World, **changes: Any) -> Settings:
    """Two epochs of training batches of 2, in rounds of 2, with a checkpoint after each."""
    data = DataSettings(
        name="imagenet",
        root=root,
        loader=loader,  # type: ignore[arg-type]
        batch_size=2,
        test_batch_size=4,
        calibration_images=6,
        image_size=photographs.SIZE,
        decode_threads=1,
    )
    settings = replace(tiny.settings(world), data=data, epochs=2.0, min_blocks=3, checkpoint_every=1)
    return replace(settings, **changes)


def open_source(settings: Settings, world: World) -> DataSource:
    shard = Shard(rank=world.rank, size=world.size)
    return load(settings.data, shard=shard, seed=settings.seed, device=world.device)


def run_of(settings: Settings, world: World, source: DataSource, *, stop_before_batch: int | None = None) -> Run:
    def alter(images: torch.Tensor, batch: int) -> torch.Tensor:
        if batch == stop_before_batch:
            raise StoppedError
        return images

    return tiny.make_stored_run(settings, world, tiny.Altered(source, alter))


def fingerprints(source: DataSource, batches: int) -> list[tuple[float, list[int]]]:
    stream = source.train()
    return [
        (images.double().sum().item(), labels.tolist()) for images, labels in (next(stream) for _ in range(batches))
    ]


def test_every_image_once_an_epoch_over_all_ranks(root: Path, loader: str, world: World) -> None:
    settings = settings_of(root, loader, world)
    total = CLASSES * IMAGES
    steps = -(-2 * total // (2 * world.size))
    with open_source(settings, world) as source:
        mine = [labels for _, labels in fingerprints(source, steps)]
    everyone = world.gather_objects(mine)
    in_order = [label for step in zip(*everyone, strict=True) for labels in step for label in labels]
    for epoch in range(2):
        seen = in_order[epoch * total : (epoch + 1) * total]
        assert [seen.count(label) for label in range(CLASSES)] == [IMAGES] * CLASSES


def test_a_missing_folder_is_told_by_all_ranks_together(world: World, folder: Path) -> None:
    settings = settings_of(folder / "missing", "torchvision", world)
    shard = Shard(rank=world.rank, size=world.size)
    with pytest.raises(UserError, match="There is no such folder") as caught, world.agree("loading the data"):
        load(settings.data, shard=shard, seed=1, device=world.device, share=world.once_a_host)
    assert caught.value.everywhere
    ranks = f"all {world.size} ranks" if world.size > 1 else f"rank 0 of 1 on {world.host}"
    assert caught.value.where == f"{folder / 'missing'}, {ranks}, loading the data"
    assert "--data.root" in caught.value.mend


def test_resuming_in_the_midst_of_an_epoch_is_exact(root: Path, loader: str, world: World, folder: Path) -> None:
    settings = settings_of(root, loader, world, momentum="keep")
    with open_source(settings, world) as source:
        whole = run_of(replace(settings, output=folder / "whole"), world, source)
        train(whole, tiny.Watching(whole))
    with open_source(settings, world) as source:
        cut = run_of(replace(settings, output=folder / "cut"), world, source, stop_before_batch=5)
        with pytest.raises(StoppedError):
            train(cut, tiny.Watching(cut))
    with open_source(settings, world) as source:
        resumed = run_of(replace(settings, output=folder / "cut", resume=True), world, source)
        # After the fourth batch: within the first epoch, unless there are too many workers for so many batches.
        assert resumed.progress.samples == 4 * 2 * world.size
        train(resumed, tiny.Watching(resumed))
    assert torch.equal(whole.method.subnet.parameters_flat, resumed.method.subnet.parameters_flat)
    assert whole.progress.accuracy == resumed.progress.accuracy
    assert whole.progress.samples == resumed.progress.samples


@pytest.mark.world_size(2)
def test_other_classes_of_the_same_number_are_refused(root: Path, world: World, folder: Path) -> None:
    """A model is of the classes it was trained on: a checkpoint names them."""
    settings = settings_of(root, "torchvision", world, output=folder / "run", max_rounds=1)
    with open_source(settings, world) as source:
        run = run_of(settings, world, source)
        train(run, tiny.Watching(run))
    if world.is_first:
        other = photographs.make_root(folder / "other", classes=CLASSES, train=IMAGES)
        for half in ("train", "val"):
            (other / half / "n00000003").rename(other / half / "n00000007")
    world.barrier()
    settings = replace(settings, data=replace(settings.data, root=folder / "other"), resume=True)
    with open_source(settings, world) as source:
        pattern = r"other classes than the data have: class 3 is 'n00000003', and 'n00000004' in.*Resume on the data"
        with pytest.raises(UserError, match=pattern) as caught:
            run_of(settings, world, source)
    assert caught.value.everywhere
