"""The claim on a run's folder: one run at a time, and no claim outlives its run."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.errors import UserError
from resist_hvd.training import claim
from resist_hvd.training.claim import CLAIM, Claim, Holder, in_queue, started_at
from resist_hvd.training.folder import new_folder

JOB = {"SLURM_CLUSTER_NAME": "here", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
ELSEWHERE: dict[str, Any] = {"host": "n2", "boot": "another", "pid": 4321}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.0)
    for name in JOB:
        monkeypatch.delenv(name, raising=False)


def left(folder: Path, *, age: float = 0.0, **changes: Any) -> Holder:
    """Leave a claim in a folder, as this process would make it, but for some changes; touched some seconds ago."""
    holder = replace(Holder.here(), **changes)
    path = folder / CLAIM
    path.write_text(json.dumps(asdict(holder)) + "\n")
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return holder


def holder_of(folder: Path) -> Holder:
    found = Holder.of((folder / CLAIM).read_text())
    assert found is not None
    return found


def holder_of_taken(folder: Path) -> Holder:
    taken = Claim.take(folder)
    holder = holder_of(folder)
    taken.release()
    return holder


def assert_taken(folder: Path) -> None:
    taken = Claim.take(folder)
    assert holder_of(folder).pid == os.getpid()
    assert holder_of(folder).started == started_at(os.getpid())
    taken.release()
    assert list(folder.iterdir()) == []


def refusal(folder: Path) -> str:
    before = (folder / CLAIM).read_bytes()
    with pytest.raises(UserError) as caught:
        Claim.take(folder)
    assert (folder / CLAIM).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [CLAIM]
    return str(caught.value)


def test_a_free_folder_is_claimed_and_let_go(tmp_path: Path) -> None:
    assert_taken(tmp_path)


def test_a_run_on_this_host_is_named_while_it_lives_and_followed_at_once_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        started = started_at(other.pid)
        assert started
        holder = left(tmp_path, pid=other.pid, started=started)
        message = refusal(tmp_path)
        assert all(
            word in message for word in (f"process {other.pid} on {holder.host}", holder.since, f"kill {other.pid}")
        )
        other.send_signal(signal.SIGSTOP)
        assert f"process {other.pid}" in refusal(tmp_path)
        other.kill()
        while started_at(other.pid) is not None:  # it is gone before anyone has waited for it
            pass
        assert_taken(tmp_path)


def test_a_number_of_a_process_that_came_again_is_no_run(tmp_path: Path) -> None:
    left(tmp_path, started=1)
    assert_taken(tmp_path)


@pytest.mark.parametrize("where", [{"host": "n2"}, {"boot": "before"}, {"namespace": "pid:[1]"}])
def test_a_run_that_cannot_be_seen_is_alive_for_minutes_after_its_last_touch(
    where: dict[str, str], tmp_path: Path
) -> None:
    left(tmp_path, age=100.0, pid=4321, **where)
    message = refusal(tmp_path)
    assert "process 4321" in message
    assert "100 s ago" in message
    assert str(tmp_path / CLAIM) in message
    left(tmp_path, age=claim.DEAD_AFTER + 1, pid=4321, **where)
    assert_taken(tmp_path)


@pytest.mark.parametrize("where", [{"host": "n2"}, {"namespace": "pid:[1]"}])
def test_a_run_of_another_container_on_this_machine_is_known_by_its_lock(where: dict[str, str], tmp_path: Path) -> None:
    left(tmp_path, age=claim.DEAD_AFTER + 1, pid=4321, locked=True, **where)
    with (tmp_path / CLAIM).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "process 4321" in refusal(tmp_path)
    # Its last touch was a moment ago; but whoever had it locked is gone.
    left(tmp_path, pid=4321, locked=True, **where)
    assert_taken(tmp_path)


def test_a_file_system_without_locks_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert not holder_of_taken(tmp_path).locked
    left(tmp_path, namespace="pid:[1]", locked=True)
    refusal(tmp_path)
    monkeypatch.undo()
    (tmp_path / CLAIM).unlink()
    assert holder_of_taken(tmp_path).locked


def test_the_same_job_started_again_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    left(tmp_path, **ELSEWHERE, restarts=1)
    assert "SLURM job 7" in refusal(tmp_path)
    left(tmp_path, **ELSEWHERE, restarts=0)
    assert_taken(tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_a_job_that_slurm_no_longer_has_is_over(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr(claim, "in_queue", lambda job: asked.append(job) or known)
    left(tmp_path, **ELSEWHERE, job="6")
    assert "SLURM job 6" in refusal(tmp_path)
    assert not asked  # it was touched this minute: a site may hide other users' jobs
    left(tmp_path, age=2 * claim.HEARTBEAT + 1, **ELSEWHERE, job="6")
    if known:
        assert "SLURM job 6" in refusal(tmp_path)
    else:
        assert_taken(tmp_path)
    assert set(asked) == {"6"}
    # Another cluster's SLURM would not know it either.
    left(tmp_path, age=2 * claim.HEARTBEAT + 1, **ELSEWHERE, job="6", cluster="elsewhere")
    assert "SLURM job 6" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("echo RUNNING", True),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", True),
        (None, True),
    ],
)
def test_what_the_queue_says_of_a_job(
    answer: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is not None:
        squeue = tmp_path / "squeue"
        squeue.write_text(f"#!/bin/sh\n{answer}\n")
        squeue.chmod(0o755)
    assert in_queue("7") == found


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", '{"pid": 1}', '{"pid": "1", "host": 2}'])
def test_a_claim_that_says_nothing_counts_until_it_is_old(text: str, tmp_path: Path) -> None:
    path = tmp_path / CLAIM
    path.write_text(text)
    assert str(path) in refusal(tmp_path)
    then = path.stat().st_mtime - claim.DEAD_AFTER - 1
    os.utime(path, (then, then))
    assert_taken(tmp_path)


@pytest.mark.parametrize("name", [CLAIM, f"{CLAIM}.partial"])
def test_a_maker_that_died_before_it_wrote_a_word_is_no_hindrance(name: str, tmp_path: Path) -> None:
    if name != CLAIM:
        left(tmp_path, started=1)
    path = tmp_path / name
    path.touch()
    then = path.stat().st_mtime - claim.BEING_MADE - 1
    os.utime(path, (then, then))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if name == CLAIM:
            assert str(path) in refusal(tmp_path)
    assert_taken(tmp_path)


def test_of_many_that_find_a_claim_left_behind_one_takes_it(tmp_path: Path) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        left(folder, started=1)

        def attempted(_: int, folder: Path = folder) -> Claim | None:
            try:
                return Claim.take(folder)
            except UserError:
                return None

        with ThreadPoolExecutor(8) as pool:
            taken = [found for found in pool.map(attempted, range(8)) if found is not None]
        assert len(taken) == 1
        taken[0].release()
        assert list(folder.iterdir()) == []


def test_a_taker_that_died_in_the_midst_is_no_hindrance(tmp_path: Path) -> None:
    left(tmp_path, started=1)
    (tmp_path / CLAIM).rename(tmp_path / f"{CLAIM}.partial")
    left(tmp_path, started=1)
    assert_taken(tmp_path)


def test_a_run_whose_folder_was_taken_over_is_told(tmp_path: Path) -> None:
    taken = Claim.take(tmp_path)
    taken.check()
    (tmp_path / CLAIM).unlink()
    taken.check()
    assert holder_of(tmp_path).pid == os.getpid()
    left(tmp_path, **ELSEWHERE)
    with pytest.raises(UserError, match="process 4321 on n2"):
        taken.check()
    taken.release()
    assert holder_of(tmp_path).host == "n2"


def test_a_claim_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT", 0.02)
    taken = Claim.take(tmp_path)
    path = tmp_path / CLAIM
    os.utime(path, (1.0, 1.0))
    while path.stat().st_mtime == 1.0:
        pass
    taken.release()


ENDS_AT_ONCE = """
import sys
from pathlib import Path
from resist_hvd.guard import endings
from resist_hvd.training.claim import Claim

taken = Claim.take(Path(sys.argv[1]))
endings.ending.release = taken.release
endings.ending.exit_now("lost", endings.LOST, 0.0)
"""


def test_an_end_at_once_lets_the_folder_go(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE, tmp_path], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 69, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_claim_is_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("theirs")
    (tmp_path / CLAIM).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        Claim.take(tmp_path)
    assert (tmp_path / "target").read_text() == "theirs"


def test_new_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder("digits-resist-20261125-195005"), range(8)))
    assert len(set(folders)) == 8
    assert all(folder.is_dir() and folder.name.startswith("digits-resist-20261125-195005") for folder in folders)
