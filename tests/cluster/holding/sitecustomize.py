"""Holds ranks in their second round since they were started, for as long as a file is there.

On its PYTHONPATH, Python runs it as it starts. RESIST_HVD_TEST_HOLD names the file, of a first start: that of one which
SLURM has requeued once ends in -1, and so on.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

NAME = "resist_hvd.training.loop"
FILE = f"{os.environ.get('RESIST_HVD_TEST_HOLD')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def hold(module: ModuleType) -> None:
    """Have a step wait while the file is there, unless it is of the first round."""
    sound = module.LocalTraining.step
    rounds = []

    def step(training: Any) -> Any:
        rounds.append(training.run.progress.round)
        while rounds[-1] > rounds[0] and os.path.exists(FILE):
            time.sleep(0.02)
        return sound(training)

    module.LocalTraining.step = step


class Finder(MetaPathFinder):
    """Finds the module that is to be changed, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how the module is loaded: as ever, and then changed."""
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            hold(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if "RESIST_HVD_TEST_HOLD" in os.environ:
    sys.meta_path.insert(0, Finder())
