"""Terminals that are closed while a run goes on: it goes on all the same, to its last file."""

import json
import os
import pty
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs

WAITING = """
import os
import time
from resist_hvd.training import loop

step = loop.LocalTraining.step


def waits_in_round_3(self):
    while self.run.progress.round == 2 and not os.path.exists({go!r}):
        time.sleep(0.02)
    return step(self)


loop.LocalTraining.step = waits_in_round_3
"""


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Return what a terminal shows until it has shown something."""
    shown, end = b"", time.monotonic() + runs.LONGEST
    while wanted not in shown:
        assert time.monotonic() < end, f"{wanted!r} was not shown:\n{shown!r}"
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 4096)
    return shown


@pytest.mark.parametrize(("ranks", "term"), [(1, "xterm"), (2, "dumb")])
def test_a_run_outlives_its_terminal(
    ranks: int, term: str, tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder, go = tmp_path / "run", tmp_path / "go"
    master, slave = pty.openpty()
    with runs.started(
        *tiny,
        "--max_rounds=4",
        "--output",
        folder,
        ranks=ranks,
        launcher="mpirun" if ranks > 1 else "none",
        program=program(WAITING.format(go=str(go))),
        terminal=slave,
        TERM=term,
    ) as running:
        os.close(slave)
        shown = read_until(master, b"round 2/4")
        os.close(master)
        go.touch()
        ended = running.end()
    assert ended.status == 0
    # A terminal that cannot draw over what it has drawn is given lines.
    assert (b"sync" in shown) == (term == "dumb")
    assert (b"\x1b[" in shown) == (term != "dumb")
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 4
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 4
    assert (folder / "model.safetensors").is_file()
    assert (folder / "checkpoints/latest").read_text() == "round-000004\n"
