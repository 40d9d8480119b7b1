"""ImageNet as it is downloaded: the official archives, Kaggle's folders, or class folders.

torchvision unpacks the archives, and only those that have the published MD5 sums. No other archive is opened.
"""

import shutil
import tempfile
from pathlib import Path

from resist_hvd import console
from resist_hvd.errors import UserError

ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
    "devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
"""Names of the official archives; the development kit has the classes of the validation images."""

KAGGLE = "ILSVRC/Data/CLS-LOC"
"""Folder of Kaggle's download with train/<wnid>/* and val/*."""

LABELS = "LOC_val_solution.csv"
"""Kaggle's file of the validation images' classes, beside `ILSVRC`."""


def find(download: Path, half: str) -> Path | None:
    """The archive or the folder of a half (train, val) in a download; None if there is neither."""
    places = (download / ARCHIVES[half], download / KAGGLE / half, download / half)
    return next((place for place in places if place.exists()), None)


def unpacked(archive: Path, half: str, output: Path) -> Path:
    """Unpack an official archive into class folders in a hidden folder of `output`; return that folder.

    It is there whole or not at all: what an earlier run was stopped in is removed, and begun again.

    Raises:
        UserError: an archive has not the MD5 sum of ImageNet's, or the development kit is missing.
        OSError: the disk is full, or may not be written to.
    """
    from torchvision.datasets import imagenet

    whole, begun = (output / f".{half}.{state}" for state in ("unpacked", "unpacking"))
    if whole.exists():
        return whole
    if begun.exists():
        shutil.rmtree(begun)
    devkit = archive.with_name(ARCHIVES["devkit"])
    if half == "val" and not devkit.exists():
        raise UserError(
            f"{devkit.name}, which has the classes of the validation images, is missing",
            where=str(devkit.parent),
            mend=f"Put it beside {archive.name}.",
        )
    console.out(f"{half}: checking and unpacking {archive}; this takes long, and begins anew if it is stopped")
    try:
        if half == "train":
            imagenet.parse_train_archive(output, str(archive), folder=begun.name)
        else:
            with tempfile.TemporaryDirectory() as kit:
                imagenet.parse_devkit_archive(kit, str(devkit))
                wnids = imagenet.load_meta_file(kit)[1]
            imagenet.parse_val_archive(output, str(archive), wnids, folder=begun.name)
    except RuntimeError as error:
        # torchvision names the archive; its advice is about folders of its own.
        raise UserError(
            str(error).partition(" You need")[0].rstrip("."),
            mend="Its MD5 sum is not the published one: fetch it again.",
        ) from error
    begun.rename(whole)
    return whole
