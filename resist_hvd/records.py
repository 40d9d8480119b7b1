"""The records of a run's files, one type each: those who write a record and those who read it share the type.

Rounds are counted from 1 wherever a person reads them: on the console, in TensorBoard, in reports, in messages. A line
of `rounds.jsonl` is of round number `round`, counted from 0. Where something is so after rounds (`eval.jsonl`,
`extra_tests.jsonl`, a checkpoint's name), `round` is how many are done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from resist_hvd.json_record import Record, RecordError

MOST_BLOCKS = 10_000
"""No network has more; a block of a higher number is damage, and would need a picture of that height."""


@dataclass(frozen=True, kw_only=True)
class RankSeconds(Record):
    """Each rank's seconds of a round. Of the synchronisation's some are the blocks', and some the trunk's.

    Data-parallel training waits for averages in its steps: its `seconds_trunk` are of `seconds_compute`.
    """

    seconds_compute: tuple[float, ...]
    seconds_data: tuple[float, ...]
    seconds_sync: tuple[float, ...]
    seconds_trunk: tuple[float, ...]
    seconds_blocks: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RoundRecord(Record):
    """A round: a line of `rounds.jsonl`.

    Attributes:
        round: its number, from 0.
        iterations: local ones of each worker.
        loss: the mean over iterations and workers.
        lr: the last iteration's.
        seconds_compute: of local training but for waiting for batches; like all seconds here the mean over workers.
        seconds_data: of waiting for batches.
        seconds_sync: of the synchronisation at its end, as far as training waited for it.
        seconds_hidden: in which it went on beside steps; of no other account. None where none did.
        bytes_sent: payload of that synchronisation, like all bytes here summed over workers.
        bytes_trunk: of these, by collectives among all workers.
        bytes_blocks: of these, for single blocks.
        seconds_prepare: before its first step, of compiling or capturing it, the slowest worker's; of no other account.
            None where there was nothing to prepare.
        overlap: how many local iterations were made while its synchronisation was under way; None where none was.
        partition: for each worker the numbers of the blocks it trained.
        ranks: each rank's seconds; None in a file of the first version.
    """

    round: int
    iterations: int
    loss: float
    lr: float
    seconds_compute: float
    seconds_data: float
    seconds_sync: float
    seconds_hidden: float | None = None
    bytes_sent: int
    bytes_trunk: int
    bytes_blocks: int
    seconds_prepare: float | None = None
    overlap: int | None = None
    partition: tuple[tuple[int, ...], ...]
    ranks: RankSeconds | None = None

    @property
    def seconds(self) -> float:
        """All of the round's."""
        return self.seconds_compute + self.seconds_data + self.seconds_sync

    @property
    def workers(self) -> int:
        """S, the number of workers."""
        return len(self.partition)

    def check(self) -> None:
        """Look at what sums and pictures rely on.

        Raises:
            RecordError: it is not so.
        """
        if not (self.iterations and self.partition):
            raise RecordError("it has no iteration or no worker")
        if max((block for held in self.partition for block in held), default=0) >= MOST_BLOCKS:
            raise RecordError("partition has a block that no network has")
        if self.ranks is not None and {len(each) for each in vars(self.ranks).values()} != {self.workers}:
            raise RecordError(f"ranks are not the {self.workers} of partition")


FIGURES = {"accuracy": "accuracy", "mean_average_precision": "mAP"}
"""What a network is judged by, by the names that records have for it: the words that people read. A record has one."""


RECALLS = 21
"""Recalls from 0 to 1 at which a detector's precisions are told; every second is one of VOC 2007's eleven."""


