"""The images of a data folder, train/<class>/* with test/<class>/* or val/<class>/*, and of further test sets.

Every reader of class folders takes its images from here, so the same tree is the same samples in the same order to all.

Further test sets are ImageNetV2's three, or any others of the training set's classes. ImageNetV2 (Recht et al., "Do
ImageNet Classifiers Generalize to ImageNet?", ICML 2019) is published as folders with folders 0 to 999 of ten images. A
number is the place of the class among the sorted wnids: as text 10 would come before 2, and nearly all labels would be
wrong. Where the training classes themselves have numbers for names, a folder is the class of its name.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from resist_hvd.data.folders import (
    ImageIndex,
    LeftOut,
    class_folders,
    existing_folder,
    has_class_folders,
    in_words,
    index_images,
)
from resist_hvd.errors import UserError

T = TypeVar("T")

Share = Callable[[Callable[[], T], Callable[[T], str]], T]
"""Makes something once for all workers of a host: calls its first argument on one of them, and gives the result to all.
Its second argument describes what was made; where hosts differ in that, it raises a UserError on all."""


def make_here(make: Callable[[], T], digest: Callable[[T], str]) -> T:
    """Make something for this worker alone: a `Share` that shares nothing."""
    return make()


@dataclass(frozen=True, kw_only=True)
class ImageTree:
    """Every image of a run, by number.

    Attributes:
        train, test: the two halves; labels are places among the training half's sorted class folders.
        extra: further test sets by name.
        remarks: sentences for the user on what was passed over.
    """

    train: ImageIndex
    test: ImageIndex
    extra: dict[str, ImageIndex]
    remarks: tuple[str, ...]

    def digest(self) -> str:
        """Numbers of images, and a digest of their classes, labels and files' names, in words."""
        digest = hashlib.sha256()
        for index in (self.train, self.test, *self.extra.values()):
            for part in (
                repr(index.classes).encode(errors="surrogateescape"),
                index.labels.tobytes(),
                index.ends.tobytes(),
                index.names,
            ):
                digest.update(len(part).to_bytes(8, "big") + part)
        counts = [f"{len(self.train):,} training", f"{len(self.test):,} test"]
        counts += [f"{len(index):,} {name}" for name, index in self.extra.items()]
        return f"{' and '.join(counts)} images (list {digest.hexdigest()[:12]})"


def find_images(root: Path, extra_tests: Path | None = None) -> ImageTree:
    """List the images below `root`, and the further test sets in `extra_tests`.

    Classes are numbered in the order of the training folders' names. A class may lack in the test half, but a folder
    that is there has images. Where test and val both have class folders, test is the test half.

    Raises:
        UserError: a folder is missing or has no image, or the test half has a class that the training half has not.
    """
    root = existing_folder(root, mend="Give the folder that holds train and test or val with --data.root.")
    train_folder, (test_folder, *unused) = _halves(root)
    classes, left_out = class_folders(train_folder)
    test_classes, beside = class_folders(test_folder)
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise UserError(
            f"{len(unknown):,} of the {len(test_classes):,} classes of {test_folder.name} are not among the "
            f"{len(classes):,} of train: {_some(unknown)}",
            where=str(test_folder),
            mend="Give both halves the same class folders.",
        )
    number_of = {name: number for number, name in enumerate(classes)}
    train, in_train = index_images(train_folder, classes)
    test, in_test = index_images(test_folder, classes, label_of={name: number_of[name] for name in test_classes})
    extra, in_extra = find_extra_tests(extra_tests, classes) if extra_tests else ({}, LeftOut())
    remarks = [f"tested on {test_folder.name}; {folder.name} is not used [{root}]" for folder in unused]
    untested = sorted(set(classes) - set(test_classes))
    if untested:
        remarks.append(
            f"{test_folder.name} has images of {len(test_classes):,} of the {len(classes):,} classes, and none of "
            f"{_some(untested)}"
        )
    for place, passed_over in ((root, left_out + beside + in_train + in_test), (extra_tests, in_extra)):
        if passed_over:
            remarks.append(f"left out: {in_words(passed_over)} [{place}]")
    return ImageTree(train=train, test=test, extra=extra, remarks=tuple(remarks))


