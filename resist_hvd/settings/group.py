"""Groups of settings: dataclasses whose fields have a type, a bound and a text; flags and files are read by these."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml

G = TypeVar("G", bound="Group")


class Bound(NamedTuple):
    """Condition on a setting's value, beside its type.

    Attributes:
        words: a right value in words, to follow "give".
        holds: whether a value is right.
    """

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Bound("1 or more", lambda number: number >= 1)]
Natural = Annotated[int, Bound("0 or more", lambda number: number >= 0)]
Amount = Annotated[float, Bound("0 or more", lambda number: 0 <= number < math.inf)]
Positive = Annotated[float, Bound("a number above 0", lambda number: 0 < number < math.inf)]
Share = Annotated[float, Bound("a share above 0, at most 1", lambda number: 0 < number <= 1)]
Fraction = Annotated[float, Bound("a number from 0 up to, but not, 1", lambda number: 0 <= number < 1)]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that stand together.

    Attributes:
        PREFIX: what the names of its flags begin with, "data." for example.
        TAKES: the inherited settings, or groups of them, that its program has flags for; None for all.

    Raises:
        ValueError: a value is wrong; the text names the flag and, after a semicolon, what to give.
    """

    PREFIX: ClassVar[str] = ""
    TAKES: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        for name, setting in settings_of(type(self)).items():
            if "." in name:
                continue  # groups in it have checked their own
            value = getattr(self, name)
            if not (setting.optional if value is None else setting.allows(value)):
                raise ValueError(f"--{self.PREFIX}{name} is {shown(value)}; give {setting.wanted}")
        self.check()

    def check(self) -> None:
        """Check settings against one another.

        Raises:
            ValueError: they do not go together.
        """

    def changed(self, name: str) -> bool:
        """Return whether a setting is not its default."""
        return bool(getattr(self, name) != settings_of(type(self))[name].default)


class Setting(NamedTuple):
    """Values that a setting takes.

    Attributes:
        kind: its type, without None and without a bound.
        optional: whether it may be None.
        bound: the condition on its value.
        default: its value where nothing is given.
        words: texts that may stand in its place, as "auto" in that of a number.
    """

    kind: Any
    optional: bool
    bound: Bound | None
    default: Any
    words: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Return whether a value of the right type is right."""
        if get_origin(self.kind) is Literal:
            return value in get_args(self.kind)
        return value in self.words or self.bound is None or self.bound.holds(value)

    @property
    def wanted(self) -> str:
        """A right value in words."""
        return ", or ".join((self.bound.words, *self.words)) if self.bound else self.type_wanted

    @property
    def type_wanted(self) -> str:
        """Its type in words."""
        if get_origin(self.kind) is Literal:
            return f"one of {', '.join(get_args(self.kind))}"
        names = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
        return ", or ".join((names.get(self.kind, "numbers in brackets, like [0.5,0.75]"), *self.words))

    @property
    def placeholder(self) -> str:
        """Placeholder of its value in the help."""
        if get_origin(self.kind) is Literal:
            return "{" + ",".join(get_args(self.kind)) + "}"
        names = {bool: "{true,false}", int: "N", float: "X", Path: "PATH", str: "TEXT"}
        return "|".join((names.get(self.kind, "[X,...]"), *self.words))

    def read(self, value: Any) -> Any:
        """Return a flag's text, or a value of YAML's, as a value of this type.

        Raises:
            ValueError, TypeError, yaml.YAMLError: it is none.
        """
        if value is None or value == "null":
            if self.optional:
                return None
            raise ValueError(value)
        kind, is_text = self.kind, isinstance(value, str)
        if is_text and value in self.words:
            return value
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif get_origin(kind) is tuple:
            found = yaml.safe_load(value) if is_text else value
            if isinstance(found, list) and (Ellipsis in get_args(kind) or len(found) == len(get_args(kind))):
                return tuple(self._replace(kind=get_args(kind)[0]).read(number) for number in found)
        elif kind is bool and is_text and value.lower() in ("true", "false"):
            return value.lower() == "true"
        elif kind in (int, float) and (is_text or type(value) in (int, kind)):
            return kind(value)
        elif kind is str and isinstance(value, list):
            return ",".join(map(str, value))
        elif (kind is Path and is_text) or (kind is str and isinstance(value, str | int | float)):
            return kind(value)
        elif kind is bool and type(value) is bool:
            return value
        raise ValueError(value)


def _settings_of(group: type[Group], prefix: str = "") -> dict[str, Setting]:
    """Return every setting of a group by its name; those of groups in it have dots in their names."""
    found: dict[str, Setting] = {}
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        kind = hints[each.name]
        if is_group(kind):
            found |= settings_of(kind, f"{prefix}{each.name}.")
            continue
        members = [kind] if get_origin(kind) in (Annotated, Literal, tuple, dict) else get_args(kind) or (kind,)
        bare, *others = (member for member in members if member is not NoneType)
        words = tuple(word for other in others for word in get_args(other))
        bounds = [extra for extra in getattr(bare, "__metadata__", ()) if isinstance(extra, Bound)]
        bare = get_args(bare)[0] if get_origin(bare) is Annotated else bare
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        bound = bounds[0] if bounds else None
        found[f"{prefix}{each.name}"] = Setting(bare, NoneType in members, bound, default, words)
    return found


settings_of: Callable[..., dict[str, Setting]] = cache(_settings_of)
"""The same, each group looked at once."""


def flags_of(group: type[Group]) -> dict[str, Setting]:
    """Return the settings that a program of this group has flags for: its own, then those that it takes."""
    every, takes = settings_of(group), group.TAKES
    if takes is None:
        return every
    own = [name for name in every if name.partition(".")[0] in group.__annotations__]
    taken = [name for name in every if any(name == each or name.startswith(f"{each}.") for each in takes)]
    return {name: every[name] for name in (*own, *taken)}


def texts_of(group: type[Group]) -> dict[str, str]:
    """Return the text below each of a group's fields, and of those that it inherits."""
    found = {}
    for base in reversed(group.__mro__[: group.__mro__.index(Group)]):
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for one, after in pairwise(body.body):
            if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[ast.unparse(one.target)] = " ".join(str(after.value.value).split())
    return found


def shown(value: Any) -> str:
    """Return a value as messages have it."""
    return repr(str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value)


def is_group(kind: Any) -> bool:
    """Return whether a type is a group of settings."""
    return isinstance(kind, type) and issubclass(kind, Group)
