"""The images of a data folder, train/<class>/* with test/<class>/* or val/<class>/*, and of further test sets.

Every reader of class folders takes its images from here, so the same tree is the same samples in the same order to all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from resist_hvd.data.extra_tests import find_extra_tests
from resist_hvd.data.folders import LeftOut, class_folders, existing_folder, has_class_folders, in_words
from resist_hvd.data.index import ImageIndex, index_images
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
    extra, in_extra = _extra_tests(extra_tests, classes)
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


def _extra_tests(place: Path | None, classes: tuple[str, ...]) -> tuple[dict[str, ImageIndex], LeftOut]:
    tests = find_extra_tests(place, classes) if place else ()
    return {test.name: test.images for test in tests}, sum((test.left_out for test in tests), LeftOut())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
