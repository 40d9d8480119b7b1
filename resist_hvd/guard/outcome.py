"""A record of how a run ended, for what started it: a batch script learns more from it than from a launcher's status.

A launcher gives one status for all ranks: 137 where one of them was killed, 143 where it ended the others itself. The
record tells these apart. RESIST_HVD_OUTCOME names its file, on a file system that all ranks share; without the
variable nothing is written. Its first line is "started"; each further line is the exit status that a rank decided on,
and where. A record without a status is that of a run which was ended from outside.
"""

from __future__ import annotations

import os

from resist_hvd.comm.launch import host_name, launched_rank

VARIABLE = "RESIST_HVD_OUTCOME"
LONGEST = 4096
"""Bytes of the record that are read to see whether a rank has decided already."""


def begin() -> None:
    """Note that the program runs; on the first rank alone."""
    if launched_rank() == 0:
        _append("started")


def end(status: int) -> None:
    """Note the exit status that this rank has decided on, unless one is noted already."""
    if not _decided():
        _append(f"{status} rank {launched_rank()} on {host_name()}")


def _decided() -> bool:
    try:
        with open(os.environ.get(VARIABLE, ""), "rb") as record:
            return any(line[:1].isdigit() for line in record.read(LONGEST).splitlines())
    except OSError:
        return False


def _append(line: str) -> None:
    """Write a line at once; a run goes on, or ends, without a record where that is impossible."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.write(record, f"{line}\n".encode())
        finally:
            os.close(record)
    except OSError:
        return
