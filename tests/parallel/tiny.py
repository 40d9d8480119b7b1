"""What these tests train: tiny networks, on a few images of noise."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resist_hvd.comm.world import World
from resist_hvd.data.memory.images import LabelledImages
from resist_hvd.data.memory.resident import ImageSet, ResidentSource
from resist_hvd.data.source import Batch, DataSource, Shard
from resist_hvd.methods.registry import method_of
from resist_hvd.records import RoundRecord
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training import program
from resist_hvd.training.folder import make_folder
from resist_hvd.training.journal import Journal
from resist_hvd.training.loop import LocalTraining, train_round
from resist_hvd.training.run import Run, method_setup

TRAIN_IMAGES = 64
TEST_IMAGES = 18
CLASSES = 4
BATCH = 8
SEED = 11
# Blocks that began as the identity would have no gradients but in one convolution each, and hide mistakes.
MODEL = ModelSettings(sections="1,1,6,1", width_factor=1 / 16, zero_init_residual=False)

# Of other families: LayerNorm and attention; and post-activation, whose blocks begin as the identity, or else its many
# norms of few values would make much of what rounding leaves.
VIT = ModelSettings(
    name="timm/vit_tiny_patch16_224",
    options={"patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 2},
    zero_init_residual=False,
)
POST_ACTIVATION = ModelSettings(name="torchvision/resnet50", options={"width_per_group": 16}, zero_init_residual=True)


def settings(world: World, *, iterations: int = 6, **changes: Any) -> Settings:
    """Settings of a run of some local iterations, in rounds of 2."""
    base = Settings(
        local_iterations=2,
        min_blocks=0,
        # Batches and images are powers of 2: epochs are exact in binary, and so are the iterations made of them.
        epochs=iterations * BATCH * world.size / TRAIN_IMAGES,
        seed=SEED,
        model=MODEL,
        data=DataSettings(batch_size=BATCH, test_batch_size=16, calibration_images=12),
        optim=OptimSettings(lr=0.1),
    )
    return replace(base, **changes)


def image_set() -> ImageSet:
    """Images of noise, 3 x 8 x 8, the same ones at every call."""
    generator = torch.Generator().manual_seed(3)

    def some(count: int, padding: int) -> LabelledImages:
        pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
        return LabelledImages.of(pixels, torch.arange(count) % CLASSES, padding=padding)

    names = tuple(f"class {number}" for number in range(CLASSES))
    return ImageSet(name="noise", classes=names, train=some(TRAIN_IMAGES, 1), test=some(TEST_IMAGES, 0), mirrored=True)


def source(settings: Settings | CompareSettings, *, rank: int, size: int) -> ResidentSource:
    """The images as one worker sees them."""
    shard = Shard(rank=rank, size=size)
    return ResidentSource(image_set(), settings.data, shard=shard, seed=settings.seed, device=torch.device("cpu"))


class Altered(DataSource):
    """A source whose images pass through a function on their way.

    Args:
        source: where they come from.
        alter: what is done to a batch of images, given the number of training batches before it (-1: no such batch).
    """

    def __init__(self, source: DataSource, alter: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        self.spec = source.spec
        self._source = source
        self._alter = alter
        self._drawn = 0

    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        for images, labels in self._source.train(samples, shard):
            self._drawn += 1
            yield self._alter(images, self._drawn - 1), labels

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        return ((self._alter(images, -1), labels) for images, labels in self._source.test(shard))

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        return ((self._alter(images, -1), labels) for images, labels in self._source.calibration(shard))


def doubled(source: DataSource, *, enlarge: int = 1) -> Altered:
    """The same images in double precision, each pixel a square of so many."""
    return Altered(
        source, lambda images, _: images.double().repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    )


def make_run(
    settings: Settings,
    world: World,
    folder: Path,
    *,
    data: DataSource | None = None,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """A run at its beginning, on this world's share of the images."""
    data = data or source(settings, rank=world.rank, size=world.size)
    setup = replace(method_setup(settings, data, world), dtype=dtype)
    seed = world.broadcast_seed(derive(settings.seed, "round", 0))
    method = method_of(settings.method).begin(setup, seed=seed)
    return Run(settings=settings, world=world, source=data, method=method, folder=folder)


def make_stored_run(settings: Settings, world: World, data: DataSource | None = None) -> Run:
    """A run in its folder, at its beginning or where its checkpoint left off."""
    folder = make_folder(settings.output, "tiny", world)
    checkpoint = program.open_folder(folder, settings, world)
    data = data or source(settings, rank=world.rank, size=world.size)
    run = program.make_run(settings, world, data, folder, checkpoint)
    program.begin_files(run, resumed=checkpoint is not None)
    return run


def train_on(run: Run, rounds: int) -> None:
    """Make a few rounds, with nothing between them but that a warm-up hands over."""
    local = LocalTraining(run)
    for _ in range(rounds):
        train_round(local)
        if (heir := run.method.successor(run.progress.samples)) is not None:
            run.method, local = heir, LocalTraining(run)


class Watching(Journal):
    """A journal that prints nothing, and looks at the run after each synchronisation."""

    def __init__(self, run: Run, look: Callable[[RoundRecord], None] = lambda _: None) -> None:
        super().__init__(run, printer=lambda _: None)
        self._look = look

    def round(self, record: RoundRecord) -> None:
        super().round(record)
        self._look(record)


def timeless_lines(path: Path) -> list[dict[str, Any]]:
    """A run's file of lines, without the seconds, which no two runs have in common."""

    def is_timed(name: str) -> bool:
        return name == "ranks" or name.startswith("seconds")

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_timed(name)} for line in lines]
