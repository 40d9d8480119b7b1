"""launch/setup and GPUs: what NCCL operations are built with, and what the console says where they are not."""

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from provision import cuda, environment, horovod_wheel
from provision.cuda import Cuda, Gpus, PyTorch
from provision.installation import Installation
from provision.record import Choice
from provision.steps import Log, StepFailedError
from provision.toolchain import SiteMpi

from .programs import make_programs

PYTORCH = PyTorch("13.2", nccl="/nccl/lib/libnccl.so.2", nccl_headers="/nccl/include")
LOCKED = "13.0"
HERE = Gpus(present=True, architectures=("90",), driver="580.65.06")
NOWHERE = Gpus(present=False)


def fake_toolkit(folder: Path, release: str) -> Path:
    home = folder / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include/cuda_runtime.h").touch()
    make_programs(home / "bin", nvcc=f"echo 'Cuda compilation tools, release {release}, V0'")
    return home


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvcc but those that a test names: this machine may have its own."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(cuda, "USUAL_HOME", Path("/nowhere/cuda"))


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize(
    ("wanted", "architectures", "gpus", "builds_for"),
    [
        ("auto", (), NOWHERE, ()),
        ("auto", (), HERE, ("90",)),
        ("auto", ("80", "100"), HERE, ("80", "100")),
        ("auto", ("90",), NOWHERE, ("90",)),
        ("yes", ("90",), NOWHERE, ("90",)),
        ("no", ("90",), HERE, ()),
    ],
)
def test_nccl_operations_are_built_by_the_locked_compiler_wherever_a_gpu_is(
    wanted: str, architectures: tuple[str, ...], gpus: Gpus, builds_for: tuple[str, ...], tmp_path: Path
) -> None:
    chosen, lack = cuda.decide(Log(tmp_path / "log"), wanted, architectures, gpus, PYTORCH, LOCKED)
    assert chosen == (Cuda(None, LOCKED, builds_for, PYTORCH) if builds_for else None)
    assert bool(lack) == (not builds_for)


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize(
    ("release", "fits"), [("13.0", True), ("13.2", True), ("13.3", False), ("12.9", False), ("14.0", False)]
)
def test_a_named_toolkit_comes_first_if_it_is_no_newer_than_pytorchs_cuda(
    release: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_toolkit(tmp_path, release)
    monkeypatch.setenv("CUDA_HOME", str(home))
    chosen, _ = cuda.decide(Log(tmp_path / "log"), "auto", (), HERE, PYTORCH, LOCKED)
    assert chosen is not None
    assert (chosen.home, chosen.version) == ((home.resolve(), release) if fits else (None, LOCKED))


@pytest.mark.usefixtures("no_toolkit")
def test_a_toolkit_that_lies_about_is_taken_only_where_the_locked_one_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_toolkit(tmp_path, "13.1")
    monkeypatch.setattr(shutil, "which", lambda name: str(home / "bin/nvcc") if name == "nvcc" else None)
    log = Log(tmp_path / "log")
    with_locked, _ = cuda.decide(log, "auto", (), HERE, PYTORCH, LOCKED)
    without, _ = cuda.decide(log, "auto", (), HERE, PYTORCH, None)
    assert with_locked is not None
    assert without is not None
    assert (with_locked.home, without.home) == (None, home.resolve())


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize(
    ("gpus", "pytorch", "release", "seen"),
    [
        (NOWHERE, PYTORCH, "13.0", "no GPU was found"),
        (Gpus(present=True), PYTORCH, "13.0", "nvidia-smi tells no compute capability"),
        (HERE, PYTORCH, "12.4", "is version 12.4, and this PyTorch is built for CUDA 13.2"),
        (HERE, PYTORCH, "", "no CUDA toolkit was found"),
        (HERE, dataclasses.replace(PYTORCH, cuda=None), "13.0", "built without CUDA"),
        (HERE, dataclasses.replace(PYTORCH, nccl=None), "13.0", "no NCCL with its headers"),
        (HERE, dataclasses.replace(PYTORCH, nccl_headers=None), "13.0", "no NCCL with its headers"),
    ],
)
def test_nccl_operations_that_cannot_be_built_are_left_out_with_a_reason_or_refused(
    gpus: Gpus, pytorch: PyTorch, release: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if release:
        monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, release)))
    log = Log(tmp_path / "log")
    chosen, lack = cuda.decide(log, "auto", (), gpus, pytorch, None)
    assert chosen is None
    assert seen in lack
    with pytest.raises(StepFailedError, match=f"{seen}.*--cuda no"):
        cuda.decide(log, "yes", (), gpus, pytorch, None)


