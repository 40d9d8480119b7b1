"""Processes that keep cores busy beside what is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""


class Spinners:
    """So many processes that do nothing but keep the cores of this one busy, and stand still until they are told to.

    None outlives this process by more than a moment.
    """

    def __init__(self, number: int, cores: frozenset[int]) -> None:
        words = [str(os.getpid()), ",".join(map(str, sorted(cores)))]
        self._processes = [
            subprocess.Popen([sys.executable, "-S", "-c", SPIN, *words], stdin=subprocess.DEVNULL)
            for _ in range(number)
        ]
        self._send(signal.SIGSTOP)

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have them spin for a while."""
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def __enter__(self) -> Spinners:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
