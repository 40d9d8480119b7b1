"""What docs/data.md says of using an exported model is what evaluation does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from resist_hvd.data import Shard, load
from resist_hvd.image_names import SUFFIXES
from resist_hvd.nets import ResNet
from resist_hvd.settings.data import DataSettings

from .. import photographs

PAGE = Path(__file__).parents[2].joinpath("docs/data.md").read_text()
ALONE = Shard(rank=0, size=1)


def test_images_are_prepared_as_evaluation_prepares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "model.json" in block]
    root = photographs.make_root(tmp_path / "data", classes=2, train=2, val=2)
    settings = DataSettings(
        name="imagenet", root=root, loader="torchvision", image_size=28, batch_size=2, decode_threads=1
    )
    with load(settings, shard=ALONE, seed=1, device=torch.device("cpu")) as source:
        images = torch.cat([images for images, _ in source.test()])
        about = {"image_size": 28, "mean": source.spec.mean, "std": source.spec.std, "classes": ["no", "yes"]}
    (tmp_path / "model.json").write_text(json.dumps(about))
    files = sorted((root / "val").glob("*/*"))
    monkeypatch.setattr(ResNet, "load", lambda _: lambda batch: torch.tensor([[0.0, 1.0]]) + 0 * batch.sum())
    names: dict[str, Any] = {}
    text = text.replace('Path("runs/photographs")', f"Path({str(tmp_path)!r})").replace('"a.jpg"', repr(str(files[0])))
    exec(text, names)
    assert torch.equal(torch.stack([names["prepared"](file) for file in files]), images)

    settings = DataSettings(name="folder", root=root, image_size=28, batch_size=2, crop_padding=0)
    with load(settings, shard=ALONE, seed=1, device=torch.device("cpu")) as source:
        images = torch.cat([images for images, _ in source.test()])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (source.spec.mean, source.spec.std))
    fit = "ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)"
    assert fit in PAGE
    for file, expected in zip(files, images, strict=True):
        fitted = eval(fit, {"ImageOps": ImageOps, "Image": Image, "image": Image.open(file).convert("RGB"), "size": 28})
        pixels = torch.from_numpy(photographs.np.asarray(fitted).copy()).permute(2, 0, 1)
        assert torch.allclose((pixels.float() - mean) / std, expected, atol=1e-5)


def test_every_suffix_is_named() -> None:
    assert all(suffix in PAGE for suffix in SUFFIXES)
