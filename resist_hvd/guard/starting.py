"""Guard of a program where no watchdog looks: while modules are imported, and while MPI and Horovod start, or end.

A process can do little then. While modules are imported, Python's handlers answer signals. While MPI starts or ends, no
other thread of Python runs: so a limit is kept by a process of its own (`start_limit`), which says what it sees and
gives a word on which the C library ends this process with the right status. A timer of the kernel's ends it much later
where that process cannot run; the timer knows nothing of the time in which a job was suspended.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from resist_hvd.comm.launch import host_name, launched_by_mpi, launched_rank
from resist_hvd.guard import endings, outcome, reaper, start_limit
from resist_hvd.guard.endings import LOST, STOPPED
from resist_hvd.guard.judging import LONG_LIMIT, SHORTEST

TURN = 1.0
"""Seconds for which a rank that is told to stop leaves the word to rank 0, mostly told, too."""

NOTE = 120.0
"""Seconds after which rank 0 says whom it waits for."""

ENDING = 60.0
"""Seconds that all ranks may take to end once their work is done, and all is written."""

SPARE = 60.0
"""Seconds beyond twice a limit after which the kernel's timer ends this process."""


def begin() -> None:
    """Answer signals from now on, before anything heavy is imported; `failure.watch` takes over."""
    ignore_hangup()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        answer(number)


def answer(number: int) -> None:
    """Have a signal that is not ignored end this process at once."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, _end_early)


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries within it, and spare Python the search for garbage among their objects, now and at its end.

    They stay for as long as the process does. It saves a tenth of the processor time of PyTorch's import, and two
    thirds of that of Python's end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def ignore_hangup() -> None:
    """Have the program go on where its terminal is closed, as under `nohup`; what it prints is dropped then."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end_early(number: int, _: object) -> NoReturn:
    """End at once: there is nothing to save.

    Libraries may be half loaded. Other ranks may wait for this one in MPI, which would wait for them if this one ended
    in order.
    """
    if launched_rank() > 0:
        time.sleep(TURN)
    status = STOPPED if number == signal.SIGUSR2 else 128 + number
    # A launcher sends TERM to all others once a rank has ended, and that one has said why.
    speaks = number != signal.SIGTERM or launched_rank() == 0
    if endings.ending.begin(status) and speaks:
        name = signal.Signals(number).name.removeprefix("SIG")
        endings.say(f"Stopped by {name} before anything was begun. Start it again.")
    os._exit(status)


def limit_of(watchdog: float | None) -> float:
    """Return the seconds in which all ranks must be in: half an hour, or what was asked for, if that is a minute.

    Args:
        watchdog: the seconds without progress that the user asked for, None for the default, 0 for none: 0 then.
    """
    if watchdog is None:
        return LONG_LIMIT
    return max(watchdog, SHORTEST) if watchdog > 0 else 0.0


@contextmanager
def limited(watchdog: float | None = None) -> Iterator[None]:
    """Have this process, started by a launcher, end with status 69 if a step takes too long: until all ranks are in.

    Args:
        watchdog: as of `limit_of`.
    """
    if signal.getsignal(signal.SIGTERM) is _end_early:  # no handler of Python's runs while MPI starts
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seconds = limit_of(watchdog)
    if seconds == 0 or not launched_by_mpi(os.environ):
        yield
        return
    rank = launched_rank()
    # The lowest rank that waits speaks; where one has ended, a launcher ends the others.
    speaks = 0.3 + 0.15 * min(rank, 20) if rank else 0.0
    helper = _start_helper(rank, seconds, speaks, note=NOTE if rank == 0 else 0.0)
    timer = ExitTimer(2 * seconds + speaks + SPARE, LOST)
    try:
        yield
    finally:
        timer.cancel()
        if helper is not None:
            process, pipe, word = helper
            word.cancel()
            os.close(pipe)
            threading.Thread(target=process.wait, name="start limit", daemon=True).start()


def limit_end(status: int) -> None:
    """Have this process, one of several, end within a minute: MPI waits for all ranks then, without a limit.

    Args:
        status: the one that it would end with; 69 in the place of 0.
    """
    if launched_by_mpi(os.environ):
        rank = launched_rank()
        speaks = 0.3 + 0.15 * min(rank, 20) if rank else 0.0
        _start_helper(rank, ENDING, speaks, status=status or LOST, ending=True)
        ExitTimer(2 * ENDING + speaks + SPARE, status or LOST)


