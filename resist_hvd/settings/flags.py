"""From groups of settings to flags and files: their help, their values, and the error where one is wrong."""

from __future__ import annotations

import difflib
import json
import os
import sys
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from resist_hvd import __version__
from resist_hvd.errors import UserError
from resist_hvd.settings.group import Group, Setting, flags_of, is_group, shown, texts_of

G = TypeVar("G", bound=Group)

Layer = dict[str, Any]
"""Settings that one place gives, by their names with dots in them."""

VERSION = f"resist_hvd {__version__}"
"""The answer of every program to --version."""

SEE_HELP = "See --help for every setting."
FILE_MEND = "Give a YAML file of settings, like the config.yaml of a run."

ALONE = object()
"""The value of a flag that is given without one."""


def read_flags(
    prog: str,
    group: type[Group],
    arguments: Sequence[str],
    *,
    about: str = "",
    besides: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    aliases: Mapping[str, str] = MappingProxyType({}),
    beneath: Callable[[Layer], Layer] = lambda _: {},
) -> Layer:
    """Return what flags give, and nothing that they do not; print help or the version and exit where they ask for it.

    Args:
        prog: what the help calls the program.
        group: its settings.
        arguments: the flags.
        about: what the help says of the program.
        besides: flags that are no settings, each with the placeholder of its value and its text.
        aliases: other names of settings, which the help leaves out.
        beneath: returns what a setting is, by what flags give, where no flag gives it: the defaults in the help.

    Raises:
        UserError: a flag is unknown, or its value is wrong.
    """
    for argument in arguments:
        if argument != (readable := os.fsencode(argument).decode(errors="backslashreplace")):
            raise UserError(
                f"{readable} is not UTF-8", mend="Rename what it names, or give a link to it whose name is UTF-8."
            )
    settings, rest, given = flags_of(group), list(arguments), {}
    asks_for_help = False
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag == "--version":
            print(VERSION)
            sys.exit(0)
        if flag in ("-h", "--help"):
            asks_for_help = True
            continue
        if not flag.startswith("--"):
            raise UserError(f"{flag!r} belongs to no flag", mend=SEE_HELP)
        name = aliases.get(flag[2:], flag[2:])
        if name not in besides and name not in settings and not in_mapping(name, settings):
            raise unknown_flag(flag, settings)
        text: Any = value if equals else rest.pop(0) if rest and not rest[0].startswith("--") else ALONE
        given[name] = read_value(flag, name, text, settings)
    if asks_for_help:
        print(help_text(prog, group, about, besides, beneath(given)), end="")
        sys.exit(0)
    return given


