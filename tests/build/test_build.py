"""launch/setup in a copy of the project: built anew for GPUs, and installed from a pack without a network.

Takes a quarter of an hour on two cores, and the registry: `launch/test --only build`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
LIMIT = 3000
WITHOUT_NETWORK = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""What runs the words that follow where there is no network but the machine's own loop, as every machine has it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project that nothing is installed in."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("launch", "resist_hvd"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


def run(*words: str | Path, **variables: str) -> str:
    """Run a command, which must succeed, and return both its outputs."""
    done = subprocess.run(
        [*map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_nccl_operations_are_built_without_a_gpu_and_without_a_toolkit(project: Path, tmp_path: Path) -> None:
    # A toolkit that this machine may have is not what builds: a program of its name tells of being called.
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    flags = ("--python", sys.executable, "--cuda", "yes", "--cuda-arch", "90")
    said = run(project / "launch/setup", *flags, RESIST_HVD_CACHE=str(tmp_path / "cache"), CUDA_HOME="", PATH=path)
    assert "cuda13.0-90, with NCCL operations" in said
    question = "import horovod.torch as hvd; print(hvd.nccl_built(), hvd.mpi_built())"
    version, mpi = run(project / ".venv/bin/python", "-c", question).split()[-2:]
    assert int(version) > 20000
    assert mpi == "True"
    assert not (tmp_path / "called").exists()


def test_a_pack_installs_beside_a_machines_own_pytorch_without_a_network(project: Path, tmp_path: Path) -> None:
    """The machine's own is that of the virtual environment that the tests run in."""
    if subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a network of one's own needs root, unshare and ip")
    pack = tmp_path / "pack"
    said = run(ROOT / "launch/setup", "--pack", pack, "--for-python", PYTHON)
    assert str(pack) in said
    assert all(part.stat().st_size <= 60 << 20 for part in pack.iterdir())
    said = run(*WITHOUT_NETWORK, project / "launch/setup", "--python", sys.executable, "--offline", pack)
    assert "done:" in said
    question = "import torch, horovod, mpi4py; print(torch.__file__, horovod.__file__, mpi4py.__file__)"
    torch, *others = run(project / ".venv/bin/python", "-I", "-c", question).split()
    assert torch.startswith(sys.prefix)
    assert all(file.startswith(str(project / ".venv")) for file in others)
    output = tmp_path / "run"
    flags = ("-m", "resist_hvd.train", "--max_rounds", "3", "--device", "cpu", "--output", output)
    run(*WITHOUT_NETWORK, project / "launch/run", "-np", "2", *flags)
    assert (output / "summary.json").is_file()
    assert "nothing to do" in run(*WITHOUT_NETWORK, project / "launch/setup")