def _start_helper(
    rank: int, seconds: float, speaks: float, *, note: float = 0.0, status: int = LOST, ending: bool = False
) -> tuple[subprocess.Popen[bytes], int, ExitOnWord] | None:
    """Return the program that keeps a limit, what must be closed to end it before, and what ends this process.

    This process's end closes it, too.
    """
    settings = {
        "rank": rank,
        "host": host_name(),
        "process": os.getpid(),
        "launcher": os.getppid(),
        "seconds": seconds,
        "note": note,
        "speaks": speaks,
        "record": "" if ending else os.environ.get(outcome.VARIABLE, ""),
        "status": status,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()] + (["--ending"] if ending else [])
    then = reaper.arguments()
    program = [
        sys.executable,
        "-I",
        "-S",
        str(Path(start_limit.__file__)),
        *flags,
        *(["--then", *then] if then else []),
    ]
    # No file of Python's: that would be closed while the interpreter ends, before MPI does.
    its_end, pipe = os.pipe()
    try:
        # A launcher ends this rank's whole process group.
        word = ExitOnWord(status)
        return subprocess.Popen(program, stdin=its_end, stdout=word.pipe, start_new_session=True), pipe, word
    except OSError:
        os.close(pipe)
        return None
    finally:
        os.close(its_end)


class _Event(ctypes.Structure):
    """`struct sigevent` of 64-bit Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: seconds and nanoseconds of the interval, and of the first time."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every", "every_ns", "first", "first_ns"))


class _Request(ctypes.Structure):
    """`struct aiocb` of 64-bit glibc; its own fields follow the event, and after it is room for what is read."""

    _fields_ = (
        ("descriptor", ctypes.c_int),
        ("operation", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("event", _Event),
        ("rest", ctypes.c_char * 256),
        ("read", ctypes.c_char * 8),
    )


class ExitOnWord:
    """Ends this process once anything is written to a pipe, by a thread of the C library's that needs no Python.

    With another C library than glibc nothing happens: `start_limit` kills the process a little later.

    Args:
        status: the exit status.

    Attributes:
        pipe: the end to write to. It stays open here, so that the end of another writer is no word.
    """

    def __init__(self, status: int) -> None:
        self._request: _Request | None = None
        # The end to read from is never closed: a thread may be about to read, and its number would be another file's.
        descriptor, self.pipe = os.pipe()
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.gnu_get_libc_version()
            leave = ctypes.cast(library._exit, ctypes.c_void_p).value
            event = _Event(value=status, notify=BY_THREAD, function=leave)
            request = _Request(descriptor=descriptor, bytes=1, event=event)
            request.buffer = ctypes.addressof(request) + _Request.read.offset
            # The C library goes on using it after Python has ended, which MPI does not before: it is never freed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(request))
            if library.aio_read(ctypes.byref(request)) == 0:
                self._request = request

    def cancel(self) -> None:
        """Have the process go on, whatever is written."""
        if self._request is not None:
            self._request.event.notify = NOT_AT_ALL


NOT_AT_ALL, BY_THREAD = 1, 2
"""`SIGEV_NONE` and `SIGEV_THREAD`."""


class ExitTimer:
    """Ends this process after some seconds, by a thread that the C library starts and that needs no Python.

    Where the C library has no such timers, nothing happens: `start_limit` kills the process a little later.

    Args:
        seconds: from now.
        status: the exit status.
    """

    def __init__(self, seconds: float, status: int) -> None:
        self._timer: ctypes.c_void_p | None = None
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            create, settime, self._delete = library.timer_create, library.timer_settime, library.timer_delete
            monotonic = 1
            leave = ctypes.cast(library._exit, ctypes.c_void_p).value
            event = _Event(value=status, notify=BY_THREAD, function=leave)
            timer = ctypes.c_void_p()
            if create(monotonic, ctypes.byref(event), ctypes.byref(timer)) == 0:
                times = _Times(first=int(seconds), first_ns=int(seconds % 1 * 1e9) or 1)
                settime(timer, 0, ctypes.byref(times), None)
                self._timer = timer

    def cancel(self) -> None:
        """Have the process go on."""
        if self._timer is not None:
            self._delete(self._timer)
            self._timer = None
