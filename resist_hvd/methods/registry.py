"""Training methods by name."""

from __future__ import annotations

from importlib import import_module

from resist_hvd.methods.base import Method
from resist_hvd.settings.run import MethodName


def method_of(name: MethodName) -> type[Method]:
    """Return the method of a name: `METHOD` of the module that is called so. `MethodName` lists the names."""
    found: type[Method] = import_module(f"resist_hvd.methods.{name.replace('-', '_')}").METHOD
    return found
