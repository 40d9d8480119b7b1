"""From dataclasses of settings to flags: their help, their values, and what is said when one is wrong.

jsonargparse does the work; what it says is of Python's types, and what users read here is of settings.
"""

from __future__ import annotations

import difflib
import os
import re
from argparse import SUPPRESS, Action
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from resist_hvd import __version__
from resist_hvd.errors import UserError

T = TypeVar("T")

VERSION = f"resist_hvd {__version__}"
"""The answer of every program to --version."""

SEE_HELP = "See --help for every setting."


class HelpFormatter(DefaultHelpFormatter):
    """Says what a setting is and what it is by default; possible values stand beside the flag itself."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **options})  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: Action) -> str:
        text = " ".join((action.help or "").split())
        if not action.option_strings or action.default in (None, SUPPRESS) or "Default:" in text:
            return text
        default = list(action.default) if isinstance(action.default, tuple) else action.default
        return f"{text} (default: {str(default).lower() if isinstance(default, bool) else default})"


def make_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser whose help takes each setting's text from the docstring under its field."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--FLAG VALUE ...]",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=VERSION, help="Show the version and exit.")
    return parser


def add_settings(parser: ArgumentParser, settings: type[Any]) -> None:
    """Add a flag for every field of a dataclass, and of the dataclasses in it."""
    parser.add_class_arguments(settings)
    types = field_types(settings)
    for action in parser._actions:
        if action.dest in types:
            action.metavar = placeholder(types[action.dest])
        elif any(name.startswith(f"{action.dest}.") for name in types):
            action.help = SUPPRESS


def field_types(settings: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return the type of every setting by its name, those of nested dataclasses with dots in them."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(settings).items():
        nested = isinstance(kind, type) and is_dataclass(kind)
        types |= field_types(kind, f"{prefix}{name}.") if nested else {f"{prefix}{name}": kind}
    return types


def alternatives(kind: Any) -> list[Any]:
    """Return the types that a union has, without None; the type itself where it is none."""
    members = [kind] if get_origin(kind) in (Literal, tuple, dict) else list(get_args(kind)) or [kind]
    return [member for member in members if member is not NoneType]


def placeholder(kind: Any) -> str:
    """Return what stands for a setting's value in the help."""
    (kind,) = alternatives(kind)
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is tuple:
        return "[X,...]"
    if get_origin(kind) is dict:
        return "{NAME:X,...}"
    return {bool: "{true,false}", int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def wanted(kind: Any) -> str:
    """Return in words what a setting takes."""
    (kind,) = alternatives(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "numbers in brackets, like [0.5,0.75]"
    if get_origin(kind) is dict:
        return "names and values in braces, like {patch_size: 4}"
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(kind, "a text")


def with_values(arguments: Sequence[str], settings: type[Any]) -> list[str]:
    """Return arguments in which a flag that can be true or false, given alone, is true: `--resume`."""
    switches = {f"--{name}" for name, kind in field_types(settings).items() if alternatives(kind) == [bool]}
    spelled = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        alone = argument in switches and following.startswith("--")
        spelled.append(f"{argument}=true" if alone else argument)
    return spelled


def parse_settings(
    prog: str,
    settings: type[T],
    arguments: Sequence[str],
    beneath: Callable[[Namespace], Mapping[str, Any]] | None = None,
) -> T:
    """Return the settings that flags give, for a program that has no files of settings.

    Args:
        prog: what its help calls it.
        settings: the dataclass of all of them.
        arguments: the flags.
        beneath: returns settings, by names with dots in them, that what is given overrides.

    Raises:
        UserError: a flag is unknown, or its value is wrong.
    """
    parser = make_parser(prog, settings.__doc__ or "")
    add_settings(parser, settings)
    given = read_flags(parser, arguments, settings)
    try:
        values = parser.get_defaults()
        for name, value in (beneath(given) if beneath else {}).items():
            values[name] = value
        values.update(given)
        values = parser.instantiate(values)
        return settings(**{name: values[name] for name in get_type_hints(settings)})
    except (ValueError, TypeError) as error:
        raise explain(error, settings) from None


def read_flags(parser: ArgumentParser, arguments: Sequence[str], settings: type[Any]) -> Namespace:
    """Return what flags give, and nothing that they do not.

    Raises:
        UserError: a flag is unknown, or its value is wrong.
    """
    for argument in arguments:
        if argument != (readable := os.fsencode(argument).decode(errors="backslashreplace")):
            raise UserError(
                f"{readable} is not UTF-8", mend="Rename what it names, or give a link to it whose name is UTF-8."
            )
    try:
        return parser.parse_args(with_values(arguments, settings), defaults=False)
    except (ArgumentError, ValueError, TypeError) as error:
        raise explain(error, settings) from None


def read_file(parser: ArgumentParser, path: Path, settings: type[Any]) -> Namespace:
    """Return what a YAML file of settings gives, and nothing that it does not.

    Raises:
        UserError: it cannot be read, is no YAML, or has a setting that is unknown or wrong.
    """
    mend = "Give a YAML file of settings, like the config.yaml of a run."
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
    for group, kind in get_type_hints(settings).items():
        if is_dataclass(kind) and not isinstance(values.get(group, {}), dict):
            seen = f"{group} is {values[group]!r}, but it is a group of settings"
            raise UserError(seen, where=str(path), mend=f"Give them below {group}, one a line.")
    if "recipe" in values:
        raise UserError("A file of settings has no recipe", where=str(path), mend="Give it as a flag: --recipe NAME.")
    try:
        given: Namespace = parser.parse_object(with_lists_joined(values, field_types(settings)), defaults=False)
        return given
    except (ArgumentError, ValueError, TypeError) as error:
        raise explain(error, settings, where=str(path)) from None


def with_lists_joined(values: dict[str, Any], types: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values in which a list of numbers, where a text of numbers with commas is wanted, is such a text."""
    joined = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):
            joined[name] = with_lists_joined(value, types, f"{prefix}{name}.")
        elif isinstance(value, list) and types.get(f"{prefix}{name}") in (str, str | None):
            joined[name] = ",".join(map(str, value))
    return joined


def explain(error: Exception, settings: type[Any], *, where: str = "") -> UserError:
    """Return what to tell a user of an error of the parser's, or of a setting's own check.

    Args:
        error: what was raised.
        settings: the dataclass of all settings.
        where: the file that was read; flags if none.
    """
    text = " ".join(str(error).split()).rstrip(".")
    types = field_types(settings)
    dashes = "" if where else "--"

    if found := re.match(r'Parser key "([\w.]+)".*Unable to load config', text):
        group = found[1]
        members = ", ".join(f"--{name}" for name in types if name.startswith(f"{group}."))
        return UserError(f"--{group} is a group of settings", where=where, mend=f"Give those you mean: {members}.")
    if (found := re.match(r'Parser key "([\w.]+)".* [Vv]alue: ?(.*)$', text)) and found[1] in types:
        mend = f"Give {wanted(types[found[1]])}."
        return UserError(f"{dashes}{found[1]} is {found[2]!r}", where=where, mend=mend)
    if found := re.match(r"argument (--[\w.]+): expected one argument", text):
        name = found[1].removeprefix("--")
        mend = f"Give {wanted(types[name])} after it." if name in types else SEE_HELP
        return UserError(f"{found[1]} has no value", where=where, mend=mend)
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        flag = found[1].partition("=")[0]
        if not flag.startswith("-"):
            return UserError(f"{flag!r} belongs to no flag", where=where, mend=SEE_HELP)
        return UserError(f"There is no flag {flag}", where=where, mend=suggest(flag, [f"--{name}" for name in types]))
    if found := re.match(r"(?:Group '([\w.]+)' does not accept o|O)ption '([\w.]+)'", text):
        name = f"{found[1]}.{found[2]}" if found[1] else found[2]
        return UserError(f"There is no setting {name}", where=where, mend=suggest(name, list(types)))
    seen, _, mend = text.partition("; ")
    return UserError(seen, where=where, mend=f"{mend[0].upper()}{mend[1:]}." if mend else SEE_HELP)


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the advice to take the known name that is nearest to an unknown one."""
    last = {known: known.rpartition(".")[2].removeprefix("--") for known in names}
    same_end = [known for known in names if last[known] == name.rpartition(".")[2].removeprefix("--")]
    near = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"Perhaps you mean {' or '.join(near)}; see --help." if near else SEE_HELP
