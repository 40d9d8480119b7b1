"""Exported models: the tensors that their files have, and reading them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.nets import families
from resist_hvd.nets.norms import norms_of, set_statistics
from resist_hvd.nets.parts import Network
from resist_hvd.nets.subnet import fill_buffers, scale_outputs
from resist_hvd.settings.model import LIBRARIES
from resist_hvd.tensor_files import read_tensors

LONGEST_DESCRIPTION = 64 * 2**20
"""Bytes of a `model.json`; most of it are the names of classes."""


class Whole(nn.Module):
    """A whole network: its parts, one after another, as `load` makes them.

    Args:
        network: its parts.

    Attributes:
        parts: the modules in a row.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.parts = nn.ModuleList(part.make() for part in network.parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for a batch of inputs: scores [batch, classes] where classes are told apart."""
        for part in self.parts:
            x = part(x)
        return x

    def tensors(self) -> dict[str, Tensor]:
        """Return its parameters and norms' statistics, by their names in an exported model."""
        return {
            part.prefixed(name): tensor
            for part, module in zip(self.network.parts, self.parts, strict=True)
            for name, tensor in module.state_dict().items()
        }


def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an exported model, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, module in zip(network.parts, network.modules, strict=True):
        shapes |= {part.prefixed(name): tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for name, norm in norms_of(module).items():
            shapes |= {
                part.prefixed(f"{name}.{kind}"): (norm.num_features,) for kind in ("running_mean", "running_var")
            }
    return shapes


def load(folder: Path, *, parts: str | None = None) -> nn.Module:
    """Return the exported global model in a run's folder, in evaluation mode.

    It is the library's own network where that is torchvision's or timm's, and `Whole` elsewhere.

    Args:
        folder: a run's.
        parts: the function that makes the network's parts, where it is of a user's own (`--model.parts`). A file alone
            has no code run: whoever reads it says that this function may be.

    Raises:
        UserError: `model.json` or `model.safetensors` is missing or damaged, or they do not fit together; or the
            network's own library is missing.
    """
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            unfinished = (folder / "checkpoints").is_dir()
            raise UserError(
                f"No exported model: {name} is missing",
                where=str(folder),
                mend="Finish the run, which exports it at its end: train with --resume and this --output."
                if unfinished
                else "Give the --output folder of a finished run.",
            )
    with understood(folder):
        description = read_description(folder / "model.json")
        if (own := description["network"].get("parts")) != parts:
            raise UserError(
                f"The network is made by the function {own}, and {parts} is given"
                if own and parts
                else f"The network is made by the function {own}, which a file alone does not run"
                if own
                else f"The network is made by no function, and {parts} is given",
                where=str(folder),
                mend=f"If you trust it, give --parts {own} (load(folder, parts={own!r}))." if own else "Leave it out.",
            )
        tensors = read_tensors(folder / "model.safetensors")
        network = _network_of(description["network"], len(tensors))
        _check_tensors(tensors, network)
        model = library_model(network)
        if model is None:
            model = whole(network, tensors, description.get("scales", ()))
        else:
            model.load_state_dict(tensors, assign=True)
    return model.eval()


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Have errors in reading an exported model be a user's.

    Raises:
        UserError: its files cannot be read, or are not what they should be.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The exported model cannot be read: {error.strerror or error}",
            where=str(error.filename or folder),
            mend="Have its files readable, or copy them to where they are.",
        ) from None
    except (ValueError, SafetensorError) as error:
        raise UserError(
            f"The exported model cannot be read: {' '.join(str(error).split())}",
            where=str(folder),
            mend="Export it again.",
        ) from None


def library_model(network: Network) -> nn.Module | None:
    """Return a network as torchvision's or timm's own class, on the meta device; None where neither has it."""
    family = network.description.get("family")
    if family not in LIBRARIES or "anchors" in network.description:
        return None  # no library has such detectors
    description = {name: value for name, value in network.description.items() if name != "depths"}
    model: nn.Module = import_module(f"resist_hvd.nets.{family}_nets").whole(**description)
    kept = {part.name for part in network.parts}
    for part in families.make(description).parts:
        if part.name not in kept:  # a member of an ensemble has fewer blocks
            chain, _, place = part.name.rpartition(".")
            delattr(model.get_submodule(chain), place)
    return model


def whole(network: Network, tensors: Mapping[str, Tensor], scales: Iterable[float]) -> Whole:
    """Return a network of these tensors.

    Args:
        network: its parts.
        tensors: by the names that they have in an exported model.
        scales: for each deck by what its blocks are scaled; none where the tensors have the scale.
    """
    with torch.device("meta"):
        model = Whole(network)
    of_decks = dict(zip((deck.name for deck in network.decks), scales, strict=False))
    for part, module in zip(network.parts, model.parts, strict=True):
        for name, norm in norms_of(module).items():
            mean, variance = (tensors[part.prefixed(f"{name}.{kind}")] for kind in ("running_mean", "running_var"))
            set_statistics(norm, mean, variance)
        own = {name: tensors[part.prefixed(name)] for name, _ in module.named_parameters()}
        module.load_state_dict(own, assign=True, strict=False)
        fill_buffers(part, module, torch.device("cpu"))
        if part.deck is not None and not part.branches:
            scale_outputs(part, module, of_decks.get(part.deck, 1.0))
    return model


def read_description(path: Path) -> dict[str, Any]:
    """Return what a `model.json` says.

    Raises:
        OSError, ValueError: it cannot be read, or says nothing of a model.
    """
    if (size := path.stat().st_size) > LONGEST_DESCRIPTION:
        raise ValueError(f"{path.name} has {size:,} bytes, more than any description of a model")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if isinstance(description, dict) and isinstance(older := description.get("architecture"), dict):
        description["network"] = {"family": "preact_resnet", **older}
    if not isinstance(description, dict) or not isinstance(description.get("network"), dict):
        raise ValueError(f"{path.name} describes no network")
    scales = description.get("scales", [])
    if not isinstance(scales, list) or not all(type(scale) in (int, float) for scale in scales):
        raise ValueError(f"{path.name} has scales that are no numbers")
    return description


def _network_of(description: Mapping[str, Any], tensors: int) -> Network:
    """Return the network that a description is of, whose file has so many tensors.

    A description may ask for more than fits into any memory: its numbers of blocks, each of which has a tensor or more,
    are held against the file before anything is built by them.

    Raises:
        ValueError: it is of no network, or of a larger one.
    """
    options = description.get("options")
    said = {**options, **description} if isinstance(options, dict) else description
    counts = [said.get(name) for name in ("sections", "depth", "depths")]
    blocks = sum(n for count in counts for n in (count if isinstance(count, list) else [count]) if type(n) is int)
    if blocks > tensors:
        raise ValueError(f"model.json has {blocks:,} blocks, and model.safetensors {tensors:,} tensors")
    try:
        return families.make(description)
    except (RuntimeError, TypeError, ArithmeticError):
        raise ValueError("the network that model.json describes is larger than any can be") from None


def _check_tensors(tensors: Mapping[str, Tensor], network: Network) -> None:
    """Check that a file's tensors are those of a network.

    Raises:
        ValueError: they are not.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = shapes_of(network)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{name} is {_shape(found.get(name))} in model.safetensors, and {_shape(wanted.get(name))} by "
                f"model.json"
            )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is of type {tensor.dtype}, not torch.float32")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
