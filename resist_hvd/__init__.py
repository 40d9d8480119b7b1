"""ResIST: residual networks trained as independent sub-networks, on Horovod and MPI.

The names below are for a user's own loop (docs/api.md), and for using what was trained (docs/using.md). What needs
PyTorch is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resist_hvd.comm.launch import import_mpi_first

if TYPE_CHECKING:
    from resist_hvd import nets
    from resist_hvd.api import Net, Rounds, deal, evaluate, join
    from resist_hvd.errors import Stopped, UserError
    from resist_hvd.nets.parts import Network, Part
    from resist_hvd.tasks.base import Mean
    from resist_hvd.trained.model import Trained, load

__version__ = "0.1.0"
__all__ = [
    "Mean",
    "Net",
    "Network",
    "Part",
    "Rounds",
    "Stopped",
    "Trained",
    "UserError",
    "deal",
    "evaluate",
    "join",
    "load",
    "nets",
]

_PLACES = {
    **dict.fromkeys(("Net", "Rounds", "deal", "evaluate", "join"), "resist_hvd.api"),
    **dict.fromkeys(("Stopped", "UserError"), "resist_hvd.errors"),
    **dict.fromkeys(("Network", "Part"), "resist_hvd.nets.parts"),
    **dict.fromkeys(("Trained", "load"), "resist_hvd.trained.model"),
    "Mean": "resist_hvd.tasks.base",
}

import_mpi_first()


def __getattr__(name: str) -> Any:
    if name == "nets":
        return import_module("resist_hvd.nets")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
