"""What cannot be printed is dropped and ends no program; what a terminal cannot show is spelled out; a log keeps it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resist_hvd import console

PROGRAM = """
import sys
import warnings
from rich.console import Console
from resist_hvd import console
from resist_hvd.errors import UserError, run_alone

def program():
    for number in range(2000):
        console.out(f"line {number}")
    print("a library's own", flush=True)
    Console().print("a table")
    console.err("an error"); console.urgent("an urgent one"); warnings.warn("a warning")
    with open(sys.argv[1], "w") as file:
        file.write("reached")
    raise UserError("A name", where="caf\\udce9 [red]\\x1b[31m", mend="Mend it.")

run_alone(program)
"""


def run(tmp_path: Path, redirection: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the program by a shell, whose status is the program's, and see that it came to its end."""
    command = f'set -o pipefail; {sys.executable} -c "$PROGRAM" {tmp_path / "reached"} {redirection}'
    environment = {**os.environ, "PROGRAM": PROGRAM, **variables}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=300)
    assert (tmp_path / "reached").read_text() == "reached", done.stderr
    return done


@pytest.mark.parametrize(
    "redirection",
    [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", ">&- 2>&-", "| head -1", "2>&1 | head -1"],
)
def test_what_cannot_be_printed_ends_no_program(redirection: str, tmp_path: Path) -> None:
    done = run(tmp_path, redirection)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if "head" in redirection:
        assert done.stdout == b"line 0\n"
    if "2>" not in redirection:
        assert done.stderr.endswith(b"A name [caf\\udce9 [red]\\x1b[31m]. Mend it.\n")


def test_a_strict_encoding_is_no_obstacle(tmp_path: Path) -> None:
    done = run(tmp_path, "", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 2
    assert done.stdout.count(b"\n") == 2002
    assert done.stderr.endswith(b"A name [caf\\udce9 [red]\\x1b[31m]. Mend it.\n")


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as pipe:
        text = "x" * 200_000
        child = os.fork()
        if child == 0:
            raw = console._Lossy(writer, "w", closefd=False)
            left = memoryview(text.encode())
            while left:
                left = left[raw.write(left) :]
            os._exit(0)
        os.close(writer)
        assert pipe.read() == text.encode()
        assert os.waitpid(child, 0)[1] == 0


def test_a_log_has_what_was_printed_before_it_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "console.log"
    for start in ("first", "second"):
        console.guard()
        console.out(f"{start}: early")
        console.open_log(path, f"# {start}")
        console.err("to standard error \udce9")
        console.keep("not printed\nin two lines")
        console.close_log()
    lines = ["to standard error \\udce9", "not printed", "in two lines"]
    assert path.read_text().splitlines() == ["# first", "first: early", *lines, "# second", "second: early", *lines]
    assert capsys.readouterr().out == "first: early\nsecond: early\n"


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "console.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        console.open_log(tmp_path / "console.log", "# start")
    assert (tmp_path / "other").read_text() == "theirs"


def test_a_log_that_cannot_grow_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    console.open_log(Path("/dev/full"), "# start")
    console.out("shown all the same")
    console.close_log()
    assert capsys.readouterr().out == "shown all the same\n"


def test_a_log_on_a_file_server_that_hangs_neither_keeps_back_the_last_words_nor_what_comes_after(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = threading.Event()
    seen: list[str] = []

    def keep(_: str) -> None:
        seen.append(capfd.readouterr().err)
        server.wait(60)

    monkeypatch.setattr(console, "MOMENT", 0.1)
    monkeypatch.setattr(console, "_log", 1)
    monkeypatch.setattr(console, "keep", keep)
    console.urgent("the last words")
    assert not server.is_set()
    server.set()
    assert seen == ["the last words\n"]
