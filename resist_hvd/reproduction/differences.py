"""The ways in which what was run differs from the paper's setting, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from resist_hvd.records import StartRecord
from resist_hvd.reproduction.experiment import Case, Layer
from resist_hvd.reproduction.outcome import Outcome
from resist_hvd.settings.data import FACTS
from resist_hvd.settings.group import settings_of
from resist_hvd.settings.model import SECTIONS
from resist_hvd.settings.reading import merged, read_recipe
from resist_hvd.settings.run import Settings
from resist_hvd.units import counted

COMPARED = {
    "network": "sections",
    "model.width_factor": "width of all layers",
    "data": "images",
    "train_images": "training images",
    "data.image_size": "pixels a side",
    "data.batch_size": "images in a worker's batch",
    "epochs": "epochs, summed over workers",
    "max_rounds": "rounds at most",
    "warmup_epochs": "epochs of local SGD before ResIST",
    "local_iterations": "local iterations a round",
    "min_blocks": "blocks a worker at least",
    "optim.lr": "learning rate",
    "optim.schedule": "schedule",
    "precision": "precision",
}
"""Settings that make a result, and what they are called."""

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "voc": "Pascal VOC"}
OF_IMAGES = ("train_images", "data.image_size")
"""What may be known only once a run has read its images."""


def differences(outcome: Outcome) -> list[str]:
    """Return what differs: settings, seeds, hardware, and what the experiment says itself."""
    experiment, settings = outcome.experiment, outcome.settings
    ours = next((case for case in experiment.cases(settings) if not case.lacking), None)
    papers = next((case for case in experiment.cases(replace(settings, budget="paper")) if not case.lacking), None)
    found = list(_settings(ours, papers, _of_runs(outcome))) if ours and papers else []
    seeds = settings.seeds_taken
    if seeds < 3:
        found.append(f"{counted(seeds, 'seed')}; the paper's numbers are means of three")
    found += _hardware(outcome)
    return [f"{sentence}." for sentence in found] + list(experiment.notes)


def _of_runs(outcome: Outcome) -> Layer:
    """Return the precision that auto came to in the runs, and how many images they had, as settings."""
    taken = sorted({str(record.config["precision"]) for record in outcome.records if "precision" in record.config})
    found: dict[str, Any] = {"precision": " and ".join(taken)} if taken else {}
    ended = [record.evaluations[-1] for record in outcome.records if record.evaluations]
    counts = sorted({round(line.samples / line.epoch) for line in ended if line.epoch})
    return found | ({"train_images": " and ".join(f"{count:,}" for count in counts)} if counts else {})


def _settings(ours: Case, papers: Case, found: Layer) -> Iterator[str]:
    """Yield settings that differ, of which some are as they were found in runs."""
    one = {**_resolved(ours.settings), **found}
    other = {**_resolved(papers.settings), "precision": "fp32"}  # a V100 knows no bfloat16
    for name, words in COMPARED.items():
        known = name not in OF_IMAGES or (one.get(name) and other.get(name))
        if known and one.get(name) != other.get(name):
            yield f"{words}: {_shown(one.get(name))}; the paper: {_shown(other.get(name))}"


def _resolved(layer: Layer) -> dict[str, Any]:
    """Return a run's settings, its recipe's beneath them, and its network and images by what people call them."""
    values = merged(read_recipe(layer.get("recipe")), {k: v for k, v in layer.items() if k != "recipe"})
    defaults = settings_of(Settings)
    known = {name: values.get(name, defaults[name].default) for name in COMPARED if name in defaults}
    sections, name = values.get("model.sections"), values.get("model.name", "preact_resnet101")
    known["network"] = sections or ",".join(map(str, SECTIONS.get(name, ()))) or name
    if "model.parts" in values:
        known["network"] = str(values.get("model.options.sections"))
        known["model.width_factor"] = values.get("model.options.width", 64) / 64
    data = values.get("data.name", "digits")
    known["data"] = f"the folder {Path(values['data.root']).name}" if data == "folder" else NAMES.get(data, data)
    if (facts := FACTS.get(data)) is not None:
        known["data.image_size"] = known["data.image_size"] or facts.size
        known["train_images"] = f"{facts.train:,}"
    return known


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _hardware(outcome: Outcome) -> Iterator[str]:
    """Yield on what the runs were made, as they say it themselves."""
    places = set()
    for record in outcome.records:
        with suppress(OSError):
            for start in StartRecord.read_lines(record.folder / "starts.jsonl").records:
                places.add((start.device, len(set(start.hosts))))
    if places:
        said = " and ".join(f"{device.upper()} of {counted(hosts, 'host')}" for device, hosts in sorted(places))
        yield f"workers on the {said}; the paper: a V100 each"
