"""A rank is killed or paused, a host cut off: the others name it and end, nothing is left, and a restart goes on."""

import json
import re
import subprocess
import sys

import pytest

from . import labs

REACHES = """
import socket
try:
    socket.create_connection(("n1", 9), timeout=5)
except ConnectionRefusedError:
    pass
"""
"""Succeeds where n1 answers, if only to refuse."""

WATCHDOG = 8
SETTINGS = (*labs.TINY, "--epochs=100000", "--checkpoint_every=5", f"--watchdog={WATCHDOG}", "--resume")


def await_progress(lab: labs.Lab, process: subprocess.Popen[bytes], since: int) -> int:
    """Wait until a run has written a checkpoint after round `since`, and return the last round it has done."""

    def done() -> int:
        assert process.poll() is None, lab.said()
        return max([-1, *(int(number) for number in re.findall(r"^round +(\d+)/", lab.said(), re.MULTILINE))])

    labs.wait_until(lambda: done() >= since + 8, lab.said)
    return done()


def await_end(lab: labs.Lab, process: subprocess.Popen[bytes]) -> str:
    """Wait until a run has ended by itself, with all that belongs to it, and return what it said of the cause."""
    status = process.wait(timeout=labs.LONGEST)
    assert status != 0, lab.said()
    lab.assert_empty()
    return "\n".join(line for line in lab.said().splitlines() if "resist_hvd: " in line)


@pytest.mark.timeout(900)
def test_each_loss_ends_the_run_by_name_and_a_restart_goes_on(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    run = (*SETTINGS, "--output", lab.folder / "run")

    with lab.ranks(*run) as process:
        done = await_progress(lab, process, 0)
        assert lab.do("kill", "rank3").status == 0
        await_end(lab, process)
        assert re.search(r"[Rr]ank 3\b", lab.said()), lab.said()

    with lab.ranks(*run) as process:
        done = await_progress(lab, process, done)
        assert lab.do("pause", "rank3").status == 0
        said = await_end(lab, process)
        assert re.search(r"Rank 3 of 4 on n2 has not been heard of", said), lab.said()

    with lab.ranks(*run) as process:
        done = await_progress(lab, process, done)
        assert lab.do("cut", "n2").status == 0
        said = await_end(lab, process)
        # Either the watchdog ends the run, or Open MPI's launcher has found the host gone before, and says so by TERM.
        assert re.search(r"on n2 ha(s|ve) not been heard of", said), lab.said()
        lab.do("mend", "n2")
    # A host that was not found for a while is looked for again only some seconds later.
    labs.wait_until(lambda: lab.do("run", "--on", "n2", sys.executable, "-c", REACHES).status == 0, lab.said)

    rounds = int((lab.folder / "run/checkpoints/latest").read_text().strip().removeprefix("round-")) + 10
    with lab.ranks(*run, f"--max_rounds={rounds}") as process:
        assert process.wait(timeout=labs.LONGEST) == 0, lab.said()
    lines = (lab.folder / "run/rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(rounds))
    lab.assert_empty()
