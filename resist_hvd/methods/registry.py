"""Training methods by name."""

from __future__ import annotations

from resist_hvd.methods.base import Method, Setup
from resist_hvd.methods.data_parallel import DataParallel
from resist_hvd.methods.ensemble import Ensemble
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.methods.resist import Resist, WarmUp
from resist_hvd.settings.run import MethodName


def make(name: MethodName, setup: Setup, *, seed: int, samples: int = 0, warmup_samples: int = 0) -> Method:
    """Return a method by its name.

    Args:
        name: as the flag `--method` has it.
        setup: what every method is made from.
        seed: of the first partition, the same on every rank.
        samples: how many have been trained already, summed over workers.
        warmup_samples: for how many samples local SGD precedes ResIST.
    """
    match name:
        case "resist" if samples < warmup_samples:
            return WarmUp(setup, until=warmup_samples, seed=seed)
        case "resist":
            return Resist(setup, seed)
        case "local-sgd":
            return LocalSGD(setup)
        case "data-parallel":
            return DataParallel(setup)
        case "ensemble":
            return Ensemble(setup)
