"""A plan, against what a run then sends."""

import json
import sys
from pathlib import Path

import pytest

from . import runs

NETWORK = ["--model.sections=1,1,9,2", "--model.width_factor=0.0625", "--local_iterations=1", "--epochs=30"]


@pytest.mark.slow
@pytest.mark.parametrize("min_blocks", [0, 5])
def test_eight_ranks_send_what_was_planned(min_blocks: int, images: Path, tmp_path: Path) -> None:
    depth = f"--min_blocks={min_blocks}"
    data = ["--data.name=folder", f"--data.root={images}", "--data.batch_size=8"]
    ended = runs.run(*NETWORK, depth, *data, "--output", tmp_path / "run", ranks=8)
    assert ended.status == 0, ended
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    like = ["--workers=8", "--batch_size=8", "--image_size=8", "--classes=4", "--images=128"]
    plan = [sys.executable, "-m", "resist_hvd.plan"]
    ended = runs.run(*NETWORK, depth, *like, "--json", tmp_path / "plan.json", launcher="none", program=plan)
    assert ended.status == 0, ended
    planned = next(run for run in json.loads((tmp_path / "plan.json").read_text())["runs"] if run["method"] == "resist")

    assert summary["rounds"] == planned["rounds"] == 60
    assert summary["bytes_sent"] == pytest.approx(planned["bytes_sent"], rel=0.01)
