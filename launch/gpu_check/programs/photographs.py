"""Images as large as ImageNet's, written as JPEGs into folders laid out as ImageNet's: for a loader to be timed on."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_check.programs import answering

WIDTH, HEIGHT, QUALITY = 500, 375, 92
CLASSES = 8


def write(path: Path, seed: int) -> int:
    """Write an image of smooth shapes and some noise; return its bytes. ImageNet's have 110 KB on the average."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, size=(12, 16, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(smooth + random.normal(0, 9, smooth.shape).astype(np.int16), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(path, "JPEG", quality=QUALITY)
    return path.stat().st_size


def main() -> None:
    """Write what the flags ask for: --count for training, and one of each class to validate on."""
    parser = answering.flags(__doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1024, metavar="N")
    given = parser.parse_args()
    paths = [given.root / "train" / f"n{number % CLASSES:08d}" / f"{number}.JPEG" for number in range(given.count)]
    paths += [given.root / "val" / f"n{number:08d}" / f"{number}.JPEG" for number in range(CLASSES)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sizes = list(pool.map(write, paths, range(len(paths)), chunksize=16))
    answering.write(given.answer, {"images": len(sizes), "mean_bytes": sum(sizes) / len(sizes)})


if __name__ == "__main__":
    main()
