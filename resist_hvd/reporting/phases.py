"""Each rank's time by phase: computing, waiting for data, for the slowest rank, for blocks, for the trunk."""

from __future__ import annotations

from statistics import fmean

from resist_hvd.records import RankSeconds, RoundRecord
from resist_hvd.reporting.reading import RunRecord

PHASES = ("compute", "data", "blocks", "trunk", "waiting")


def seconds_of_ranks(run: RunRecord) -> list[dict[str, float]]:
    """Return each rank's mean seconds a round by phase; one entry, of the mean rank, where ranks are not known.

    All ranks begin a round together, after the small exchange of accounts at the end of the last. So the slowest rank's
    arithmetic and data are when it comes to synchronise, and how much earlier another comes, it waits: as long as its
    synchronisation lasts at most.
    """
    told = [line.ranks for line in run.rounds if line.ranks]
    # Should a run have gone on with another number of workers, the newest number counts.
    told = [ranks for ranks in told if len(ranks.seconds_sync) == len(told[-1].seconds_sync)]
    if not told:
        return [_mean_rank(run.rounds)] if run.rounds else []
    totals = [dict.fromkeys(PHASES, 0.0) for _ in told[-1].seconds_sync]
    for ranks in told:
        for rank, phases in enumerate(_of_round(ranks, run.method)):
            for phase, seconds in phases.items():
                totals[rank][phase] += seconds / len(told)
    return totals


def _of_round(ranks: RankSeconds, method: str) -> list[dict[str, float]]:
    columns = (ranks.seconds_compute, ranks.seconds_data, ranks.seconds_sync, ranks.seconds_trunk, ranks.seconds_blocks)
    accounts = list(zip(*columns, strict=True))
    last = max(compute + data for compute, data, *_ in accounts)
    found = []
    for compute, data, sync, trunk, blocks in accounts:
        if method == "data-parallel":
            # Its averages are waited for within the steps; who is waited for there cannot be told.
            found.append(dict(zip(PHASES, (max(0.0, compute - trunk), data, 0.0, trunk + sync, 0.0), strict=True)))
            continue
        waiting = min(last - compute - data, sync)
        # It waits in the first thing that needs the slowest: agreeing on the next deal, then blocks, then the trunk.
        other = max(0.0, sync - trunk - blocks)
        spent, left = [], waiting
        for seconds in (other, blocks, trunk):
            spent.append(max(0.0, seconds - left))
            left = max(0.0, left - seconds)
        other, blocks, trunk = spent
        if method in ("local-sgd", "federated-dropout"):
            trunk += other
        else:
            blocks += other
        found.append(dict(zip(PHASES, (compute, data, blocks, trunk, waiting), strict=True)))
    return found


def _mean_rank(rounds: list[RoundRecord]) -> dict[str, float]:
    """Return the mean rank's seconds a round; synchronising as a whole, since nothing says what it was spent on."""
    return {
        "compute": fmean(line.seconds_compute for line in rounds),
        "data": fmean(line.seconds_data for line in rounds),
        "synchronising": fmean(line.seconds_sync for line in rounds),
    }
