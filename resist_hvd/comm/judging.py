"""Which rank is to blame when a world stands still: pure functions of what is known of every rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SHORTEST = 60.0
"""Seconds without progress that are never too many, unless the user says so."""

ROUNDS = 10
"""How many times the median round a rank may take without progress."""

UNHURRIED = 1800.0
"""Seconds for what nobody knows how long it takes: loading data, compiling a network."""

NAMED = 4
"""How many ranks a sentence names."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is known of one rank.

    Attributes:
        idle: seconds since it last got on.
        silent: seconds since it was last heard.
        waiting: whether it was waiting for other ranks.
        unhurried: whether nobody knows how long takes what it does.
    """

    rank: int
    host: str
    words: str
    idle: float
    silent: float
    waiting: bool
    unhurried: bool


def limit_of(asked: float | None, rounds: Sequence[float]) -> float:
    """Return the seconds without progress after which a rank counts as lost.

    Args:
        asked: what the user asked for, None for the default.
        rounds: how long the last rounds took, in seconds.
    """
    if asked is not None:
        return asked
    return max(SHORTEST, ROUNDS * median(rounds)) if rounds else SHORTEST


def verdict(sights: Sequence[Sight], limit: float, *, size: int, now: float | None = None) -> str:
    """Return what to say of the ranks that are to blame, empty if none is.

    A rank that is not heard of is to blame, and one that is heard of, waits for nobody, and does not get on. One that
    waits for others never is, unless all do.

    Args:
        sights: the ranks to judge.
        limit: in seconds.
        size: how many ranks there are.
        now: the time of day, as of `time.time`.
    """
    now = time.time() if now is None else now
    silent = [sight for sight in sights if sight.silent > limit]
    stuck = [
        sight
        for sight in sights
        if sight not in silent
        and not sight.waiting
        and sight.idle > (max(limit, UNHURRIED) if sight.unhurried else limit)
    ]
    said = [*said_of_silent(silent, size, now)]
    said += [
        f"Rank {sight.rank} of {size} on {sight.host} has made no progress for {sight.idle:.0f} s, since "
        f"{time_of(now - sight.idle)} [{sight.words}]"
        for sight in stuck
    ]
    if not said and len(sights) == size > 1 and all(sight.waiting and sight.idle > limit for sight in sights):
        who = "; ".join(f"rank {s.rank} on {s.host} since {time_of(now - s.idle)} [{s.words}]" for s in sights[:NAMED])
        more = f"; and {size - NAMED} more" if size > NAMED else ""
        return f"All {size} ranks wait for one another: {who}{more}"
    return ". ".join(said[:NAMED]) + (f". So have {len(said) - NAMED} more" if len(said) > NAMED else "")


def said_of_silent(silent: Sequence[Sight], size: int, now: float) -> list[str]:
    """Return a sentence for each host with ranks that are not heard of."""
    hosts: dict[str, list[Sight]] = {}
    for sight in silent:
        hosts.setdefault(sight.host, []).append(sight)
    said = []
    for host, sights in hosts.items():
        last = min(sights, key=lambda sight: sight.silent)
        ranks = ", ".join(str(sight.rank) for sight in sights)
        which, have = ("Rank", "has") if len(sights) == 1 else ("Ranks", "have")
        said.append(
            f"{which} {ranks} of {size} on {host} {have} not been heard of for {last.silent:.0f} s, since "
            f"{time_of(now - last.silent)} [{last.words}]: paused, or its host is down or cut off"
        )
    return said


def time_of(moment: float) -> str:
    """Return a time of day."""
    return time.strftime("%H:%M:%S", time.localtime(moment))