def places(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first flag, and the others."""
    count = next((place for place, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return list(arguments[:count]), list(arguments[count:])


def parse_settings(prog: str, group: type[G], arguments: Sequence[str]) -> G:
    """Return the settings that flags give, for a program that has no others.

    Raises:
        UserError: a flag is unknown, or its value is wrong.
    """
    return make(group, read_flags(prog, group, arguments))


def unknown_flag(flag: str, settings: Mapping[str, Setting]) -> UserError:
    """Return the error that there is no such flag."""
    if members := [f"--{name}" for name in settings if name.startswith(f"{flag[2:]}.")]:
        return UserError(f"{flag} is a group of settings", mend=f"Give those you mean: {', '.join(members)}.")
    return UserError(f"There is no flag {flag}", mend=suggest(flag, [f"--{name}" for name in settings]))


def read_value(said: str, name: str, value: Any, settings: Mapping[str, Setting], where: str = "") -> Any:
    """Return a setting's value as its type has it.

    Args:
        said: the name that the user gave it.
        name: the setting's own.
        value: as it was given.
        settings: every setting.
        where: the file that it stands in; empty for a flag.

    Raises:
        UserError: it is wrong.
    """
    setting = settings.get(name)
    if value is ALONE:
        if setting is not None and setting.kind is bool:
            return True
        after = f"Give {setting.type_wanted} after it." if setting else SEE_HELP
        raise UserError(f"{said} has no value", mend=after)
    if setting is not None and is_mapping(setting):
        raise UserError(f"{said} is a group of settings", mend=f"Give those you mean: {said}.NAME VALUE.")
    try:
        if setting is None:  # a recipe's name, or a name of a mapping
            return plain_value(value) if in_mapping(name, settings) else value
        taken = setting.read(value)
    except (ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError):
        wanted = setting.type_wanted if setting else "a number, true, false, a text, or a list of these"
        raise UserError(f"{said} is {value!r}", where=where, mend=f"Give {wanted}.") from None
    if taken is not None and not setting.allows(taken):
        raise UserError(f"{said} is {shown(taken)}", where=where, mend=f"Give {setting.wanted}.")
    return taken


def plain_value(value: Any) -> Any:
    """Return a value of a mapping: YAML's numbers, texts, and lists and mappings of these.

    Raises:
        ValueError, yaml.YAMLError: it is none.
    """
    found = yaml.safe_load(value) if isinstance(value, str) else value
    json.dumps(found)  # a TypeError for dates and sets, which no constructor takes and no model.json holds
    return found


def read_file(path: Path, group: type[Group], *, mend: str = FILE_MEND) -> Layer:
    """Return what a YAML file of settings gives, and nothing that it does not.

    Raises:
        UserError: it cannot be read, is no YAML, or has a setting that is unknown or wrong.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings: {error.strerror}", where=str(path), mend=mend) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date, or a thousand brackets, too
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is no text"
        raise UserError(f"This is not YAML: {reason}", where=where, mend=mend) from None
    if not isinstance(values, dict):
        raise UserError("The file holds no settings", where=str(path), mend=mend)
    if "recipe" in values:
        raise UserError("A file of settings has no recipe", where=str(path), mend="Give it as a flag: --recipe NAME.")
    return dict(flattened(values, flags_of(group), str(path)))


def flattened(values: dict[Any, Any], settings: Mapping[str, Setting], where: str, prefix: str = "") -> Iterable[Any]:
    """Yield the name and the value of each setting of a file.

    Raises:
        UserError: one is unknown or wrong.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if any(known.startswith(f"{name}.") for known in settings) or (name in settings and is_mapping(settings[name])):
            if not isinstance(value, dict):
                seen = f"{name} is {value!r}, but it is a group of settings"
                raise UserError(seen, where=where, mend=f"Give them below {name}, one a line.")
            yield from flattened(value, settings, where, f"{name}.")
        elif name in settings or in_mapping(name, settings):
            yield name, read_value(name, name, value, settings, where)
        else:
            raise UserError(f"There is no setting {name}", where=where, mend=suggest(name, list(settings)))


def values_of(settings: Group) -> Layer:
    """Return the value of each setting that its program has a flag for, by its name."""

    def value(name: str) -> Any:
        found: Any = settings
        for part in name.split("."):
            found = getattr(found, part)
        return found

    return {name: value(name) for name in flags_of(type(settings))}


def make(group: type[G], values: Mapping[str, Any]) -> G:
    """Return the settings of these values, and of defaults.

    Raises:
        UserError: they do not go together.
    """
    try:
        return built(group, values, "")
    except ValueError as error:
        seen, _, mend = str(error).partition("; ")
        raise UserError(seen, mend=f"{mend[0].upper()}{mend[1:]}." if mend else SEE_HELP) from None


def built(group: type[G], values: Mapping[str, Any], prefix: str) -> G:
    """Return the settings whose names begin with a prefix.

    Raises:
        ValueError: they do not go together.
    """
    given: dict[str, Any] = {}
    kinds = get_type_hints(group)
    for each in fields(group):
        name, kind = f"{prefix}{each.name}", kinds[each.name]
        if is_group(kind):
            given[each.name] = built(kind, values, f"{name}.")
        elif get_origin(kind) is dict:
            given[each.name] = {key[len(name) + 1 :]: values[key] for key in values if key.startswith(f"{name}.")}
        elif name in values:
            given[each.name] = values[name]
    return group(**given)


def is_mapping(setting: Setting) -> bool:
    """Return whether a setting takes names of its own, each with a value."""
    return get_origin(setting.kind) is dict


def in_mapping(name: str, settings: Mapping[str, Setting]) -> bool:
    """Return whether a name is one of a setting's own."""
    return any(is_mapping(setting) and name.startswith(f"{known}.") for known, setting in settings.items())


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the advice to take the known name that is nearest to an unknown one."""
    last = {known: known.rpartition(".")[2].removeprefix("--") for known in names}
    same_end = [known for known in names if last[known] == name.rpartition(".")[2].removeprefix("--")]
    near = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"Perhaps you mean {' or '.join(near)}; see --help." if near else SEE_HELP


def help_text(
    prog: str, group: type[Group], about: str, besides: Mapping[str, tuple[str, str]], defaults: Layer
) -> str:
    """Return what --help prints: the text below each field, its default, and the values it takes."""
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--FLAG VALUE ...]",
        description=" ".join((about or group.__doc__ or "").split()),
        formatter_class=partial(HelpFormatter, max_help_position=30),
    )
    parser.add_argument("--version", action="store_true", help="Show the version and exit.")
    for name, (placeholder, text) in besides.items():
        parser.add_argument(f"--{name}", metavar=placeholder, help=text)
    parts: dict[str, Any] = {}
    for name, setting in flags_of(group).items():
        place, _, last = name.rpartition(".")
        if place not in parts:
            kind = group_at(group, place)
            parts[place] = parser.add_argument_group((kind.__doc__ or "").partition(".")[0]), texts_of(kind)
        section, texts = parts[place]
        default, text = defaults.get(name, setting.default), texts[last].replace("%", "%%")
        if default not in (None, {}, ()) and "Default:" not in text:
            shown = str(default).lower() if isinstance(default, bool) else default
            text += f" (default: {list(shown) if isinstance(shown, tuple) else shown})"
        flag, metavar = (f"{name}.NAME", "VALUE") if is_mapping(setting) else (name, setting.placeholder)
        section.add_argument(f"--{flag}", metavar=metavar, help=text)
    return parser.format_help()


def group_at(group: type[Group], place: str) -> type[Group]:
    """Return the group in a group at a place, "data.dali" for example."""
    for name in filter(None, place.split(".")):
        group = get_type_hints(group)[name]
    return group
