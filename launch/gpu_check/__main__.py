"""What launch/gpu-check does: install if needed, look at the machine, make the steps, tell what they came to."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gpu_check.check import LAUNCH, PYTHON, Check
from gpu_check.machine import Machine
from gpu_check.running import MARK, OVER, SESSION, end_all, guard
from gpu_check.steps import LOOKING, STEPS, Step, choose, look, make
from gpu_check.verdicts import FailedError, Result, Verdict

FAILED = 1
USERS_MISTAKE = 2
INTERRUPTED = 128 + signal.SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORMAT = 1


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags of launch/gpu-check."""
    parser = argparse.ArgumentParser(
        prog="launch/gpu-check",
        description="Check in ten steps that this machine's GPUs are used rightly, and measure how fast. Each step "
        "prints PASS, FAIL or SKIP, and goes on after one that failed; the status is 1 if any did. Without a GPU, what "
        "can be done on CPUs is.",
        epilog="steps: " + "; ".join(f"{step.number} {step.name} ({step.meaning})" for step in STEPS),
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=_count, metavar="N", help="ranks of each world (default: 4, on few cores 2)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="train and val of ImageNet, for the loader to read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, anew after each step")
    parser.add_argument("--steps", type=_steps, default=STEPS, metavar="LIST", help="as in 1,2,8 or 1-5,tests")
    parser.add_argument(
        "--seconds", type=_count, default=86400, metavar="N", help="limit of everything (default: the steps' own)"
    )
    parser.add_argument("--need-gpu", action="store_true", help="fail, and make no step, where no GPU can be used")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep all that programs print in this folder")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="as launch/setup --pack DIR, and no step")
    parser.add_argument("--offline", type=Path, metavar="DIR", help="first install by launch/setup --offline DIR")
    parser.add_argument("--dali", action="store_true", help="have launch/setup install, or pack, NVIDIA DALI as well")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _steps(text: str) -> object:
    try:
        return choose(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str]) -> int:
    """Check what the flags ask for, and return the exit status."""
    began = time.monotonic()
    given = parse_flags(arguments)
    if given.images is not None and not given.images.is_dir():
        print(f"launch/gpu-check: there is no folder {given.images}; give one by --images DIR", file=sys.stderr)
        return USERS_MISTAKE
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # programs that hang are told to say where, and abort
    for number in SIGNALS:
        signal.signal(number, interrupted)
    guarding = guard()
    try:
        return install(given, began) or (0 if given.pack is not None else check(given, began))
    except KeyboardInterrupt as signalled:
        print(f"launch/gpu-check: ended by {signalled}; all that it had started is gone", file=sys.stderr)
        return INTERRUPTED
    finally:
        guarding.communicate()  # it reads to the end of its input, and ends


def install(given: argparse.Namespace, began: float) -> int:
    """Have launch/setup pack or install what the flags ask for, if anything; return its status."""
    more = ["--dali"] if given.dali else []
    left = given.seconds - (time.monotonic() - began)
    if given.pack is not None:
        return setup("--pack", given.pack, *more, seconds=left)
    if given.offline is not None or given.dali or not PYTHON.is_file():
        pack = ["--offline", given.offline] if given.offline is not None else []
        return setup(*pack, *more, seconds=left)
    return 0


def setup(*flags: str | Path, seconds: float) -> int:
    """Run launch/setup for so long at most, and return its status."""
    process = subprocess.Popen([LAUNCH / "setup", *flags], env={**os.environ, MARK: SESSION})
    try:
        return process.wait(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        end_all()
        process.wait()
        print("launch/gpu-check: launch/setup was not done within --seconds, and was ended", file=sys.stderr)
        return FAILED


def interrupted(number: int, frame: object) -> NoReturn:
    """End all programs, and then this one; threads that wait for programs go on for that."""
    for more in SIGNALS:  # `timeout` sends its signal twice: to this process, and to all of its group
        signal.signal(more, signal.SIG_IGN)
    OVER.set()
    end_all()
    raise KeyboardInterrupt(signal.Signals(number).name)


def check(given: argparse.Namespace, began: float) -> int:
    """Make the steps and tell what they came to; return the exit status.

    Args:
        given: the flags.
        began: when the command did, by the monotonic clock.
    """
    if given.logs is not None:
        given.logs.mkdir(parents=True, exist_ok=True)
    folder = Path(given.logs or tempfile.mkdtemp(prefix="resist-hvd-gpu-check-")).resolve()
    try:
        machine = look(Check(Machine(), ranks=1, folder=folder, limit=LOOKING))
    except FailedError as failure:
        print(f"launch/gpu-check: {failure}\n{failure.tail}", file=sys.stderr)
        return FAILED
    ranks = given.ranks or (4 if machine.gpus or machine.cores >= 4 else 2)
    print(machine.headline, flush=True)
    images = None if given.images is None else given.images.resolve()
    results: list[Result] = []
    common = Check(machine, ranks=ranks, folder=folder, limit=LOOKING, images=images, needs_gpu=given.need_gpu)
    # Without the GPU that is needed, the facts alone, which then fail.
    chosen = STEPS[:1] if given.need_gpu and not machine.gpus else given.steps
    for result in make(chosen, common, folder, given.seconds - (time.monotonic() - began)):
        results.append(result)
        print("\n".join(result.told()), flush=True)
        if given.json is not None:
            write(given.json, machine, ranks, results, complete=is_complete(results, given.steps))
    failed = sum(result.verdict is Verdict.FAIL for result in results)
    counts = ", ".join(f"{sum(r.verdict is v for r in results)} {v}" for v in Verdict)
    print(f"{counts}; {time.monotonic() - began:.0f} s{f'; logs in {folder}' if failed or given.logs else ''}")
    if not failed and given.logs is None:
        shutil.rmtree(folder)
    if OVER.is_set():
        print(f"launch/gpu-check: {results[-1].reason}; all that it had started is gone", file=sys.stderr)
        return INTERRUPTED
    return FAILED if failed else 0


def is_complete(results: Sequence[Result], steps: Sequence[Step]) -> bool:
    """Return whether the steps are all made, none having been ended by a signal."""
    return [result.number for result in results] == [step.number for step in steps] and not OVER.is_set()


def write(file: Path, machine: Machine, ranks: int, results: Sequence[Result], *, complete: bool) -> None:
    """Write what is known so far, whole or not at all."""
    known: dict[str, Any] = {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine.to_json(),
        "ranks": ranks,
        "complete": complete,
        "steps": [result.to_json() for result in results],
    }
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(known, indent=1) + "\n")
    os.replace(partial, file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
