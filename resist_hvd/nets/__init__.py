"""Networks as parts that can be dealt out, those that are known by name, and a worker's sub-network.

What needs PyTorch is loaded when it is first asked for: a plan is made of numbers alone, and must not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resist_hvd.nets.architecture import Architecture
from resist_hvd.settings.model import ModelSettings

if TYPE_CHECKING:
    from resist_hvd.nets.norms import Norm
    from resist_hvd.nets.parts import Network, Part
    from resist_hvd.nets.preact_resnet import ResNet
    from resist_hvd.nets.subnet import SubNet

__all__ = ["Architecture", "ModelSettings", "Network", "Norm", "Part", "ResNet", "SubNet"]

_WITH_PYTORCH = {
    "Network": "resist_hvd.nets.parts",
    "Norm": "resist_hvd.nets.norms",
    "Part": "resist_hvd.nets.parts",
    "ResNet": "resist_hvd.nets.preact_resnet",
    "SubNet": "resist_hvd.nets.subnet",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_PYTORCH:
        return getattr(import_module(_WITH_PYTORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
