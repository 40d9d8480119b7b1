"""Runs that go well, of every method and under every launcher: what they leave in their folder, and how they go on."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from resist_hvd import nets
from resist_hvd.nets.saved import Whole
from resist_hvd.settings.reading import parse, to_yaml

from . import runs
from .conftest import CLASSES

ROUND = (
    "round iterations loss lr seconds_compute seconds_data seconds_sync bytes_sent bytes_trunk bytes_blocks partition "
    "ranks"
)
EVALUATION = "round epoch samples seconds bytes_sent accuracy loss"
SUMMARY = (
    "method workers rounds samples accuracy best_accuracy seconds seconds_compute seconds_data seconds_sync bytes_sent "
    "parameters_global parameters_worker peak_memory_bytes broken_files"
)
METHODS = ("resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout")
BLOCKS = 5
"""Partitionable blocks of the tiny network: all of its third section but the first."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def accuracy_of(model: Whole, description: dict[str, Any], images: Path) -> float:
    """Return the share of test images that a model loaded by itself classifies rightly, in percent."""
    mean, std = (torch.tensor(description[key]).view(-1, 1, 1) for key in ("mean", "std"))
    assert description["classes"] == list(CLASSES)
    right = []
    for label, name in enumerate(CLASSES):
        for path in sorted((images / "test" / name).iterdir()):
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
            with torch.no_grad():
                right.append(int(model(((pixels - mean) / std)[None]).argmax()) == label)
    return 100.0 * sum(right) / len(right)


def block_bytes(model: Whole) -> int:
    return 4 * sum(parameter.numel() for parameter in model.network.blocks[0].make().parameters())


