"""A link so slow that a synchronisation takes several times the watchdog's limit: the run is sound, and ends well."""

import json
from pathlib import Path

import pytest

from . import labs

WATCHDOG = 5


@pytest.mark.timeout(900)
def test_a_synchronisation_much_longer_than_the_limit_ends_no_sound_run(needs_lab: None, tmp_path: Path) -> None:
    with labs.made(tmp_path, hosts=2, bandwidth="1mbit") as lab:
        flags = ("--method=local-sgd", "--model.width_factor=0.25", "--local_iterations=1", "--max_rounds=2")
        lab.train(*labs.TINY, *flags, f"--watchdog={WATCHDOG}", "--output", lab.folder / "run", number=2)
        rounds = [json.loads(line) for line in (lab.folder / "run/rounds.jsonl").read_text().splitlines()]
    # The first one has half an hour whatever moves; the second one has what the kernel counts.
    assert [line["seconds_sync"] > 2 * WATCHDOG for line in rounds] == [True, True]
    assert not list((tmp_path / "run").glob("stalled-*"))
