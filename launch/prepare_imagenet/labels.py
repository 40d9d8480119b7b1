"""Classes of the validation images, read from any of the files in which they are published."""

import csv
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from prepare_imagenet.pictures import ARCHIVE_ERRORS, WNID
from resist_hvd.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
_LARGEST_FILE = 64 * 2**20
_MEND_SYNSETS = "Give the development kit's meta.mat, or a list of wnids in the order of its numbers, by --synsets."


@dataclass(frozen=True, kw_only=True)
class Synsets:
    """Wnids by the numbers that stand for them.

    Attributes:
        by_id: of the development kit's numbers, which begin at 1 and are in no order that can be told from the wnids.
        in_order: the lines of a list; their numbers begin at 0. Empty where there is no list, but meta.mat.
    """

    by_id: Mapping[int, str]
    in_order: Sequence[str] = ()


def read_synsets(path: Path) -> Synsets:
    """Read meta.mat, or a text with a wnid at the start of each line (synset_words.txt, LOC_synset_mapping.txt).

    Where a number follows each wnid (map_clsloc.txt), it is the development kit's number of the class.

    Raises:
        UserError: the file cannot be read, or holds no wnids.
    """
    if path.suffix == ".mat":
        return _synsets_of_meta(path.read_bytes(), str(path))
    lines = [line.split() for line in _text(path.read_bytes(), str(path)).splitlines() if line.strip()]
    for number, words in enumerate(lines, 1):
        if not WNID.fullmatch(words[0]):
            raise UserError(
                f"Line {number} begins with {words[0]!r}, which is no wnid such as n01440764",
                where=str(path),
                mend="Give a file with a wnid at the start of each line, or meta.mat.",
            )
    wnids = [words[0] for words in lines]
    if lines and all(len(words) > 1 and words[1].isdecimal() for words in lines):
        return Synsets(by_id={int(words[1]): words[0] for words in lines})
    # A sorted list cannot be in the order of the development kit's numbers: it would label all images wrongly.
    is_sorted = all(one < other for one, other in pairwise(wnids))
    return Synsets(by_id={} if is_sorted else dict(enumerate(wnids, 1)), in_order=wnids)


def read_devkit(path: Path) -> tuple[Mapping[str, str], Synsets]:
    """Read labels and numbers from the development kit, packed (ILSVRC2012_devkit_t12.tar.gz) or unpacked.

    Raises:
        UserError: it lacks one of its two files, or one is damaged.
    """
    found: dict[str, bytes] = {}
    if path.is_dir():
        for name in (GROUND_TRUTH, META):
            for file in sorted(path.rglob(name)):
                found.setdefault(name, file.read_bytes())
    else:
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    packed = archive.extractfile(member) if name in (GROUND_TRUTH, META) and member.isreg() else None
                    if packed is not None and member.size <= _LARGEST_FILE:
                        found[name] = packed.read()
        except ARCHIVE_ERRORS as error:
            raise UserError(
                "The development kit is damaged or incomplete", where=str(path), mend="Fetch it again."
            ) from error
    for name in (GROUND_TRUTH, META):
        if name not in found:
            raise UserError(
                f"The development kit has no {name}",
                where=str(path),
                mend="Give ILSVRC2012_devkit_t12.tar.gz, or the folder that it unpacks to.",
            )
    synsets = _synsets_of_meta(found[META], f"{path}, {META}")
    return parse_labels(found[GROUND_TRUTH], f"{path}, {GROUND_TRUTH}", synsets, classes=()), synsets


def _synsets_of_meta(content: bytes, source: str) -> Synsets:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("meta.mat is read by SciPy, which is not installed", mend="Run launch/setup first.") from error
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        by_id = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets.reshape(-1)}
    except Exception as error:  # a damaged file makes SciPy raise errors of any kind
        raise UserError(
            "The file is not the development kit's meta.mat, or is damaged",
            where=source,
            mend="Fetch the development kit again.",
        ) from error
    if not all(WNID.fullmatch(wnid) for wnid in by_id.values()):
        raise UserError("The file names classes that are no wnids", where=source, mend="Give ILSVRC2012's meta.mat.")
    return Synsets(by_id=by_id)


def read_labels(path: Path, synsets: Synsets | None, *, classes: Sequence[str]) -> Mapping[str, str]:
    """Return each validation image's wnid by the image's name without its ending.

    Understood are the development kit's ground truth (a number a line, for the image of that line's number), a wnid
    a line in the same order, Kaggle's LOC_val_solution.csv, Caffe's val.txt (an image and a number from 0 a line),
    any text with an image and a wnid a line, and the shell script of `mv IMAGE WNID` that many use.

    Args:
        path: the file.
        synsets: what its numbers stand for, if it has any.
        classes: the sorted wnids of the training set, for which Caffe's numbers stand where there are no synsets.

    Raises:
        UserError: the file cannot be understood; the message names the line.
    """
    return parse_labels(path.read_bytes(), str(path), synsets, classes=classes)


def parse_labels(content: bytes, source: str, synsets: Synsets | None, *, classes: Sequence[str]) -> Mapping[str, str]:
    """Return what `read_labels` does, of a file's content."""
    text = _text(content, source)
    if text.startswith("ImageId,"):
        rows = list(csv.reader(io.StringIO(text)))[1:]
        lines = [[row[0], *row[1].split()[:1]] if len(row) == 2 else row for row in rows]
    else:
        lines = [re.split(r"[,\s]+", line.strip()) for line in text.splitlines() if line.strip()]
        lines = [words[words[0] == "mv" :] for words in lines if words[0] != "mkdir"]
    labels: dict[str, str] = {}
    for number, words in enumerate(lines, 1):
        if len(words) == 1 and "/" not in words[0]:
            image, label = f"ILSVRC2012_val_{number:08d}", words[0]
            known = synsets.by_id if synsets else {}
        else:
            image, label = (words[0], words[1].strip("/")) if len(words) > 1 else words[0].split("/")[-1:-3:-1]
            image = PurePosixPath(image).stem
            known = dict(enumerate((synsets.in_order if synsets else ()) or classes))
        if label.isdecimal():
            label = _of_number(int(label), known, f"{source}, line {number}")
        if not WNID.fullmatch(label):
            raise UserError(
                f"Line {number} gives the class {label!r}, which is no wnid such as n01440764, and no number",
                where=source,
                mend="Give one of the files that launch/prepare-imagenet --help names.",
            )
        if labels.setdefault(image, label) != label:
            raise UserError(f"{image} has two classes", where=f"{source}, line {number}", mend="Give a sound file.")
    if not labels:
        raise UserError("The file is empty", where=source, mend="Give one that has a line for each validation image.")
    return labels


def _of_number(number: int, known: Mapping[int, str], where: str) -> str:
    if not known:
        raise UserError(
            f"The file gives classes by numbers, here {number}, and nothing says what they stand for",
            where=where,
            mend=_MEND_SYNSETS + " A sorted list is not in that order.",
        )
    if number not in known:
        raise UserError(
            f"Class {number} is none of the {len(known)} that are numbered from {min(known)} to {max(known)}",
            where=where,
            mend="Give the list of classes that belongs to this file by --synsets, or a file that has wnids.",
        )
    return known[number]


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("The file is no text", where=source, mend="Give one that is.") from error
