"""A plan, against what a run then sends."""

import json
import sys
from pathlib import Path

import pytest

from resist_hvd import plan

from . import runs

NETWORK = ["--model.sections=1,1,9,2", "--model.width_factor=0.0625", "--local_iterations=1", "--epochs=30"]


@pytest.mark.slow
def test_eight_ranks_send_what_was_planned(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = "--min_blocks=5"
    data = ["--data.name=folder", f"--data.root={images}", "--data.batch_size=8"]
    ended = runs.run(*NETWORK, depth, *data, "--output", tmp_path / "run", ranks=8)
    assert ended.status == 0, ended
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    like = ["--workers=8", "--batch_size=8", "--image_size=8", "--classes=4", "--images=128"]
    monkeypatch.setattr(sys, "argv", ["plan", *NETWORK, depth, *like, "--json", str(tmp_path / "plan.json")])
    plan.main()
    planned = next(run for run in json.loads((tmp_path / "plan.json").read_text())["runs"] if run["method"] == "resist")

    assert summary["rounds"] == planned["rounds"] == 60
    assert summary["bytes_sent"] == pytest.approx(planned["bytes_sent"], rel=0.01)
