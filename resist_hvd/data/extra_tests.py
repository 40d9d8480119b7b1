"""Further test sets in folders of their own: ImageNetV2's three, or any others of the training set's classes.

ImageNetV2 (Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019) is published as three folders,
imagenetv2-matched-frequency-format-val and so on, each with folders 0 to 999 of ten images. A number is the place of
the class among the sorted wnids: as text 10 would come before 2, and nearly all labels would be wrong.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resist_hvd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TestFolder:
    """A folder that is a test set.

    Attributes:
        name: what reports call it.
        folder: what holds its class folders.
        label_of: the label of each class folder's images, in the order of labels.
    """

    __test__ = False  # whatever pytest thinks of the class's name

    name: str
    folder: Path
    label_of: Mapping[str, int]


def find_extra_tests(place: Path, classes: Sequence[str]) -> tuple[TestFolder, ...]:
    """Return every test set in `place`, in the order of their names.

    Args:
        place: a folder of test sets, or a test set itself. Its folders are classes: all numbers from 0 on, each with
            the same number of images, or classes by name, each with at least one.
        classes: the training set's, sorted; labels are places among them.

    Raises:
        UserError: a folder is missing or empty, has other classes than the training set, or too few images.
    """
    place = place.expanduser().absolute()
    if not place.is_dir():
        raise UserError(
            "There is no such folder" if not place.exists() else "This is not a folder",
            where=str(place),
            mend="Give the folder that holds the further test sets with --data.extra_tests.",
        )
    folders = _folders_in(place)
    if not folders:
        raise UserError(
            "The folder holds no test set",
            where=str(place),
            mend="Unpack ImageNetV2's archives there, or give another folder with --data.extra_tests.",
        )
    is_test_set = any(_is_number(name) or name in classes for name in folders)
    tests = [place] if is_test_set else [place / name for name in folders]
    return tuple(_test_folder(folder, classes) for folder in tests)


def report_name(folder: Path) -> str:
    """Return what a test set is called in reports: of imagenetv2-top-images-format-val, top-images."""
    return folder.name.removeprefix("imagenetv2-").removesuffix("-format-val") or folder.name


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    return sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _test_folder(folder: Path, classes: Sequence[str]) -> TestFolder:
    names = _folders_in(folder)
    if not names:
        raise UserError(
            "The test set has no class folders", where=str(folder), mend="Unpack its archive there, or remove it."
        )
    numbered = all(_is_number(name) for name in names)
    label_of = _numbered(names, folder, classes) if numbered else _named(names, folder, classes)
    label_of = dict(sorted(label_of.items(), key=lambda item: item[1]))
    images = {name: len(_visible(folder / name)) for name in label_of}
    wanted = max(1, *images.values()) if numbered else 1
    short = [name for name, count in images.items() if count < wanted]
    if short:
        raise UserError(
            f"{len(short):,} class folders of the test set have fewer images than they should; the first has "
            f"{images[short[0]]} of {wanted}",
            where=str(folder / short[0]),
            mend="Unpack the test set's archive anew.",
        )
    return TestFolder(name=report_name(folder), folder=folder, label_of=label_of)


def _numbered(names: Sequence[str], folder: Path, classes: Sequence[str]) -> dict[str, int]:
    label_of = {name: int(name) for name in names}
    found = set(label_of.values())
    wanted = set(range(len(classes)))
    if found != wanted or len(found) != len(names):
        raise UserError(
            f"The test set has {len(names):,} class folders from {min(found)} to {max(found)}, where the "
            f"training set's {len(classes):,} classes ask for all from 0 to {len(classes) - 1}",
            where=str(folder),
            mend="Unpack its archive anew, or train on all the classes that it was made for.",
        )
    return label_of


def _named(names: Sequence[str], folder: Path, classes: Sequence[str]) -> dict[str, int]:
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise UserError(
            f"The test set has a folder {unknown[0]!r}, which is neither a number nor a class of the training set",
            where=str(folder),
            mend="Give a folder with --data.extra_tests that holds test sets of these classes and nothing else.",
        )
    return {name: label_of[name] for name in names}
