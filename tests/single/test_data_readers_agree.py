"""The same tree is the same samples, in the same order and of the same pixels, to every reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import Shard, load
from resist_hvd.data.tree import find_images
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs

SIZE = 16
LITTER = ("Thumbs.db", "desktop.ini", "notes.txt", ".DS_Store", "._1.jpg")
FOLDERS = ("album.jpg", "@eaDir", ".ipynb_checkpoints")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of images of every ending, some of them turned by EXIF, among what file servers leave behind."""
    kinds = {"jpg": "JPEG", "JFIF": "JPEG", "png": "PNG", "bmp": "BMP", "gif": "GIF", "Tif": "TIFF", "webp": "WEBP"}
    kinds |= {"ppm": "PPM", "turned.jpg": "JPEG", "turned.png": "PNG", "turned.webp": "WEBP", "turned.tiff": "TIFF"}
    exif = Image.Exif()
    exif[0x0112] = 6
    for half in ("train", "val"):
        for label, name in enumerate(("n1", "n2")):
            folder = tmp_path / "data" / half / name
            for made in FOLDERS:
                (folder / made).mkdir(parents=True)
            for litter in LITTER:
                (folder / litter).write_bytes(b"litter")
            for number, (ending, kind) in enumerate(kinds.items()):
                pixels = photographs.picture(100 * label + number, SIZE, SIZE)
                options: dict[str, Any] = {"exif": exif} if ending.startswith("turned") else {}
                Image.fromarray(pixels).save(folder / f"{number:02d}.{ending}", kind, **options)
        (tmp_path / "data" / half / "@eaDir").mkdir()
    return tmp_path / "data"


def pixels_of(root: Path, **changes: Any) -> tuple[list[torch.Tensor], list[list[int]], tuple[str, ...]]:
    """The images of the test half and of a further test set, in grey levels; their labels; and remarks."""
    settings = DataSettings(
        root=root, batch_size=2, image_size=SIZE, decode_threads=1, extra_tests=root / "train", **changes
    )
    alone = Shard(rank=0, size=1)
    images, labels = [], []
    with load(settings, shard=alone, seed=1, device=torch.device("cpu")) as source:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (source.spec.mean, source.spec.std))
        for batches in (source.test(), source.extra_tests[0].batches(alone)):
            found = list(batches)
            images.append(torch.cat([batch for batch, _ in found]) * std + mean)
            labels.append(torch.cat([batch for _, batch in found]).tolist())
        return images, labels, source.remarks


def test_folder_and_both_loaders_of_imagenet(root: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    images, labels, remarks = pixels_of(root, name="folder")
    assert labels == [[0] * 12 + [1] * 12] * 2
    # Pixels are as they are stored, but for a TIFF's (the last one): its orientation is part of the format.
    for number in (8, 9, 10, 11):
        stored = photographs.picture(number, SIZE, SIZE)
        found = images[0][number].permute(1, 2, 0).numpy()
        distances = [float(np.abs(found - pixels).mean()) for pixels in (stored, np.rot90(stored, -1))]
        assert distances.index(min(distances)) == (number == 11), distances
        assert min(distances) < 20
    for loader in ("torchvision", "dali"):
        others, same, same_remarks = pixels_of(root, name="imagenet", loader=loader, test_resize=SIZE)
        assert (labels, remarks) == (same, same_remarks)
        for one, other in zip(images, others, strict=True):
            assert float((one - other).abs().max()) < 0.51
    below_root, below_extra = remarks
    # Of 2 halves of 2 classes: 3 visible files and 2 visible folders a class, and a folder beside the classes.
    assert f"10 folders, 12 files (.db 4, .ini 4, .txt 4) [{root}]" in below_root
    assert f"5 folders, 6 files (.db 2, .ini 2, .txt 2) [{root / 'train'}]" in below_extra


def test_test_goes_before_val_in_every_reader_if_it_has_classes(root: Path) -> None:
    assert find_images(root).test.folder.name == "val"
    (root / "test").mkdir()
    Image.fromarray(photographs.picture(1)).save(root / "test/unlabelled.png")
    assert find_images(root).test.folder.name == "val"
    (root / "test/n1").mkdir()
    Image.fromarray(photographs.picture(1)).save(root / "test/n1/1.png")
    found = find_images(root)
    assert found.test.folder.name == "test"
    assert any("tested on test; val is not used" in remark for remark in found.remarks)
    assert any("test has images of 1 of the 2 classes, and none of n2" in remark for remark in found.remarks)


def test_lists_that_differ_have_other_descriptions(root: Path) -> None:
    before = find_images(root).digest()
    assert find_images(root).digest() == before
    assert before.startswith("24 training and 24 test images")
    (root / "train/n1/00.jpg").rename(root / "train/n1/0.jpg")
    assert find_images(root).digest() != before


def test_a_share_is_asked_for_the_list_and_its_error_is_raised(root: Path) -> None:
    asked = []

    def share(make: Any, describe: Any) -> Any:
        asked.append(describe(make()))
        raise UserError("Hosts do not see the same", mend="Mend it.")

    for name in ("folder", "imagenet"):
        settings = DataSettings(name=name, root=root, batch_size=2, image_size=SIZE)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="Hosts do not see the same"):
            load(settings, shard=Shard(rank=0, size=1), seed=1, device=torch.device("cpu"), share=share)
    assert asked == [find_images(root).digest()] * 2
    assert np.array_equal(find_images(root).train.labels, [0] * 12 + [1] * 12)
