"""A run's folder as it is found: finished or not, whole or damaged, of this version or an older one.

What cannot be read is left out and said; a report is made of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from resist_hvd.console import printable
from resist_hvd.errors import UserError
from resist_hvd.json_record import RecordError
from resist_hvd.records import EvaluationRecord, RoundRecord, Summary
from resist_hvd.units import counted

Line = TypeVar("Line", RoundRecord, EvaluationRecord)


@dataclass
class RunRecord:
    """A run as its folder tells of it.

    Attributes:
        folder: where it was read.
        label: what the report calls it.
        colour: the number of its colour in pictures.
        curve: the name of its curve of accuracy, which runs that differ in their seeds may share.
        config: its settings; empty where they cannot be read.
        rounds: the good lines of `rounds.jsonl`, in order.
        evaluations: the good lines of `eval.jsonl`, in order.
        summary: None where there is none that can be read.
        missing: what is missing or damaged, in sentences.
    """

    folder: Path
    label: str
    colour: int = 0
    curve: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    summary: Summary | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The training method's name."""
        named = self.summary.method if self.summary else self.config.get("method")
        return printable(str(named or "unknown method"))

    @property
    def workers(self) -> int | None:
        """S, if anything says it."""
        if self.summary:
            return self.summary.workers
        return self.rounds[0].workers if self.rounds else None

    @property
    def data(self) -> str:
        """The images' name; that of their folder, where they come from one."""
        settings = self.config.get("data")
        if not isinstance(settings, dict):
            return ""
        if settings.get("name") == "folder":
            return printable(Path(str(settings.get("root"))).name)
        return printable(str(settings.get("name", "")))

    @property
    def detects(self) -> bool:
        """True if its network finds boxes."""
        return any(line.precisions is not None for line in self.evaluations)

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return self.summary is not None

    @property
    def peak_memory_bytes(self) -> tuple[int, ...]:
        """Each rank's; none while the run has not ended."""
        return self.summary.peak_memory_bytes if self.summary else ()

    @property
    def seconds(self) -> float:
        """Of training, the mean over workers."""
        return sum(line.seconds for line in self.rounds)

    @property
    def bytes_sent(self) -> int:
        """Payload sent, summed over workers."""
        return sum(line.bytes_sent for line in self.rounds)


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """Return what is known of the runs in some folders, each with a label of its own.

    Raises:
        UserError: a folder holds nothing of a run.
    """
    runs = [read_run(folder) for folder in folders]
    labels = [run.label for run in runs]
    for number, run in enumerate(runs):
        if labels.count(run.label) > 1:
            run.label = printable(f"{run.folder.resolve().parent.name}/{run.label}")
        run.colour, run.curve = number, run.label
    return runs


def figure_name(runs: list[RunRecord]) -> str:
    """Return what the networks of some runs are judged by, in words: "accuracy", "mAP", or "accuracy or mAP"."""
    names = sorted({line.figure_name for run in runs for line in run.evaluations})
    return " or ".join(names) or "accuracy"


def read_run(folder: Path) -> RunRecord:
    """Return what is known of the run in a folder.

    Raises:
        UserError: there is nothing of a run in it.
    """
    files = ("config.yaml", "rounds.jsonl", "eval.jsonl", "summary.json")
    if not any((folder / name).is_file() for name in files):
        seen = "There is nothing of a run here" if folder.is_dir() else "There is no such folder"
        raise UserError(seen, where=str(folder), mend="Give the folder that --output named in training.")
    run = RunRecord(folder, printable(folder.resolve().name))
    run.config = _config(run)
    run.summary = _summary(run)
    run.rounds = _lines(run, "rounds.jsonl", RoundRecord)
    run.evaluations = _lines(run, "eval.jsonl", EvaluationRecord)
    _say_what_rounds_lack(run)
    if not run.evaluations:
        run.missing.append("It has not been evaluated.")
    return run


def _config(run: RunRecord) -> dict[str, Any]:
    """Return a run's settings, empty and said where there are none."""
    try:
        value = yaml.safe_load((run.folder / "config.yaml").read_text())
    except FileNotFoundError:
        run.missing.append("There is no config.yaml.")
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        value = None
    if not isinstance(value, dict):
        run.missing.append("config.yaml is damaged and was left out.")
        return {}
    return value


def _summary(run: RunRecord) -> Summary | None:
    try:
        return Summary.read(run.folder / "summary.json")
    except FileNotFoundError:
        run.missing.append("It has not ended, or was cut: there is no summary.json; figures are those so far.")
    except OSError as error:
        run.missing.append(f"summary.json cannot be read and was left out: {error.strerror}.")
    except RecordError as error:
        run.missing.append(f"A damaged file was left out: {error}.")
    return None


def _lines(run: RunRecord, name: str, kind: type[Line]) -> list[Line]:
    """Return the good lines of a file, in the order of their rounds, the last one of each."""
    try:
        records, faults = kind.read_lines(run.folder / name)
    except OSError:
        run.missing.append(f"There is no {name}.")
        return []
    if bad := len(faults):
        lines, first = counted(len(records) + bad, "line"), "the first: " if bad > 1 else ""
        run.missing.append(f"{bad} of {lines} cannot be read and {was(bad)} left out: {first}{faults[0]}.")
    good = {record.round: record for record in records}
    if repeated := len(records) - len(good):
        run.missing.append(f"{counted(repeated, 'line')} of {name} {are(repeated)} repeated; the last of each counts.")
    return [good[number] for number in sorted(good)]


def _say_what_rounds_lack(run: RunRecord) -> None:
    if not run.rounds:
        return
    whole = run.rounds[-1].round + 1  # they are counted from 0
    if lacking := whole - len(run.rounds):
        run.missing.append(f"{lacking} of {counted(whole, 'round')} {are(lacking)} missing: sums are too small.")
    without = sum(line.ranks is None for line in run.rounds)
    if without == len(run.rounds):
        run.missing.append("It does not say each rank's seconds, as an older version's: means over ranks are shown.")
    elif without:
        run.missing.append(
            f"{counted(without, 'round')} without each rank's seconds {are(without)} left out of that picture."
        )


def are(count: int) -> str:
    """Return the verb that goes with so many."""
    return "is" if count == 1 else "are"


def was(count: int) -> str:
    """Return the verb that goes with so many, in the past."""
    return "was" if count == 1 else "were"
