"""The ten steps, and how they are made one after another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_check import looking, measuring, suites, training
from gpu_check.check import Check
from gpu_check.machine import Machine
from gpu_check.running import OVER, end_all
from gpu_check.verdicts import FailedError, Finding, Result, SkippedError, Verdict

LOOKING = 60.0
"""Seconds in which the machine must have been looked at."""

WITHOUT_GPU = 10.0
"""Times its limit that a step may take without a GPU, on CPUs that may be few and busy."""

TOO_LITTLE = 5.0
"""Seconds with which no step is begun."""


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        limit: seconds that it may take: two to three times what it took on one H100 and 16 cores. (Step 5 waits up to a
            minute for ranks that do not end.)
        act: makes it, and notes what it finds.
    """

    number: int
    name: str
    meaning: str
    limit: float
    act: Callable[[Check], None]


STEPS = (
    Step(1, "facts", "driver, CUDA, GPUs, NCCL, JPEG engines, compiler, cores", 10, looking.facts),
    Step(2, "horovod", "Horovod averages GPU memory rightly, on one rank", 20, looking.horovod),
    Step(3, "ranks", "averages and exchanges among ranks, on every way", 60, looking.ranks),
    Step(4, "training", "CPU and GPU train alike; one network in fp32 and bf16", 90, training.same),
    Step(5, "stop", "stopped and resumed; a rank killed", 90, training.stop),
    Step(6, "compile", "--compile: eager's losses, each network compiled once", 120, training.compiled),
    Step(7, "tests", "GPU tests: DALI's pixels, damaged files, memory; graphs; clocks", 300, suites.tests),
    Step(8, "throughput", "images/s of ResNet-50 and -101, of the loader", 500, measuring.throughput),
    Step(9, "synchronise", "a synchronisation of ResNet-101", 20, measuring.synchronise),
    Step(10, "demonstration", "the embedded demonstration, at least 95 %", 50, measuring.demonstration),
)


def choose(words: str) -> tuple[Step, ...]:
    """Return the steps of a list of numbers, ranges and names, such as "1,2,4-6,dali", in their order.

    Raises:
        ValueError: there is no such step.
    """
    chosen: set[int] = set()
    for word in filter(None, (word.strip() for word in words.split(","))):
        first, dash, last = word.partition("-")
        named = [step.number for step in STEPS if step.name == word]
        if first.isdecimal() and (last.isdecimal() if dash else not last):
            named = list(range(int(first), int(last or first) + 1))
        if not named or not set(named) <= {step.number for step in STEPS}:
            raise ValueError(f"there is no step {word!r}; give numbers from 1 to {len(STEPS)}, or names")
        chosen.update(named)
    if not chosen:
        raise ValueError("no step is named")
    return tuple(step for step in STEPS if step.number in chosen)


def look(check: Check) -> Machine:
    """Return what the machine has.

    Raises:
        FailedError: its installation cannot be asked.
    """
    return Machine.of(check.ask("machine", "facts"))


def make(steps: Sequence[Step], check: Check, folder: Path, seconds: float) -> Iterator[Result]:
    """Make steps, each in a folder of its own, and yield what each came to; the last is one that a signal has ended.

    Args:
        steps: which.
        check: what they have in common.
        folder: for their folders.
        seconds: that all of them may take.
    """
    began = time.monotonic()
    for step in steps:
        if OVER.is_set():
            return
        left = seconds - (time.monotonic() - began)
        if left < TOO_LITTLE:
            yield Result(step.number, step.name, Verdict.SKIP, 0.0, "no time is left for it", Finding())
            continue
        limit = step.limit * (1.0 if check.machine.gpus else WITHOUT_GPU)
        own = Path(tempfile.mkdtemp(prefix=f"{step.number}-{step.name}-", dir=folder))
        yield make_one(
            step,
            replace(check, folder=own, limit=min(limit, left), finding=Finding(), began=time.monotonic()),
        )


def make_one(step: Step, check: Check) -> Result:
    """Make a step; whatever happens in it, nothing that it has started is left."""
    finding, reason, verdict = check.finding, "", Verdict.PASS
    try:
        step.act(check)
    except KeyboardInterrupt as signalled:
        finding.faults.append(f"ended by {signalled}")
    except SkippedError as skipped:
        reason, verdict = str(skipped), Verdict.SKIP
    except FailedError as failure:
        finding.faults.append(str(failure))
        finding.tail = finding.tail or failure.tail
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:  # of an answer of another shape
        finding.faults.append(f"{type(error).__name__}: {error}")
    finally:
        end_all()
    if finding.faults:
        reason, verdict = "; ".join(finding.faults), Verdict.FAIL
    return Result(step.number, step.name, verdict, time.monotonic() - check.began, reason, finding)
