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
    *"-c from mpi4py"*)
        touch "$TOLD.trying"
        if [ -n "$TRIAL_WAITS" ]; then while [ ! -e "$TOLD.go" ]; do sleep 0.05; done; fi
        case "$1" in --mpi="$FITS" | --ntasks="$FITS") exit 0 ;; esac
        # The first rank to end without having found the others has srun end them, unless told not to.
        case "$*" in *--kill-on-bad-exit=0*) exit "${TRIAL:-1}" ;; *) exit 143 ;; esac ;;
esac
if [ -n "$RECORD" ]; then printf "$RECORD" >> "$RESIST_HVD_OUTCOME"; fi
trap 'echo "ranks got USR2" >> "$TOLD"; exit 75' USR2
touch "$TOLD.running"
if [ -n "$WAITS" ]; then while :; do sleep 0.05; done; fi
exit "${STATUS:-0}"
"""
MPIRUN = """
if [ -n "$RECORD" ]; then printf "$RECORD" >> "$RESIST_HVD_OUTCOME"; fi
echo "mpirun $*" >> "$TOLD"
exit "${STATUS:-0}"
"""
SCONTROL = """
if [ -n "$WARNS" ]; then kill -USR2 "$PPID"; fi
echo "scontrol $*" >> "$TOLD"
"""

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
    _, said = process.communicate(timeout=300)
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


@pytest.mark.parametrize(
    "variables",
    [
        {"OFFERED": "openmpi"},
        {"FITS": "none"},
        {"FITS": "none", "TRIAL": "124"},  # it hangs
        {"FITS": "none", "TRIAL": "134"},  # it crashes in MPI
        {"FITS": "none", "TRIAL": "139"},
        {"RESIST_HVD_LAUNCHER": "mpirun"},
    ],
)
def test_mpirun_starts_ranks_where_srun_starts_no_mpi(job: Job, tmp_path: Path, variables: dict[str, str]) -> None:
    status, _ = ended(job("train.sbatch", **variables))
    assert status == 0
    assert "mpirun -np 4 python -m resist_hvd.train --resume" in told(tmp_path)


@pytest.mark.parametrize(("fits", "first"), [("cray_shasta", "--mpi=cray_shasta "), ("4", "")])
def test_cray_s_and_the_site_s_own_way_are_tried_before_mpirun(job: Job, tmp_path: Path, fits: str, first: str) -> None:
    """The stand-in takes a trial by its first flag: where that is --ntasks=4, no kind was named."""
    status, said = ended(job("train.sbatch", OFFERED="pmix pmi2 cray_shasta", FITS=fits))
    assert status == 0
    assert f"srun {first}--ntasks=4 --cpus-per-task=1 --kill-on-bad-exit=1 --input=none python -m" in told(tmp_path)
    assert "by srun on" in said


@pytest.mark.parametrize(("choice", "flag"), [("srun", ""), ("srun:cray_shasta", "--mpi=cray_shasta ")])
def test_chosen_launcher_is_not_tried(job: Job, tmp_path: Path, choice: str, flag: str) -> None:
    assert ended(job("train.sbatch", RESIST_HVD_LAUNCHER=choice, FITS="none"))[0] == 0
    assert told(tmp_path).startswith(f"srun {flag}--ntasks=4 ")


def test_flags_for_srun_are_words_and_nothing_more(job: Job, tmp_path: Path) -> None:
    flags = "--gpus-per-task=1  --cpu-bind=mask_cpu:0xfe,0xfe00 $(touch gone) `touch gone` ; touch gone * ~"
    status, _ = ended(job("train.sbatch", RESIST_HVD_SRUN_FLAGS=flags))
    assert status == 0
    words = " ".join(flags.split())
    assert f"--input=none {words} --kill-on-bad-exit=0 python -c from mpi4py" in told(tmp_path)
    assert f"--input=none {words} python -m resist_hvd.train" in told(tmp_path)
    assert not list(tmp_path.glob("**/gone"))


@pytest.mark.parametrize(("launcher", "warned"), [("mpirun", True), ("srun:pmix", False)])
def test_gpus_by_task_are_warned_of_under_mpirun(job: Job, launcher: str, warned: bool) -> None:
    _, said = ended(job("train.sbatch", RESIST_HVD_LAUNCHER=launcher, SLURM_GPUS_PER_TASK="1"))
    assert ("--gpus-per-node" in said) is warned


def test_site_s_file_is_sourced_before_all_else(job: Job, tmp_path: Path) -> None:
    (tmp_path / "project/slurm/site.sh").write_text(
        "export RESIST_HVD_LAUNCHER=srun:pmix\nsrun_flags+=('--comment=two words')\necho loaded >>\"$TOLD\"\n"
    )
    assert ended(job("train.sbatch"))[0] == 0
    assert told(tmp_path).startswith("loaded\nsrun --mpi=pmix ")
    assert "--comment=two words python -m" in told(tmp_path)


def test_site_s_file_that_fails_ends_the_job(job: Job, tmp_path: Path) -> None:
    (tmp_path / "project/slurm/site.sh").write_text("echo no such module >&2\nfalse\n")
    status, said = ended(job("train.sbatch"))
    assert (status, said) == (1, "no such module\n")
    assert not (tmp_path / "told").exists()


def test_ranks_get_the_script_s_variables_where_jobs_begin_without_any(job: Job, tmp_path: Path) -> None:
    """`sbatch --export=NONE` has srun give ranks an empty environment, too."""
    (tmp_path / "project/slurm/site.sh").write_text("""trap 'echo "$SLURM_EXPORT_ENV" >>"$TOLD"' EXIT\n""")
    assert ended(job("train.sbatch", SLURM_EXPORT_ENV="NONE"))[0] == 0
    assert told(tmp_path).endswith("ALL\n")


def test_pyxis_has_srun_start_the_container_for_the_trial_and_for_training(job: Job, tmp_path: Path) -> None:
    status, _ = ended(job("pyxis.sbatch"))
    assert status == 0
    calls = [line for line in told(tmp_path).splitlines() if "/opt/resist_hvd/.venv/bin/python" in line]
    assert len(calls) == 2
    for call in calls:
        assert f"--container-mounts={tmp_path}:{tmp_path},{tmp_path}/runs:{tmp_path}/runs " in call
        assert re.search(r"--container-image=/\S+/resist_hvd.sqsh ", call)


def test_pyxis_does_not_fall_back_to_an_mpirun_that_knows_no_container(job: Job, tmp_path: Path) -> None:
    status, said = ended(job("pyxis.sbatch", FITS="none"))
    assert status == 1
    assert "mpirun" not in told(tmp_path)
    assert "srun starts no MPI here" in said


def test_site_without_any_launcher_is_told_what_to_load(job: Job) -> None:
    status, said = ended(job("train.sbatch", without=("mpirun",), OFFERED="openmpi"))
    assert status == 1
    assert said == (
        "slurm: srun starts no MPI here (it offers: MPI plugin types are... none openmpi), and there is no mpirun: "
        "load the module of the site's MPI that launch/setup was run with\n"
    )


LOST_BEFORE = "started\n69 rank 1 on n1\n"


@pytest.mark.parametrize(
    ("status", "record", "exits", "comes_back"),
    [
        (0, "started\n0 rank 0 on n1\n", 0, False),
        (0, "started\n", 0, False),  # --help, or no room on the disk for the record
        (1, "started\n0 rank 0 on n1\n", 0, False),  # ranks were done, and the launcher then failed
        (75, "started\n75 rank 0 on n1\n", 75, True),
        (143, "started\n75 rank 0 on n1\n", 143, True),
        (69, LOST_BEFORE, 69, True),
        (137, LOST_BEFORE, 137, True),
        (137, "started\n", 137, True),  # a rank was killed, and the others with it
        (1, "started\n", 1, True),  # likewise; mpirun gives 1 where it was told to end itself
        (143, "started\n143 rank 0 on n1\n", 143, True),  # told to stop before anything could be saved
        (143, "", 143, True),  # preempted while Python started
        (143, "2 rank 0 on n1\n", 2, False),
        (143, "started\n2 rank 0 on n1\n143 rank 1 on n1\n", 2, False),
        (137, "started\n70 rank 3 on n2\n", 70, False),
        (1, "", 1, False),  # srun has refused its flags, or Python could not import
        (127, "", 127, False),
        (137, "started\n18446744073709551618 rank 0 on n1\n", 137, True),  # no status: 2, to the shell's arithmetic
        (137, "started\n010 rank 0 on n1\n", 137, True),  # no status: 8
    ],
)
def test_record_tells_whether_a_job_comes_back_and_how_it_ends(
    job: Job, tmp_path: Path, status: int, record: str, exits: int, comes_back: bool
) -> None:
    for launcher in ("srun:pmix", "mpirun"):
        seen, said = ended(job("train.sbatch", STATUS=str(status), RECORD=record, RESIST_HVD_LAUNCHER=launcher))
        assert seen == exits
        assert ("scontrol requeue 7\n" in told(tmp_path)) is comes_back
        assert ("goes on from its newest checkpoint" in said) is comes_back
        (tmp_path / "told").unlink()


def test_record_of_an_earlier_start_counts_for_nothing(job: Job, tmp_path: Path) -> None:
    assert ended(job("train.sbatch", STATUS="143", RECORD="2 rank 0 on n1\n"))[0] == 2
    assert ended(job("train.sbatch", STATUS="143"))[0] == 143
    assert "scontrol requeue 7\n" in told(tmp_path)


def test_no_file_of_a_script_is_written_through_a_link(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "runs/name-7"
    folder.mkdir(parents=True)
    for name in ("outcome", "restarts"):
        (folder / name).symlink_to(target)
    assert ended(job("train.sbatch", STATUS="137", RECORD="started\n"))[0] == 137
    assert target.read_text() == "precious"
    assert (folder / "restarts").read_text() == "1 none\n"


def test_job_that_gets_nowhere_does_not_come_back_for_ever(job: Job, tmp_path: Path) -> None:
    def comes_back() -> bool:
        (tmp_path / "told").unlink(missing_ok=True)
        status, said = ended(job("train.sbatch", STATUS="137", RECORD="started\n", RESIST_HVD_RESTARTS="2"))
        assert status == 137
        if "scontrol" not in told(tmp_path):
            assert re.search(r"started 3 times since its newest checkpoint \((none|round-000005)\)", said), said
            return False
        return True

    assert [comes_back() for _ in range(3)] == [True, True, False]
    checkpoints = tmp_path / "runs/name-7/checkpoints"
    checkpoints.mkdir()
    (checkpoints / "latest").write_text("round-000005\n")
    assert [comes_back() for _ in range(3)] == [True, True, False]


COMMAND = "x[$(touch${IFS}$SLURM_SUBMIT_DIR/gone)]"


@pytest.mark.parametrize(
    ("restarts", "after"),
    [
        (f"{COMMAND} none", "1 none"),
        ("99999999999999999999 none", "1 none"),
        ("-5 none", "1 none"),
        ("08 none", "9 none"),
        ("8 none", "9 none"),
        (f"8 {COMMAND}", "1 none"),
        ("", "1 none"),
    ],
)
def test_count_in_a_file_is_a_number_and_nothing_more(job: Job, tmp_path: Path, restarts: str, after: str) -> None:
    file = tmp_path / "runs/name-7/restarts"
    file.parent.mkdir(parents=True)
    file.write_text(f"{restarts}\n")
    status, said = ended(job("train.sbatch", STATUS="137", RECORD=f"{COMMAND} rank 0\n", SLURM_RESTART_COUNT=COMMAND))
    assert status == 137
    assert "start 1 of job 7" in said
    assert "scontrol requeue 7\n" in told(tmp_path)
    assert file.read_text() == f"{after}\n"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("restarts", [COMMAND, "ten", "-1", "9999999"])
def test_number_of_restarts_that_is_none_starts_nothing(job: Job, tmp_path: Path, restarts: str) -> None:
    status, said = ended(job("train.sbatch", RESIST_HVD_RESTARTS=restarts))
    assert status == 2
    assert f"RESIST_HVD_RESTARTS is '{restarts}'" in said
    assert not (tmp_path / "told").exists()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("element", [COMMAND, "9", ""])
def test_element_that_the_array_does_not_have_starts_nothing(job: Job, tmp_path: Path, element: str) -> None:
    status, said = ended(job("array.sbatch", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID=element))
    assert status == 2
    assert f"'{element}'" in said
    assert "--array=0-8" in said
    assert not (tmp_path / "told").exists()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("trial", [143, 137])
def test_job_that_is_preempted_during_the_trial_comes_back(job: Job, tmp_path: Path, trial: int) -> None:
    status, _ = ended(job("train.sbatch", FITS="none", TRIAL=str(trial)))
    assert status == trial
    assert told(tmp_path).endswith("scontrol requeue 7\n")
    assert "mpirun" not in told(tmp_path)


def test_warning_during_the_trial_brings_the_job_back(job: Job, tmp_path: Path) -> None:
    process = job("train.sbatch", TRIAL_WAITS="yes")
    await_file(tmp_path / "told.trying", tmp_path)
    process.send_signal(signal.SIGUSR2)
    (tmp_path / "told.go").touch()
    status, _ = ended(process)
    assert status == 75
    assert "resist_hvd.train" not in told(tmp_path)
    assert told(tmp_path).endswith("scontrol requeue 7\n")


def test_warning_once_the_ranks_have_ended_is_too_late_to_matter(job: Job, tmp_path: Path) -> None:
    assert ended(job("train.sbatch", STATUS="137", RECORD="started\n", WARNS="yes"))[0] == 137
    assert told(tmp_path).endswith("scontrol requeue 7\n")


def await_file(file: Path, folder: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, told(folder)
        time.sleep(0.02)


def await_ranks(folder: Path) -> None:
    await_file(folder / "told.running", folder)


def test_warning_reaches_the_ranks_and_the_job_comes_back(job: Job, tmp_path: Path) -> None:
    process = job("train.sbatch", WAITS="yes")
    await_ranks(tmp_path)
    process.send_signal(signal.SIGUSR2)
    status, said = ended(process)
    assert status == 75
    assert told(tmp_path).endswith("ranks got USR2\nscontrol requeue 7\n")
    assert "USR2" in said


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


DESCRIBES = """
echo "python $*" >> "$TOLD"
case "$*" in
    *"--part 8 --describe") ;;
    *"--part 9 "*) echo "resist_hvd: --part is 9" >&2; exit 2 ;;
    *--describe) printf '8\\n/elsewhere/a run\\n--method=resist\\n--data.root=a folder\\n' | sed "s:/elsewhere:$OUT:" ;;
