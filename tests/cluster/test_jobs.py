"""Jobs under a real SLURM on two hosts: to their end, stopped and requeued, preempted, by srun and by mpirun."""

import hashlib
import json
import re

import pytest

from . import labs

pytestmark = pytest.mark.timeout(900)

LENGTH = ("--max_rounds=30", "--checkpoint_every=10")
ACROSS = ("--nodes=2", "--ntasks-per-node=2")


def model_of(lab: labs.Lab, job: int) -> str:
    return hashlib.sha256((lab.folder / f"runs/resist-hvd-{job}/model.safetensors").read_bytes()).hexdigest()


def rounds_of(lab: labs.Lab, job: int) -> list[int]:
    lines = (lab.folder / f"runs/resist-hvd-{job}/rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines]


def await_round(lab: labs.Lab, job: int, start: int) -> None:
    """Wait until a job's ranks, started for the `start`th time, have done a round."""

    await_word(lab, job, rf"start {start} of job.*^round +\d+/")


def await_word(lab: labs.Lab, job: int, pattern: str) -> None:
    """Wait until a job has printed what a regular expression describes."""
    labs.wait_until(
        lambda: re.search(pattern, lab.log(job), re.MULTILINE | re.DOTALL) is not None, lambda: lab.log(job)
    )


@pytest.fixture(scope="module")
def unstopped(slurm_lab: labs.Lab) -> int:
    """A job that has run from its beginning to its end."""
    job = slurm_lab.submit("train.sbatch", *labs.TINY, *LENGTH, options=ACROSS)
    slurm_lab.await_job(job, "COMPLETED")
    return job


def test_job_trains_on_two_hosts_by_what_the_site_s_srun_has(slurm_lab: labs.Lab, unstopped: int) -> None:
    assert "4 ranks by srun on n[1-2]" in slurm_lab.log(unstopped)
    summary = json.loads((slurm_lab.folder / f"runs/resist-hvd-{unstopped}/summary.json").read_text())
    assert (summary["workers"], summary["rounds"]) == (4, 30)
    assert rounds_of(slurm_lab, unstopped) == list(range(30))


def test_accounts_are_kept(slurm_lab: labs.Lab, unstopped: int) -> None:
    command = ("sacct", "--noheader", "--parsable2", "-X", f"--jobs={unstopped}", "--format=State,NNodes,JobName")
    labs.wait_until(lambda: slurm_lab.ask(*command) == "COMPLETED|2|resist-hvd\n", lambda: slurm_lab.ask(*command), 30)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (("--gpus-per-task=1",), {"0": "0", "1": "1", "2": "0", "3": "1"}),
        (("--gpus-per-node=2",), dict.fromkeys("0123", "0,1")),
    ],
)
def test_ranks_are_told_their_gpus(slurm_lab: labs.Lab, options: tuple[str, ...], seen: dict[str, str]) -> None:
    """One to each where SLURM binds them; else all of the host's, of which a rank takes the one of its local rank."""
    tell = 'echo "$SLURM_PROCID $CUDA_VISIBLE_DEVICES"'
    told = slurm_lab.ask("srun", *ACROSS, *options, "sh", "-c", tell)
    assert dict(line.split() for line in told.splitlines()) == seen


def test_more_gpus_than_there_are_cannot_be_asked_for(slurm_lab: labs.Lab) -> None:
    ended = slurm_lab.do("run", "srun", *ACROSS, "--gpus-per-node=3", "true")
    assert ended.status != 0
    assert "node configuration is not available" in ended.stderr


def test_flags_for_srun_reach_it(slurm_lab: labs.Lab) -> None:
    job = slurm_lab.submit(
        "train.sbatch",
        *labs.TINY,
        "--max_rounds=2",
        options=(*ACROSS, "--gpus-per-node=2"),
        RESIST_HVD_LAUNCHER="srun:pmix",
        RESIST_HVD_SRUN_FLAGS="--gpus-per-task=1 --label",
    )
    slurm_lab.await_job(job, "COMPLETED")
    assert re.search(r"^0: round +2/2 ", slurm_lab.log(job), re.MULTILINE), slurm_lab.log(job)


