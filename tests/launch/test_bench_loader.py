"""`bench loader`: that it measures all candidates on a small folder, and what it refuses; never how fast they are."""

import re
import sys
from pathlib import Path

import pytest

from resist_hvd import bench
from resist_hvd.benchmarks.loader import LoaderSettings
from resist_hvd.benchmarks.table import show_rates
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs
from . import runs

BENCH = (runs.PYTHON, "-m", "resist_hvd.bench", "loader")
SMALL = (
    "--batches=2", "--passes=1", "--steps=1", "--data.batch_size=2", "--data.image_size=32", "--data.decode_threads=1",
    "--model.sections=1,1,2,1", "--model.width_factor=0.125",
)  # fmt: skip


def test_every_candidate_has_a_row_and_training_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    root = photographs.make_root(tmp_path / "imagenet")
    ended = runs.run(*SMALL, "--data.root", root, program=BENCH, ranks=1)
    assert ended.status == 0, ended
    rows = re.findall(r"│ (.+?) +│ +(\d+) │ +(\d+) │ +(\d+) │ (\d\.\d{3}) │", ended.stdout)
    assert [row[0] for row in rows] == ["bare DALI, the same operators", "this loader", "torchvision's DataLoader"], (
        ended
    )
    assert all(int(figure) > 0 for row in rows for figure in row[1:4])
    assert rows[0][4] == "1.000"
    said = " ".join(ended.stdout.split())
    assert re.search(r"2 images of 32 x 32: 1 threads or processes, [\d.]+ cores for rank 0, 1 rank, cpu", said)
    assert re.search(r"Beside training [\d,]+ parameters \(fp32\): [\d.]+ images/s, a step of \d+ ms", said)
    assert re.search(r"of which \d+\.\d\d % wait for data", said)
    ratio = re.search(r"^ratio (\d+\.\d{3}): images a second by this loader", ended.stdout, re.MULTILINE)
    assert ratio is not None
    assert ratio[1] == rows[1][4]


def test_several_ways_of_loading_are_timed_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    root = photographs.make_root(tmp_path / "imagenet")
    ended = runs.run(*SMALL, "--data.root", root, "--threads=[1,2]", "--steps=0", program=BENCH, ranks=1)
    assert ended.status == 0, ended
    rows = re.findall(r"│ (.+?) +│ +(\d+) │ +(\d+) │ +(\d+) │ (\d\.\d{3}) │", ended.stdout)
    assert [row[0] for row in rows] == [
        f"{name}, {way}"
        for way in ("1 thread", "2 threads")
        for name in ("bare DALI, the same operators", "this loader")
    ], ended
    said = " ".join(ended.stdout.split())
    assert re.search(r"against bare DALI: \d\.\d{3} with 1 thread, \d\.\d{3} with 2 threads\.", said)
    assert "Beside training" not in said


def test_shares_of_hardware_need_a_gpu(tmp_path: Path) -> None:
    ended = runs.run(*SMALL, "--hardware_load=[0.65,0.9]", program=BENCH, ranks=1, launcher="none")
    assert "--hardware_load is for a GPU" in ended.mistake


def test_ways_of_loading_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    _, settings = bench.parse(["loader", "--data.root", str(tmp_path), "--threads=[4,8]", "--hardware_load=[0.65,0.9]"])
    found = {name: (way.threads, way.dali.hardware_load) for name, way in settings.ways(cores=16).items()}
    assert found == {
        "4 threads, hardware load 0.65": (4, 0.65),
        "4 threads, hardware load 0.9": (4, 0.9),
        "8 threads, hardware load 0.65": (8, 0.65),
        "8 threads, hardware load 0.9": (8, 0.9),
    }
    _, settings = bench.parse(["loader", "--data.root", str(tmp_path)])
    assert {name: way.threads for name, way in settings.ways(cores=5.5).items()} == {"": 5}


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    ended = runs.run(*SMALL, "--data.root", tmp_path / "none", program=BENCH, ranks=1, launcher="none")
    assert ended.mistake == (
        f"There is no such folder [{tmp_path / 'none'}, rank 0 of 1 on {runs.HOST}, loading the data]. "
        "Give the folder that holds train and test or val with --data.root."
    )


def test_without_dali_there_is_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from resist_hvd.benchmarks.bare_loaders import bare_dali
    from resist_hvd.data.source import Shard

    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    settings = DataSettings(name="imagenet", root=Path("imagenet"))
    with pytest.raises(UserError, match=r"NVIDIA DALI is not installed\. Install it with launch/setup --dali"):
        next(bare_dali(settings, shard=Shard(rank=0, size=1), seed=1, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batches=0"], "--batches is 0. Give 1 or more."),
        (["--passes=0"], "--passes is 0. Give 1 or more."),
        (["--steps=-1"], "--steps is -1. Give 0 or more."),
        (["--threads=[4,0]"], "--threads is [4, 0]. Give numbers of at least 1."),
        (["--hardware_load=[1.5]"], "--hardware_load is [1.5]. Give shares from 0 to 1."),
        (["--data.name=cifar10"], "--data.name is cifar10, which has no loader to be timed. Leave it out."),
    ],
)
def test_settings_that_are_wrong(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as info:
        bench.parse(["loader", *flags])
    assert str(info.value) == message


def test_flags_reach_the_loader(tmp_path: Path) -> None:
    name, settings = bench.parse(["loader", "--data.root", str(tmp_path), "--passes=3", "--data.prefetch=4"])
    assert name == "loader"
    assert isinstance(settings, LoaderSettings)
    assert (settings.data.name, settings.data.root, settings.data.prefetch) == ("imagenet", tmp_path, 4)
    assert settings.passes == 3


def test_more_is_better_in_a_table_of_rates(capsys: pytest.CaptureFixture[str]) -> None:
    show_rates("Rates", {"one": [100.0, 300.0, 200.0], "other": [50.0, 600.0, 300.0]}, "images/s", "a note")
    said = capsys.readouterr().out
    assert re.search(r"one +│ +200 │ +100 │ +300 │ 1\.000", said)
    assert re.search(r"other +│ +300 │ +50 │ +600 │ 1\.500", said)
    assert "median images/s" in said
    assert "a note" in said
