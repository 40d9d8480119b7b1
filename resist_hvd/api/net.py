"""This worker's share of a network, as a module."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.methods.base import Setup
from resist_hvd.methods.registry import method_of
from resist_hvd.nets.norms import norms_of
from resist_hvd.seeds import derive
from resist_hvd.training.export import write_model, write_plain_description


class Net(nn.Module):
    """This worker's share of a network, as `deal` returns it: a module like any other.

    Its parameters stay the same tensors for good; at the end of each round other blocks lie in them.

    Attributes:
        world: all workers.
        seed: what its weights and partitions come from.
        method: what averages and exchanges; for those who want to look.
    """

    def __init__(self, setup: Setup, method: Literal["resist", "local-sgd"]) -> None:
        super().__init__()
        self.world, self.seed = setup.world, setup.seed
        seed = setup.world.broadcast_seed(derive(setup.seed, "round", 0))
        self.method = method_of(method).begin(setup, seed=seed)
        self.subnet = self.method.subnet

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for a batch of inputs."""
        outputs: Tensor = self.subnet(x)
        return outputs

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks that this worker holds in the present round."""
        return self.method.blocks

    def save(self, path: str | Path, *, calibration: Iterable[Tensor] | None = None) -> None:
        """Write the global network as a safetensors file; all ranks must call it together, and none ever holds it.

        Names are those of the parts, `PART.TENSOR`. A network of torchvision's or timm's is read by their own
        `load_state_dict`; beside it goes a JSON file of the same name, by which `resist_hvd.nets.load` reads it.

        Args:
            path: the file, the same on all ranks.
            calibration: this worker's share of inputs that batch norms take their statistics from.

        Raises:
            UserError: the file cannot be written, or a network with batch norms has no inputs to calibrate on.
        """
        path = Path(path)
        with self.world.stopwatch.measure("checkpoint"):
            write_model(
                path,
                self.method,
                calibration_of(self, calibration),
                self.world,
                beside=lambda: write_plain_description(path.with_suffix(".json"), self.method),
            )


def calibration_of(net: Net, images: Iterable[Tensor] | None) -> Iterable[Tensor]:
    """Return the inputs that batch norms take their statistics from; refuse to do without if there are such norms."""
    if images is None and any(norms_of(module) for module in net.method.network.modules):
        raise UserError(
            "The network has batch norms, and no inputs to take their statistics from",
            mend="Give calibration, batches of this worker's training inputs.",
            everywhere=True,
        )
    return images or ()
