"""Results that the paper reports: the row to set beside one of ours.

Dun, Wolfe, Jermaine, Kyrillidis: "ResIST: Layer-Wise Decomposition of ResNets for Distributed Training", UAI 2022:
Tables 1, 2 and 4, and its supplement A.2 and A.4. All on V100s.
"""

from __future__ import annotations

from typing import NamedTuple

from resist_hvd.reporting.reading import RunRecord
from resist_hvd.settings.model import ModelSettings


class PapersRow(NamedTuple):
    """A result of the paper's.

    Attributes:
        accuracy: on the test set, percent.
        seconds: of training; None where it is not reported.
        gigabytes: communicated a round, in the paper's convention; None where it is not reported.
    """

    accuracy: float
    seconds: float | None
    gigabytes: float | None
    source: str


RESNET101, RESNET152, RESNET200 = (3, 4, 23, 3), (3, 4, 36, 3), (3, 4, 50, 3)
_TABLES = "Tables 1, 2, 4"
ROWS: dict[tuple[str, str, tuple[int, ...], int], PapersRow] = {
    ("local-sgd", "cifar10", RESNET101, 2): PapersRow(92.36, None, 0.662, _TABLES),
    ("local-sgd", "cifar10", RESNET101, 4): PapersRow(92.90, 5486, 1.325, _TABLES),
    ("local-sgd", "cifar10", RESNET101, 8): PapersRow(92.00, 10072, 2.649, _TABLES),
    ("resist", "cifar10", RESNET101, 2): PapersRow(91.95, None, 0.454, _TABLES),
    ("resist", "cifar10", RESNET101, 4): PapersRow(92.35, 1532, 0.720, _TABLES),
    ("resist", "cifar10", RESNET101, 8): PapersRow(91.45, 2671, 1.289, _TABLES),
    ("ensemble", "cifar10", RESNET101, 2): PapersRow(92.27, None, None, "supplement A.2"),
    ("ensemble", "cifar10", RESNET101, 4): PapersRow(92.56, None, None, "supplement A.2"),
    ("ensemble", "cifar10", RESNET101, 8): PapersRow(90.67, None, None, "supplement A.2"),
    ("local-sgd", "cifar100", RESNET101, 2): PapersRow(70.67, None, 0.662, _TABLES),
    ("local-sgd", "cifar100", RESNET101, 4): PapersRow(71.51, 5528, 1.325, _TABLES),
    ("local-sgd", "cifar100", RESNET101, 8): PapersRow(69.64, 10058, 2.649, _TABLES),
    ("resist", "cifar100", RESNET101, 2): PapersRow(70.06, None, 0.454, _TABLES),
    ("resist", "cifar100", RESNET101, 4): PapersRow(71.30, 1545, 0.720, _TABLES),
    ("resist", "cifar100", RESNET101, 8): PapersRow(70.26, 2639, 1.289, _TABLES),
    ("ensemble", "cifar100", RESNET101, 2): PapersRow(72.08, None, None, "supplement A.2"),
    ("ensemble", "cifar100", RESNET101, 4): PapersRow(72.12, None, None, "supplement A.2"),
    ("ensemble", "cifar100", RESNET101, 8): PapersRow(67.98, None, None, "supplement A.2"),
    ("resist", "cifar10", RESNET152, 2): PapersRow(92.01, 2215, None, "supplement A.4"),
    ("local-sgd", "cifar10", RESNET152, 2): PapersRow(92.27, 3512, None, "supplement A.4"),
    ("resist", "cifar10", RESNET152, 4): PapersRow(90.67, 1054, None, "supplement A.4"),
    ("local-sgd", "cifar10", RESNET152, 4): PapersRow(91.39, 3598, None, "supplement A.4"),
    ("resist", "cifar10", RESNET200, 2): PapersRow(92.10, 2380, None, "supplement A.4"),
    ("local-sgd", "cifar10", RESNET200, 2): PapersRow(92.31, 4575, None, "supplement A.4"),
    ("resist", "cifar10", RESNET200, 4): PapersRow(90.27, 1161, None, "supplement A.4"),
    ("local-sgd", "cifar10", RESNET200, 4): PapersRow(91.35, 4357, None, "supplement A.4"),
    ("resist", "cifar100", RESNET152, 2): PapersRow(70.32, None, None, "supplement A.4"),
    ("local-sgd", "cifar100", RESNET152, 2): PapersRow(70.50, None, None, "supplement A.4"),
    ("resist", "cifar100", RESNET152, 4): PapersRow(67.27, None, None, "supplement A.4"),
    ("local-sgd", "cifar100", RESNET152, 4): PapersRow(68.39, None, None, "supplement A.4"),
    ("resist", "cifar100", RESNET200, 2): PapersRow(70.71, None, None, "supplement A.4"),
    ("local-sgd", "cifar100", RESNET200, 2): PapersRow(71.05, None, None, "supplement A.4"),
    ("resist", "cifar100", RESNET200, 4): PapersRow(67.62, None, None, "supplement A.4"),
    ("local-sgd", "cifar100", RESNET200, 4): PapersRow(69.05, None, None, "supplement A.4"),
}


def papers_row(run: RunRecord) -> PapersRow | None:
    """Return the paper's result of the same method, data, network and number of workers, if it has one.

    A network counts as the paper's by its depth, its basic blocks and its width; a folder of images, by its name.
    """
    model = run.config.get("model")
    if not isinstance(model, dict) or run.workers is None:
        return None
    if model.get("block", "basic") != "basic" or model.get("width_factor", 1.0) != 1.0:
        return None
    try:
        counts = ModelSettings(name=model.get("name", ""), sections=model.get("sections")).counts
    except (ValueError, TypeError, AttributeError):
        return None
    return ROWS.get((run.method, run.data.lower().replace("-", ""), counts, run.workers))