@pytest.fixture(scope="module")
def whole(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ResIST that never stopped."""
    return finish("resist", tiny, tmp_path_factory)


@pytest.fixture(scope="module", params=METHODS)
def finished(
    request: pytest.FixtureRequest, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A method, and the folder of a whole run of it on 2 workers."""
    if request.param == "resist":
        return "resist", request.getfixturevalue("whole")
    return request.param, finish(request.param, tiny, tmp_path_factory)


def finish(method: str, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(method) / "run"
    ended = runs.run(*tiny, "--method", method, "--output", folder)
    assert ended.status == 0, ended
    assert ended.stderr.strip() == "", ended
    return folder


def assert_same_model(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "model.json").read_bytes() == (other / "model.json").read_bytes()


# A run's folder


def test_folder_has_what_the_contract_names_and_no_more(finished: tuple[str, Path]) -> None:
    method, folder = finished
    model = {"members"} if method == "ensemble" else {"model.safetensors", "model.json"}
    written = {"config.yaml", "rounds.jsonl", "eval.jsonl", "summary.json", "console.log", "starts.jsonl"}
    named = {"checkpoints"} | written | model
    assert {path.name for path in folder.iterdir()} - {"tensorboard"} == named
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert checkpoints == {"latest", "round-000002", "round-000004"}
    assert (folder / "checkpoints/latest").read_text() == "round-000004\n"


def test_files_have_the_keys_of_the_contract(finished: tuple[str, Path]) -> None:
    method, folder = finished
    rounds, evaluations = (read_lines(folder / name) for name in ("rounds.jsonl", "eval.jsonl"))
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["round"] for entry in rounds] == [0, 1, 2, 3]
    assert all(set(entry) == set(ROUND.split()) for entry in rounds)
    assert [entry["round"] for entry in evaluations] == [2, 4]
    assert all(set(entry) == set(EVALUATION.split()) for entry in evaluations)
    assert set(summary) == set(SUMMARY.split())
    assert (summary["method"], summary["workers"], summary["rounds"], summary["samples"]) == (method, 2, 4, 128)
    assert len(summary["peak_memory_bytes"]) == 2


def test_figures_add_up(finished: tuple[str, Path]) -> None:
    method, folder = finished
    rounds, evaluations = (read_lines(folder / name) for name in ("rounds.jsonl", "eval.jsonl"))
    summary = json.loads((folder / "summary.json").read_text())
    for entry in rounds:
        assert entry["bytes_sent"] == entry["bytes_trunk"] + entry["bytes_blocks"]
    for entry in evaluations:
        before = [done for done in rounds if done["round"] < entry["round"]]
        assert entry["bytes_sent"] == sum(done["bytes_sent"] for done in before)
        assert entry["samples"] == sum(done["iterations"] for done in before) * 16
        assert entry["epoch"] == entry["samples"] / 128
    assert summary["bytes_sent"] == sum(entry["bytes_sent"] for entry in rounds)
    assert (summary["bytes_sent"] == 0) == (method == "ensemble")
    for kind in ("compute", "data", "sync"):
        total = sum(entry[f"seconds_{kind}"] for entry in rounds)
        assert summary[f"seconds_{kind}"] == pytest.approx(total)
    parts = sum(summary[f"seconds_{kind}"] for kind in ("compute", "data", "sync"))
    assert summary["seconds"] == pytest.approx(parts)
    assert summary["accuracy"] == evaluations[-1]["accuracy"]
    assert summary["best_accuracy"] == max(entry["accuracy"] for entry in evaluations)


def test_every_partition_is_one_by_the_rule(finished: tuple[str, Path]) -> None:
    method, folder = finished
    for entry in read_lines(folder / "rounds.jsonl"):
        held = entry["partition"]
        assert len(held) == 2
        assert all(blocks == sorted(set(blocks)) for blocks in held)
        if method in ("resist", "ensemble"):
            assert [len(blocks) for blocks in held] == [3, 3]
            assert set().union(*held) == set(range(BLOCKS))
        else:
            assert held == [list(range(BLOCKS))] * 2


def test_blocks_cost_what_their_partitions_ask_for(whole: Path) -> None:
    a_block = block_bytes(nets.load(whole))
    rounds = read_lines(whole / "rounds.jsonl")
    for done, following in pairwise(rounds):
        before, after = (entry["partition"] for entry in (done, following))
        copies = [
            [sum(block in held for held in partition) for block in range(BLOCKS)] for partition in (before, after)
        ]
        kept = {block for old, new in zip(before, after, strict=True) for block in set(old) & set(new)}
        # Copies meet at a holder, and what comes of them reaches all next holders; one that keeps its block spares two.
        sent = sum(c + d - 1 - (block in kept) for block, (c, d) in enumerate(zip(*copies, strict=True)))
        assert done["bytes_blocks"] == a_block * sent


def test_exported_model_classifies_as_the_run_says(finished: tuple[str, Path], images: Path) -> None:
    method, folder = finished
    summary = json.loads((folder / "summary.json").read_text())
    folders = [folder / "members" / rank for rank in ("0", "1")] if method == "ensemble" else [folder]
    for target in folders:
        model = nets.load(target)
        description = json.loads((target / "model.json").read_text())
        accuracy = accuracy_of(model, description, images)
        if method == "ensemble":
            assert sum(p.numel() for p in model.parameters()) == summary["parameters_worker"]
        else:
            assert sum(p.numel() for p in model.parameters()) == summary["parameters_global"]
            assert accuracy == pytest.approx(summary["accuracy"])


def test_config_holds_every_setting_and_can_be_given_again(finished: tuple[str, Path]) -> None:
    method, folder = finished
    text = (folder / "config.yaml").read_text()
    settings = parse(["--config", str(folder / "config.yaml")])
    assert settings.method == method
    assert settings.output == folder
    assert to_yaml(settings) == text
    assert set(yaml.safe_load(text)["optim"]) > {"lr", "momentum", "schedule"}


def test_worker_of_resist_has_fewer_parameters_than_the_network(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    left_out = BLOCKS - 3
    assert summary["parameters_global"] - summary["parameters_worker"] == left_out * block_bytes(nets.load(whole)) / 4


# The same again, and going on


def test_same_settings_give_the_same_parameters_bit_for_bit(cut: Path, whole: Path) -> None:
    one, other = (runs.contents(folder / "checkpoints/round-000002") for folder in (cut, whole))
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"manifest.json"}
    assert {"trunk.safetensors", "blocks-0000.safetensors"} < set(one)


def test_resumed_run_ends_as_the_one_that_never_stopped(copy_of_cut: Path, whole: Path, tiny: list[str]) -> None:
    with (copy_of_cut / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "iterations": 2, "lo')  # as a machine that went off leaves it
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, launcher="horovodrun")
    assert ended.status == 0, ended
    assert f"Resuming from {copy_of_cut}/checkpoints/round-000002 after round 2\n" in ended.stdout
    assert_same_model(copy_of_cut, whole)
    for name in ("rounds.jsonl", "eval.jsonl"):
        ours, theirs = read_lines(copy_of_cut / name), read_lines(whole / name)
        for entry in (*ours, *theirs):
            for seconds in [key for key in entry if key == "ranks" or key.startswith("seconds")]:
                del entry[seconds]
        assert ours == theirs
    assert set(load_file(copy_of_cut / "model.safetensors")) == set(load_file(whole / "model.safetensors"))
    # The log has both starts, and of each what it printed.
    first, second = (copy_of_cut / "console.log").read_text().removeprefix("# ").split("\n# ")
    for start in (first, second):
        assert "2 workers" in start.splitlines()[0]
        assert "resist_hvd.train" in start.splitlines()[0]
    assert "--resume" in second.splitlines()[0]
    assert second.splitlines()[1:] == ended.stdout.splitlines()
    assert sum(line.startswith("round ") for line in first.splitlines()) == 2


def test_resume_on_more_workers_deals_blocks_anew_and_says_so(copy_of_cut: Path, tiny: list[str]) -> None:
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, ranks=3)
    assert ended.status == 0, ended
    assert "blocks are dealt anew to 3 workers (it had 2), momentum restarts" in ended.stdout
    rounds = read_lines(copy_of_cut / "rounds.jsonl")
    assert [entry["round"] for entry in rounds] == [0, 1, 2, 3]
    assert [len(entry["partition"]) for entry in rounds] == [2, 2, 3, 3]
    summary = json.loads((copy_of_cut / "summary.json").read_text())
    assert (summary["workers"], summary["rounds"]) == (3, 4)
    assert len(summary["peak_memory_bytes"]) == 3
    assert nets.load(copy_of_cut)


