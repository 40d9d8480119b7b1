"""Program behind launch/prepare-imagenet: its flags."""

import argparse
from pathlib import Path

from prepare_imagenet.download import ARCHIVES, KAGGLE
from resist_hvd.errors import run_alone

SIDES = (256, 2048)
"""Smallest and largest --pack, in pixels."""


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, that of this process where none is given."""
    parser = argparse.ArgumentParser(
        prog="launch/prepare-imagenet",
        description="Put ImageNet (ILSVRC2012) into train/<wnid>/* and val/<wnid>/*, and check that it is complete. "
        "Folders train and val appear once they are whole. Run it again where it was stopped; it changes nothing "
        "where both are there.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--download",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder of the official archives ({', '.join(ARCHIVES.values())}), which are unpacked and stay; or of "
        f"Kaggle's {KAGGLE}; or of class folders train and val. Files are linked, or copied where links cannot be made",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for train and val")
    parser.add_argument(
        "--pack",
        type=_side,
        metavar="PIXELS",
        help=f"write JPEGs with a shorter side of so many pixels, from {SIDES[0]} on: at 320 about 0.4 of the bytes",
    )
    parser.add_argument(
        "--subset", action="store_true", help="the images are a part of ImageNet: count them, and demand no number"
    )
    return parser.parse_args(arguments)


def _side(text: str) -> int:
    if not text.isdecimal() or not SIDES[0] <= int(text) <= SIDES[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from {SIDES[0]} to {SIDES[1]}")
    return int(text)


def main() -> None:
    """Run the program.

    Raises:
        UserError: something is missing, damaged or incomplete, or the disk is full.
    """
    flags = parse_flags()
    # It brings PyTorch along, which takes seconds to load; --help is told before that.
    from prepare_imagenet.halves import prepare

    prepare(flags.download, flags.output, pack=flags.pack, subset=flags.subset)


if __name__ == "__main__":
    run_alone(main)
