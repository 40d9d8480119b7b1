"""What the batch scripts do where SLURM's programs are stand-ins: needs neither root nor SLURM."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))

SRUN = """
if [ "$1" = --mpi=list ]; then echo "MPI plugin types are... none $OFFERED" >&2; exit; fi
echo "srun $*" >> "$TOLD"
case "$*" in
    *"-c from mpi4py"*) case "$1" in --mpi="$FITS") exit 0 ;; *) exit 1 ;; esac ;;
esac
trap 'echo "ranks got USR2" >> "$TOLD"; exit 75' USR2
touch "$TOLD.running"
if [ -n "$WAITS" ]; then while :; do sleep 0.05; done; fi
exit "${STATUS:-0}"
"""
MPIRUN = 'echo "mpirun $*" >> "$TOLD"; exit "${STATUS:-0}"'
SCONTROL = 'echo "scontrol $*" >> "$TOLD"'

Job = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Starts a batch script as SLURM would, with stand-ins for its programs; they note what they were told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"srun": SRUN, "mpirun": MPIRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    home = tmp_path / "project"
    (home / "slurm").mkdir(parents=True)
    (home / "slurm/common.sh").write_bytes((ROOT / "slurm/common.sh").read_bytes())

    def start(script: str, *flags: str, without: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        for name in without:
            (programs / name).unlink()
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "TOLD": str(tmp_path / "told"),
            "OFFERED": "pmix pmi2",
            "FITS": "pmix",
            "RESIST_HVD_HOME": str(home),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "name",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NTASKS": "4",
            "SLURM_SUBMIT_DIR": str(tmp_path),
        }
        return subprocess.Popen(
            ["/bin/bash", ROOT / "slurm" / script, *flags],
            env=environment | variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def told(folder: Path) -> str:
    return (folder / "told").read_text()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_first_pmi_that_fits_is_taken(job: Job, tmp_path: Path) -> None:
    status, _ = ended(job("train.sbatch", "--seed=5", FITS="pmi2"))
    assert status == 0
    probes = re.findall(r"srun --mpi=(\w+) .* -c from mpi4py", told(tmp_path))
    assert probes == ["pmix", "pmi2"]
    assert (
        "srun --mpi=pmi2 --ntasks=4 --cpus-per-task=1 --kill-on-bad-exit=1 --input=none python -m resist_hvd.train "
        f"--resume --output {tmp_path}/runs/name-7 --recipe digits --seed=5\n"
    ) in told(tmp_path)


@pytest.mark.parametrize("variables", [{"OFFERED": "openmpi"}, {"FITS": "none"}, {"RESIST_HVD_LAUNCHER": "mpirun"}])
def test_mpirun_starts_ranks_where_srun_starts_no_mpi(job: Job, tmp_path: Path, variables: dict[str, str]) -> None:
    status, _ = ended(job("train.sbatch", **variables))
    assert status == 0
    assert "mpirun -np 4 python -m resist_hvd.train --resume" in told(tmp_path)


def test_site_without_any_launcher_is_told_what_to_load(job: Job) -> None:
    status, said = ended(job("train.sbatch", without=("mpirun",), OFFERED="openmpi"))
    assert status == 1
    assert said == (
        "slurm: srun starts no MPI here (it offers: MPI plugin types are... none openmpi), and there is no mpirun: "
        "load the module of the site's MPI that launch/setup was run with\n"
    )


@pytest.mark.parametrize(
    ("status", "variables", "requeues"),
    [
        (0, {}, False),
        (75, {}, True),
        (69, {}, True),
        (69, {"SLURM_RESTART_COUNT": "9"}, True),
        (69, {"SLURM_RESTART_COUNT": "10"}, False),
        (69, {"SLURM_RESTART_COUNT": "2", "RESIST_HVD_RESTARTS": "2"}, False),
        (2, {}, False),
        (70, {}, False),
        (137, {}, False),
    ],
)
def test_status_tells_whether_a_job_comes_back(
    job: Job, tmp_path: Path, status: int, variables: dict[str, str], requeues: bool
) -> None:
    seen, said = ended(job("train.sbatch", STATUS=str(status), **variables))
    assert seen == status
    assert ("scontrol requeue 7\n" in told(tmp_path)) is requeues
    assert ("goes on from its newest checkpoint" in said) is requeues


def await_ranks(folder: Path) -> None:
    end = time.monotonic() + 30
    while not (folder / "told.running").exists():
        assert time.monotonic() < end, told(folder)
        time.sleep(0.02)


def test_warning_reaches_the_ranks_and_the_job_comes_back(job: Job, tmp_path: Path) -> None:
    process = job("train.sbatch", WAITS="yes")
    await_ranks(tmp_path)
    process.send_signal(signal.SIGUSR2)
    status, said = ended(process)
    assert status == 75
    assert told(tmp_path).endswith("ranks got USR2\nscontrol requeue 7\n")
    assert "the time limit is near" in said


def test_job_that_slurm_ends_is_left_to_slurm(job: Job, tmp_path: Path) -> None:
    """SLURM sends TERM to the shell and to the ranks; cancelled jobs stay away, preempted ones it requeues itself."""
    process = job("train.sbatch", WAITS="yes")
    await_ranks(tmp_path)
    process.send_signal(signal.SIGTERM)
    (srun,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(srun), signal.SIGUSR2)
    status, _ = ended(process)
    assert status == 75
    assert "scontrol" not in told(tmp_path)


@pytest.mark.parametrize(
    ("element", "workers", "seed"), [(0, 2, 1), (2, 2, 3), (3, 4, 1), (5, 4, 3), (6, 8, 1), (8, 8, 3)]
)
def test_array_has_every_size_and_seed(job: Job, tmp_path: Path, element: int, workers: int, seed: int) -> None:
    variables = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": str(element), "SLURM_NTASKS": "8"}
    status, _ = ended(job("array.sbatch", **variables))
    assert status == 0
    assert re.search(
        rf"--ntasks={workers} .*--output {tmp_path}/runs/name-6_{element} .*--seed {seed}\n", told(tmp_path)
    )


def test_container_s_python_is_what_runs_and_what_is_tried(job: Job, tmp_path: Path) -> None:
    status, _ = ended(job("apptainer.sbatch"))
    assert status == 0
    inside = f"apptainer exec --nv --bind {tmp_path} resist_hvd.sif /opt/resist_hvd/.venv/bin/python"
    assert f"{inside} -c from mpi4py" in told(tmp_path)
    assert f"{inside} -m resist_hvd.train --resume --output {tmp_path}/runs/name-7 --recipe digits\n" in told(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_warns_requeues_appends_and_has_its_three_lines_on_top(script: Path) -> None:
    text = script.read_text()
    first = next(line for line in text.splitlines() if line.startswith("#SBATCH"))
    for option in ("--signal=B:USR2@", "--requeue", "--open-mode=append", "--output="):
        assert option in first
    _, _, rest = text.partition("# Three lines to change: ")
    site = rest.splitlines()[1:4]
    assert site[0].startswith("#SBATCH --n")
    assert site[1].startswith("#SBATCH --time=")
    assert re.match(r"\w+=", site[2])
