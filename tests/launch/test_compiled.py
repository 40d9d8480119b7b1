"""A compiled run in bfloat16 says of its network what plain PyTorch finds in the exported model."""

import json
from pathlib import Path

import pytest
import torch

from resist_hvd import data
from resist_hvd.data.source import Shard
from resist_hvd.settings.data import DataSettings

from .. import plain_network
from . import runs


def test_a_run_that_cannot_compile_is_refused_at_its_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = runs.run("--compile", "--output", folder, launcher="none", ranks=1, CXX="/nowhere/c++")
    assert ended.status == 2, ended
    assert "--compile needs" in ended.stderr
    assert "/nowhere/c++" in ended.stderr
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_and_in_bfloat16(tmp_path: Path) -> None:
    # Blocks that begin as the identity would still be much alike: one that is taken for another might not be noticed.
    model = ("--model.sections", "1,1,4", "--model.zero_init_residual", "false")
    flags = ("--compile", "--precision", "bf16", "--data.image_size", "8", "--local_iterations", "20")
    folder = tmp_path / "run"
    # One worker, to whom all blocks are lent, too. The compiler takes a minute.
    ended = runs.run(*flags, *model, "--max_rounds", "3", "--output", folder, launcher="none", ranks=1, limit=800)
    assert ended.status == 0, ended
    said = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    shard = Shard(rank=0, size=1)
    source = data.load(DataSettings(name="digits", image_size=8), shard=shard, seed=1, device=torch.device("cpu"))
    network = plain_network.load_plain(folder)
    for precision in ("fp32", "bf16"):
        accuracy, loss = plain_network.evaluate_plain(network, source.test(), precision)
        # Of 360 images, 3 are 0.8 points.
        assert (accuracy, loss) == (pytest.approx(said["accuracy"], abs=0.9), pytest.approx(said["loss"], rel=0.02))
