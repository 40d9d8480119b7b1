"""On a machine that has far more to do than it can, no run is ended that is sound, and none ends otherwise.

How many runs is on the command line: `launch/test --only busy --runs 500`.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..launch import runs
from ..launch.conftest import make_images

WORLDS = (2, 3, 4)

PROGRAM = Path(__file__).with_name("many_runs.py")

START, RUN = 300.0, 120.0
"""Seconds that ranks may take to start, and a run on the average, before they count as hanging."""

SPIN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes keep the cores of this one busy; none outlives it by more than a moment."""
    spinning = [subprocess.Popen([runs.PYTHON, "-S", "-c", SPIN, str(os.getpid())]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("ranks", WORLDS)
def test_no_sound_run_is_ended(
    ranks: int, tmp_path: Path, pytestconfig: pytest.Config, made: list[dict[str, Any]]
) -> None:
    wanted = pytestconfig.getoption("--runs")
    count = wanted // len(WORLDS) + (WORLDS.index(ranks) < wanted % len(WORLDS))
    images, results = make_images(tmp_path / "images"), tmp_path / "results.jsonl"
    arguments = [str(count), tmp_path / "runs", images, results]
    with (
        busy(2 * len(os.sched_getaffinity(0))),
        runs.started(*arguments, ranks=ranks, program=[runs.PYTHON, PROGRAM]) as running,
    ):
        try:
            ended = running.end(limit=START + RUN * count, patience=30)
        finally:
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
            made += [{"ranks": ranks, **line} for line in lines]
    assert ended.status == 0, ended
    assert "The watchdog is off" not in ended.stderr  # it did watch
    assert len(lines) == count
