"""The verdict on a world that stands still, and the rank to blame: pure functions of what is known of every rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SHORTEST = 60.0
"""Seconds without progress that are never too many, unless the user says so."""

ROUNDS = 10
"""Multiple of the median round that a rank may take without progress."""

LONG_LIMIT = 1800.0
"""Seconds for steps that no round limits: loading data, compiling a network, the first round, reading and writing
files. And the fewest after which a rank counts as lost that was starved, or whose connections carried bytes, without
that it got on."""

POLLING = 0.5
"""Processors' share from which a rank that waits counts as polling for a message, not as asleep or starved."""

NAMED = 4
"""Ranks that a sentence names at most."""

ENDING = "ending"
"""Present work of a rank whose script is over, and that waits for the others'."""


@dataclass(frozen=True, kw_only=True)
class RankState:
    """State of one rank, as it tells it in its heartbeats.

    Attributes:
        words: its present work.
        idle: seconds since it last got on.
        still: those of them that count against it: in which it had a processor, and since bytes last moved for it.
        silent: seconds since it was last heard.
        waiting: whether it was waiting for other ranks.
        long_limit: whether `LONG_LIMIT` holds for what it does, and not the rounds' limit.
        wait: the number of its last wait; ranks that wait in the same call have the same.
        processors: how many it kept busy, on average, while it was idle: 0.01 for a process that sleeps.
        starved: seconds, while it was idle, in which a thread of its own was ready to run and had no processor.
    """

    rank: int
    host: str
    words: str
    idle: float
    still: float
    silent: float = 0.0
    waiting: bool = False
    long_limit: bool = False
    wait: int = 0
    processors: float = 0.0
    starved: float = 0.0

    def overdue(self, limit: float) -> bool:
        """Return whether it has stood still for longer than a limit in seconds, or for longer than its long limit."""
        return self.is_still(limit) or self.idle > max(ROUNDS * limit, LONG_LIMIT)

    def is_still(self, limit: float) -> bool:
        """Return whether nothing excuses that it is overdue: it had a processor, and no bytes moved."""
        return self.still > (max(limit, LONG_LIMIT) if self.long_limit else limit)


def limit_of(asked: float | None, rounds: Sequence[float]) -> float:
    """Return the seconds without progress after which a rank counts as lost.

    Args:
        asked: what the user asked for, None for the default.
        rounds: how long the last rounds took, in seconds.
    """
    if asked is not None:
        return asked
    return max(SHORTEST, ROUNDS * median(rounds)) if rounds else SHORTEST


def verdict(states: Sequence[RankState], limit: float, *, size: int, now: float | None = None) -> str:
    """Return what to say of the ranks that are to blame, empty if none is.

    A rank that is not heard of is to blame, and one that is heard of, waits for nobody, and does not get on. One that
    waits for others never is, unless all do, and for none of them anything moves.

    Args:
        states: the ranks to judge.
        limit: in seconds.
        size: how many ranks there are.
        now: the time of day, as of `time.time`.
    """
    now = time.time() if now is None else now
    stuck = [state for state in states if not state.waiting and state.overdue(limit)]
    # Who stopped to speak before the limit for silence, but does not get on, is paused: it would tell otherwise.
    silent = [state for state in states if state.silent > limit or (state in stuck and 2 * state.silent > state.idle)]
    stuck = [state for state in stuck if state not in silent]
    said = [*said_of_silent(silent, size, now)]
    said += [
        f"Rank {state.rank} of {size} on {state.host} has made no progress for {state.idle:.0f} s, since "
        f"{time_of(now - state.idle)} [{state.words}]"
        for state in stuck
    ]
    if not said and len(states) == size > 1 and all(state.waiting and state.overdue(limit) for state in states):
        who = "; ".join(f"rank {s.rank} on {s.host} since {time_of(now - s.idle)} [{s.words}]" for s in states[:NAMED])
        more = f"; and {size - NAMED} more" if size > NAMED else ""
        return f"All {size} ranks wait for one another: {who}{more}. {why_all_wait(states, limit)}"
    if not said and (left := left_alone(states, limit)):
        gone, alone = left
        return (
            f"Rank {gone.rank} of {size} on {gone.host} has come to the end of its script, and rank {alone.rank} waits "
            f"for it since {time_of(now - alone.idle)} [{alone.words}]: have all ranks make as many steps"
        )
    return ". ".join(said[:NAMED]) + (f". So have {len(said) - NAMED} more" if len(said) > NAMED else "")


def left_alone(states: Sequence[RankState], limit: float) -> tuple[RankState, RankState] | None:
    """Return a rank whose script is over, and one that waits for it in vain; None where there are none.

    That one is in a call which the other has not come to: in an earlier one it may wait for somebody else.
    """
    waiting = [state for state in states if state.waiting and state.idle > limit]
    over = [state for state in waiting if state.words == ENDING]
    for alone in waiting:
        for gone in over:
            if alone.words != ENDING and alone.wait >= gone.wait:
                return gone, alone
    return None


def why_all_wait(states: Sequence[RankState], limit: float) -> str:
    """Return what it looks like where all ranks wait for one another: out of order, lost, starved, or a broken network.

    Args:
        states: all ranks; they are overdue.
        limit: in seconds, as of `verdict`.
    """
    first, last = (pick(states, key=lambda state: state.wait) for pick in (min, max))
    if first.wait != last.wait:
        return (
            f"They wait in different calls, rank {first.rank} in its wait {first.wait} and rank {last.rank} in its "
            f"wait {last.wait}: calls came out of order"
        )
    seen = (
        f"All are in wait {first.wait} and keep {median(state.processors for state in states):.2g} processors busy each"
    )
    starved = max(states, key=lambda state: state.starved)
    if starved.starved >= 1:
        seen += f" (rank {starved.rank} had none for {starved.starved:.0f} s)"
    if not all(state.is_still(limit) for state in states):
        if 2 * starved.starved > starved.idle:
            return f"{seen}: there are too many processes for the processors"
        return f"{seen}: bytes move (on InfiniBand perhaps another program's), and nothing comes of it"
    # Of the seconds in which they could have a processor, those who poll use all.
    polling = median(state.processors / max(1 - state.starved / max(state.idle, 1.0), 0.01) for state in states)
    if polling >= POLLING:
        return f"{seen}: they poll for a message that was lost"
    return f"{seen}: they sleep, and the network is broken, or slower than any packet shows"


def said_of_silent(silent: Sequence[RankState], size: int, now: float) -> list[str]:
    """Return a sentence for each host with ranks that are not heard of."""
    hosts: dict[str, list[RankState]] = {}
    for state in silent:
        hosts.setdefault(state.host, []).append(state)
    said = []
    for host, states in hosts.items():
        last = min(states, key=lambda state: state.silent)
        ranks = ", ".join(str(state.rank) for state in states)
        which, have = ("Rank", "has") if len(states) == 1 else ("Ranks", "have")
        said.append(
            f"{which} {ranks} of {size} on {host} {have} not been heard of for {last.silent:.0f} s, since "
            f"{time_of(now - last.silent)} [{last.words}]: paused, or its host is down or cut off"
        )
    return said


def time_of(moment: float) -> str:
    """Return a time of day."""
    return time.strftime("%H:%M:%S", time.localtime(moment))
