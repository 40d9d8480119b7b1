"""GPU tests as steps: pytest runs them, and its report is read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu_check.check import Check
from gpu_check.running import ROOT
from gpu_check.training import note_faults
from gpu_check.verdicts import FailedError, SkippedError

TESTS = ROOT / "tests/gpu"
PYTEST_FAILED = 1
OUTCOME = re.compile(r"^\S+::(\S+) ?(PASSED|FAILED|SKIPPED|ERROR)?\b", re.MULTILINE)
"""A test's name in what pytest -v prints as the test begins, and its outcome once it has ended."""

LONGEST = ("test_loader", "test_graphs")
"""Come last: what others find is known by then, should they run into the step's limit."""

ELSEWHERE = ("test_training", "test_transport")
"""Tests of what other steps do themselves."""


def tests(check: Check) -> None:
    """Run the GPU tests of all that other steps leave out: the loader's, above all."""
    if not check.machine.gpus:
        raise SkippedError("no GPU")
    if not check.machine.dali:
        check.finding.words.append("DALI is not installed")
    if not check.machine.pytest:
        raise SkippedError("pytest is not installed: launch/setup --tests")
    for file in sorted(TESTS.glob("test_*.py"), key=order):
        if file.stem not in ELSEWHERE:
            note_faults(check, f"{file.stem}: ", run, check, file)
    ended = list(check.finding.figures.values())
    passed, skipped = sum(found["passed"] for found in ended), sum(len(found["skipped"]) for found in ended)
    check.finding.words.append(f"{passed} tests passed, {skipped} skipped")
    if not passed and not check.finding.faults:
        raise SkippedError("no test could be run")


def order(file: Path) -> tuple[int, str]:
    """Return a key by which files of tests are sorted, those that take longest last."""
    return LONGEST.index(file.stem) + 1 if file.stem in LONGEST else 0, file.stem


def run(check: Check, file: Path) -> None:
    """Run a file of tests, and note what they came to.

    Raises:
        FailedError: a test failed.
    """
    report = check.folder / f"{file.stem}.xml"
    options = ("-p", "no:cacheprovider", "--color=no", "-v", f"--junitxml={report}")
    try:
        ended = check.do(file.stem, "pytest", *options, file, statuses=(0, PYTEST_FAILED))
    except (FailedError, KeyboardInterrupt):  # at the step's limit, or by a signal to the whole check
        check.finding.lines += said(check.folder / f"{file.stem}.log")  # a pytest that is ended writes no report
        raise
    passed, skipped, failed = read(report)
    check.finding.figures[file.stem] = {"passed": passed, "skipped": skipped, "failed": failed}
    check.finding.lines += [f"skipped: {test}: {why}" for test, why in skipped.items()]
    if failed:
        raise FailedError("; ".join(f"{test}: {why}" for test, why in failed.items()), ended.tail)


def said(log: Path) -> list[str]:
    """Return what a pytest that was ended had printed of tests: their names and outcomes, or that one was under way."""
    try:
        printed = log.read_text(errors="replace")
    except OSError:
        return []
    return [f"{test} {outcome or 'was under way'}" for test, outcome in OUTCOME.findall(printed)]


def read(report: Path) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return how many tests of a JUnit report passed, and of those skipped and failed the names and reasons.

    Raises:
        FailedError: it cannot be read.
    """
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise FailedError(f"pytest left no report: {error}") from None
    skipped, failed = {}, {}
    for case in cases:
        name = str(case.get("name"))
        for entry in case:
            why = (entry.get("message") or "").partition("\n")[0]
            if entry.tag == "skipped":
                skipped[name] = why
            elif entry.tag in ("failure", "error"):
                failed[name] = why
    return len(cases) - len(skipped) - len(failed), skipped, failed
