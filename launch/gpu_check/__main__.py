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
from gpu_check.running import OVER, end_all
from gpu_check.steps import LOOKING, STEPS, choose, look, make
from gpu_check.verdicts import FailedError, Result, Verdict

FAILED = 1
USERS_MISTAKE = 2
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
        "--seconds", type=_count, default=86400, metavar="N", help="limit of all steps together (default: their own)"
    )
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
    given = parse_flags(arguments)
    if given.images is not None and not given.images.is_dir():
        print(f"launch/gpu-check: there is no folder {given.images}; give one by --images DIR", file=sys.stderr)
        return USERS_MISTAKE
    more = ["--dali"] if given.dali else []
    if given.pack is not None:
        return setup("--pack", given.pack, *more)
    if given.offline is not None or given.dali or not PYTHON.is_file():
        pack = ["--offline", given.offline] if given.offline is not None else []
        if status := setup(*pack, *more):
            return status
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # programs that hang are told to say where, and abort
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        return check(given)
    except KeyboardInterrupt as signalled:
        print(f"launch/gpu-check: ended by {signalled}; all that it had started is gone", file=sys.stderr)
        return 128 + signal.SIGINT


def setup(*flags: str | Path) -> int:
    """Run launch/setup and return its status."""
    return subprocess.run([LAUNCH / "setup", *flags], check=False).returncode


def interrupted(number: int, frame: object) -> NoReturn:
    """End all programs, and then this one; threads that wait for programs go on for that."""
    OVER.set()
    end_all()
    raise KeyboardInterrupt(signal.Signals(number).name)


def check(given: argparse.Namespace) -> int:
    """Make the steps and tell what they came to; return the exit status."""
    began = time.monotonic()
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
    common = Check(machine, ranks=ranks, folder=folder, limit=LOOKING, images=images)
    for result in make(given.steps, common, folder, given.seconds):
        results.append(result)
        print("\n".join(result.told()), flush=True)
        if given.json is not None:
            write(given.json, machine, ranks, results, complete=len(results) == len(given.steps))
    failed = sum(result.verdict is Verdict.FAIL for result in results)
    counts = ", ".join(f"{sum(r.verdict is v for r in results)} {v}" for v in Verdict)
    print(f"{counts}; {time.monotonic() - began:.0f} s{f'; logs in {folder}' if failed or given.logs else ''}")
    if not failed and given.logs is None:
        shutil.rmtree(folder)
    return FAILED if failed else 0


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