class Judged(Record):
    """A record with the figure that a network is judged by, in percent."""

    @property
    def figure_name(self) -> str:
        """Name of the figure, as people read it."""
        return FIGURES[self._figure_field]

    @property
    def figure(self) -> float:
        """The figure."""
        found: float = getattr(self, self._figure_field)
        return found

    @property
    def _figure_field(self) -> str:
        return next((name for name in FIGURES if getattr(self, name) is not None), "accuracy")

    def check(self) -> None:
        """See that the figure is there, and that each class's precisions make a curve.

        Raises:
            RecordError: it is not, or they do not.
        """
        if self.figure is None:
            raise RecordError("there is no accuracy")
        of_classes: dict[str, tuple[float, ...]] = getattr(self, "precisions", None) or {}
        if any(len(values) != RECALLS or max(values) > 1 for values in of_classes.values()):
            raise RecordError(f"precisions are not {RECALLS} shares for each class")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Judged):
    """Result of the global network on a test set.

    Attributes:
        accuracy: of a classifier, the share of images whose class has the highest score, in percent.
        loss: mean of the task's: cross-entropy, or YOLOv2's.
        images: how many there were, without files that were passed over.
        mean_average_precision: of a detector, by VOC 2007's eleven recalls, in percent.
        mean_average_precision_area: the same by the area below precision's envelope, as VOC has it from 2010 on.
        precisions: of a detector, for each class of which there are objects its precision, from 0 to 1, at `RECALLS`
            recalls, 0, 0.05 and so on to 1: the most at that recall or a greater one.
    """

    accuracy: float | None = None
    loss: float
    images: int
    mean_average_precision: float | None = None
    mean_average_precision_area: float | None = None
    precisions: dict[str, tuple[float, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Judged):
    """An evaluation on the run's own test set: a line of `eval.jsonl`.

    Attributes:
        round: how many rounds were done.
        epoch: passes over the training images, summed over workers.
        samples: training images, summed over workers.
        seconds: of training so far, the mean over workers.
        bytes_sent: payload of training so far, summed over workers.
        accuracy: see `Evaluation`, as the others.
    """

    round: int
    epoch: float
    samples: int
    seconds: float
    bytes_sent: int
    accuracy: float | None = None
    loss: float
    mean_average_precision: float | None = None
    mean_average_precision_area: float | None = None
    precisions: dict[str, tuple[float, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class ExtraTestRecord(Judged):
    """An evaluation on a further test set: a line of `extra_tests.jsonl`; see `Evaluation`.

    Attributes:
        round: how many rounds were done.
        test: the set's name.
    """

    round: int
    test: str
    accuracy: float | None = None
    loss: float
    images: int
    mean_average_precision: float | None = None
    mean_average_precision_area: float | None = None
    precisions: dict[str, tuple[float, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class StartRecord(Record):
    """A start of a run, and on what it ran: a line of `starts.jsonl`.

    Attributes:
        time: when, with the offset from UTC.
        round: how many rounds the run had.
        command: the process's arguments.
        folder: where it was started.
        hosts: each rank's.
        device: cpu or cuda.
        threads: rank 0's.
        versions: of this package and of what it stands on.
        commit: of this package's source; None outside a clone.
        slurm_restarts: how often SLURM had started the job again.
        changed: the settings that this start changed: the old value and the new, by name.
    """

    time: str
    round: int
    command: tuple[str, ...]
    folder: str
    workers: int
    hosts: tuple[str, ...]
    device: str
    threads: int
    versions: dict[str, str]
    commit: str | None
    slurm_job: str | None
    slurm_restarts: str | None
    changed: dict[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """A run at its end: `summary.json`.

    Attributes:
        samples: training images, summed over workers.
        accuracy: a classifier's, of the last evaluation, in percent; None where there was none.
        best_accuracy: of any evaluation.
        mean_average_precision: a detector's, likewise.
        best_mean_average_precision: of any evaluation.
        seconds: of training, the mean over workers, as those of its parts are.
        seconds_hidden: of synchronising beside steps; of no other account. None where there was none.
        bytes_sent: payload of training, summed over workers.
        parameters_global: of the whole network.
        parameters_worker: of one worker's.
        peak_memory_bytes: each rank's: on a GPU what PyTorch had while it trained, else what the process had.
        broken_files: the fault of each image file that was passed over.
        extra_tests: the evaluation on each further test set by its name; None where there is no such set.
    """

    method: str
    workers: int
    rounds: int
    samples: int
    accuracy: float | None
    best_accuracy: float | None
    seconds: float
    seconds_compute: float
    seconds_data: float
    seconds_sync: float
    seconds_hidden: float | None = None
    bytes_sent: int
    parameters_global: int
    parameters_worker: int
    peak_memory_bytes: tuple[int, ...]
    broken_files: dict[str, str] = field(default_factory=dict)
    extra_tests: dict[str, Evaluation] | None = None
    mean_average_precision: float | None = None
    best_mean_average_precision: float | None = None

    @property
    def result(self) -> str | None:
        """The last evaluation's figure in words, as "accuracy 70.12 %"; None where there was none."""
        for name, words in FIGURES.items():
            if getattr(self, name) is not None:
                return f"{words} {getattr(self, name):.2f} %"
        return None

    def as_text(self) -> str:
        """Return the whole file."""
        return json.dumps(self.as_json(), indent=2) + "\n"


def round_of(line: str) -> int | None:
    """Return the round that a line of any of these files is of, None where it does not say: it was cut short."""
    try:
        number = json.loads(line)["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if isinstance(number, int) else None
