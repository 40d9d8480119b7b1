"""Weights to begin with from a file, as trained elsewhere: read part by part, so that no worker holds all of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network, Part, shapes
from resist_hvd.nets.subnet import initialise
from resist_hvd.tensor_files import read_tensors

FLAG = "--model.weights"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what batch norms keep elsewhere; evaluation computes exact statistics here."""


def begun_with(network: Network, path: Path) -> Network:
    """Return a network that begins with the weights of a file; its remarks say what of it does not.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    weights = Weights(path, network)
    parts = tuple(replace(part, initialise=partial(weights.begin, part)) for part in network.parts)
    return replace(network, parts=parts, remarks=(*network.remarks, *weights.remarks))


class Weights:
    """A file of weights, and how it fits a network.

    Its tensors have the names that they have in an exported model. Where the network tells other classes apart, or its
    images have other channels, the last layer of the head or the first convolution begins anew. The file is mapped into
    memory, so that what is not filled is not read; a file system that cannot do that has it read whole.

    Args:
        path: a safetensors file, or a state dict that `torch.save` wrote, alone or by the name "state_dict" or "model".
        network: what the weights are for.

    Attributes:
        remarks: sentences for the user, on what begins anew and what of the file is not used.

    Raises:
        UserError: the file cannot be read, or a tensor is missing or of another shape.
    """

    def __init__(self, path: Path, network: Network) -> None:
        self._tensors = tensors_of(path)
        wanted = [
            {part.prefixed(name): shape for name, shape in shapes(module).items()}
            for part, module in zip(network.parts, network.modules, strict=True)
        ]
        anew = {}
        is_detector = "anchors" in network.description
        for place, own in enumerate(wanted):
            for name, shape in own.items():
                found = list(self._tensors[name].shape) if name in self._tensors else None
                if found == shape:
                    continue
                if found is None and is_detector and place == len(wanted) - 1:
                    anew[name] = f"{name} begins anew: {path} is of a network without it"
                    continue
                # Of a head the first dimension is the classes; of a first convolution the second is the channels.
                differing = [place for place, (a, b) in enumerate(zip(found or (), shape, strict=False)) if a != b]
                other_classes = place == len(wanted) - 1 and differing == [0]
                other_channels = place == 0 and differing == [1] and len(shape) == 4
                if found is None or len(found) != len(shape) or not (other_classes or other_channels):
                    raise self._misfit(path, name, shape, found)
                anew[name] = f"{name} begins anew: it is {found} in {path}, and {shape} in the network"
        used = {name for own in wanted for name in own}
        unused = [name for name in self._tensors if name not in used and name.rpartition(".")[2] not in STATISTICS]
        self._anew = frozenset(anew)
        self.remarks = list(anew.values())
        if unused:
            self.remarks.append(f"{path} has {len(unused)} tensors that the network has no place for: {unused[0]} ...")

    def begin(self, part: Part, module: nn.Module, seed: int) -> None:
        """Fill a part's parameters from the file, and those that begin anew as from a seed."""
        if any(part.prefixed(name) in self._anew for name, _ in module.named_parameters()):
            initialise(part, module, seed)
        self.fill(part, module)

    @torch.no_grad()
    def fill(self, part: Part, module: nn.Module) -> None:
        """Fill a part's parameters from the file; those that begin anew stay as they are."""
        for name, parameter in module.named_parameters():
            if part.prefixed(name) not in self._anew:
                parameter.copy_(self._tensors[part.prefixed(name)])

    def _misfit(self, path: Path, name: str, shape: list[int], found: list[int] | None) -> UserError:
        first = next(iter(self._tensors))
        there = f"not in the file, whose first tensor is {first}" if found is None else f"{found} in the file"
        return UserError(
            f"The weights are of another network: {name} is {shape} in this one, and {there}",
            where=str(path),
            mend=f"Give weights of this network as {FLAG}, or the --model.name, --model.options and --data.image_size "
            "that they are of.",
        )


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file by name, mapped into memory.

    Raises:
        UserError: it cannot be read, or is neither a safetensors file nor a state dict.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True) if zipped else read_tensors(path)
    except OSError as error:
        raise UserError(
            f"The weights cannot be read: {error.strerror or error}", where=str(path), mend=f"Give another {FLAG}."
        ) from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # PyTorch's own words on a whole module are a page, with advice to run the code that the file names.
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "it has objects beside tensors, as a whole module" if foreign else " ".join(str(error).split())[:200]
        raise UserError(
            f"The file is neither a whole safetensors file nor a state dict as torch.save writes it today: {reason}",
            where=str(path),
            mend="Load it where it comes from, and save model.state_dict() anew.",
        ) from None
    for name in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(
            "The file has no state dict: tensors by name", where=str(path), mend="Save model.state_dict() in it."
        )
    return found
