"""Networks as parts that can be dealt out, those that are known by name, and reading an exported one.

What needs PyTorch is loaded when it is first asked for: a plan is made of numbers alone, and must not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resist_hvd.nets.norms import Norm
    from resist_hvd.nets.parts import Network, Part
    from resist_hvd.nets.saved import load
    from resist_hvd.nets.timm_nets import network as timm
    from resist_hvd.nets.torchvision_nets import network as torchvision
    from resist_hvd.nets.weights import begun_with

__all__ = ["Network", "Norm", "Part", "begun_with", "load", "timm", "torchvision"]

_PLACES = {
    "Network": ("parts", "Network"),
    "Norm": ("norms", "Norm"),
    "Part": ("parts", "Part"),
    "begun_with": ("weights", "begun_with"),
    "load": ("saved", "load"),
    "timm": ("timm_nets", "network"),
    "torchvision": ("torchvision_nets", "network"),
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(import_module(f"{__name__}.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
