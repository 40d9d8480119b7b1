"""What a run writes, as other programs rely on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.records import EvaluationRecord, RoundRecord, Summary
from resist_hvd.training import rounds
from resist_hvd.training.account import Round, summary_of
from resist_hvd.training.journal import Journal
from resist_hvd.training.loop import LocalTraining, train
from resist_hvd.training.memory import TrainingMemory
from resist_hvd.training.run import Training

from . import tiny

ROUND = [
    "round",
    "iterations",
    "loss",
    "lr",
    "seconds_compute",
    "seconds_data",
    "seconds_sync",
    "bytes_sent",
    "bytes_trunk",
    "bytes_blocks",
    "partition",
    "ranks",
]
EVALUATION = ["round", "epoch", "samples", "seconds", "bytes_sent", "accuracy", "loss"]
SUMMARY = [
    "method",
    "workers",
    "rounds",
    "samples",
    "accuracy",
    "best_accuracy",
    "seconds",
    "seconds_compute",
    "seconds_data",
    "seconds_sync",
    "bytes_sent",
    "parameters_global",
    "parameters_worker",
    "peak_memory_bytes",
    "broken_files",
]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_of_a_run(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.settings(world, local_iterations=4, evaluate_every=1)
    run = tiny.make_run(settings, world, folder)
    partitions = [run.method.partition.held]
    printed: list[str] = []
    losses: list[list[float]] = []
    add_round = rounds.add_round

    def listen(training: Training, done: Round) -> RoundRecord:
        losses.append(done.losses.tolist())
        partitions.append(run.method.partition.held)
        return add_round(training, done)

    monkeypatch.setattr(rounds, "add_round", listen)
    with Journal(run, printed.append) as journal:
        train(run, journal)
        journal.summary(summary_of(run, [1] * world.size, {}, {}))
    everyone = world.gather_objects(losses)
    # Two rounds a line each, two evaluations a line each; nothing from ranks that are not first.
    assert len(printed) == (4 if world.is_first else 0)
    if not world.is_first:
        return
    for name, kind in (("rounds.jsonl", RoundRecord), ("eval.jsonl", EvaluationRecord)):
        records, faults = kind.read_lines(folder / name)
        assert faults == []
        assert "".join(record.as_line() for record in records) == (folder / name).read_text()
    assert Summary.read(folder / "summary.json").as_text() == (folder / "summary.json").read_text()
    lines, evaluations = lines_of(folder / "rounds.jsonl"), lines_of(folder / "eval.jsonl")
    assert [list(line) for line in lines] == [ROUND] * 2
    assert [line["round"] for line in lines] == [0, 1]
    assert [line["iterations"] for line in lines] == [4, 2]
    assert [line["partition"] for line in lines] == [[list(held) for held in p] for p in partitions[:2]]
    for number, line in enumerate(lines):
        mean = torch.tensor([theirs[number] for theirs in everyone], dtype=torch.float64).mean().item()
        assert line["loss"] == pytest.approx(mean)
    # The last iteration's: 3 of 6 are done before it, where the cosine is at half its height.
    assert lines[0]["lr"] == pytest.approx(0.1 * 0.5)

    assert [list(line) for line in evaluations] == [EVALUATION] * 2
    assert [line["round"] for line in evaluations] == [1, 2]
    samples = [4 * tiny.BATCH * world.size, 6 * tiny.BATCH * world.size]
    assert [line["samples"] for line in evaluations] == samples
    assert [line["epoch"] for line in evaluations] == [count / tiny.TRAIN_IMAGES for count in samples]
    assert evaluations[1]["bytes_sent"] == sum(line["bytes_sent"] for line in lines)
    timed = ("seconds_compute", "seconds_data", "seconds_sync")
    assert evaluations[1]["seconds"] == pytest.approx(sum(line[name] for line in lines for name in timed))

    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == SUMMARY
    assert summary["workers"] == world.size
    assert (summary["rounds"], summary["samples"]) == (2, samples[1])
    assert summary["accuracy"] == evaluations[1]["accuracy"]
    assert summary["best_accuracy"] == max(line["accuracy"] for line in evaluations)
    assert summary["parameters_global"] == run.method.network.parameters
    assert summary["parameters_worker"] == run.method.subnet.parameters_flat.numel()
    assert summary["peak_memory_bytes"] == [1] * world.size


def test_checkpoints_that_are_kept(world: World, folder: Path) -> None:
    settings = tiny.settings(world, checkpoint_every=1, keep_checkpoints=2)
    run = tiny.make_run(settings, world, folder)
    train(run, tiny.Watching(run))
    if world.is_first:
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["latest", "round-000002", "round-000003"]
        assert (folder / "checkpoints" / "latest").read_text() == "round-000003\n"


def test_a_checkpoint_has_every_block_once(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, min_blocks=3, momentum="keep"), world, folder)
    train(run, tiny.Watching(run))
    if not world.is_first:
        return
    manifest = json.loads((folder / "checkpoints" / "round-000003" / "manifest.json").read_text())
    tensors = [name for entry in manifest["files"].values() for name in entry["tensors"]]
    momentum = ["momentum"] * world.size
    assert sorted(tensors) == sorted([*(f"block.{block}" for block in range(5)), "trunk", *momentum])
    assert manifest["workers"] == world.size


def test_peak_memory_is_what_the_kernel_says(world: World) -> None:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    assert TrainingMemory(world.device).peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)


def test_bf16_leaves_parameters_in_full_precision(world: World, folder: Path) -> None:
    changed = []
    for precision in ("fp32", "bf16"):
        run = tiny.make_run(tiny.settings(world, precision=precision), world, folder)
        LocalTraining(run).step()
        assert run.method.subnet.parameters_flat.dtype == torch.float32
        changed.append(run.method.subnet.parameters_flat)
    # The same step, computed with fewer digits.
    assert not torch.equal(*changed)
    torch.testing.assert_close(*changed, rtol=0.1, atol=0.05)
