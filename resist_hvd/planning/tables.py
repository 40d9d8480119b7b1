"""A plan as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from resist_hvd.planning.forecast import (
    DEPTH_PRICE,
    FEWEST_ROUNDS,
    PAPERS_DEPTH,
    PAPERS_LONGEST_ROUND,
    SCALE,
    SYNC_SHARE,
    Advice,
    Planner,
)
from resist_hvd.protocol.rule import depth
from resist_hvd.settings.plan import ASSUMED_RATE
from resist_hvd.units import counted, duration, scaled

RESERVATION = (
    f" With fewer than {FEWEST_ROUNDS} rounds (!) the paper's accuracy falls by more than 2 points (supplement A.3): "
    "such a run ends soon, but is no equal of the others."
)


def show(planner: Planner, console: Console) -> None:
    """Print the plan: methods side by side for each number of workers, ResIST from 2 to 4,096, and advice."""
    console.print(heading(planner), "\n")
    for workers in planner.settings.worker_counts:
        console.print(methods_table(planner, workers))
    console.print(scale_table(planner))
    console.print(advice_table([planner.advise(workers) for workers in planner.settings.worker_counts]))
    deck, fewest = max(map(len, planner.network.decks), default=0), planner.settings.min_blocks
    if depth(deck, SCALE[-1], fewest) == deck:
        console.print(
            f"Every worker holds all {counted(deck, 'block')} (--min_blocks {fewest}): ResIST is local SGD here. "
            f"Give a --min_blocks below {deck}, --model.partition all, or a deeper network."
        )
        return
    limit = planner.stops_paying()
    console.print(f"ResIST pays up to {counted(limit.workers, 'worker')}: {limit.reason}.")


def heading(planner: Planner) -> str:
    """Return what is planned, in some lines."""
    settings, network = planner.settings, planner.network
    rates = {planner.rate("resist"), planner.rate("local-sgd")}
    beside = f", T = {settings.overlap}" if settings.overlap else ""
    source = "measured" if settings.measured else "assumed" if settings.compute_rate == ASSUMED_RATE else "given"
    return (
        f"{settings.model.title} on {settings.data.name}: "
        f"{network.whole.parameters:,} parameters, {network.trunk.parameters:,} of them shared by all, "
        f"{counted(network.partitionable, 'block')} to deal out\n"
        f"{counted(settings.epochs, 'epoch')} summed over workers, batches of {settings.data.batch_size}, "
        f"l = {settings.local_iterations}{beside}, at least {counted(settings.min_blocks, 'block')} a worker\n"
        f"{' and '.join(scaled(rate, 'FLOP/s') for rate in sorted(rates))} a worker ({source}); "
        f"{settings.bandwidth}/s a host, {settings.efficiency:.0%} of it payload, {settings.latency} latency"
    )


def table(title: str, caption: str, *columns: str) -> Table:
    """Return an empty table, its first column to the left and the others to the right."""
    made = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    first, *others = columns
    made.add_column(first, no_wrap=True)
    for column in others:
        made.add_column(column, justify="right")
    return made


def methods_table(planner: Planner, workers: int) -> Table:
    """Return all methods side by side on so many workers."""
    runs = planner.compare(workers)
    made = table(
        counted(workers, "worker"),
        "sent: payload handed over, summed over workers; paper: its convention (Table 1). FLOP and memory of the "
        f"busiest worker.{RESERVATION if any(run.reservation for run in runs) else ''}",
        "",
        "sent a round",
        "paper",
        "sent a run",
        "FLOP a round",
        "memory",
        "round",
        "run",
        "bound by",
        "x local SGD",
    )
    for run in runs:
        once = run.round
        made.add_row(
            f"{run.method}{' !' if run.reservation else ''}",
            scaled(once.bytes_sent, "B"),
            scaled(once.bytes_paper, "B"),
            scaled(run.bytes_sent, "B"),
            scaled(once.flops, ""),
            scaled(once.memory, "B"),
            duration(once.seconds),
            duration(run.seconds),
            once.bound,
            f"{run.over_local_sgd:.2f}",
            style="dim" if run.reservation else None,
        )
    return made


def scale_table(planner: Planner) -> Table:
    """Return ResIST from 2 to 4,096 workers."""
    made = table(
        "ResIST as workers grow",
        "arithmetic: of a worker's step, of that with the whole network. efficiency: x one worker, over workers; it is "
        "above 100% since a worker computes that share only, not since workers help one another. rounds: the paper's "
        f"shortest runs have 157 (8 workers, l = 50).{RESERVATION}",
        "workers",
        "blocks",
        "arithmetic",
        "rounds",
        "run",
        "synchronising",
        "bound by",
        "x local SGD",
        "x one worker",
        "efficiency",
    )
    deck = max(map(len, planner.network.decks), default=0)
    for workers in SCALE:
        runs = {run.method: run for run in planner.compare(workers)}
        run = runs["resist"]
        made.add_row(
            f"{workers:,}",
            str(depth(deck, workers, planner.settings.min_blocks)),
            f"{run.round.flops / runs['local-sgd'].round.flops:.0%}",
            f"{run.rounds:,}{' !' if run.reservation else '  '}",
            duration(run.seconds),
            f"{run.round.seconds_sync / run.round.seconds:.0%}",
            run.round.bound,
            f"{run.over_local_sgd:.2f}",
            f"{run.over_one_worker:.1f}",
            f"{run.over_one_worker / workers:.0%}",
            style="dim" if run.reservation else None,
        )
    return made


def advice_table(advice: list[Advice]) -> Table:
    """Return the depth and l to take for each number of workers."""
    made = table(
        "What to take",
        f"depth: the deepest that makes a run no more than {DEPTH_PRICE:.0%} longer than {PAPERS_DEPTH} blocks do. "
        f"l: the least that keeps synchronising within {SYNC_SHARE:.0%} of a round, at the depth given; the paper's "
        f"accuracy falls beyond {PAPERS_LONGEST_ROUND:,}.",
        "workers",
        "depth",
        "run with it",
        "l",
        "rounds with it",
        "synchronising",
    )
    for row in advice:
        length = f"{row.local_iterations:,}" if row.local_iterations else f"> {PAPERS_LONGEST_ROUND:,}"
        made.add_row(
            f"{row.workers:,}",
            str(row.depth),
            duration(row.depth_seconds),
            length,
            f"{row.rounds:,}",
            f"{row.sync_share:.0%}",
        )
    return made
