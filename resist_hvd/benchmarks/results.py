"""The file that a benchmark's measurements are written to, where `--json` names one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resist_hvd.errors import UserError


def check(path: Path | None) -> None:
    """See that a file can be written, before minutes are spent on what goes into it.

    Raises:
        UserError: it cannot.
    """
    if path is not None:
        with _told(path):
            path.open("a").close()


def write(path: Path | None, measurements: Any) -> None:
    """Write measurements as JSON, if there is a file for them.

    Raises:
        UserError: it cannot be written.
    """
    if path is not None:
        with _told(path):
            path.write_text(json.dumps(measurements, indent=2) + "\n")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        seen = f"Cannot write the measurements: {os.strerror(error.errno or 0)}"
        raise UserError(seen, where=str(path), mend="Give --json a file that can be written.") from None
