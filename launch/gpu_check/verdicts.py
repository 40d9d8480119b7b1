"""Verdicts of steps, and what a step has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """PASS, FAIL, or SKIP where a step could not be done."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


class SkippedError(Exception):
    """A step cannot be done on this machine; the message says why."""


class FailedError(Exception):
    """A step cannot go on.

    Args:
        seen: what was seen.
        tail: the last lines that the failed program has printed.
    """

    def __init__(self, seen: str, tail: str = "") -> None:
        super().__init__(seen)
        self.tail = tail


@dataclass
class Finding:
    """Findings of a step so far; it is kept even if the step then fails or is ended.

    Attributes:
        words: the result in a few words, for the step's line.
        figures: by name, for the file of JSON.
        lines: rows printed below the step's line.
        faults: what is wrong; one of them makes the step a FAIL.
        tail: the last lines of the program that failed.
    """

    words: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tail: str = ""


@dataclass(frozen=True)
class Result:
    """A step that is over.

    Attributes:
        seconds: how long it took.
        reason: why it failed or was skipped, empty where it passed.
    """

    number: int
    name: str
    verdict: Verdict
    seconds: float
    reason: str
    finding: Finding

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's own types."""
        plain = asdict(self)
        return {**plain, **plain.pop("finding"), "verdict": str(self.verdict), "seconds": round(self.seconds, 1)}

    def told(self) -> list[str]:
        """Return it in lines for the console."""
        words = "; ".join(filter(None, (self.reason, *self.finding.words)))
        head = f"{self.number:>2} {self.name:<13} {self.verdict}  {self.seconds:5.1f} s  {words}"
        tail = [f"     | {line}" for line in self.finding.tail.splitlines()]
        return [head.rstrip(), *(f"     {line}" for line in self.finding.lines), *tail]
