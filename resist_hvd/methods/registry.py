"""Training methods by name."""

from __future__ import annotations

from resist_hvd.methods.base import Method
from resist_hvd.methods.data_parallel import DataParallel
from resist_hvd.methods.ensemble import Ensemble
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.methods.resist import Resist
from resist_hvd.settings.run import MethodName

METHODS: dict[MethodName, type[Method]] = {
    "resist": Resist,
    "local-sgd": LocalSGD,
    "data-parallel": DataParallel,
    "ensemble": Ensemble,
}
