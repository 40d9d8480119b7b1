"""One half of ImageNet, from where it lies to its class folders, and whether it is complete then."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prepare_imagenet.packing import Packer
from prepare_imagenet.pictures import WNID, Picture, find
from prepare_imagenet.placing import Manner, place
from resist_hvd.errors import UserError
from resist_hvd.image_names import is_image_name

_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Tally:
    """Work done on a half: images put into place, and those that were there before."""

    placed: int = 0
    present: int = 0

    def __str__(self) -> str:
        return f"{self.placed:,} put into place, {self.present:,} were there"


def sort_half(
    source: Path,
    target: Path,
    *,
    manner: Manner,
    labels: Mapping[str, str] | None,
    packer: Packer | None,
    say: Callable[[str], None],
) -> Tally:
    """Put all images of an archive or a folder into `target`/<wnid>/.

    Args:
        source: the archive or the folder.
        target: the half's folder.
        manner: how a file gets there.
        labels: the class of an image that lies flat, by its name without its ending.
        packer: what scales images down on their way; None leaves them as they are.
        say: takes a line on how far it has come, now and then.

    Raises:
        UserError: the class of an image cannot be told, or one of what `find` and `place` raise.
    """
    tally = Tally()
    made: set[str] = set()
    spoken = time.monotonic()
    for picture in find(source):
        wnid = picture.wnid or _labelled(picture, labels)
        if wnid not in made:
            (target / wnid).mkdir(parents=True, exist_ok=True)
            made.add(wnid)
        if _put(picture, target / wnid / picture.name, manner, packer):
            tally.placed += 1
        else:
            tally.present += 1
        if time.monotonic() - spoken > _SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            say(f"{target.name}, so far: {tally}")
    if not tally.placed + tally.present:
        raise UserError(
            "There are no images of ImageNet's names here",
            where=str(source),
            mend="Give ImageNet's own archive, or the folder that holds its images or their class folders.",
        )
    return tally


def check_labelled(source: Path, labels: Mapping[str, str] | None) -> None:
    """Check that the class of a half's first image can be told, before much work is done on the other half.

    Raises:
        UserError: it cannot, or one of what `find` raises.
    """
    first = next(find(source), None)
    if first is not None and first.wnid is None:
        _labelled(first, labels)


def _put(picture: Picture, target: Path, manner: Manner, packer: Packer | None) -> bool:
    if packer is None:
        return place(picture, target, manner)
    if target.is_file():
        return False
    packer.add(picture.read(), target, picture.source)
    return True


def _labelled(picture: Picture, labels: Mapping[str, str] | None) -> str:
    if labels is None:
        raise UserError(
            "The images lie flat, and nothing says of which class they are",
            where=picture.source,
            mend="Give the development kit by --devkit, or another file of their classes by --labels.",
        )
    wnid = labels.get(PurePosixPath(picture.name).stem)
    if wnid is None:
        raise UserError(
            f"The file of classes has no line for this image; it has {len(labels):,} others",
            where=picture.source,
            mend="Give the --labels that belong to these images.",
        )
    return wnid


def classes_of(half: Path) -> list[str]:
    """Return the sorted wnids that have a folder; none where there is no such half."""
    return sorted(entry.name for entry in os.scandir(half) if WNID.fullmatch(entry.name)) if half.is_dir() else []


def check(half: Path, *, classes: int, images: int, name: str) -> str:
    """Return what a half has, in words, if that is what it should have.

    Raises:
        UserError: classes or images are missing, or there are too many.
    """
    # Links are not followed: they would be a million questions to the file system.
    counts = {
        wnid: sum(
            is_image_name(entry.name) and not entry.is_dir(follow_symlinks=False) for entry in os.scandir(half / wnid)
        )
        for wnid in classes_of(half)
    }
    empty = [wnid for wnid, count in counts.items() if count == 0]
    found = sum(counts.values())
    if len(counts) != classes or found != images or empty:
        lacking = f", {len(empty)} of them empty ({', '.join(empty[:5])})" if empty else ""
        raise UserError(
            f"{name} has {len(counts):,} classes{lacking} and {found:,} images, and not {classes:,} classes and "
            f"{images:,} images",
            where=str(half),
            mend=f"Fetch what is missing and run this again; for another set give --classes and --{name}-images.",
        )
    return f"{name}: {found:,} images of {classes:,} classes"


def check_same_classes(train: Path, val: Path) -> None:
    """Check that no validation class lacks training images.

    Raises:
        UserError: one does.
    """
    unknown = sorted(set(classes_of(val)) - set(classes_of(train)))
    if unknown:
        raise UserError(
            f"{len(unknown):,} classes of val are not in train: {', '.join(unknown[:5])}",
            where=str(val),
            mend="Give the --labels, and the --synsets that they count in, of these images.",
        )
