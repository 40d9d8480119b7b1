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

PLAIN = ("--overlap=0", "--exchange.trunk=fp32", "--exchange.blocks=fp32")
HIDDEN = ("--overlap=1", "--exchange.trunk=int8", "--exchange.blocks=int8")
"""Half of a round's steps are made while codes are under way: a cable that is cut has it stay so."""

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
    lab, done = lab_of_two, 0
    run = (*SETTINGS, "--output", lab.folder / "run")
    # A host that is cut off is named also where Open MPI's launcher has found it gone before, and sent TERM.
    for flags, loss, said in (
        (HIDDEN, ("kill", "rank3"), r"[Rr]ank 3\b"),
        (HIDDEN, ("pause", "rank3"), "Rank 3 of 4 on n2 has not been heard of"),
        (PLAIN, ("cut", "n2"), "on n2 ha(s|ve) not been heard of"),
        (HIDDEN, ("cut", "n2"), "on n2 ha(s|ve) not been heard of"),
    ):
        with lab.ranks(*run, *flags) as process:
            done = await_progress(lab, process, done)
            assert lab.do(*loss).status == 0
            await_end(lab, process)
            assert re.search(said, lab.said()), lab.said()
        if loss[0] == "cut":
            assert lab.do("mend", "n2").status == 0
        # A host that was not found for a while is looked for again only some seconds later.
        labs.wait_until(lambda: lab.do("run", "--on", "n2", sys.executable, "-c", REACHES).status == 0, lab.said)

    rounds = int((lab.folder / "run/checkpoints/latest").read_text().strip().removeprefix("round-")) + 10
    with lab.ranks(*run, f"--max_rounds={rounds}") as process:
        assert process.wait(timeout=labs.LONGEST) == 0, lab.said()
    lines = [json.loads(line) for line in (lab.folder / "run/rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(rounds))
    assert lines[-1]["seconds_hidden"] > 0
    lab.assert_empty()
