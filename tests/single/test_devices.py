"""Devices chosen, and how averages travel, on machines whose GPUs are made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from resist_hvd.comm import devices
from resist_hvd.comm.devices import (
    Choice,
    averages_on_gpus,
    check_alike,
    choose_device,
    finish,
    gpu_is_present,
    shares_gpus,
)
from resist_hvd.errors import UserError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a host with so many GPUs, of which PyTorch can use some."""

    def make(*, there: int, usable: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(devices, "gpu_is_present", lambda environment: there > 0)
        monkeypatch.setattr(devices, "driver_version", lambda: "550.54.15")

    return make


def test_a_gpu_by_the_local_rank(host: Any) -> None:
    host(there=2, usable=2)
    assert [choose_device("auto", rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert choose_device("cpu", 1) == torch.device("cpu")


def test_a_machine_without_gpus(host: Any) -> None:
    host(there=0, usable=0)
    assert choose_device("auto", 0) == torch.device("cpu")
    with pytest.raises(UserError, match="--device cpu"):
        choose_device("cuda", 0)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_not_passed_over(wanted: str, host: Any) -> None:
    host(there=1, usable=0)
    with pytest.raises(UserError, match=r"550\.54\.15") as caught:
        choose_device(wanted, 0)
    assert "--device cpu" in str(caught.value)
    assert choose_device("cpu", 0) == torch.device("cpu")


def test_a_gpu_is_there_unless_it_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not gpu_is_present({}, tmp_path)
    (tmp_path / "nvidia3").touch()
    assert gpu_is_present({}, tmp_path)
    assert gpu_is_present({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path)
    assert not gpu_is_present({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)


def test_the_driver_s_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert devices.driver_version(file) == "unknown"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\nGCC 12.2.0\n")
    assert devices.driver_version(file) == "550.54.15"


def choices(*gpus: str, nccl: bool = True, may_share: bool = False) -> list[Choice]:
    """Two ranks a host."""
    return [Choice(host=f"n{rank // 2}", gpu=gpu, nccl=nccl, may_share=may_share) for rank, gpu in enumerate(gpus)]


@pytest.mark.parametrize(
    ("made", "shared", "on_gpus"),
    [
        (choices("GPU-a", "GPU-b"), False, True),  # one visible to each, as --gpus-per-task=1 has it
        (choices("GPU-a", "GPU-a"), True, False),
        (choices("GPU-a", "GPU-b", "GPU-a", "GPU-b"), False, True),  # the same names on two hosts: made-up, apart
        (choices("GPU-a", "GPU-b", "GPU-c", "GPU-c"), True, False),  # one host's decides for all
        (choices("GPU-a", "GPU-b", nccl=False), False, False),
        ([*choices("GPU-a"), Choice(host="n1", gpu="GPU-b", nccl=False)], False, False),
        (choices("", ""), False, False),
        (choices("GPU-a", "GPU-a", may_share=True), True, True),
        (choices("GPU-a", "GPU-a", nccl=False, may_share=True), True, False),
        ([*choices("GPU-a", may_share=True), *choices("GPU-a")], True, False),  # one rank was not told
    ],
)
def test_one_decision_for_all_ranks(made: list[Choice], shared: bool, on_gpus: bool) -> None:
    assert (shares_gpus(made), averages_on_gpus(made)) == (shared, on_gpus)


@pytest.mark.parametrize(
    ("told", "version", "may"), [("1", (2, 30, 7), True), ("1", (2, 28, 9), False), ("0", (2, 30, 7), False)]
)
def test_nccl_may_share_a_gpu_where_it_is_told_to_and_knows_how(
    told: str, version: tuple[int, ...], may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: version)
    assert devices.nccl_may_share({"NCCL_MULTI_RANK_GPU_ENABLE": told}) is may
    assert not devices.nccl_may_share({})


def test_ranks_without_a_gpu_beside_others_are_named() -> None:
    check_alike(choices("GPU-a", "GPU-b", "GPU-c"))
    check_alike(choices("", "", ""))
    with pytest.raises(UserError, match="rank 2 on n1 of 4 ranks see no GPU") as caught:
        check_alike(choices("GPU-a", "GPU-b", "", "GPU-c"))
    assert "--device cpu" in str(caught.value)


def test_a_gpu_is_known_by_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-7"))
    assert devices.gpu_identity(torch.device("cuda", 0)) == "GPU-7"
    assert devices.gpu_identity(torch.device("cpu")) == ""


def test_only_the_streams_own_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the device does besides, as decoding images for later."""
    streams, everything = mock.Mock(), mock.Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", streams)
    monkeypatch.setattr(torch.cuda, "synchronize", everything)
    finish(torch.device("cpu"))
    assert not streams.mock_calls
    gpu = torch.device("cuda", 1)
    finish(gpu)
    assert streams.mock_calls == [mock.call(gpu), mock.call().synchronize()]
    assert not everything.mock_calls