def test_stopped_and_preempted_job_ends_with_the_same_model(slurm_lab: labs.Lab, unstopped: int) -> None:
    hold = slurm_lab.hold(2)
    job = slurm_lab.submit("train.sbatch", *labs.TINY, *LENGTH, options=ACROSS, **hold.variables)
    await_round(slurm_lab, job, start=1)
    slurm_lab.ask("scancel", "--batch", "--signal=USR2", str(job))
    await_word(slurm_lab, job, "Told to stop by USR2")
    hold.end(0)
    await_round(slurm_lab, job, start=2)
    # A job that goes before takes its hosts.
    slurm_lab.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    await_word(slurm_lab, job, "Told to stop by TERM")
    hold.end(1)
    await_round(slurm_lab, job, start=3)
    ended = slurm_lab.await_job(job, "COMPLETED")
    assert ended["Restarts"] == "2"
    assert rounds_of(slurm_lab, job) == list(range(30))
    assert model_of(slurm_lab, job) == model_of(slurm_lab, unstopped)
    slurm_lab.assert_empty()


def test_mpirun_in_the_allocation_gives_the_same_model(slurm_lab: labs.Lab, unstopped: int) -> None:
    job = slurm_lab.submit("train.sbatch", *labs.TINY, *LENGTH, options=ACROSS, RESIST_HVD_LAUNCHER="mpirun")
    slurm_lab.await_job(job, "COMPLETED")
    assert "4 ranks by mpirun on n[1-2]" in slurm_lab.log(job)
    assert model_of(slurm_lab, job) == model_of(slurm_lab, unstopped)


def test_cancelled_job_does_not_come_back(slurm_lab: labs.Lab) -> None:
    hold = slurm_lab.hold()
    job = slurm_lab.submit("quickstart.sbatch", *labs.TINY, **hold.variables)
    await_round(slurm_lab, job, start=1)
    slurm_lab.ask("scancel", str(job))
    hold.end()
    labs.wait_until(lambda: not any(slurm_lab.processes().values()), lambda: str(slurm_lab.processes()))
    slurm_lab.await_job(job, "CANCELLED")
    assert "start 2 of job" not in slurm_lab.log(job)


@pytest.mark.parametrize(("launcher", "rank"), [("srun:pmix", 1), ("mpirun", 0)])
def test_killed_rank_brings_the_job_back(slurm_lab: labs.Lab, unstopped: int, launcher: str, rank: int) -> None:
    """As by the kernel where memory is short: launchers then give 137, whatever the other ranks find out."""
    variables = {"RESIST_HVD_LAUNCHER": launcher, **slurm_lab.hold().variables}
    job = slurm_lab.submit("train.sbatch", *labs.TINY, *LENGTH, options=ACROSS, **variables)
    await_round(slurm_lab, job, start=1)
    assert slurm_lab.do("kill", f"rank{rank}").status == 0
    ended = slurm_lab.await_job(job, "COMPLETED")
    assert int(ended["Restarts"]) >= 1
    assert model_of(slurm_lab, job) == model_of(slurm_lab, unstopped)


def test_job_preempted_while_its_ranks_start_comes_back(slurm_lab: labs.Lab) -> None:
    """With time to end in, a preempted job's ranks get TERM and its script does not: so here, by scancel."""
    hold = slurm_lab.hold()  # should the signal come late
    variables = {"RESIST_HVD_LAUNCHER": "srun:pmix", **hold.variables}
    job = slurm_lab.submit("train.sbatch", *labs.TINY, "--max_rounds=3", options=ACROSS, **variables)
    # Until Python has imported what it needs, TERM ends it without a word.
    labs.wait_until(lambda: "rank 0" in slurm_lab.do("ps").stdout, lambda: slurm_lab.log(job))
    slurm_lab.ask("scancel", "--signal=TERM", str(job))
    hold.end()
    ended = slurm_lab.await_job(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), slurm_lab.log(job)
    assert rounds_of(slurm_lab, job) == list(range(3))


@pytest.mark.parametrize("launcher", ["srun:pmix", "mpirun"])
def test_mistake_is_the_status_of_its_job(slurm_lab: labs.Lab, launcher: str) -> None:
    job = slurm_lab.submit("train.sbatch", "--lr=0.5", options=ACROSS, RESIST_HVD_LAUNCHER=launcher)
    ended = slurm_lab.await_job(job, "FAILED", "COMPLETED")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), slurm_lab.log(job)
    assert "--optim.lr" in slurm_lab.log(job)