def _halves(root: Path) -> tuple[Path, list[Path]]:
    """The training folder, and those that can be the test half, the one to be used first."""
    if not (root / "train").is_dir():
        raise UserError(
            "The data folder has no folder train",
            where=str(root),
            mend="Put the training images into train/<class>/ there, or give another --data.root.",
        )
    found = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not found:
        raise UserError(
            "The data folder has neither a folder test nor a folder val",
            where=str(root),
            mend="Put the test images into test/<class>/ or val/<class>/ there; launch/prepare-imagenet sorts a "
            "downloaded ImageNet.",
        )
    # A folder test without classes is what competitions give away without labels.
    return root / "train", [folder for folder in found if has_class_folders(folder)] or found[-1:]


def find_extra_tests(place: Path, classes: Sequence[str]) -> tuple[dict[str, ImageIndex], LeftOut]:
    """Return the images of every test set in `place`, sorted by its name in reports, and what else lies there.

    Args:
        place: a folder of test sets, or a test set itself. Its folders are classes by name, each with at least one
            image; or, where no training class has such a name, all numbers from 0 on, each with as many images.
        classes: the training set's, sorted; labels are places among them.

    Raises:
        UserError: a folder is missing or empty, has other classes than the training set, or too few images.
    """
    place = existing_folder(place, mend="Give the folder that holds the further test sets with --data.extra_tests.")
    mend = "Unpack ImageNetV2's archives there, or give another folder with --data.extra_tests."
    folders, _ = class_folders(place, mend=mend)
    is_test_set = any(_is_number(name) or name in classes for name in folders)
    tests: dict[str, ImageIndex] = {}
    left_out = LeftOut()
    for folder in [place] if is_test_set else [place / name for name in folders]:
        # Of imagenetv2-top-images-format-val, top-images.
        name = folder.name.removeprefix("imagenetv2-").removesuffix("-format-val") or folder.name
        if name in tests:
            raise UserError(
                f"Two test sets would be called {name!r} in reports",
                where=str(place),
                mend="Rename one of the folders.",
            )
        tests[name], others = _test_set(folder, tuple(classes))
        left_out += others
    return tests, left_out


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _test_set(folder: Path, classes: tuple[str, ...]) -> tuple[ImageIndex, LeftOut]:
    """A further test set's images, in the order of their labels, and what else lies in its folder."""
    names, beside = class_folders(folder, mend="Unpack its archive there, or remove it.")
    numbered = all(_is_number(name) for name in names) and not set(names) & set(classes)
    number_of = {name: number for number, name in enumerate(classes)}
    label_of = {name: int(name) if numbered else number_of.get(name, -1) for name in names}
    labels = sorted(label_of.values())
    if numbered and labels != list(range(len(classes))):
        raise UserError(
            f"The test set has {len(names):,} class folders from {labels[0]} to {labels[-1]}, where the "
            f"training set's {len(classes):,} classes ask for all from 0 to {len(classes) - 1}",
            where=str(folder),
            mend="Unpack its archive anew, or train on all the classes that it was made for.",
        )
    if labels[0] < 0:
        unknown = next(name for name, label in label_of.items() if label < 0)
        raise UserError(
            f"The test set has a folder {unknown!r}, which is no class of the training set",
            where=str(folder),
            mend="Give a folder with --data.extra_tests that holds test sets of these classes and nothing else.",
        )
    in_order = sorted(names, key=label_of.__getitem__)
    images, in_folders = index_images(folder, classes, label_of={name: label_of[name] for name in in_order})
    counts = np.bincount(images.labels)
    short = np.flatnonzero(counts < counts.max())
    if numbered and len(short):
        raise UserError(
            f"{len(short):,} class folders of the test set have fewer images than they should; the first has "
            f"{counts[short[0]]} of {counts.max()}",
            where=str(folder / in_order[short[0]]),
            mend="Unpack the test set's archive anew.",
        )
    return images, beside + in_folders


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
