"""Further test sets in folders of their own: ImageNetV2's three, or any others of the training set's classes.

ImageNetV2 (Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019) is published as three folders,
imagenetv2-matched-frequency-format-val and so on, each with folders 0 to 999 of ten images. A number is the place of
the class among the sorted wnids: as text 10 would come before 2, and nearly all labels would be wrong. Where the
training classes themselves have numbers for names, a folder is the class of its name, as in the training set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resist_hvd.data.folders import LeftOut, class_folders, existing_folder, has_class_folders
from resist_hvd.data.index import ImageIndex, index_images
from resist_hvd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TestFolder:
    """A folder that is a test set.

    Attributes:
        name: what reports call it.
        images: its images, in the order of their labels.
        left_out: what else lies there.
    """

    __test__ = False  # whatever pytest thinks of the class's name

    name: str
    images: ImageIndex
    left_out: LeftOut


def find_extra_tests(place: Path, classes: Sequence[str]) -> tuple[TestFolder, ...]:
    """Return every test set in `place`, in the order of their names.

    Args:
        place: a folder of test sets, or a test set itself. Its folders are classes by name, each with at least one
            image; or, where no training class has such a name, all numbers from 0 on, each with as many images.
        classes: the training set's, sorted; labels are places among them.

    Raises:
        UserError: a folder is missing or empty, has other classes than the training set, or too few images.
    """
    place = existing_folder(place, mend="Give the folder that holds the further test sets with --data.extra_tests.")
    if not has_class_folders(place):
        raise UserError(
            "The folder holds no test set",
            where=str(place),
            mend="Unpack ImageNetV2's archives there, or give another folder with --data.extra_tests.",
        )
    folders, _ = class_folders(place)
    is_test_set = any(_is_number(name) or name in classes for name in folders)
    tests = [place] if is_test_set else [place / name for name in folders]
    names = [report_name(folder) for folder in tests]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"Two test sets would be called {twice[0]!r} in reports",
            where=str(place),
            mend="Rename one of the folders.",
        )
    return tuple(_test_folder(folder, tuple(classes)) for folder in tests)


def report_name(folder: Path) -> str:
    """Return what a test set is called in reports: of imagenetv2-top-images-format-val, top-images."""
    return folder.name.removeprefix("imagenetv2-").removesuffix("-format-val") or folder.name


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _test_folder(folder: Path, classes: tuple[str, ...]) -> TestFolder:
    if not has_class_folders(folder):
        raise UserError(
            "The test set has no class folders", where=str(folder), mend="Unpack its archive there, or remove it."
        )
    names, beside = class_folders(folder)
    numbered = all(_is_number(name) for name in names) and not set(names) & set(classes)
    label_of = _numbered(names, folder, classes) if numbered else _named(names, folder, classes)
    label_of = dict(sorted(label_of.items(), key=lambda item: item[1]))
    images, in_folders = index_images(folder, classes, label_of=label_of)
    if numbered:
        _check_even(images, list(label_of))
    return TestFolder(name=report_name(folder), images=images, left_out=beside + in_folders)


def _check_even(images: ImageIndex, names: Sequence[str]) -> None:
    counts = np.bincount(images.labels)
    short = np.flatnonzero(counts < counts.max())
    if len(short):
        raise UserError(
            f"{len(short):,} class folders of the test set have fewer images than they should; the first has "
            f"{counts[short[0]]} of {counts.max()}",
            where=str(images.folder / names[short[0]]),
            mend="Unpack the test set's archive anew.",
        )


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
            f"The test set has a folder {unknown[0]!r}, which is no class of the training set",
            where=str(folder),
            mend="Give a folder with --data.extra_tests that holds test sets of these classes and nothing else.",
        )
    return {name: label_of[name] for name in names}
