"""What runs of the campaign train: tiny, of every method, each on a number of ranks of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .. import photographs
from ..launch import runs
from ..launch.conftest import make_images

ROUNDS = 6
"""Rounds of a run, each of two local iterations."""

PROGRAM = Path(__file__).with_name("aimed.py")

LONGEST = 300.0
"""Seconds that a run may take, start included, on a machine that has much else to do."""

BATCH = 4
FOLDER_IMAGES = 128


@dataclass(frozen=True)
class Setting:
    """What a run trains, and on how many ranks.

    Attributes:
        name: for tables.
        ranks: how many there are.
        flags: by name, beyond those that all have.
        data: the data set: folder, imagenet (decoded as it goes), or digits.
        board: whether TensorBoard is written, whose import takes longer than all the rest.
    """

    name: str
    ranks: int
    flags: dict[str, object] = field(default_factory=dict, hash=False)
    data: str = "folder"
    board: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.ranks}"

    @property
    def program(self) -> list[str]:
        """What its ranks run."""
        return [runs.PYTHON, str(PROGRAM)]

    @property
    def variables(self) -> dict[str, str]:
        """What its ranks find in their environment."""
        return {"RESIST_HVD_TEST_BOARD": "1"} if self.board else {}

    def arguments(self, data: Path) -> list[str]:
        """Return the flags of a run, without its folder.

        Args:
            data: where `make_data` has put images.
        """
        flags: dict[str, object] = {
            "data.name": self.data,
            "data.batch_size": BATCH,
            "data.calibration_images": 64,
            "model.sections": "1,1,6,1",
            "model.width_factor": 0.125,
            "model.zero_init_residual": "false",
            "min_blocks": 3,
            "local_iterations": 2,
            # Exact in binary for any number of ranks, and so are the iterations that are made of it.
            "epochs": 2 * ROUNDS * BATCH * self.ranks / FOLDER_IMAGES,
            "evaluate_every": 2,
            "checkpoint_every": 2,
        }
        if self.data != "digits":
            flags["data.root"] = data / self.data
        return [f"--{name}={value}" for name, value in {**flags, **self.flags}.items()]


IMAGENET: dict[str, object] = {
    "data.loader": "torchvision",
    "data.image_size": photographs.SIZE,
    "data.decode_threads": 1,
    "model.stem": "imagenet",
    "model.block": "bottleneck",
    "epochs": 3,
}

SETTINGS = (
    Setting("resist", 4, {"checkpoint_every": 1}),
    Setting("resist encoded", 2, {"min_blocks": 0, "exchange.trunk": "int4", "exchange.blocks": "int8"}),
    Setting("resist", 1, {"checkpoint_every": 1}),
    Setting("resist kept, warmed up", 3, {"momentum": "keep", "warmup_epochs": 3 * BATCH * 3 / FOLDER_IMAGES}),
    Setting("resist kept, warmed up", 2, {"momentum": "keep", "warmup_epochs": 0.25, "checkpoint_every": 1}),
    Setting("resist all", 3, {"model.partition": "all", "overlap": 1, "checkpoint_every": 1}),
    Setting("data-parallel", 2, {"method": "data-parallel", "checkpoint_every": 1}),
    Setting("data-parallel", 3, {"method": "data-parallel", "momentum": "keep"}),
    Setting("federated-dropout", 3, {"method": "federated-dropout", "checkpoint_every": 1}),
    Setting("ensemble", 3, {"method": "ensemble", "min_blocks": 2, "evaluate_every": 3}),
    Setting("local-sgd", 4, {"method": "local-sgd", "momentum": "keep", "overlap": 1, "exchange.trunk": "int8"}),
    Setting("imagenet", 2, {**IMAGENET, "checkpoint_every": 1}, data="imagenet"),
    Setting("digits", 2, {"epochs": 4 * ROUNDS * BATCH * 2 / 1437, "max_rounds": ROUNDS}, data="digits", board=True),
)


def make_data(root: Path) -> Path:
    """Write the images that all settings train on; return the folder."""
    make_images(root / "folder")
    photographs.make_root(root / "imagenet", classes=4, train=8, val=4)
    return root
