"""The records of a run's files, one type each: those who write a record and those who read it share the type.

Rounds are counted from 1 wherever a person reads them: on the console, in TensorBoard, in reports, in messages. A line
of `rounds.jsonl` is of round number `round`, counted from 0. Where something is so after rounds (`eval.jsonl`,
`extra_tests.jsonl`, a checkpoint's name), `round` is how many are done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, NamedTuple, Self, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R", bound="Record")

MOST_BLOCKS = 10_000
"""No network has more; a block of a higher number is damage, and would need a picture of that height."""

LONGEST_SHOWN = 40
"""So many characters of a wrong value are shown."""


class RecordError(ValueError):
    """A file or a line is not the record it should be; the text says why."""


class Lines(NamedTuple, Generic[R]):
    """A file of lines.

    Attributes:
        records: of its good lines, in their order.
        faults: for each other line its file, its number and what is wrong with it.
    """

    records: list[R]
    faults: list[str]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that is written as a JSON object, by its fields' names and in their order.

    A field with a default came later, and may be missing in older files. Where its default is None, it is left out
    while it is None. Numbers are finite and not below zero. Fields of later versions are passed over.
    """

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        absent = {each.name for each in fields(self) if each.default is None and getattr(self, each.name) is None}
        return {each.name: _as_json(getattr(self, each.name)) for each in fields(self) if each.name not in absent}

    def as_line(self) -> str:
        """Return a file's line."""
        return json.dumps(self.as_json()) + "\n"

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return the record that a JSON object is.

        Raises:
            RecordError: it is none: a field is missing, or is not what it should be.
        """
        if not isinstance(value, dict):
            raise RecordError("it is no JSON object")
        taken: dict[str, Any] = {}
        for name, (take, required) in _fields_of(cls).items():  # type: ignore[arg-type]  # a class can be hashed
            if name in value:
                try:
                    taken[name] = take(value[name])
                except RecordError as error:
                    raise RecordError(f"in {name} {error}") from None
                except ValueError:
                    raise RecordError(f"{name} is {_shown(value[name])}") from None
            elif required:
                raise RecordError(f"there is no {name}")
        record = cls(**taken)
        record.check()
        return record

    def check(self) -> None:
        """Look at a record that was read, beyond its fields' types.

        Raises:
            RecordError: its fields contradict each other, or no run can be so.
        """

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record that is a whole file.

        Raises:
            OSError: it cannot be read.
            RecordError: it is no such record; the text begins with the file's name.
        """
        try:
            return cls.from_json(_parsed(path.read_text(encoding="utf-8", errors="replace")))
        except RecordError as error:
            raise RecordError(f"{path.name}: {error}") from None

    @classmethod
    def read_lines(cls, path: Path) -> Lines[Self]:
        """Return the records of a file of lines, and what is wrong with lines that are none.

        Raises:
            OSError: it cannot be read.
        """
        records, faults = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                records.append(cls.from_json(_parsed(line)))
            except RecordError as error:
                faults.append(f"{path.name}, line {number}: {error}")
        return Lines(records, faults)


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
        """See that the figure is there.

        Raises:
            RecordError: it is not.
        """
        if self.figure is None:
            raise RecordError("there is no accuracy")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Judged):
    """Result of the global network on a test set.

    Attributes:
        accuracy: of a classifier, the share of images whose class has the highest score, in percent.
        loss: mean of the task's: cross-entropy, or YOLOv2's.
        images: how many there were, without files that were passed over.
        mean_average_precision: of a detector, by VOC 2007's eleven recalls, in percent.
        mean_average_precision_area: the same by the area below precision's envelope, as VOC has it from 2010 on.
    """

    accuracy: float | None = None
    loss: float
    images: int
    mean_average_precision: float | None = None
    mean_average_precision_area: float | None = None


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

    def as_text(self) -> str:
        """Return the whole file."""
        return json.dumps(self.as_json(), indent=2) + "\n"


def _as_json(value: Any) -> Any:
    """Return a field's value as JSON has it: records in it leave out what is None, too."""
    if isinstance(value, Record):
        return value.as_json()
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value


def round_of(line: str) -> int | None:
    """Return the round that a line of any of these files is of, None where it does not say: it was cut short."""
    try:
        number = json.loads(line)["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if isinstance(number, int) else None


Take = Callable[[Any], Any]
"""Makes a field's value of JSON's; raises a ValueError where it is not of the field's type."""


@cache
def _fields_of(kind: type[Record]) -> dict[str, tuple[Take, bool]]:
    """Return for each field of a record what takes its value, and whether it must be there."""
    hints = get_type_hints(kind)
    return {
        each.name: (_take(hints[each.name]), each.default is MISSING and each.default_factory is MISSING)
        for each in fields(kind)
    }


def _take(hint: Any) -> Take:
    """Return what takes a value of a type: plain, a record, a tuple or dict of these, or one of them or None."""
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json
    origin, inner = get_origin(hint), [_take(each) for each in get_args(hint) if each not in (NoneType, ...)]
    if origin in (Union, UnionType):
        return lambda value: None if value is None else inner[0](value)
    if origin is tuple:
        return lambda value: tuple(map(inner[0], _of((list, tuple), value)))
    assert origin is dict
    return lambda value: {name: inner[1](each) for name, each in _of(dict, value).items()}


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise ValueError
    return float(value)


PLAIN: dict[Any, Take] = {
    Any: lambda value: value,
    str: lambda value: _of(str, value),
    int: _whole,
    float: _number,
}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RecordError("it is no JSON, or cut short") from None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
