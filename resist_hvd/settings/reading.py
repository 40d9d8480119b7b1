"""A run's settings from a recipe, a file and flags, and of a resumed run from its folder; written and read as YAML."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from resist_hvd.errors import UserError
from resist_hvd.json_record import RecordError
from resist_hvd.records import EvaluationRecord, Summary
from resist_hvd.settings import flags
from resist_hvd.settings.data import FACTS
from resist_hvd.settings.flags import Layer
from resist_hvd.settings.group import flags_of
from resist_hvd.settings.model import OF_PREACT, family_of
from resist_hvd.settings.optim import OF_AN_OPTIMIZER, USUAL
from resist_hvd.settings.run import Settings

S = TypeVar("S", bound=Settings)

DEMONSTRATION = "digits"
"""The recipe, and the data set, of a run that is told nothing else."""

ABOUT = """Train a residual network by ResIST, or by what it is compared with. Without any flag, the embedded
demonstration is trained (recipe digits). Flags override --config, which overrides --recipe; beneath them are a resumed
run's own settings. The defaults shown are those without a recipe; --recipe NAME --help shows those with one. What can
be true or false is true where its flag is given alone."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that the package ships."""
    folder = resources.files("resist_hvd.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


RECIPE = {"recipe": ("NAME", f"Settings to begin with: {', '.join(recipe_names())}.")}
ALIASES = {"task": "task.name"}
CONFIG = {"config": ("FILE", "A YAML file of settings, like the config.yaml of a run.")}
RUN = {"run": ("DIR", "The folder of a run, whose settings to begin with.")}


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings that flags, configuration file and recipe ask for; of a resumed run, its own beneath them.

    Raises:
        UserError: a setting is unknown or wrong; the message names it and what it may be. Or no network is named for a
            data set.
    """
    given = flags.read_flags(
        "python -m resist_hvd.train",
        Settings,
        sys.argv[1:] if arguments is None else arguments,
        about=ABOUT,
        besides=RECIPE | CONFIG,
        aliases=ALIASES,
        beneath=lambda given: read_recipe(given.get("recipe")),
    )
    layers = [read_recipe(given.get("recipe"))]
    if given.get("config"):
        layers.append(flags.read_file(Path(given["config"]), Settings))
    layers.append(given)
    asked = merged(*layers)
    own = settings_of_resumed(asked)
    if own is None and not given.get("recipe"):
        own = first_settings(asked)
    values = merged(own or {}, *layers)
    if own is not None and values.get("precision") == "auto":
        values["precision"] = own.get("precision", "auto")  # what it was found to be when the run began
    return flags.make(Settings, values)


def parse_for(
    prog: str, group: type[S], arguments: Sequence[str], *, base: Layer, aliases: Mapping[str, str] | None = None
) -> S:
    """Return the settings of a program that takes some of a run's, from a recipe, a run, or what it takes without.

    Args:
        prog: what its help calls it.
        group: its settings.
        arguments: the flags.
        base: what it begins with where neither a recipe nor a run is given; a network that is named replaces its.
        aliases: other names of settings.

    Raises:
        UserError: a flag is unknown or wrong, or a recipe or a run cannot be read.
    """

    def beneath(given: Layer) -> Layer:
        """Return the settings to begin with: a recipe's, a run's, or those of `base`."""
        if given.get("recipe") and given.get("run"):
            raise UserError("--recipe and --run are both given", mend="Give the one whose settings to begin with.")
        if given.get("run"):
            layer = read_run(Path(given["run"]))
            if given.get("data.name") in (None, layer.get("data.name")):
                layer |= images_of_run(Path(given["run"]), layer)
        elif given.get("recipe"):
            layer = read_recipe(given["recipe"])
        else:
            named = {"model.name", "model.parts"} & given.keys()
            layer = {name: value for name, value in base.items() if not (named and name.startswith("model."))}
        taken = flags_of(group)
        return {name: layer[name] for name in layer if name in taken or flags.in_mapping(name, taken)}

    given = flags.read_flags(prog, group, arguments, besides=RECIPE | RUN, aliases=aliases or {}, beneath=beneath)
    names_network = given.keys() & {"recipe", "run"} or any(name.startswith("model.") for name in base)
    if not names_network and given.get("data.name", base.get("data.name")) != base.get("data.name"):
        require_network(given, instead="a run's by --run DIR")
    return flags.make(group, merged(beneath(given), given))


def merged(*layers: Layer) -> Layer:
    """Return the settings of several places, those of later ones over those of earlier ones.

    Who names a network means its own size, who names another optimizer its own rates, and who gives a warm-up by its
    share of the run or by epochs, that one: what earlier places have of these is left out.
    """
    values: Layer = {}
    for layer in layers:
        if "model.name" in layer or "model.parts" in layer:
            forgotten = {"model.name", "model.parts", "model.sections"}
            before, now = ((each.get("model.name"), each.get("model.parts")) for each in (values, layer))
            if family_of(*before) != family_of(*now):
                forgotten |= {f"model.{name}" for name in OF_PREACT}
            if before != now:
                forgotten |= {name for name in values if name.startswith("model.options.")}
            values = {name: value for name, value in values.items() if name not in forgotten}
        was = values.get("optim.name", "sgd")
        optimizer = layer.get("optim.name", was)
        if optimizer != was:
            values = {name: value for name, value in values.items() if name not in OF_AN_OPTIMIZER}
            values |= USUAL[str(optimizer)]
        for one, other in (("optim.warmup", "optim.warmup_epochs"), ("optim.warmup_epochs", "optim.warmup")):
            if layer.get(one) and other not in layer:
                values.pop(other, None)
        values |= layer
    return values


def read_recipe(name: str | None) -> Layer:
    """Return what a recipe sets, nothing without one.

    Raises:
        UserError: there is no such recipe.
    """
    if name is None:
        return {}
    if name not in recipe_names():
        raise UserError(f"There is no recipe {name!r}", mend=f"Give --recipe one of {', '.join(recipe_names())}.")
    with resources.as_file(resources.files("resist_hvd.recipes") / f"{name}.yaml") as path:
        return flags.read_file(path, Settings)


def read_run(folder: Path) -> Layer:
    """Return the settings of a run.

    Raises:
        UserError: the folder is no run's, or its settings cannot be read.
    """
    return flags.read_file(folder / "config.yaml", Settings, mend="Give the folder of a run: it has a config.yaml.")


def images_of_run(folder: Path, settings: Layer) -> Layer:
    """Return what a run's files say of images that are not known by their data set's name; nothing without these files.

    Args:
        folder: the run's.
        settings: its own.
    """
    if settings.get("data.name", DEMONSTRATION) in FACTS:
        return {}
    try:
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        last = EvaluationRecord.read_lines(folder / "eval.jsonl").records[-1]
        return {
            "data.image_size": int(model["image_size"]),
            "channels": int(model["channels"]),
            "classes": len(model["classes"]),
            "images": round(last.samples / last.epoch),
        }
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError, RecursionError):
        return {}


def settings_of_resumed(asked: Layer) -> Layer | None:
    """Return the settings of the run that is to be resumed, None where none is, or it has not begun.

    A number of rounds with which the run has finished is left out: who resumes it wants to go on. One that was stopped
    or killed in its last round, or while it was evaluated or exported, has that still to do.

    Raises:
        UserError: they cannot be read.
    """
    if not (asked.get("resume") and asked.get("output")):
        return None
    folder = Path(asked["output"])
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        return None
    own = flags.read_file(path, Settings)
    for name in ("resume", "output"):
        own.pop(name, None)
    if 0 < (own.get("max_rounds") or 0) <= finished_rounds(folder):
        own.pop("max_rounds")
    return own


def finished_rounds(folder: Path) -> int:
    """Return how many rounds the run in a folder had when it ended by itself, 0 where it has not."""
    try:
        return Summary.read(folder / "summary.json").rounds
    except (OSError, RecordError):
        return 0


def first_settings(asked: Layer) -> Layer | None:
    """Return what a run without a recipe begins with: the demonstration, unless it is of other data.

    Args:
        asked: what flags and --config ask for.

    Raises:
        UserError: other data are named, and no network for them.
    """
    data = asked.get("data.name")
    if data in (None, DEMONSTRATION):
        return read_recipe(DEMONSTRATION)
    require_network(asked)
    return None


def require_network(asked: Layer, *, instead: str = "settings of your own by --config FILE") -> None:
    """Refuse data for which no network is named: none is taken silently.

    Args:
        asked: what flags ask for.
        instead: what names one beside recipes and flags.

    Raises:
        UserError: neither a file of settings nor a flag names one; the message has recipes that fit.
    """
    if all(asked.get(name) is None for name in ("config", "model.name", "model.sections", "model.parts")):
        data = asked["data.name"]
        raise UserError(
            f"--data.name is {data}, but nothing says which network to train on it, or how",
            mend=f"Give --recipe {' or '.join(fitting_recipes(data))}, {instead}, or a "
            "network by --model.name, --model.sections or --model.parts.",
        )


def fitting_recipes(data: str) -> list[str]:
    """Return the recipes for a data set; where there is none, that for small images."""
    return [name for name in recipe_names() if read_recipe(name).get("data.name") == data] or ["cifar10-tiny"]


def to_yaml(settings: Settings) -> str:
    """Return every setting as resolved, as YAML that --config takes."""
    return yaml.safe_dump(plain(asdict(settings)), sort_keys=False)


def plain(value: Any) -> Any:
    """Return a value in YAML's and JSON's own types."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
