"""What a campaign came to: a table for people, and a file for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass
class Outcome:
    """What one kill came to.

    Attributes:
        number: of the kill.
        setting, rank, signal, moment: which kill it was.
        sent: whether the signal was sent: some runs end before their moment.
        again: whether the run that went on was killed once more.
        status: the launcher's, None where it hung.
        seconds: from the signal to the end.
        hung, orphans: whether it did not end, and whether processes outlived it.
        faults: what else was wrong with its end.
        unequal: how the run that was resumed to its end differs from the one that was left alone.
    """

    number: int
    setting: str
    rank: int
    signal: str
    moment: str
    sent: bool = False
    again: bool = False
    status: int | None = None
    seconds: float = 0.0
    hung: bool = False
    orphans: bool = False
    faults: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """All that is wrong with it."""
        return [*(["hung"] if self.hung else []), *(["orphans"] if self.orphans else []), *self.faults, *self.unequal]


def table(outcomes: Sequence[Outcome], key: Callable[[Outcome], str], title: str) -> list[str]:
    """Return a table of outcomes, a line for each value of `key`, and one for all of them."""
    groups = {name: [o for o in outcomes if key(o) == name] for name in sorted({key(o) for o in outcomes})}
    heads = (
        f"{'kills':>5} {'sent':>5} {'median s':>9} {'max s':>7} {'hung':>5} {'orphans':>8} {'faults':>7} {'unequal':>8}"
    )
    lines = [f"{title:<26} {heads}"]
    for name, group in [*groups.items(), ("all", list(outcomes))]:
        seconds = [outcome.seconds for outcome in group if outcome.sent and not outcome.hung] or [0.0]
        lines.append(
            f"{name:<26} {len(group):>5} {sum(o.sent for o in group):>5} {median(seconds):>9.1f} {max(seconds):>7.1f} "
            f"{sum(o.hung for o in group):>5} {sum(o.orphans for o in group):>8} "
            f"{sum(bool(o.faults) for o in group):>7} {sum(bool(o.unequal) for o in group):>8}"
        )
    return lines


def summary(outcomes: Sequence[Outcome], seed: int) -> str:
    """Return what a campaign came to, in some lines."""
    kills = f"{len(outcomes)} kill{'s' if len(outcomes) != 1 else ''}"
    again = sum(outcome.again for outcome in outcomes)
    lines = [f"{kills} of seed {seed}, {again} runs killed once more; seconds from the signal to the end of all ranks"]
    for key, title in (
        (lambda o: o.signal, "signal"),
        (lambda o: o.moment, "moment"),
        (lambda o: o.setting, "setting"),
    ):
        lines += ["", *table(outcomes, key, title)]
    bad = [outcome for outcome in outcomes if outcome.wrong]
    if bad:
        lines.append("")
    for o in bad:
        lines.append(f"kill {o.number}: {o.setting}, rank {o.rank}, {o.signal}, {o.moment}: {'; '.join(o.wrong)}")
        lines.append(f"    again: launch/test --only chaos --seed {seed} --only-kill {o.number}")
    return "\n".join(lines)


def write(outcomes: Sequence[Outcome], seed: int, path: Path) -> None:
    """Write what a campaign came to as JSON."""
    path.write_text(json.dumps({"seed": seed, "kills": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n")
