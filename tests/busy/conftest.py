"""The flag of the runs on a busy machine, and their summary."""

import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import pytest

LINES = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("busy machine")
    group.addoption("--runs", type=int, default=20, metavar="N", help="how many runs, in all worlds (default: 20)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


@pytest.fixture
def made(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """What is known of all runs so far, a line each."""
    return pytestconfig.stash[LINES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[LINES]
    if not lines:
        return
    terminalreporter.section("runs on a busy machine")
    terminalreporter.write_line(
        f"{'ranks':<6} {'runs':>5} {'rounds':>7} {'median s':>9} {'longest s':>10} {'longest wait s':>15}"
    )
    for ranks in [*sorted({line["ranks"] for line in lines}), "all"]:
        group = [line for line in lines if ranks in ("all", line["ranks"])]
        seconds = [line["seconds"] for line in group]
        terminalreporter.write_line(
            f"{ranks:<6} {len(group):>5} {sum(line['rounds'] for line in group):>7} {median(seconds):>9.2f} "
            f"{max(seconds):>10.1f} {max(line['longest_wait'] for line in group):>15.2f}"
        )
    if "RESIST_HVD_TEST_RESULTS" in os.environ:
        path = Path(os.environ["RESIST_HVD_TEST_RESULTS"], "busy.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(lines, indent=1) + "\n")
        terminalreporter.write_line(f"written to {path}")
