"""The console: all that a program prints goes through here, and printing never ends a program.

A terminal is closed, `head` has read enough, the disk that holds a job's output is full: what cannot be written is
dropped, and the program goes on. Once a run has a folder, rank 0 keeps what it prints in a log there, too.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 5.0
"""Seconds for which a line waits where a descriptor that must not block takes no more at present."""

MOMENT = 1.0
"""Seconds that a program which ends waits for a file server."""

MOST_HELD = 1000
"""So many lines are held until there is a log; a program that never has one does not grow."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text in which what a terminal would obey or cannot show is spelled out: `caf\udce9`, `\x1b[31m`.

    Names of files may have both: bytes that are no UTF-8 stand in Python's strings as lone surrogates.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class _Lossy(io.FileIO):
    """A descriptor to write to; what it refuses is dropped."""

    def write(self, data: Any, /) -> int:
        """Write bytes; return how many are dealt with."""
        end = time.monotonic() + PATIENCE
        try:
            while (written := super().write(data)) is None:  # it does not block, and is full
                left = end - time.monotonic()
                if left <= 0 or not select.select([], [self], [], left)[1]:
                    break
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def guard() -> None:
    """Have standard output and error drop what cannot be written, and spell out what their encoding lacks.

    To be called once a program begins; whatever prints afterwards, libraries included, cannot fail in doing so.
    """
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)
    _held.clear()


def _guarded(stream: TextIO | None) -> TextIO:
    """Return a stream that writes where another one does, and never fails."""
    if stream is None:  # the descriptor was closed before Python was started
        return open(os.devnull, "w", errors="backslashreplace")
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream  # no descriptor is behind it: a test's own
    if isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Lossy):
        return stream
    with suppress(OSError):
        stream.flush()
    raw = _Lossy(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def out(text: str) -> None:
    """Print lines to standard output at once, in one write, and keep them."""
    keep(text)
    _write(sys.stdout, text)


def err(text: str) -> None:
    """Print lines to standard error at once, in one write, and keep them."""
    keep(text)
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    with suppress(OSError, ValueError):  # it was not guarded, or is closed
        stream.write(f"{printable(text)}\n")
        stream.flush()


def urgent(text: str) -> None:
    """Write to standard error past all buffers and locks, from a thread that must not wait for another.

    It is kept in the log afterwards, which may be on a file server that does not answer any more.
    """
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"{printable(text)}\n".encode())
    if _log is None:
        keep(text)
    else:
        briefly(lambda: keep(text))


def briefly(action: Callable[[], object]) -> None:
    """Do what may wait for a file server, and go on without it after a moment: it is left to a thread of its own."""
    thread = threading.Thread(target=action, name="files", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # this process may have no more threads
        action()
    else:
        thread.join(MOMENT)


def screen(**options: Any) -> Console:
    """Return rich's console for tables, on which texts of users mean nothing but themselves: no [markup], no :emoji:.

    Args:
        options: those of rich's own.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


# -- the log -----------------------------------------------------------------------------------------------------------

_held: list[str] = []
_log: int | None = None


def keep(text: str) -> None:
    """Keep lines in the log without printing them; until there is a log, they are held for it."""
    if _log is None:
        if len(_held) < MOST_HELD:
            _held.append(text)
        return
    with suppress(OSError):
        os.write(_log, f"{printable(text)}\n".encode())


def open_log(path: Path, heading: str) -> None:
    """Append to a log from now on: a heading, what was printed so far, and all that will be.

    Args:
        path: the file; it is made where it is missing.
        heading: a line that tells one start of a program from the next.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    global _log
    close_log()
    _log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    keep(heading)
    for text in _held:
        keep(text)
    _held.clear()


def close_log() -> None:
    """Let go of the log; what is printed from now on is held for the next one."""
    global _log
    if _log is not None:
        os.close(_log)
    _log = None
