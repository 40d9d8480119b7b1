"""Networks as parts that can be dealt out, those that are known by name, and reading an exported one.

What needs PyTorch is loaded when it is first asked for: a plan is made of numbers alone, and must not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resist_hvd.nets.norms import Norm
    from resist_hvd.nets.parts import Network, Part
    from resist_hvd.nets.saved import load

__all__ = ["Network", "Norm", "Part", "load"]

_MODULES = {"Network": "parts", "Norm": "norms", "Part": "parts", "load": "saved"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
