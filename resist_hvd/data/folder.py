"""Any folder of train/<class>/* and test/<class>/* or val/<class>/*, decoded into memory as a whole."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.decoding import decode_rgb, fit_square
from resist_hvd.data.extra_tests import find_extra_tests
from resist_hvd.data.images import LabelledImages
from resist_hvd.data.resident import ImageSet
from resist_hvd.data.settings import DataSettings
from resist_hvd.errors import UserError

_CHANNELS = 3
_FILES_A_TASK = 64


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The image files of a training or test folder, class by class, and within a class by name."""

    folder: Path
    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Unusable:
    """A file that is no image, or not one of the right size: what was seen, and what to do."""

    path: Path
    seen: str
    mend: str


_GIVE_A_SIZE = "Give a size that all images are scaled to with --data.image_size."


def read(settings: DataSettings) -> ImageSet:
    """Decode all images below `settings.root`; classes are numbered in the order of their folders' names.

    Names that begin with a dot are passed over. Where there are both test and val, test is the test set.

    Raises:
        UserError: a folder is missing or empty, a file is not an image, sizes differ and none is given, the test
            folder has a class of its own, or the images would not fit into `resident_limit_gib`.
    """
    assert settings.root is not None  # DataSettings sees to it
    root = settings.root.expanduser().absolute()
    train, test = find_files(root)
    size = settings.image_size or _size_of_first(train.paths[0])
    padding = size // 8 if settings.crop_padding is None else settings.crop_padding
    extra = {
        test.name: _files_of(test.folder, train.classes, test.label_of)
        for test in (find_extra_tests(settings.extra_tests, train.classes) if settings.extra_tests else ())
    }
    _check_memory(settings, train, (test, *extra.values()), padded_size=size + 2 * padding, size=size)
    return ImageSet(
        name=root.name,
        classes=train.classes,
        train=_decode_all(train, settings, size=size, padding=padding),
        test=_decode_all(test, settings, size=size, padding=0),
        mirrored=True,
        extra_tests={name: _decode_all(files, settings, size=size, padding=0) for name, files in extra.items()},
    )


def find_files(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """The training and the test files below `root`, their labels numbered by the training folder's classes.

    Raises:
        UserError: a folder is missing or empty, or the test folder has a class that the training folder has not.
    """
    if not root.is_dir():
        raise UserError(
            "There is no such folder" if not root.exists() else "This is not a folder",
            where=str(root),
            mend="Give the folder that holds train and test with --data.root.",
        )
    halves = {name: root / name for name in ("train", "test", "val") if (root / name).is_dir()}
    if "train" not in halves:
        raise UserError(
            "The data folder has no folder train",
            where=str(root),
            mend="Put the training images into train/<class>/ there, or give another --data.root.",
        )
    test_folder = halves.get("test", halves.get("val"))
    if test_folder is None:
        raise UserError(
            "The data folder has neither a folder test nor a folder val",
            where=str(root),
            mend="Put the test images into test/<class>/ there.",
        )
    classes = _class_names(halves["train"])
    test_classes = _class_names(test_folder)
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise UserError(
            f"{len(unknown)} of the test classes are not among the training classes: {', '.join(unknown[:5])}",
            where=str(test_folder),
            mend="Give both halves the same class folders.",
        )
    label_of = {name: label for label, name in enumerate(classes)}
    return (
        _files_of(halves["train"], classes, label_of),
        _files_of(test_folder, classes, {name: label_of[name] for name in test_classes}),
    )


def _visible(folder: Path) -> list[str]:
    """The names in the folder, sorted as text, without hidden ones."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(name for name in _visible(folder) if (folder / name).is_dir())
    if not names:
        raise UserError(
            "The folder has no class folders",
            where=str(folder),
            mend="Put each class's images into a folder of the class's name there.",
        )
    return names


def _files_of(folder: Path, classes: tuple[str, ...], label_of: Mapping[str, int]) -> ImageFiles:
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in label_of.items():
        files = _visible(folder / name)
        if not files:
            raise UserError(
                "The class folder is empty", where=str(folder / name), mend="Put images there, or remove the folder."
            )
        paths += [folder / name / file for file in files]
        labels += [label] * len(files)
    return ImageFiles(folder=folder, paths=tuple(paths), classes=classes, labels=tuple(labels))


def _size_of_first(path: Path) -> int:
    """The size of all images, as the first one has it; `_decode_all` holds the others to it."""
    image = _decode_file(path)
    if isinstance(image, _Unusable):
        raise _error([image])
    height, width = int(image.shape[0]), int(image.shape[1])
    if height != width:
        raise UserError(
            f"The images are not square: the first one is {width} x {height} pixels", where=str(path), mend=_GIVE_A_SIZE
        )
    return height


def _check_memory(
    settings: DataSettings, train: ImageFiles, tests: Sequence[ImageFiles], *, padded_size: int, size: int
) -> None:
    test_images = sum(len(test.paths) for test in tests)
    needed = (len(train.paths) * padded_size**2 + test_images * size**2) * _CHANNELS / 2**30
    if needed > settings.resident_limit_gib:
        raise UserError(
            f"The images would take {needed:.3g} GiB of memory on each worker, more than the "
            f"{settings.resident_limit_gib:.3g} GiB of --data.resident_limit_gib",
            where=str(train.folder.parent),
            mend="Give a smaller --data.image_size, or a higher limit where there is more memory.",
        )


def _decode_all(files: ImageFiles, settings: DataSettings, *, size: int, padding: int) -> LabelledImages:
    store = LabelledImages.blank(len(files.paths), image_size=size, channels=_CHANNELS, padding=padding)
    store.labels.copy_(torch.tensor(files.labels))
    pixels = store.images.numpy()

    def decode_some(start: int) -> list[_Unusable]:
        unusable = []
        for number, path in enumerate(files.paths[start : start + _FILES_A_TASK], start):
            image = _decode_file(path)
            if isinstance(image, _Unusable):
                unusable.append(image)
            elif settings.image_size is not None:
                pixels[number] = fit_square(image, size)
            elif image.shape[:2] != (size, size):
                seen = f"is {image.shape[1]} x {image.shape[0]} pixels, where the first one is {size} x {size}"
                unusable.append(_Unusable(path=path, seen=seen, mend=_GIVE_A_SIZE))
            else:
                pixels[number] = image
        return unusable

    # Decoding releases Python's lock. Each task fills in its own images: any number of threads makes the same store.
    with ThreadPoolExecutor(settings.decode_threads or torch.get_num_threads()) as pool:
        results = pool.map(decode_some, range(0, len(files.paths), _FILES_A_TASK))
        unusable = [file for result in results for file in result]
    if unusable:
        raise _error(unusable)
    return store


def _decode_file(path: Path) -> NDArray[np.uint8] | _Unusable:
    try:
        return decode_rgb(path.read_bytes())
    except OSError as error:
        seen = f"cannot be read ({error.strerror})"
    except ValueError as error:
        seen = str(error)
    return _Unusable(path=path, seen=seen, mend="Remove it, or put a sound copy in its place.")


def _error(unusable: Sequence[_Unusable]) -> UserError:
    """One error for all files that cannot be used, which names the first."""
    first = unusable[0]
    others = len(unusable) - 1
    and_others = f", and {others} more cannot be used either" if others else ""
    return UserError(f"The image file {first.seen}{and_others}", where=str(first.path), mend=first.mend)
