"""A rank is sent a signal at some moment of a run: the run ends, says why, and is resumed to the same end, bit for bit.

How many kills, from which seed, is on the command line; `launch/test --only chaos --help` says how.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..launch import runs
from . import tally, verdicts
from .dealing import ANY, FINISHING, Kill
from .settings import LONGEST, Setting

WATCHDOG = 10
"""Seconds after which a paused rank counts as lost; a minute, where it never was in."""

SLOWEST = 60.0 + 90.0
"""Seconds within which all ranks must be gone, on a machine that has much else to do."""

pytestmark = pytest.mark.timeout(900)


def test_kill(
    kill: Kill,
    data: Path,
    reference: Callable[[Setting], tuple[Path, float]],
    tmp_path: Path,
    outcomes: list[tally.Outcome],
    keep: Callable[[str, str], None],
) -> None:
    whole, seconds = reference(kill.setting)
    outcome = tally.Outcome(kill.number, str(kill.setting), kill.rank, kill.signal.name[3:], kill.moment.name)
    outcomes.append(outcome)
    folder = tmp_path / "run"
    arguments = [*kill.setting.arguments(data), "--output", folder]
    try:
        ended = killed(kill, arguments, seconds, tmp_path / "told", outcome)
        outcome.status, outcome.seconds = ended.status, ended.seconds
        outcome.faults += verdicts.faults_of_end(kill, ended, folder, whole)
        said = str(ended)
        if kill.twice:
            outcome.again = cut_short(going_on(kill, folder, arguments), kill, seconds)
            outcome.faults += verdicts.half_written(folder, whole)
    except runs.HangsError as error:
        outcome.hung, said = True, str(error)
    except runs.LeftBehindError as error:
        outcome.orphans, said = True, str(error)
    resumed = runs.run(
        *going_on(kill, folder, arguments),
        ranks=kill.setting.ranks,
        program=kill.setting.program,
        limit=LONGEST,
        **kill.setting.variables,
    )
    outcome.unequal += verdicts.differences(folder, whole) if resumed.status == 0 else ["it cannot be resumed"]
    whole_story = f"{said}\n-- resumed\n{resumed}"
    if outcome.wrong:
        keep(f"kill-{kill.number:04d}.txt", f"{kill}: {'; '.join(outcome.wrong)}\n{whole_story}\n")
    assert not outcome.wrong, whole_story


def going_on(kill: Kill, folder: Path, arguments: list[str | Path]) -> list[str | Path]:
    """Return the flags that go on with a run: what it trains, it knows itself, once it has begun."""
    begun = ["--output", folder] if (folder / "config.yaml").exists() else arguments
    # One that has finished would go on beyond its number of rounds; one that has not must keep that number by itself.
    if (folder / "summary.json").exists() and "max_rounds" in kill.setting.flags:
        begun = [*begun, f"--max_rounds={kill.setting.flags['max_rounds']}"]
    patient = ["--watchdog=60"] if kill.signal == signal.SIGSTOP else []  # the one it had is short for a busy machine
    return [*begun, *patient, "--resume"]


def killed(kill: Kill, arguments: list[str | Path], seconds: float, told: Path, outcome: tally.Outcome) -> runs.Ended:
    """Start a run, have its rank sent the signal at the kill's moment, and return how it ended.

    Args:
        kill: what is done to it.
        arguments: its flags.
        seconds: how long it would take, left alone.
        told: where the rank says that the moment has come.
        outcome: where it is noted whether it did.
    """
    setting, delay = kill.setting, kill.share * kill.moment.longest
    outside = kill.moment in (ANY, FINISHING)
    aim = {
        "rank": kill.rank,
        "begins": kill.moment.begins,
        "time": kill.time,
        "delay": delay,
        "signal": 0 if outside else int(kill.signal),
        "told": str(told),
    }
    flags = [f"--watchdog={WATCHDOG}"] if kill.signal == signal.SIGSTOP else []
    with runs.started(
        *arguments,
        *flags,
        ranks=setting.ranks,
        program=setting.program,
        RESIST_HVD_AIM=json.dumps(aim),
        **setting.variables,
    ) as running:
        if kill.moment == ANY:
            time.sleep(kill.share * seconds)
            wait_until_begun(running, kill)
        else:
            while not told.exists() and running.process.poll() is None and time.monotonic() - running.since < LONGEST:
                time.sleep(0.005)
            if kill.moment == FINISHING:
                time.sleep(delay)
        if outside:
            running.signalled()
            outcome.sent = send(running, kill.rank, kill.signal)
        elif told.exists():
            outcome.sent, running.since = True, float(told.read_text())
        ended = end_of(running, SLOWEST if outcome.sent else LONGEST)
    if not outcome.sent and (not outside or ended.status != 0):
        outcome.faults.append("the moment never came")
    return ended


def wait_until_begun(running: runs.Running, kill: Kill) -> None:
    """Wait until the rank has begun to import the package: before, Python answers signals, or the kernel."""
    while running.process.poll() is None and time.monotonic() - running.since < LONGEST:
        with contextlib.suppress(KeyError, OSError):
            process = Path("/proc", str(running.rank(kill.rank)))
            caught = re.search(r"SigCgt:\s*(\w+)", (process / "status").read_text())
            answers = caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1
            if answers or "libtorch" in (process / "maps").read_text():
                return
        time.sleep(0.02)


def send(running: runs.Running, rank: int, number: signal.Signals) -> bool:
    """Send a rank a signal; return whether it was there to get it."""
    try:
        os.kill(running.rank(rank), number)
    except (KeyError, OSError):  # it has not started, or has ended
        return False
    return True


def end_of(running: runs.Running, limit: float) -> runs.Ended:
    """Return how a run ended; one that hangs first says where its ranks are."""
    try:
        running.process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        for pid in running.ranks().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(3)
    return running.end(limit=1, patience=30)


def cut_short(arguments: list[str | Path], kill: Kill, seconds: float) -> bool:
    """Go on with a run, and kill one of its ranks at any time; return whether there was one."""
    setting = kill.setting
    with runs.started(*arguments, ranks=setting.ranks, program=setting.program, **setting.variables) as running:
        time.sleep((1 - kill.share) * seconds)
        sent = send(running, max(running.ranks(), default=0), signal.SIGKILL)
        running.end(limit=LONGEST)
    return sent
