"""Records of files: dataclasses that are written as JSON objects, and read again with every type looked at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, NamedTuple, Self, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R", bound="Record")

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


def _as_json(value: Any) -> Any:
    """Return a field's value as JSON has it: records in it leave out what is None, too."""
    if isinstance(value, Record):
        return value.as_json()
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value


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