def test_gpus_are_found_by_their_devices_and_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log")
    devices, driver = tmp_path / "dev", tmp_path / "version"
    devices.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda.find_gpus(log, devices, driver) == Gpus(present=False)
    (devices / "nvidiactl").touch()
    assert cuda.find_gpus(log, devices, driver) == Gpus(present=False)
    (devices / "nvidia0").touch()
    driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan  2 2025\nGCC version: 12.3.0\n"
    )
    assert cuda.find_gpus(log, devices, driver) == Gpus(present=True, driver="570.86.15")
    make_programs(tmp_path, **{"nvidia-smi": "echo 9.0; echo 10.0; echo 9.0"})
    assert cuda.find_gpus(log, devices, driver).architectures == ("90", "100")
    make_programs(tmp_path, **{"nvidia-smi": "echo no driver; exit 9"})
    assert cuda.find_gpus(log, devices, driver).architectures == ()


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "words"),
    [
        ("570.86.15", "13.2", "570.86.15.*CUDA 13 needs driver 580 or newer"),
        ("580.65.06", "13.2", ""),
        ("570.86.15", "12.8", ""),
        ("", "13.2", ""),
    ],
)
def test_a_driver_that_is_too_old_is_told(driver: str, torch_cuda: str, words: str) -> None:
    remark = cuda.driver_remark(Gpus(present=True, driver=driver), torch_cuda)
    assert re.search(words, remark)
    assert bool(remark) == bool(words)


class Built:
    """Stands in for the building of wheels, which fails for some and notes all.

    Attributes:
        tags: the CUDA part of the key of each wheel that was asked for.
    """

    def __init__(self, folder: Path, fails_for: str) -> None:
        self.tags: list[str] = []
        self._folder = folder
        self._fails_for = fails_for

    def __call__(self, key: str, site_mpi: SiteMpi | None, chosen: Cuda | None, *inputs: object) -> Path:
        self.tags.append(horovod_wheel.cuda_tag(chosen))
        if self.tags[-1] == self._fails_for:
            raise StepFailedError("`pip wheel ...` ended with status 1", mend="See the log.")
        return self._folder / "horovod.whl"


@pytest.fixture
def install_horovod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str]]]:
    """A function that does the step of Horovod for some GPUs, with nothing built or installed."""

    def install(choice: Choice, gpus: Gpus, *, fails_for: str = "none") -> tuple[str, list[str]]:
        facts = {"torch": "2.15.0", "torch_cuda": "13.2", "openmpi": "4.1.8", "abi": "cp311", "libc": "glibc2.36"}
        facts |= {"nccl": "/nccl/libnccl.so.2", "nccl_headers": "/nccl", "cuda_headers": "/cuda", "horovod_nccl": "yes"}
        built = Built(tmp_path, fails_for)
        monkeypatch.setenv("RESIST_HVD_CACHE", str(tmp_path))
        monkeypatch.setattr(environment, "probe", lambda log, question, mend="": facts)
        monkeypatch.setattr(environment, "uv_install", lambda *arguments, **options: None)
        monkeypatch.setattr(horovod_wheel, "build_wheel", built)
        installation = Installation(choice, keep_venv=True, python=Path(sys.executable))
        installation._gpus = gpus
        return installation.horovod(Log(tmp_path / "4-horovod.log")), built.tags

    return install


@pytest.mark.usefixtures("no_toolkit")
def test_a_failed_build_with_nccl_operations_is_followed_by_one_without_and_the_console_says_so(
    install_horovod: Callable[..., tuple[str, list[str]]],
) -> None:
    said, tags = install_horovod(Choice(cuda="auto"), HERE, fails_for="cuda13.0-90")
    assert tags == ["cuda13.0-90", "cpu"]
    for word in ("without NCCL operations", "pip wheel", "4-horovod.log", "--cuda auto"):
        assert word in said
    with pytest.raises(StepFailedError, match="pip wheel"):
        install_horovod(Choice(cuda="yes"), HERE, fails_for="cuda13.0-90")


@pytest.mark.usefixtures("no_toolkit")
def test_the_console_tells_of_nccl_operations_where_there_is_a_gpu(
    install_horovod: Callable[..., tuple[str, list[str]]],
) -> None:
    said, tags = install_horovod(Choice(cuda="auto"), HERE)
    assert said.endswith("cuda13.0-90, with NCCL operations")
    assert tags == ["cuda13.0-90"]
    said, tags = install_horovod(Choice(cuda="auto"), Gpus(present=True))
    assert "without NCCL operations: nvidia-smi" in said
    assert tags == ["cpu"]
    said, _ = install_horovod(Choice(cuda="auto"), NOWHERE)
    assert "NCCL" not in said
