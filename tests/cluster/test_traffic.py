"""What the kernel counts on the links of four hosts is what a run's own account says it sent."""

import json
from collections import Counter

import pytest
from laboratory import links

from . import labs

SHORT, LONG = 2, 10
"""Rounds of two runs that differ in nothing else: their starts and evaluations send the same, so that what one sent
more than the other is what its further rounds did."""

SETTINGS = (*labs.TINY, "--model.width_factor=0.25", "--local_iterations=1")

CODES = ["--model.width_factor=0.5", "--exchange.trunk=int8", "--exchange.keep=0.5", "--exchange.blocks=int6"]
"""A larger network, so that codes are far more than what else is sent."""


def sums(lab: labs.Lab) -> Counter[str]:
    """Return the kernel's counts so far, summed over all hosts' links."""
    return sum(map(Counter, lab.traffic().values()), Counter())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("flags", "margin"),
    [
        pytest.param(["--method=resist"], 0.05, id="resist"),
        pytest.param(["--method=local-sgd"], 0.05, id="local-sgd"),
        pytest.param(CODES, 0.01, id="codes"),
    ],
)
def test_links_carry_what_rounds_say(lab_of_four: labs.Lab, flags: list[str], margin: float) -> None:
    lab = lab_of_four
    counted, again = {}, {}
    for rounds in (SHORT, LONG):
        before = sums(lab)
        output = lab.folder / f"run-{rounds}"
        lab.train(*SETTINGS, *flags, f"--max_rounds={rounds}", "--output", output)
        after = sums(lab)
        counted[rounds] = after["sent_payload"] - before["sent_payload"]
        again[rounds] = links.SEGMENT * (after["retransmitted_segments"] - before["retransmitted_segments"])
    lines = [json.loads(line) for line in (lab.folder / f"run-{LONG}/rounds.jsonl").read_text().splitlines()]
    said = sum(line["bytes_sent"] for line in lines[SHORT:])
    assert len(lines) == LONG
    assert said > 10_000_000, "too little is sent to tell it from what else there is"
    # What TCP sent twice, since an answer was late, is in the counts and in nobody's account: these many bytes at most.
    least, most = counted[LONG] - again[LONG] - counted[SHORT], counted[LONG] - counted[SHORT] + again[SHORT]
    print(f"{flags}: {said:,} bytes by rounds.jsonl, {least:,} to {most:,} on the links")
    # Headers of Ethernet, IP and TCP are taken off; MPI's and the daemons' own stay, and are what the margin is for.
    assert least < (1 + margin) * said
    assert most > (1 - margin) * said
