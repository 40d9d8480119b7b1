"""Images with boxes, in Pascal VOC's layout, made for tests."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image


def annotation(width: int, height: int, *objects: str) -> str:
    return (
        "<annotation><folder>VOC</folder><source><annotation>PASCAL VOC2007</annotation></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>"
        f"{''.join(objects)}</annotation>"
    )


def thing(name: str, *box: object, difficult: object = 0, inside: str = "") -> str:
    edges = "".join(f"<{edge}>{v}</{edge}>" for edge, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{edges}</bndbox>{inside}</object>"
    )


class Devkit:
    """A folder VOCdevkit that is filled image by image."""

    def __init__(self, root: Path) -> None:
        self.root = root / "VOCdevkit"

    def add(self, year: str, which: str, identifier: str, image: bytes | tuple[int, int], *objects: str) -> None:
        folder = self.root / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if isinstance(image, tuple):
            file = io.BytesIO()
            noise = np.random.default_rng(sum(os.fsencode(identifier))).integers(0, 256, (image[1], image[0], 3))
            Image.fromarray(noise.astype(np.uint8)).save(file, "JPEG")
            image = file.getvalue()
        self.image(year, identifier).write_bytes(image)
        self.annotation(year, identifier).write_text(annotation(*Image.open(io.BytesIO(image)).size, *objects))
        with self.list(year, which).open("a", errors="surrogateescape") as lines:
            lines.write(f"{identifier}\n")

    def image(self, year: str, identifier: str) -> Path:
        return self.root / f"VOC{year}/JPEGImages/{identifier}.jpg"

    def annotation(self, year: str, identifier: str) -> Path:
        return self.root / f"VOC{year}/Annotations/{identifier}.xml"

    def list(self, year: str, which: str) -> Path:
        return self.root / f"VOC{year}/ImageSets/Main/{which}.txt"


def make_squares(root: Path, *, train: int = 24, test: int = 8, side: int = 64) -> Path:
    """Write a devkit of noise with bright squares in it, red ones and blue ones, two an image; return its folder."""
    made = Devkit(root)
    random = np.random.default_rng(1)
    for which, count in (("trainval", train), ("test", test)):
        for number in range(count):
            pixels = random.integers(0, 90, (side, side, 3))
            objects = []
            for place, (name, channel) in enumerate((("red", 0), ("blue", 2))):
                size = int(random.integers(side // 6, side // 3))
                left, top = (int(random.integers(0, side // 2 - size)) for _ in range(2))
                left += place * side // 2
                pixels[top : top + size, left : left + size, channel] = 250
                objects.append(thing(name, left + 1, top + 1, left + size, top + size))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
            made.add("2007", which, f"{which}{number:03d}", file.getvalue(), *objects)
    return made.root
