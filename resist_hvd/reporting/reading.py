"""A run's folder as it is found: finished or not, whole or damaged, of this version or an older one.

What cannot be read is left out and said; a report is made of the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from resist_hvd.console import printable
from resist_hvd.errors import UserError
from resist_hvd.units import counted

ROUND_NUMBERS = ("round", "iterations", "loss", "seconds_compute", "seconds_data", "seconds_sync", "bytes_sent")
EVALUATION_NUMBERS = ("round", "seconds", "bytes_sent", "accuracy")
RANK_NUMBERS = ("seconds_compute", "seconds_data", "seconds_sync", "seconds_trunk", "seconds_blocks")

MOST_BLOCKS = 10_000
"""No network has more; a block of a higher number is damage, and would need a picture of that height."""

Line = dict[str, Any]


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        folder: where it was read.
        label: what the report calls it.
        config: its settings; empty where they cannot be read.
        rounds: the good lines of `rounds.jsonl`, in order.
        evaluations: the good lines of `eval.jsonl`, in order.
        summary: `summary.json`; empty where there is none.
        missing: what is missing or damaged, in sentences.
    """

    folder: Path
    label: str
    config: Line = field(default_factory=dict)
    rounds: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)
    summary: Line = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The training method's name."""
        return printable(str(self.summary.get("method") or self.config.get("method") or "unknown method"))

    @property
    def workers(self) -> int | None:
        """S, if anything says it."""
        if isinstance(found := self.summary.get("workers"), int):
            return found
        return next((len(line["partition"]) for line in self.rounds if line.get("partition")), None)

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
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary)

    @property
    def seconds(self) -> float:
        """Of training, the mean over workers."""
        return float(sum(line["seconds_compute"] + line["seconds_data"] + line["seconds_sync"] for line in self.rounds))

    @property
    def bytes_sent(self) -> int:
        """Payload sent, summed over workers."""
        return int(sum(line["bytes_sent"] for line in self.rounds))


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """Return what is known of the runs in some folders, each with a label of its own.

    Raises:
        UserError: a folder holds nothing of a run.
    """
    runs = [read_run(folder) for folder in folders]
    labels = [run.label for run in runs]
    for run in runs:
        if labels.count(run.label) > 1:
            run.label = printable(f"{run.folder.resolve().parent.name}/{run.label}")
    return runs


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
    run.config = _mapping(run, "config.yaml", yaml.safe_load)
    run.summary = _mapping(run, "summary.json", json.loads)
    run.rounds = _lines(run, "rounds.jsonl", ROUND_NUMBERS)
    run.evaluations = _lines(run, "eval.jsonl", EVALUATION_NUMBERS)
    _check(run)
    return run


def _mapping(run: RunRecord, name: str, parse: Callable[[str], Any]) -> Line:
    """Return what a file of settings or results holds, empty and said where it holds none."""
    try:
        value = parse((run.folder / name).read_text())
    except FileNotFoundError:
        if name == "summary.json":
            run.missing.append("It has not ended, or was cut: there is no summary.json; figures are those so far.")
        else:
            run.missing.append(f"There is no {name}.")
        return {}
    except (OSError, ValueError, yaml.YAMLError):
        run.missing.append(f"{name} is damaged and was left out.")
        return {}
    if not isinstance(value, dict):
        run.missing.append(f"{name} is damaged and was left out.")
        return {}
    return value


def _lines(run: RunRecord, name: str, numbers: tuple[str, ...]) -> list[Line]:
    """Return the good lines of a file, in the order of their rounds, the last one of each."""
    try:
        texts = (run.folder / name).read_text(errors="replace").splitlines()
    except OSError:
        run.missing.append(f"There is no {name}.")
        return []
    good: dict[int, Line] = {}
    bad = repeated = 0
    for text in texts:
        try:
            line = json.loads(text)
            sound = all(is_number(line[number]) for number in numbers) and line["round"] == int(line["round"])
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            bad += 1
            continue
        repeated += line["round"] in good
        good[line["round"]] = line
    if bad:
        run.missing.append(f"{bad} of {counted(len(texts), 'line')} of {name} cannot be read and {was(bad)} left out.")
    if repeated:
        run.missing.append(f"{counted(repeated, 'line')} of {name} {are(repeated)} repeated; the last of each counts.")
    return [good[number] for number in sorted(good)]


def _check(run: RunRecord) -> None:
    """Say what a run's lines lack, and leave out what is not what it should be."""
    for name, sound in SUMMARY_VALUES.items():
        if name in run.summary and not sound(run.summary[name]):
            del run.summary[name]
            run.missing.append(f"{name} in summary.json is damaged and was left out.")
    misdealt = [line for line in run.rounds if "partition" in line and not is_partition(line["partition"])]
    for line in misdealt:
        del line["partition"]
    if misdealt:
        run.missing.append(f"{counted(len(misdealt), 'round')} cannot be read as to who held which block.")
    if run.rounds:
        numbers = {line["round"] for line in run.rounds}
        whole = run.rounds[-1]["round"] + 1  # they are counted from 0
        lacking = whole - len(numbers)
        if lacking > 0:
            run.missing.append(f"{lacking} of {counted(whole, 'round')} {are(lacking)} missing: sums are too small.")
        without = sum(not has_ranks(line) for line in run.rounds)
        if without == len(run.rounds):
            run.missing.append(
                "It does not say each rank's seconds, as an older version's: means over ranks are shown."
            )
        elif without:
            run.missing.append(
                f"{counted(without, 'round')} without each rank's seconds {are(without)} left out of that picture."
            )
    if not run.evaluations:
        run.missing.append("It has not been evaluated.")


def are(count: int) -> str:
    """Return the verb that goes with so many."""
    return "is" if count == 1 else "are"


def was(count: int) -> str:
    """Return the verb that goes with so many, in the past."""
    return "was" if count == 1 else "were"


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, none below zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def is_partition(value: object) -> bool:
    """Return whether a value says for each worker which blocks it held."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(held, list) for held in value)
        and all(isinstance(block, int) and 0 <= block < MOST_BLOCKS for held in value for block in held)
    )


SUMMARY_VALUES: dict[str, Callable[[Any], bool]] = {
    "workers": lambda value: isinstance(value, int) and value > 0,
    "parameters_global": lambda value: is_number(value) and value > 0,
    "parameters_worker": is_number,
    "peak_memory_bytes": lambda value: isinstance(value, list) and all(map(is_number, value)),
}
"""What a report takes from a summary, and whether it is what it should be."""


def has_ranks(line: Line) -> bool:
    """Return whether a round's line says each rank's seconds, as many as there are workers."""
    ranks = line.get("ranks")
    if not isinstance(ranks, dict):
        return False
    values = [ranks.get(name) for name in RANK_NUMBERS]
    lengths = {len(value) if isinstance(value, list) and all(map(is_number, value)) else 0 for value in values}
    return len(lengths) == 1 and 0 not in lengths
