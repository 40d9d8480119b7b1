"""Networks of a user's own: a function in a file of theirs returns the parts (`--model.parts`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network, Part, check_residual

FLAG = "--model.parts"
NOT_THEIRS = (
    f"{Path(__file__).parents[1]}{os.sep}",
    *(f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
)
"""Beginnings of the names of files whose lines are not a user's."""


def network(
    spec: str, *, channels: int, image_size: int, classes: int, options: Mapping[str, Any] | None = None
) -> Network:
    """Return the network that a user's function makes.

    Args:
        spec: module:function, of a module in the current folder or an installed one; or FILE.py:function. The function
            is called with the arguments below by name, and returns a list of `Part` or a `Network`.
        channels: of the images.
        image_size: height and width of the images, in pixels.
        classes: how many the head tells apart.
        options: further arguments of the function.

    Raises:
        UserError: there is no such module or function, it raises an error, or it returns something else or parts that
            cannot be dealt out.
    """
    options = dict(options or {})
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise UserError(
            f"{spec!r} names no function",
            where=FLAG,
            mend="Give module:function, or FILE.py:function, like mine:parts.",
        )
    function = getattr(module_of(source), name, None)
    if not callable(function):
        raise UserError(f"{source} has no function {name!r}", where=FLAG, mend="Give one that it has.")
    sizes = {"channels": channels, "image_size": image_size, "classes": classes}
    with errors_of_users(spec):
        found = function(**sizes, **options)
        described: dict[str, Any] = {
            "example": torch.empty(2, channels, image_size, image_size, device="meta"),
            "description": {"family": "parts", "parts": spec, **sizes, "options": options},
            "title": spec,
        }
        if isinstance(found, Network):
            if found.example is not None:
                described["example"] = found.example
            found = replace(found, **described)
        else:
            found = Network(listed(found, spec), **described)
        check_residual(found)
    return found


def module_of(source: str) -> ModuleType:
    """Return the module of a name, or that a file has.

    Raises:
        UserError: there is none, or its code raises an error.
    """
    path = Path(source)
    if path.suffix != ".py":
        look_in(Path.cwd())
        with errors_of_users(source):
            try:
                return importlib.import_module(source)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{source}.".startswith(f"{error.name}."):
                    raise
        raise UserError(
            f"There is no module {source!r}, neither in the current folder, {os.getcwd()}, nor among those installed",
            where=FLAG,
            mend="Start from the folder that it is in, or give its file: FILE.py:function.",
        )
    if not path.is_file():
        raise UserError(
            f"There is no file {source} (the current folder is {os.getcwd()})",
            where=FLAG,
            mend="Give one that is there.",
        )
    look_in(path.parent.absolute())
    found = importlib.util.spec_from_file_location(f"parts of {source}", path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    with errors_of_users(source):
        found.loader.exec_module(module)
    return module


def look_in(folder: Path) -> None:
    """Have Python look for modules in a folder first."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def listed(found: object, spec: str) -> tuple[Part, ...]:
    """Return the parts that a function returned.

    Raises:
        UserError: they are none.
    """
    mend = "Have it return a list of resist_hvd.nets.Part, or a resist_hvd.nets.Network."
    if not isinstance(found, list | tuple) or not found:
        what = "an empty list" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
        raise UserError(f"{spec} returns {what}, and no parts", where=FLAG, mend=mend)
    for place, part in enumerate(found):
        if not isinstance(part, Part):
            raise UserError(f"Item {place} of what {spec} returns is a {type(part).__name__}", where=FLAG, mend=mend)
    return tuple(found)


@contextmanager
def errors_of_users(spec: str) -> Iterator[None]:
    """Turn an error that a user's code raises into a sentence with the place.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{spec} raises {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            where=place_of(error) or FLAG,
            mend="Mend it there.",
        ) from None


def place_of(error: BaseException) -> str:
    """Return file and line of a user's code at which an error was raised, "" where it is not in such."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else ""
