"""What all tests share: how properties are sought, and that only those in tests/gpu use a GPU."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("resist_hvd", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("resist_hvd")

GPU_TESTS = Path(__file__).resolve().parent / "gpu"


@pytest.fixture(params=["dali", "torchvision"])
def loader(request: pytest.FixtureRequest) -> str:
    """Every loader that is installed, one after the other."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return str(request.param)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from the tests and from all that they start, unless nothing but GPU tests is asked for.

    What tests demand of a run, equal bits above all, holds on CPUs alone; and ranks of one program would share a GPU.
    """
    asked_for = [Path(config.invocation_params.dir, argument.partition("::")[0]) for argument in config.args]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So it is in a script's background, and all that the tests start would have it so, where a shell traps none.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not all(path.resolve().is_relative_to(GPU_TESTS) for path in asked_for):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
