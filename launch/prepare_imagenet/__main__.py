"""Program behind launch/prepare-imagenet: find the download's parts, sort both halves, count."""

import argparse
import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prepare_imagenet import labels, sorting
from prepare_imagenet.packing import Packer
from prepare_imagenet.placing import MANNERS, write_whole
from resist_hvd.errors import UserError

USUAL_PLACES: Mapping[str, tuple[str, ...]] = {
    "train": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train", "train"),
    "val": ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val", "val"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12"),
    "labels": ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "val.txt"),
    "synsets": ("meta.mat", "LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt"),
}
"""Usual places of a download's parts; the first that is there counts."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

STAMP = ".prepare-imagenet.json"


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags of launch/prepare-imagenet."""
    parser = argparse.ArgumentParser(
        prog="launch/prepare-imagenet",
        description="Sort a downloaded ImageNet (ILSVRC2012) into train/<wnid>/* and val/<wnid>/*, and check that it "
        "is complete. Run again, it goes on where it was stopped, and does nothing where nothing is left to do.",
        epilog="Classes of validation images that lie flat are read from the development kit, Kaggle's "
        "LOC_val_solution.csv, Caffe's val.txt (with synset_words.txt), or any text with an image and a wnid a line.",
        allow_abbrev=False,
    )
    usual = ", ".join(names[0] for names in USUAL_PLACES.values())
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where train and val are to be")
    parser.add_argument(
        "--download", type=Path, metavar="DIR", help=f"a folder in which what is not given is looked for: {usual}, ..."
    )
    parser.add_argument("--train", type=Path, metavar="PATH", help="the training archive, or a folder of classes")
    parser.add_argument("--val", type=Path, metavar="PATH", help="the validation archive, or a folder, flat or sorted")
    parser.add_argument("--devkit", type=Path, metavar="PATH", help="the development kit, packed or not")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="what class each validation image is of")
    parser.add_argument("--synsets", type=Path, metavar="FILE", help="what the numbers in --labels stand for")
    parser.add_argument(
        "--files",
        choices=MANNERS,
        help="what becomes of files that are no archives: hard links to them (the default), symbolic links, copies, or "
        "they are moved. Archives are unpacked, and always stay.",
    )
    parser.add_argument(
        "--pack",
        type=_side,
        metavar="PIXELS",
        help="write JPEGs scaled to a shorter side of so many pixels, from 256 on: at 320 about 0.4 of the bytes",
    )
    parser.add_argument(
        "--classes", type=_count, default=1000, metavar="N", help="how many there must be (%(default)s)"
    )
    parser.add_argument("--train-images", type=_count, default=1_281_167, metavar="N", help="likewise (%(default)s)")
    parser.add_argument("--val-images", type=_count, default=50_000, metavar="N", help="likewise (%(default)s)")
    parser.add_argument("--threads", type=_count, default=len(os.sched_getaffinity(0)), metavar="N", help="that pack")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _side(text: str) -> int:
    if not text.isdecimal() or not 256 <= int(text) <= 2048:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 256 to 2048")
    return int(text)


