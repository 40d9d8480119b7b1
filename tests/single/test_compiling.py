"""The compiler and the headers that --compile needs."""

from pathlib import Path

import pytest
import torch

from resist_hvd.errors import UserError
from resist_hvd.training.compiling import check_compiler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def programs(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


def test_this_machine_can_compile_for_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has built Horovod by the same means."""
    check_compiler(CPU)


@pytest.mark.parametrize(
    ("device", "found", "named", "missing"),
    [
        (CPU, ["g++"], {}, ""),
        (CPU, ["gcc"], {}, "g++"),
        (GPU, ["gcc"], {}, ""),
        (GPU, ["clang"], {}, ""),
        (GPU, ["g++"], {}, "gcc or clang"),
        (CPU, ["mine"], {"CXX": "mine -m64"}, ""),
        (CPU, ["g++"], {"CXX": "mine"}, "mine"),
        (GPU, ["gcc"], {"CC": "mine"}, "mine"),
    ],
)
def test_a_compiler_is_looked_for_as_pytorch_does(
    device: torch.device,
    found: list[str],
    named: dict[str, str],
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", programs(tmp_path, *found))
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    if not missing:
        check_compiler(device, tmp_path)
        return
    with pytest.raises(UserError) as refused:
        check_compiler(device, tmp_path)
    assert f"({missing})" in refused.value.seen
    assert "Python.h" not in refused.value.seen
    assert "--compile" in refused.value.mend


@pytest.mark.parametrize("device", [CPU, GPU])
def test_missing_headers_are_named_with_their_folder(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, "gcc", "g++"))
    with pytest.raises(UserError) as refused:
        check_compiler(device, tmp_path)
    assert f"Python.h in {tmp_path}" in refused.value.seen
    assert "compiler (" not in refused.value.seen
    assert "python3-dev" in refused.value.mend
