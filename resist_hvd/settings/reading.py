"""A run's settings from a recipe, a file and flags, and of a resumed run from its folder; written and read as YAML."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from resist_hvd.errors import UserError
from resist_hvd.records import RecordError, Summary
from resist_hvd.settings import flags
from resist_hvd.settings.run import Settings

DEMONSTRATION = "digits"
"""The recipe, and the data set, of a run that is told nothing else."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that the package ships."""
    folder = resources.files("resist_hvd.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings that flags, configuration file and recipe ask for; of a resumed run, its own beneath them.

    Raises:
        UserError: a setting is unknown or wrong; the message names it and what it may be. Or no network is named for a
            data set.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    values = parser.get_defaults()
    recipe = chosen_recipe(arguments)
    layers = [read_recipe(parser, recipe)] if recipe is not None else []
    for layer in layers:  # before flags are read, so that --help shows its settings
        parser.set_defaults(plain(layer.as_dict()))
    given = flags.read_flags(parser, arguments, Settings)
    if given.get("config"):
        layers.append(flags.read_file(parser, Path(given.config), Settings))
    layers.append(given)
    asked = layers[0].clone()
    for layer in layers[1:]:
        asked.update(layer)
    own = settings_of_resumed(parser, asked)
    if own is None and recipe is None:
        own = first_settings(parser, asked)
    for layer in layers if own is None else [own, *layers]:
        if "model.name" in layer and "model.sections" not in layer:
            # Who names a network means its depth, not that of the sections in a recipe.
            values["model.sections"] = None
        values.update(layer)
    if own is not None and values.get("precision") == "auto":
        values["precision"] = own.get("precision", "auto")  # what it was found to be when the run began
    try:
        return instantiate(parser.instantiate(values))
    except (ValueError, TypeError) as error:
        raise flags.explain(error, Settings) from None


def read_recipe(parser: ArgumentParser, name: str) -> Namespace:
    """Return what a recipe sets.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in recipe_names():
        raise UserError(f"There is no recipe {name!r}", mend=f"Give --recipe one of {', '.join(recipe_names())}.")
    with resources.as_file(resources.files("resist_hvd.recipes") / f"{name}.yaml") as path:
        return flags.read_file(parser, path, Settings)


def resolved_recipe(name: str) -> dict[str, Any]:
    """Return every setting of a run by a recipe, by names with dots in them.

    Raises:
        UserError: there is no such recipe.
    """
    parser = make_parser()
    values = parser.get_defaults()
    values.update(read_recipe(parser, name))
    return {setting: values.get(setting) for setting in flags.field_types(Settings)}


def settings_of_resumed(parser: ArgumentParser, asked: Namespace) -> Namespace | None:
    """Return the settings of the run that is to be resumed, None where none is, or it has not begun.

    A number of rounds with which the run has finished is left out: who resumes it wants to go on. One that was stopped
    or killed in its last round, or while it was evaluated or exported, has that still to do.

    Raises:
        UserError: they cannot be read.
    """
    if not (asked.get("resume") and asked.get("output")):
        return None
    folder = Path(asked.output)
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        return None
    own = flags.read_file(parser, path, Settings)
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


def first_settings(parser: ArgumentParser, asked: Namespace) -> Namespace | None:
    """Return what a run without a recipe begins with: the demonstration, unless it is of other data.

    Args:
        parser: of the flags.
        asked: what flags and --config ask for.

    Raises:
        UserError: other data are named, and no network for them.
    """
    data = asked.get("data.name")
    if data in (None, DEMONSTRATION):
        return read_recipe(parser, DEMONSTRATION)
    if all(asked.get(name) is None for name in ("config", "model.name", "model.sections")):
        raise UserError(
            f"--data.name is {data}, but nothing says which network to train on it, or how",
            mend=f"Give --recipe {' or '.join(fitting_recipes(parser, data))}, settings of your own by --config FILE, "
            "or a network by --model.name or --model.sections.",
        )
    return None


def fitting_recipes(parser: ArgumentParser, data: str) -> list[str]:
    """Return the recipes for a data set; where there is none, that for small images."""
    fitting = [name for name in recipe_names() if read_recipe(parser, name).get("data.name") == data]
    return fitting or ["cifar10-tiny"]


def make_parser() -> ArgumentParser:
    """Return the parser of `python -m resist_hvd.train`."""
    parser = flags.make_parser(
        "python -m resist_hvd.train",
        "Train a residual network by ResIST, or by what it is compared with. Without any flag, the embedded "
        "demonstration is trained (recipe digits). Flags override --config, which overrides --recipe; beneath them are "
        "a resumed run's own settings. The defaults shown are those without a recipe; --recipe NAME --help shows those "
        "with one. What can be true or false is true where its flag is given alone.",
    )
    names = ", ".join(recipe_names())
    parser.add_argument("--recipe", metavar="NAME", help=f"Settings to begin with: {names}.")
    parser.add_argument("--config", metavar="FILE", help="A YAML file of settings, like the config.yaml of a run.")
    flags.add_settings(parser, Settings)
    return parser


def chosen_recipe(arguments: Sequence[str]) -> str | None:
    """Return the value of --recipe among flags, the last one if it is given twice, None without."""
    recipe = None
    for position, argument in enumerate(arguments):
        if argument == "--recipe" and position + 1 < len(arguments):
            recipe = arguments[position + 1]
        elif argument.startswith("--recipe="):
            recipe = argument.removeprefix("--recipe=")
    return recipe


def instantiate(values: Namespace) -> Settings:
    """Return settings of parsed values."""
    fields = {name: getattr(values, name) for name in Settings.__dataclass_fields__}
    return Settings(**fields)


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
