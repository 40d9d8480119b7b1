"""Runs that start processes of their own, as a data loader does, are not ended by those that end."""

import json
from collections.abc import Callable
from pathlib import Path

from . import runs


def test_a_process_that_ends_does_not_end_the_run(
    tiny: list[str], program: Callable[[str], list[str]], tmp_path: Path
) -> None:
    # PyTorch's data loader has a handler for CHLD, and a signal with a handler reaches whoever listens for signals.
    lines = """
import signal, subprocess
from resist_hvd.training import loop

signal.signal(signal.SIGCHLD, lambda *_: None)
evaluate = loop.evaluate

def evaluate_beside_a_process(*arguments):
    subprocess.run(["true"], check=True)
    return evaluate(*arguments)

loop.evaluate = evaluate_beside_a_process
"""
    ended = runs.run(*tiny, "--output", tmp_path / "run", program=program(lines), ranks=1, launcher="none")
    assert ended.status == 0, ended
    assert ended.stderr.strip() == "", ended
    assert json.loads((tmp_path / "run/summary.json").read_text())["rounds"] == 8