def test_one_worker_needs_no_launcher_and_resumes_from_nothing(tiny: list[str], tmp_path: Path) -> None:
    ended = runs.run(*tiny, "--max_rounds=1", "--resume", "--output", tmp_path / "new", launcher="none")
    assert ended.status == 0, ended
    assert f"No checkpoint in {tmp_path / 'new'}: starting anew" in ended.stdout
    assert "resist on 1 worker (cpu, " in ended.stdout
    (entry,) = read_lines(tmp_path / "new/rounds.jsonl")
    assert entry["partition"] == [list(range(BLOCKS))]
    assert entry["bytes_sent"] == 0
    assert nets.load(tmp_path / "new")


def test_folder_is_all_that_a_resume_needs(whole: Path, copy_of_cut: Path) -> None:
    # The cut run ended at its --max_rounds, which its epochs go beyond.
    ended = runs.run("--resume", "--output", copy_of_cut)
    assert ended.status == 0, ended
    assert "max_rounds 2 is now null" in ended.stdout
    assert_same_model(copy_of_cut, whole)
    assert [entry["round"] for entry in read_lines(copy_of_cut / "rounds.jsonl")] == [0, 1, 2, 3]
    assert [entry["round"] for entry in read_lines(copy_of_cut / "starts.jsonl")] == [0, 2]
    # Finished, it stays what it is, but for the notes of another start.
    before = runs.contents(copy_of_cut)
    ended = runs.run("--resume", "--output", copy_of_cut)
    assert ended.status == 0, ended
    noted = ("starts.jsonl", "console.log")
    after = runs.contents(copy_of_cut)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith("tensorboard")} <= {*noted, "summary.json"}


def test_folder_has_one_run_at_a_time_and_a_killed_one_is_followed_at_once(tiny: list[str], copy_of_cut: Path) -> None:
    alone = (*tiny, "--resume", "--output", copy_of_cut)
    with runs.started(*alone, "--epochs=100000", launcher="none") as first:
        first.wait_for(r"round +6/")
        second = runs.run(*alone, launcher="none")
        assert second.status == 2, second
        assert f"process {first.process.pid} on {runs.HOST}" in second.mistake
        assert "--output" in second.mistake
        assert (copy_of_cut / "claim.json").exists()
        first.process.kill()
        first.process.wait()
    resumed = runs.run(*alone, launcher="none")
    assert resumed.status == 0, resumed
    assert "Resuming from" in resumed.stdout
    assert not (copy_of_cut / "claim.json").exists()
