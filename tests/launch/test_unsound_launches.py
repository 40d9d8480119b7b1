"""Launches in which ranks would not find each other, or not speak the same MPI."""

import re
from pathlib import Path

import pytest

from resist_hvd.comm.world import check_launched_size, check_one_mpi
from resist_hvd.errors import UserError

from . import runs

NOT_OURS = "The launcher and the MPI library do not belong together: start with that MPI's own mpirun, or with"


@pytest.fixture
def late_first_rank(tmp_path: Path) -> str:
    """A PYTHONPATH by which rank 0 starts seconds after the others, as from a slow disk."""
    folder = tmp_path / "late"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "if '0' in (os.environ.get('HOROVOD_RANK'), os.environ.get('RANK'), os.environ.get('OMPI_COMM_WORLD_RANK')):\n"
        "    time.sleep(8)\n"
    )
    return str(folder)


def test_launch_over_gloo_is_refused_once(tiny: list[str], tmp_path: Path, late_first_rank: str) -> None:
    ended = runs.run(*tiny, "--output", tmp_path / "run", launcher="horovodrun --gloo", PYTHONPATH=late_first_rank)
    assert ended.message == (
        "Horovod was launched over Gloo with 2 ranks, each of which has an MPI world of its own. "
        "Blocks travel by MPI: launch without --gloo (horovodrun --mpi, mpirun, or srun --mpi=pmix)."
    )
    assert "resist_hvd/" not in ended.stderr  # the launcher's own traceback is there, and none of ours
    assert not (tmp_path / "run").exists()


def test_launcher_of_another_mpi_is_refused(tiny: list[str], tmp_path: Path) -> None:
    ended = runs.run(*tiny, "--output", tmp_path / "run", launcher="none", OMPI_COMM_WORLD_SIZE="2")
    assert ended.mistake.startswith(f"The launcher started 2 ranks, but MPI sees 1. {NOT_OURS}")
    assert ended.status == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_SIZE": "4"},
        {"HOROVOD_SIZE": "4"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_every_launcher_s_number_of_ranks_is_compared(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    check_launched_size(1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launched_size(4)
    with pytest.raises(UserError, match="The launcher started 4 ranks, but MPI sees 1"):
        check_launched_size(1)


def test_shell_of_a_slurm_job_is_not_taken_for_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    check_launched_size(1)


def test_torchrun_is_refused_once_with_the_right_command(tiny: list[str], tmp_path: Path, late_first_rank: str) -> None:
    launcher = [runs.PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    program = [*launcher, *runs.TRAIN]
    flags = [*tiny, "--output", tmp_path / "run"]
    ended = runs.run(*flags, launcher="none", program=program, PYTHONPATH=late_first_rank)
    assert len(ended.messages) == 1, ended
    assert "torchrun" in ended.messages[0]
    assert "launch/run -np 2" in ended.messages[0]
    assert not (tmp_path / "run").exists()


def test_bare_srun_is_refused_before_open_mpi_ends_it(tiny: list[str], tmp_path: Path) -> None:
    step = {"SLURM_JOBID": "7", "SLURM_NODELIST": "n1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    ended = runs.run(*tiny, "--output", tmp_path / "run", launcher="none", **step, SLURM_STEP_NUM_TASKS="2")
    assert "srun --mpi=pmix --ntasks=2" in ended.mistake
    assert "OMPI" not in ended.stderr
    assert ended.status == 2


def test_another_open_mpi_in_the_environment_is_passed_over(tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--max_rounds=1", "--output", tmp_path / "run"]
    ended = runs.run(*flags, launcher="none", OPAL_PREFIX="/opt/hpcx/ompi")
    assert ended.status == 0, ended


def test_second_mpi_library_is_found_before_it_is_called(tiny: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOADS_TWO.format(copy=tmp_path / "libmpi.so.40"))
    ended = runs.run(*tiny, "--output", tmp_path / "run", program=[runs.PYTHON, program])
    found = re.match(
        r"mpi4py and Horovod use different MPI libraries: (\S+) and (\S+)\. "
        r"Build both against one MPI: run launch/setup again, with --mpi system for the site's own\.$",
        ended.mistake,
    )
    assert found, ended
    assert str(tmp_path / "libmpi.so.40") in found.groups()
    assert ended.status == 2


def test_other_libraries_of_one_mpi_are_no_second_one() -> None:
    check_one_mpi(
        "7f0 r-xp 00000000 08:01 1 /opt/mpi/lib/libmpi.so.40.30.8\n"
        "7f1 r-xp 00000000 08:01 1 /opt/mpi/lib/libmpi.so.40.30.8\n"
        "7f2 r-xp 00000000 08:01 2 /opt/mpi/lib/libmpi_mpifh.so.40\n"
        "7f3 r-xp 00000000 08:01 3 /opt/mpi/lib/libmpicxx.so.40\n"
    )


LOADS_TWO = """
import ctypes, os, re, shutil
from pathlib import Path
from resist_hvd.comm.launch import load_mpi
load_mpi()
from resist_hvd import train

first = re.search(r"\\S*/libmpi\\.so\\S*", Path("/proc/self/maps").read_text())[0]
if not Path("{copy}").exists():
    shutil.copy(first, f"{copy}.{{os.getpid()}}")
    os.replace(f"{copy}.{{os.getpid()}}", "{copy}")
ctypes.CDLL("{copy}")
train.main()
"""
