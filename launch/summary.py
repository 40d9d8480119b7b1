"""Print what launch/test has run: a line for each suite and world, then one line for all. Its status tells of failures.

Every rank of a world writes a report. A test has failed there if it failed on any rank.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PYTEST_NO_TESTS = 5
OUTCOMES = ("passed", "failed", "skipped")


@dataclass
class Result:
    """Results of one suite's tests in one world.

    Attributes:
        title: the suite, and for the parallel one the number of ranks.
        outcomes: "passed", "failed" or "skipped" for each test by its name.
        seconds: the duration, of the slowest rank.
        faults: what to know about failures, a line each.
    """

    title: str
    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def read(self, report: Path, where: str) -> None:
        """Add one rank's report.

        Args:
            report: a file in the JUnit format, as pytest writes it.
            where: whose it is, for messages.
        """
        try:
            suite = next(ElementTree.parse(report).iter("testsuite"))
        except (OSError, ElementTree.ParseError, StopIteration):
            self.fault(f"report{where}", f"pytest left no report{where}: it died, or was ended")
            return
        self.seconds = max(self.seconds, float(suite.get("time", "0")))
        for case in suite.iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            failure = next((child for child in case if child.tag in ("failure", "error")), None)
            if failure is not None:
                self.fault(name, f"{name}{where}: {(failure.get('message') or '').partition(chr(10))[0]}")
            elif self.outcomes.get(name) != "failed":
                self.outcomes[name] = "skipped" if case.find("skipped") is not None else "passed"

    def fault(self, name: str, line: str) -> None:
        """Count something as failed."""
        self.outcomes[name] = "failed"
        self.faults.append(line)

    def counts(self) -> Counter[str]:
        """Return how many tests came to what."""
        return Counter(self.outcomes.values())


def read_results(folder: Path) -> list[Result]:
    """Return the results of all suites in a folder that launch/test has filled, in the order they ran in."""
    results = []
    for status_file in sorted(folder.glob("*.status"), key=lambda file: file.stat().st_mtime_ns):
        name = status_file.stem
        world = re.fullmatch(r"parallel-(\d+)", name)
        if world is None:
            result = Result(name)
            result.read(folder / f"{name}.xml", "")
        else:
            ranks = int(world[1])
            result = Result(f"parallel, {ranks} rank{'s' if ranks > 1 else ''}")
            for rank in range(ranks):
                result.read(folder / f"{name}-rank{rank}.xml", f" on rank {rank}")
        status = int(status_file.read_text())
        if status not in (0, PYTEST_NO_TESTS) and not result.faults:
            result.fault("status", f"pytest or its launcher ended with status {status}")
        results.append(result)
    return results


def main(folder: Path) -> int:
    """Print the summary of a folder, and return the exit status: 1 if anything failed, or nothing ran."""
    results = read_results(folder)
    total: Counter[str] = Counter()
    print("\n== Summary")
    for result in results:
        counts = result.counts()
        total += counts
        words = ", ".join(f"{counts[outcome]:4d} {outcome}" for outcome in OUTCOMES)
        print(f"{result.title:<18} {words}   {result.seconds:6.1f} s")
        for line in result.faults:
            print(f"    {line}")
    if total["failed"]:
        print(f"The reports are in {folder}")
    print(", ".join(f"{total[outcome]} {outcome}" for outcome in OUTCOMES))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
