"""The two halves of ImageNet: which images each has, and its way into place.

A half is made in a hidden folder beside its place, counted, and renamed. So `train` and `val` are there only complete,
whenever a run is stopped, and the next run goes on with the hidden folder.
"""

import csv
import errno
import fcntl
import os
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from prepare_imagenet.download import ARCHIVES, KAGGLE, LABELS, find, unpacked
from prepare_imagenet.placing import place
from resist_hvd import console
from resist_hvd.data.folders import class_folders, existing_folder, has_class_folders, image_files
from resist_hvd.errors import UserError

CLASSES = 1000
IMAGES = {"val": 50_000, "train": 1_281_167}
"""Numbers of ImageNet's images. The small half is prepared first: its mistakes are told before hours of unpacking."""

_WNID = re.compile(r"n\d{8}")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
_SECONDS_BETWEEN_LINES = 10.0


class ClassImages(NamedTuple):
    """The images of one class: their folder, and their names in it."""

    folder: Path
    names: list[str]


def prepare(download: Path, output: Path, *, pack: int | None, subset: bool) -> None:
    """Put the halves that a download has into `output`.

    Args:
        download: its folder.
        output: where `train` and `val` are to be; what is there already is counted and left as it is.
        pack: pixels of the shorter side that images are scaled down to; None leaves them as they are.
        subset: whether any number of images will do.

    Raises:
        UserError: something is missing, damaged or incomplete, or the disk is full.
    """
    download = existing_folder(download, mend="Give the folder of what was fetched by --download.")
    sources = {half: find(download, half) for half in IMAGES}
    if not any(sources.values()):
        raise UserError(
            "There are neither training nor validation images",
            where=str(download),
            mend=f"Give the folder that holds {ARCHIVES['train']}, {KAGGLE}, or train and val, by --download.",
        )
    output = output.expanduser().absolute()
    with _disk_errors():
        output.mkdir(parents=True, exist_ok=True)
        with _alone(output):
            for half, source in sources.items():
                if (output / half).exists():
                    console.out(f"{half} is in {output} already, and is left as it is")
                    images = _images(output / half, download / LABELS)
                    _check(half, images, subset, output / half, mend="Move it away, and run this again")
                elif source:
                    _prepare_half(half, source, download, output, pack, subset)
                else:
                    console.out(f"{half} is not in {download}, and is still to come")
                    continue
                for rest in output.glob(f".{half}.*"):
                    shutil.rmtree(rest)
    if all((output / half).exists() for half in IMAGES):
        console.out(f"Next: launch/run --recipe imagenet-resnet50 --data.root {shlex.quote(str(output))}")


def _prepare_half(half: str, source: Path, download: Path, output: Path, pack: int | None, subset: bool) -> None:
    is_archive = source.is_file()
    if is_archive:
        source = unpacked(source, half, output)
    images = _images(source, download / LABELS)
    _check(half, images, subset, source, mend="Fetch what is missing, and run this again")
    if is_archive and not pack:
        source.rename(output / half)
        return
    made = output / f".{half}.{pack or 'linked'}"
    _place_all(half, images, made, pack)
    if _counts(_images(made, download / LABELS)) != _counts(images):
        raise UserError(
            "The folder has images of another download", where=str(made), mend="Remove it, and run this again."
        )
    made.rename(output / half)


def _images(folder: Path, labels: Path) -> Mapping[str, ClassImages]:
    """The images of a half by class: those of class folders, or those that lie flat, with Kaggle's list of classes."""
    if has_class_folders(folder):
        return {name: ClassImages(folder / name, _names(folder / name)) for name in class_folders(folder)[0]}
    classes = _kaggles_classes(folder, labels)
    images: dict[str, ClassImages] = {}
    for name in _names(folder):
        wnid = classes.get(os.path.splitext(name)[0])
        if wnid is None:
            raise UserError(f"{labels.name} has no line for {name}", where=str(folder), mend="Fetch both again.")
        images.setdefault(wnid, ClassImages(folder, [])).names.append(name)
    return images


def _names(folder: Path) -> list[str]:
    return [os.fsdecode(name) for name in image_files(folder)[0]]


def _kaggles_classes(folder: Path, labels: Path) -> Mapping[str, str]:
    """The wnid of each validation image, by its name without its ending."""
    if not labels.exists():
        raise UserError(
            "The images lie flat, and nothing says of which class they are",
            where=str(folder),
            mend=f"Put Kaggle's {labels.name} into {labels.parent}, or {ARCHIVES['val']} and {ARCHIVES['devkit']}.",
        )
    try:
        with labels.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            classes = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, ValueError, csv.Error):
        classes = {}
    # The names become those of folders.
    if not classes or not all(_WNID.fullmatch(wnid) for wnid in classes.values()):
        raise UserError(
            "The file is damaged: it has not an image and a wnid such as n01440764 in each line",
            where=str(labels),
            mend="Fetch it again.",
        )
    return classes


def _counts(images: Mapping[str, ClassImages]) -> tuple[int, int]:
    return len(images), sum(len(one.names) for one in images.values())


def _check(half: str, images: Mapping[str, ClassImages], subset: bool, folder: Path, *, mend: str) -> None:
    """Print the numbers of classes and images.

    Raises:
        UserError: they are not ImageNet's, and it is not said to be a part of it.
    """
    classes, count = _counts(images)
    if not subset and (classes, count) != (CLASSES, IMAGES[half]):
        raise UserError(
            f"{half} has {count:,} images of {classes:,} classes, and ImageNet {IMAGES[half]:,} of {CLASSES:,}",
            where=str(folder),
            mend=f"{mend}; or give --subset if these are all that you want.",
        )
    console.out(f"{half}: {count:,} images of {classes:,} classes")


def _place_all(half: str, images: Mapping[str, ClassImages], target: Path, pack: int | None) -> None:
    """Place all images of a half that are not there yet, class by class."""
    done: Counter[str] = Counter()
    next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
    # Pillow's decoder, filter and encoder release Python's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for wnid, (folder, names) in images.items():
            (target / wnid).mkdir(parents=True, exist_ok=True)
            files = (folder / name for name in names)
            done.update(pool.map(place, files, (target / wnid / name for name in names), repeat(pack)))
            if time.monotonic() > next_line:
                next_line += _SECONDS_BETWEEN_LINES
                console.out(f"{half}, so far: {_in_words(done)}")
    console.out(f"{half}: {_in_words(done)}")


def _in_words(done: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in done.items())


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """See that no other run works in the same folder; the system lets go of the lock even where a run is killed."""
    with (output / ".prepare-imagenet.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "Another launch/prepare-imagenet is at work here", where=str(output), mend="Wait until it has ended."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "Make room" if full else "Put that right"
        raise UserError(
            f"{error.strerror or error}", where=str(error.filename2 or error.filename or ""), mend=f"{mend}, run again."
        ) from error
