"""GPU tests: each is marked so, and skipped by name where the GPUs that it needs are not at hand."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from gpu_check.check import Check
from gpu_check.machine import Machine
from gpu_check.steps import LOOKING, look
from gpu_check.verdicts import SkippedError

HERE = Path(__file__).resolve().parent

LONGEST = 240.0
"""Seconds that a test's programs may take."""


@pytest.hookimpl(tryfirst=True)  # before `-m gpu` looks at markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        marker = item.get_closest_marker("gpu")
        if marker is None:
            item.add_marker(pytest.mark.gpu(1))
        if lack := lacking(marker.args[0] if marker is not None else 1):
            item.add_marker(pytest.mark.skip(reason=lack))


def lacking(needed: int) -> str:
    """Return why a test that needs so many GPUs cannot run; empty where it can."""
    found = torch.cuda.device_count()
    if found >= needed:
        return ""
    return f"needs {needed} GPU{'s' if needed > 1 else ''}, PyTorch sees {found or 'none'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except SkippedError as skipped:
        pytest.skip(str(skipped))


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU."""
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute float32 as float32, here and in programs that a test starts: TF32 has 10 bits of mantissa."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This machine, as launch/gpu-check sees it."""
    folder = tmp_path_factory.mktemp("machine")
    return look(Check(Machine(), ranks=1, folder=folder, limit=LOOKING, python=Path(sys.executable)))


def check_of(machine: Machine, folder: Path) -> Check:
    """What a step of launch/gpu-check works with: two ranks, and an empty folder."""
    return Check(machine, ranks=2, folder=folder, limit=LONGEST, python=Path(sys.executable))


@pytest.fixture
def check(machine: Machine, tmp_path: Path) -> Check:
    return check_of(machine, tmp_path)