esac
"""
"""A stand-in for Python. It describes runs; the eighth is no training, and there is no ninth."""


@pytest.fixture
def describing(job: Job, tmp_path: Path) -> Job:
    """Starts a batch script as `job` does, with a Python that describes runs."""
    (tmp_path / "bin/python").write_text(f"#!/bin/sh\n{DESCRIBES}\n")
    (tmp_path / "bin/python").chmod(0o755)

    def start(script: str, *flags: str, **variables: str) -> subprocess.Popen[str]:
        return job(script, *flags, SLURM_NTASKS="16", OUT=str(tmp_path), **variables)

    return start


def test_reproduction_s_element_is_a_run_as_it_is_described(describing: Job, tmp_path: Path) -> None:
    element = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}
    status, _ = ended(describing("reproduce.sbatch", "table2", "--seeds=1", **element))
    assert status == 0
    begins, *_, runs = told(tmp_path).splitlines()
    assert begins == "python -m resist_hvd.reproduce table2 --budget paper --seeds=1 --part 3 --describe"
    assert "--ntasks=8 " in runs
    assert runs.endswith(f"--resume --output {tmp_path}/a run --method=resist --data.root=a folder")
    assert (tmp_path / "a run/outcome").is_file()


def test_reproduction_s_element_that_there_is_not_starts_nothing(describing: Job, tmp_path: Path) -> None:
    element = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "9"}
    status, said = ended(describing("reproduce.sbatch", "table2", **element))
    assert (status, said) == (2, "resist_hvd: --part is 9\n")
    assert "srun" not in told(tmp_path)


def test_reproduction_s_element_that_is_no_training_is_left_to_reproduce(describing: Job, tmp_path: Path) -> None:
    element = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "8"}
    status, _ = ended(describing("reproduce.sbatch", "figure4", **element))
    assert status == 0
    assert told(tmp_path).splitlines()[1:] == ["python -m resist_hvd.reproduce figure4 --budget paper --part 8"]


def test_reproduction_s_job_without_an_array_makes_the_page(describing: Job, tmp_path: Path) -> None:
    status, _ = ended(describing("reproduce.sbatch", "table2", "--seeds=1"))
    assert status == 0
    assert told(tmp_path) == "python -m resist_hvd.reproduce table2 --budget paper --seeds=1 --page\n"


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
