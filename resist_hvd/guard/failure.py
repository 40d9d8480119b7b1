"""The end of a program that has failed: one message, on all ranks, within seconds, and never status 0."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn

from resist_hvd import console
from resist_hvd.comm.launch import launched_rank
from resist_hvd.errors import Stopped, UserError
from resist_hvd.guard import endings, outcome, starting
from resist_hvd.guard.endings import LOST, STOPPED, say
from resist_hvd.guard.launcher import watch_launcher
from resist_hvd.guard.signals import SignalHandler, ignore_limits

if TYPE_CHECKING:
    from resist_hvd.comm.world import World

INTERNAL_ERROR = 70
"""Exit status for a defect of ours, or of a library, after sysexits' EX_SOFTWARE."""

PATIENCE = 30.0
"""Seconds for which a rank that finds fault before there is a world leaves it to rank 0 to say so: all ranks read the
same flags, and a launcher ends the others once one has ended."""


def run(program: Callable[[], None]) -> None:
    """Run a program's main function and end the process: with one message where it fails, and its status."""
    begin()
    try:
        program()
        end()
    except BaseException as error:
        end_by(error)
        raise


def begin() -> None:
    """Answer signals, and keep a record of how the process ends."""
    console.guard()
    starting.ignore_hangup()
    for number in (signal.SIGUSR2, signal.SIGINT):
        starting.answer(number)
    outcome.begin()


def end() -> None:
    """Note that all work is done: the process is about to end in order."""
    if launched_rank() == 0:
        outcome.end(0)
    _limit_end(0)


def end_by(error: BaseException) -> None:
    """End the process by an exception that nothing has caught; return where it ends by itself.

    A `UserError` that every rank raises (agreed on by `World.agree`, or from before there was a world) is printed by
    rank 0, and all exit; so is `Stopped`. Anything else may have happened on this rank alone, with others waiting for
    it: this rank says where it was, and takes the world down.
    """
    ending = endings.ending
    if isinstance(error, Stopped):
        leave(str(error) if launched_rank() == 0 else "", STOPPED)
    if isinstance(error, UserError):
        # Where MPI has started, ranks have agreed, and end together. Before that rank 0, which speaks, may come to it
        # last, and a launcher would end it as soon as another has ended.
        agreed = error.everywhere and _started_mpi() is not None
        if ending.world is None and launched_rank() > 0 and not agreed:
            time.sleep(PATIENCE)
        if error.everywhere:
            leave(str(error) if launched_rank() == 0 else "", error.exit_status)
        if ending.world is not None or launched_rank() > 0:
            error.where = ", ".join(filter(None, (error.where, ending.whereabouts())))
        take_down(str(error), error.exit_status)
    if isinstance(error, SystemExit):  # after the help, or what the program itself ends with on all ranks
        if ending.status is None:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if status or launched_rank() == 0:
                outcome.end(status)
            _limit_end(status)
    else:
        message = f"{type(error).__name__}: {error} [{ending.whereabouts()}]. {advice()}"
        take_down(message, _status_of(error), details="".join(traceback.format_exception(error)))


def _status_of(error: BaseException) -> int:
    """Return the exit status for an exception that is no mistake of the user's.

    A call among all ranks fails where one of them is gone, or the network is: then a restart helps.
    """
    in_communication = type(error).__module__.startswith(("horovod.", "mpi4py."))
    return LOST if in_communication else INTERNAL_ERROR


def advise(sentence: str) -> None:
    """Set the user's next step if the program ended now: the checkpoint to resume from."""
    endings.ending.advice = sentence


def complete() -> None:
    """Note that the run is done, and need not be stopped for a limit; all ranks call it, then wait for each other."""
    world = endings.ending.world
    if world is not None:
        world.stop.complete = True  # for a signal that is on its way to the thread that answers it
    ignore_limits()


def advice() -> str:
    """Return the user's next step, as the program last set it."""
    return endings.ending.advice


@contextmanager
def printed_once() -> Iterator[None]:
    """Have only rank 0 print what every rank would, before there is a world: the help."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if launched_rank() else nullcontext():
        yield


def watch(world: World) -> None:
    """Have failures tell where `world` was, and answer a signal to end even while a library call blocks.

    All ranks must call it together.
    """
    endings.ending.join(world)
    watch_launcher(world, SignalHandler(world))


def leave(message: str, status: int) -> NoReturn:
    """End this process, all others doing the same; with a message if there is one."""
    endings.ending.begin(status)
    ignore_limits()  # often sent twice: by the scheduler to all processes, and by the launcher that passes it on
    if message:
        say(message)
    endings.ending.reported.set()
    _limit_end(status)
    sys.exit(status)


def _limit_end(status: int) -> None:
    """Limit the time for which this rank waits for the others to end, where there are any."""
    world = endings.ending.world
    if world is not None and world.size > 1:
        starting.limit_end(status)


def take_down(message: str, status: int, details: str = "") -> NoReturn:
    """Report what happened here, unless another rank has reported what happened to it, and end all ranks.

    Args:
        message: what happened.
        status: the exit status.
        details: what to print before it: a traceback.
    """
    ending = endings.ending
    if not ending.begin(status):  # another thread of this rank is about to end it
        ending.reported.wait(timeout=5.0)
        os._exit(ending.status or status)
    world = ending.world
    # What breaks on one rank breaks calls on the others, and what is wrong with all of them need be said only once.
    ending.report(message, 0.0 if world is None or world.is_first else 1.0 + 0.1 * min(world.rank, 20), details)
    ending.reported.set()
    if world is None or world.size == 1:
        _end_mpi(status)
    else:
        world.comm.Abort(status)
    sys.exit(status)


def _started_mpi() -> Any:
    """Return the module of an MPI of several ranks that has started, and not ended; None where there is none."""
    mpi: Any = sys.modules.get("mpi4py.MPI")
    started = mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() and mpi.COMM_WORLD.Get_size() > 1
    return mpi if started else None


def _end_mpi(status: int) -> None:
    """End all ranks of an MPI that has started, while there is no world yet: they may wait for this one."""
    if (mpi := _started_mpi()) is not None:
        mpi.COMM_WORLD.Abort(status)