def main(arguments: list[str]) -> int:
    """Do it, and return the exit status: 0 where everything is in place and complete."""
    flags = parse_flags(arguments)
    try:
        with _disk_errors():
            prepare(flags)
    except UserError as error:
        print(f"launch/prepare-imagenet: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("launch/prepare-imagenet: stopped; run it again to go on.", file=sys.stderr)
        return 130
    return 0


def prepare(flags: argparse.Namespace) -> None:
    """Sort what the flags name.

    Raises:
        UserError: something is missing, damaged or incomplete.
    """
    parts = _find_parts(flags)
    if flags.pack and flags.files:
        raise UserError(f"--files {flags.files} and --pack are both given", mend="Packing writes files: leave one out.")
    output: Path = flags.output
    for half in ("train", "val"):
        if flags.pack and half in parts and parts[half].resolve() == (output / half).resolve():
            raise UserError(
                "Images are not packed where they lie", where=str(parts[half]), mend="Give another --output."
            )
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        _check_stamp(output, flags.pack)
        wait_for_train = _count_in_training_classes(parts)
        found = None
        if "val" in parts and not wait_for_train:
            # Before days of unpacking, not after them.
            found = _labels(parts, output)
            sorting.check_labelled(parts["val"], found)
        done = []
        with Packer(flags.pack, flags.threads) if flags.pack else nullcontext() as packer:
            for half in ("train", "val"):
                if half not in parts:
                    continue
                if half == "val" and wait_for_train:
                    found = _labels(parts, output)
                tally = sorting.sort_half(
                    parts[half],
                    output / half,
                    manner=flags.files or "link",
                    labels=found if half == "val" else None,
                    packer=packer,
                    say=_say,
                )
                done.append(half)
                _say(f"{half}: {tally}")
        if packer is not None:
            _tell_damaged(packer.damaged)
        images = {"train": flags.train_images, "val": flags.val_images}
        for half in done:
            _say(sorting.check(output / half, classes=flags.classes, images=images[half], name=half))
        if all((output / half).is_dir() for half in ("train", "val")):
            sorting.check_same_classes(output / "train", output / "val")
    _say(f"{' and '.join(done)} complete in {output}: train with --recipe imagenet-resnet50 --data.root {output}")


def _say(line: str) -> None:
    print(line, flush=True)


def _find_parts(flags: argparse.Namespace) -> dict[str, Path]:
    """Return the parts of the download that were given, or lie where they usually do."""
    parts: dict[str, Path] = {name: getattr(flags, name) for name in USUAL_PLACES if getattr(flags, name) is not None}
    given = {**parts, **({"download": flags.download} if flags.download else {})}
    for name, path in given.items():
        if not path.exists():
            raise UserError("There is no such file or folder", where=f"--{name} {path}", mend="Give what was fetched.")
    given_classes = {"devkit", "labels"} & set(parts)
    for name, path in _parts_in(flags.download).items() if flags.download else ():
        if name not in parts and not (given_classes and name in ("devkit", "labels")):
            parts[name] = path
    if not {"train", "val"} & set(parts):
        raise UserError(
            "There are neither training nor validation images",
            where=str(flags.download or "--train, --val"),
            mend=_where_else(flags.download)
            or "Give the folder of the download by --download, or its parts by --train and --val.",
        )
    return parts


def _parts_in(folder: Path) -> dict[str, Path]:
    """Return the parts of a download that lie in a folder as usual."""
    found = {
        name: next((path for place in places if (path := folder / place).exists()), None)
        for name, places in USUAL_PLACES.items()
    }
    return {name: path for name, path in found.items() if path is not None}


def _where_else(folder: Path | None) -> str:
    """Say where there are images, one level up or down from a folder that has none; empty if there are none."""
    if folder is None or not folder.is_dir():
        return ""
    near = (folder.resolve().parent, *sorted(entry for entry in folder.iterdir() if entry.is_dir()))
    for place in near:
        if images := [path for name, path in _parts_in(place).items() if name in ("train", "val")]:
            return f"There are {images[0].relative_to(place)} in another folder: give --download {place}."
    return ""


def _count_in_training_classes(parts: Mapping[str, Path]) -> bool:
    """Return whether the numbers of a file of labels may count the training classes, which must be in place."""
    return "labels" in parts and not {"synsets", "devkit"} & set(parts)


def _labels(parts: Mapping[str, Path], output: Path) -> Mapping[str, str] | None:
    """Return the class of each validation image, as far as a part of the download says so."""
    if "labels" not in parts:
        return labels.read_devkit(parts["devkit"])[0] if "devkit" in parts else None
    synsets = labels.read_synsets(parts["synsets"]) if "synsets" in parts else None
    if synsets is None and "devkit" in parts:
        synsets = labels.read_devkit(parts["devkit"])[1]
    return labels.read_labels(parts["labels"], synsets, classes=sorting.classes_of(output / "train"))


def _tell_damaged(damaged: list[str]) -> None:
    for sentence in sorted(damaged)[:20]:
        _say(f"kept as it is: {sentence}")
    if len(damaged) > 20:
        _say(f"kept as they are: {len(damaged) - 20:,} more that cannot be decoded")


def _check_stamp(output: Path, pack: int | None) -> None:
    """See that a folder is not half packed and half not, or packed to two sizes."""
    path = output / STAMP
    try:
        before = json.loads(path.read_text())["pack"] if path.exists() else pack
    except (ValueError, KeyError, TypeError):
        before = pack
    if before != pack:
        now = f"--pack {pack}" if pack else "no --pack"
        raise UserError(
            f"The folder was begun with {f'--pack {before}' if before else 'no --pack'}, and this is a run with {now}",
            where=str(output),
            mend="Go on as it was begun, or give another --output.",
        )
    write_whole(path, json.dumps({"pack": pack}).encode())


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
            if error.errno not in NO_LOCKS:
                raise
            _say(f"{output} has no locks: see to it that no other launch/prepare-imagenet works there meanwhile")
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
