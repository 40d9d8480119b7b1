"""`doctor` as a user starts it: what it prints, and the status it ends with."""

from pathlib import Path

import pytest

from . import runs

DOCTOR = (runs.PYTHON, "-m", "resist_hvd.doctor")


@pytest.mark.parametrize("launcher", ["none", "horovodrun"])
def test_sound_machine(launcher: str, tmp_path: Path) -> None:
    ended = runs.run("--quick", "--output", tmp_path, launcher=launcher, program=DOCTOR)
    assert ended.status == 0, ended
    assert ended.stdout.rstrip().endswith("Nothing must be mended.")
    assert f"{1 if launcher == 'none' else 2} rank" in ended.stdout
    assert ended.stderr == ""


def test_what_must_be_mended_gives_status_1(tmp_path: Path) -> None:
    ended = runs.run("--quick", "--config=missing.yaml", "--output", tmp_path, program=DOCTOR)
    assert ended.status == 1, ended
    assert "MEND" in ended.stdout
    assert "--config cannot be read on" in ended.stdout
    assert ended.stdout.rstrip().endswith("1 thing must be mended.")


def test_unsound_launch_is_a_finding(tmp_path: Path) -> None:
    ended = runs.run("--quick", "--output", tmp_path, launcher="none", program=DOCTOR, OMPI_COMM_WORLD_SIZE="3")
    assert ended.status == 1, ended
    assert "The launcher started 3 ranks, but MPI sees 1" in " ".join(ended.stdout.split())


def test_wrong_flag(tmp_path: Path) -> None:
    ended = runs.run("--frobnicate=1", launcher="none", program=DOCTOR)
    assert ended.mistake == "There is no flag --frobnicate. See --help for every setting."
    assert ended.status == 2
