"""What the pages say of images, and of using an exported model, is what evaluation does."""

import json
import re
from pathlib import Path

import pytest
import torch

from resist_hvd.data import Shard, load
from resist_hvd.data.folders import SUFFIXES
from resist_hvd.settings.data import DataSettings

from .. import photographs

DOCS = Path(__file__).parents[2] / "docs"
ALONE = Shard(rank=0, size=1)


def test_the_example_prepares_an_image_as_evaluation_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "using.md").read_text()
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "resist.load" in block]
    root = photographs.make_root(tmp_path / "data", classes=2, train=2, val=2)
    settings = DataSettings(
        name="imagenet", root=root, loader="torchvision", image_size=28, batch_size=2, decode_threads=1
    )
    with load(settings, shard=ALONE, seed=1, device=torch.device("cpu")) as source:
        images = torch.cat([images for images, _ in source.test()])
        about = {"network": {}, **source.spec.preprocess.to_json(), "data": "imagenet", "classes": ["no", "yes"]}
    (tmp_path / "model.json").write_text(json.dumps(about))
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(
        "resist_hvd.nets.saved.load", lambda _, **__: lambda batch: taken.append(batch) or torch.tensor([[0.0, 1.0]])
    )
    file = min((root / "val").glob("*/*"))
    exec(text.replace('"runs/photographs"', repr(str(tmp_path))).replace('"a.jpg"', repr(str(file))), {})
    assert torch.equal(taken[0], images[:1])


def test_every_suffix_is_named() -> None:
    assert all(suffix in (DOCS / "data.md").read_text() for suffix in SUFFIXES)
