"""What is shown of a run: lines for files and programs, a bar for a person."""

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from resist_hvd.comm import launch
from resist_hvd.training.display import Bar, Lines, bar_is_of_use


def test_lines_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as display:
        display.round("round 1/2  loss  0.5", done=1, total=2, loss=" 0.5")
        display.line("  evaluated")
        display.round("round 2/3  loss  0.5", done=2, total=3, loss=" 0.5", left="12 min")
    assert capsys.readouterr().out == "round 1/2  loss  0.5\n  evaluated\nround 2/3  loss  0.5  left 12 min\n"


@pytest.mark.parametrize(("term", "bar"), [("xterm", True), ("dumb", False), ("unknown", False), ("", False)])
def test_a_terminal_that_cannot_draw_is_given_lines(term: str, bar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK", raising=False)
    monkeypatch.setenv("TERM", term)
    assert bar_is_of_use() == bar


def test_bar_counts_rounds_and_leaves_other_lines_above_it() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=80)) as display:
        display.round("", done=41, total=90, loss=" 0.5000")
        display.line("  evaluated after round 41 [not markup]")
        display.round("", done=42, total=90, loss=" 0.4000", left="3 h 7 min")
    text = screen.getvalue()
    assert "round 41/90" in text
    assert "round 42/90" in text
    assert "loss 0.4000" in text
    assert "left 3 h 7 min" in text
    assert "  evaluated after round 41 [not markup]" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is there


def test_bar_that_never_moved_shows_nothing() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=80)):
        pass
    assert "round" not in screen.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_launchers_output_counts_not_the_ranks_own_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK", raising=False)
    assert launch.person_watches()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"mpirun\0-np\0002\0")
    for target, watches in (("/dev/pts/3", True), ("/dev/tty1", True), ("pipe:[12]", False), ("/tmp/log", False)):
        monkeypatch.setattr(os, "readlink", lambda _, target=target: target)
        assert launch.person_watches() == watches
    monkeypatch.setattr(os, "readlink", lambda _: "/dev/pts/3")
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"mpirun\0--tag-output\0")
    assert not launch.person_watches()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not launch.person_watches()
