"""Imports between modules point down the list in ARCHITECTURE.md, and never in a circle; it has every module."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import resist_hvd

PACKAGE = Path(resist_hvd.__file__).parent

ROOMS = (
    ("console", "seeds", "units", "stopwatch", "tensor_files", "json_record"),
    ("records",),
    ("errors",),
    ("drawing",),
    ("settings",),
    ("protocol", "nets", "tasks", "comm", "data"),
    ("guard",),
    ("methods",),
    ("training",),
    ("api",),
    ("planning", "reporting", "checkup", "trained", "theory"),
    ("benchmarks",),
    ("reproduction",),
    ("train", "evaluate", "predict", "plan", "bench", "report", "doctor", "reproduce"),
)
"""From the ground up. Rooms of one line know nothing of one another but what `NEIGHBOURS` has."""

NEIGHBOURS = {("comm", "protocol"), ("nets", "protocol"), ("data", "tasks")}
"""A transport carries out an exchange; a network's decks are dealt by a rule; images come with a task's targets."""

ONLY = {
    "horovod": ("comm",),
    "mpi4py": ("comm",),
    "nvidia": ("data", "benchmarks/bare_loaders.py"),
    "timm": ("nets/timm_nets.py",),
}
"""The places that may import a library."""

MODULES = {path: path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of all that a module imports, wherever in it, but for its type checker alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """Return the file of the project's that a name is of, None where it is another's."""
    words = name.split(".")
    if words[0] != "resist_hvd":
        return None
    for end in range(len(words), 0, -1):
        place = "/".join(words[1:end])
        for file in (f"{place}.py", f"{place}/__init__.py".lstrip("/")):
            if (PACKAGE / file).is_file():
                return file
    raise AssertionError(f"{name} is not there")


def room_of(file: str) -> str:
    return file.removesuffix(".py").split("/")[0]


FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


@pytest.mark.parametrize("path", [path for path, file in MODULES.items() if file != "__init__.py"], ids=MODULES.get)
def test_a_module_imports_from_rooms_below_its_own(path: Path) -> None:
    here = room_of(MODULES[path])
    for name in imported(path):
        file = own(name)
        if file is None or file == "__init__.py":
            continue
        there = room_of(file)
        down = FLOORS[there] < FLOORS[here]
        assert there == here or down or (here, there) in NEIGHBOURS, f"{MODULES[path]} imports {name}"


def test_architecture_names_every_module_once() -> None:
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    listing = page.split("## Modules")[1].split("    examples/")[0]
    files = (path.name for path, file in MODULES.items() if path.name != "__init__.py" or file == path.name)
    assert Counter(re.findall(r"\w+\.py\b", listing)) == Counter(files)


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {
        file: {other for name in imported(path) if (other := own(name)) and other != file}
        for path, file in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_in_its_room_alone(library: str) -> None:
    users = {file for path, file in MODULES.items() for name in imported(path) if name.split(".")[0] == library}
    assert all(user.startswith(ONLY[library]) for user in users), users


def test_the_protocol_is_pure() -> None:
    for path, file in MODULES.items():
        if room_of(file) == "protocol":
            impure = {"torch", "horovod", "mpi4py"} | ({"numpy"} if file != "protocol/hands.py" else set())
            assert not {name.split(".")[0] for name in imported(path)} & impure, file


def test_settings_are_plain() -> None:
    for path, file in MODULES.items():
        if room_of(file) == "settings":
            names = set(imported(path))
            assert not {name.split(".")[0] for name in names} & {"torch", "horovod", "mpi4py"}, file
            rooms = {room_of(there) for name in names if (there := own(name))}
            assert rooms <= {"__init__", "settings", "errors", "console", "units", "records", "json_record"}, file


def test_every_public_name_is_found_without_an_import_of_its_module() -> None:
    for name in resist_hvd.__all__:
        assert resist_hvd.__getattr__(name) is not None, name
