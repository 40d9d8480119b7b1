"""Writes where every thread of this process is, once a world stands still: so that the cause can be found afterwards.

Each rank writes `stalled-rankNNNN.txt` into the run's folder.
"""

from __future__ import annotations

import faulthandler
import os
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

_folder: Path | None = None


def go_to(folder: Path) -> None:
    """Have stacks written into a folder; before this is called they are not written."""
    global _folder
    _folder = folder


def place() -> str:
    """Return where all ranks' stacks are written, as a pattern of file names; empty if nowhere."""
    return "" if _folder is None else str(_folder / "stalled-rank*.txt")


def write(rank: int, heading: str, patience: float) -> None:
    """Write all stacks of this rank, unless the disk takes longer than `patience` seconds for it.

    Args:
        rank: this process's.
        heading: what is known besides: what it does, and how it fares.
        patience: in seconds.
    """
    if _folder is not None:
        path = _folder / f"stalled-rank{rank:04d}.txt"
        thread = threading.Thread(target=_write, args=(path, heading), name="stacks", daemon=True)
        thread.start()
        thread.join(patience)


def _write(path: Path, heading: str) -> None:
    # Others may write to the folder: a link of this name is not followed, and a pipe does not block.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        file = os.open(path, flags, 0o666)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                os.ftruncate(file, 0)
                text = "\n".join([time.strftime("%Y-%m-%d %H:%M:%S"), heading, "", *threads(), "", ""])
                os.write(file, text.encode(errors="backslashreplace"))
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os.close(file)


def threads() -> list[str]:
    """Return a line for each thread, those of libraries too: its state, the kernel's function it waits in, seconds."""
    lines = ["thread  state  waits in  processor seconds  seconds ready without a processor  name"]
    tick = os.sysconf("SC_CLK_TCK")
    for number in sorted(os.listdir("/proc/self/task"), key=int):
        folder = Path("/proc/self/task") / number
        with suppress(OSError, IndexError, ValueError):  # it has ended
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            where = (folder / "wchan").read_text() or "-"
            delay = int((folder / "schedstat").read_text().split()[1]) / 1e9
            used = (int(fields[11]) + int(fields[12])) / tick
            lines.append(f"{number}  {fields[0]}  {where}  {used:.2f}  {delay:.2f}  {name}")
    return lines
