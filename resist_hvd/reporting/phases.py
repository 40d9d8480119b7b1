"""Where each rank's time went: computing, waiting for data, for the slowest rank, for blocks, for the trunk."""

from __future__ import annotations

from resist_hvd.reporting.reading import Line, RunRecord, has_ranks

PHASES = ("compute", "data", "blocks", "trunk", "waiting")


def seconds_of_ranks(run: RunRecord) -> list[dict[str, float]]:
    """Return each rank's mean seconds a round by phase; one entry, of the mean rank, where ranks are not known.

    All ranks begin a round together, after the small exchange of accounts at the end of the last. So the slowest rank's
    arithmetic and data are when it comes to synchronise, and how much earlier another comes, it waits: as long as its
    synchronisation lasts at most.
    """
    told = [line for line in run.rounds if has_ranks(line)]
    # Should a run have gone on with another number of workers, the newest number counts.
    told = [line for line in told if len(line["ranks"]["seconds_sync"]) == len(told[-1]["ranks"]["seconds_sync"])]
    if not told:
        return [_mean_rank(run)] if run.rounds else []
    totals = [dict.fromkeys(PHASES, 0.0) for _ in told[-1]["ranks"]["seconds_sync"]]
    for line in told:
        for rank, phases in enumerate(_of_round(line, run.method)):
            for phase, seconds in phases.items():
                totals[rank][phase] += seconds / len(told)
    return totals


def _of_round(line: Line, method: str) -> list[dict[str, float]]:
    ranks = line["ranks"]
    columns = zip(*(ranks[f"seconds_{name}"] for name in ("compute", "data", "sync", "trunk", "blocks")), strict=True)
    accounts = list(columns)
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
        if method == "local-sgd":
            trunk += other
        else:
            blocks += other
        found.append(dict(zip(PHASES, (compute, data, blocks, trunk, waiting), strict=True)))
    return found


def _mean_rank(run: RunRecord) -> dict[str, float]:
    """Return the mean rank's seconds a round; synchronising as a whole, since nothing says what it was spent on."""
    count = len(run.rounds)
    names = {"compute": "seconds_compute", "data": "seconds_data", "synchronising": "seconds_sync"}
    return {phase: sum(line[name] for line in run.rounds) / count for phase, name in names.items()}
