"""The precision that ranks agree on, and what is said where they differ."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resist_hvd.comm import devices
from resist_hvd.comm.devices import gains_by_bf16, is_intels
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.arithmetic import compute_fast, settled, with_precision

BOTH, NONE = [("a", True), ("b", True)], [("a", False), ("b", False)]
ONE, MIXED_HOST = [("a", True), ("b", False)], [("a", True), ("a", False)]


def world(everyone: list[tuple[str, bool]]) -> Any:
    cpu = torch.device("cpu")
    return SimpleNamespace(host="a", device=cpu, is_first=True, gather_objects=lambda mine: everyone)


@pytest.mark.parametrize(
    ("asked", "everyone", "found", "names"),
    [
        ("auto", BOTH, "bf16", ()),
        ("auto", NONE, "fp32", ()),
        ("auto", ONE, "fp32", ("auto", "fp32", "b")),
        ("auto", MIXED_HOST, "fp32", ("auto", "fp32", "a")),
        ("fp32", BOTH, "fp32", ()),
        ("fp32", ONE, "fp32", ()),
        ("bf16", BOTH, "bf16", ()),
        ("bf16", ONE, "bf16", ("b", "fp32")),
    ],
)
def test_one_precision_for_all(
    asked: Any, everyone: list[tuple[str, bool]], found: str, names: tuple[str, ...]
) -> None:
    precision, sentence = settled(asked, world(everyone))
    assert precision == found
    assert bool(sentence) == bool(names)
    assert set(names) <= set(sentence.replace(":", " ").replace(",", " ").split())


def test_many_hosts_are_not_all_named() -> None:
    _, sentence = settled("auto", world([("n00", True), *((f"n{number:02}", False) for number in range(1, 40))]))
    assert "n01, n02, n03, n04 and 35 more" in sentence


def test_a_run_has_the_precision_that_was_found_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Settings(precision="auto", seed=7)
    assert with_precision(asked, world(BOTH)) == Settings(precision="bf16", seed=7)
    assert capsys.readouterr().out == ""
    assert with_precision(asked, world(ONE)) == Settings(precision="fp32", seed=7)
    assert "bfloat16 is slower on b" in capsys.readouterr().out


def test_batches_in_bfloat16_are_refused_where_auto_is_not() -> None:
    data = DataSettings(name="imagenet", root=Path("imagenet"), image_type="bf16")
    asked = Settings(precision="auto", data=data)
    assert with_precision(asked, world(BOTH)).precision == "bf16"
    with pytest.raises(UserError, match=r"--data\.image_type is bf16, but --precision is fp32") as caught:
        with_precision(asked, world(NONE))
    assert caught.value.everywhere


@pytest.mark.parametrize("intels", [False, True])
@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True), (True, True)])
def test_cpus_that_are_faster_by_bfloat16(
    avx512: bool, amx: bool, intels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(devices, "is_intels", lambda: intels)
    assert gains_by_bf16(torch.device("cpu")) is (amx or (avx512 and not intels))


def test_the_maker_of_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "intel").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    (tmp_path / "amd").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert is_intels(tmp_path / "intel")
    assert not is_intels(tmp_path / "amd")
    assert not is_intels(tmp_path / "none")


def test_what_pytorch_says_of_this_cpu_is_what_the_kernel_says() -> None:
    words = Path("/proc/cpuinfo").read_text().split()
    expected = "amx_bf16" in words or ("avx512_bf16" in words and "GenuineIntel" not in words)
    assert gains_by_bf16(torch.device("cpu")) is expected


@pytest.mark.parametrize(("capability", "able"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)])
def test_gpus_from_ampere_on(capability: tuple[int, int], able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gains_by_bf16(torch.device("cuda", 0)) is able


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_cudnn_looks_for_the_fastest_algorithms_on_gpus_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    compute_fast(torch.device(kind))
    assert torch.backends.cudnn.benchmark is (kind == "cuda")
