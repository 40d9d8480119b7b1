"""Processes that decode images for a rank: what starts them, and what ends them.

They are forked from a server that knows nothing of MPI, never from a rank: a fork of a process that MPI has threads and
memory in may hang or worse. Signals are meant for ranks, but a launcher may send them to every process of a job; so
these processes block them. They end when the rank lets go of its end of a pipe, which its death does too: the server
alone would not notice, for it lives as long as one of them does, and they live as long as the server.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from types import ModuleType, TracebackType
from typing import Self

_FOR_RANKS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals by which launchers, terminals and users tell a run to stop."""


def forked_from_a_server(preload: str) -> ForkServerContext:
    """A context of multiprocessing whose processes are forked from a server that has a module loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


@contextmanager
def starting_processes() -> Iterator[None]:
    """While processes are started: they, and the server, inherit blocked signals and do not import the main program.

    They need nothing of it. It may be one that cannot be imported, having come from standard input, or one that would
    start everything again.
    """
    main = sys.modules["__main__"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_RANKS)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        resource_tracker.ensure_running()
        # Starting the tracker unblocks some again.
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_RANKS)
        forkserver.ensure_running()
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Tether:
    """Ends processes once it is left, or this process has died.

    Args:
        context: of multiprocessing, that starts them.
    """

    def __init__(self, context: ForkServerContext) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)

    def __enter__(self) -> Self:
        # Without this, a program that ends with a loader open would wait for its processes.
        atexit.register(self._writer.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        atexit.unregister(self._writer.close)
        self._writer.close()
        self._reader.close()

    @property
    def end(self) -> "TetheredEnd":
        """Callable that each process is to call as it begins."""
        return TetheredEnd(self._reader)


class TetheredEnd:
    """The end of a tether that a process holds."""

    def __init__(self, reader: Connection) -> None:
        self._reader = reader

    def __call__(self, number: int = 0) -> None:
        """Have this process end with the tether, whatever it is doing, and leave signals to ranks."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_RANKS)
        threading.Thread(target=self._wait, name="waiting for the rank's end", daemon=True).start()

    def _wait(self) -> None:
        try:
            self._reader.poll(None)
        finally:
            os._exit(1)
