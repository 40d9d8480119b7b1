"""From what a round costs to what a run costs; how far ResIST pays; and what depth and l to take."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from resist_hvd.planning import cost
from resist_hvd.planning.cost import Cost, MethodCosted
from resist_hvd.planning.inputs import machine_of, network_of, thinned_of, work_of
from resist_hvd.protocol.rule import depth
from resist_hvd.settings.plan import PlanSettings
from resist_hvd.units import counted

METHODS: tuple[MethodCosted, ...] = ("resist", "local-sgd", "data-parallel", "gpipe", "federated-dropout")
EVERY_STEP: tuple[MethodCosted, ...] = ("data-parallel", "gpipe")
SCALE = tuple(2**power for power in range(1, 13))
"""Numbers of workers, from 2 to 4,096."""

GAIN = 0.1
"""Twice the workers pay where they make a run shorter by this share at least."""

SYNC_SHARE = 0.2
"""The l to take is the least with which synchronising is no more than this share of a round."""

DEPTH_PRICE = 0.1
"""The depth to take is the deepest that makes a run longer by no more than this share: more blocks, more accuracy."""

PAPERS_DEPTH = 5
"""The paper found five blocks a worker to be the fewest that train well (section 2.6)."""

PAPERS_LONGEST_ROUND = 1000
FEWEST_ROUNDS = 16
"""The paper's supplement A.3, CIFAR-100 on 4 workers: 1,000 local iterations leave 16 rounds and cost 2.1 points of
accuracy against 50; with more, it falls further."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Cost of a run by one method on so many workers.

    Attributes:
        round: what a round of it costs.
        rounds: how many it has.
        iterations: local iterations of each worker, in the whole run.
        seconds: of training.
        bytes_sent, bytes_paper: of the whole run, in our convention and in the paper's.
        over_local_sgd: local SGD's seconds on as many workers, over these.
        over_one_worker: one worker's seconds with the whole network, over these.
    """

    method: MethodCosted
    workers: int
    round: Cost
    rounds: int
    iterations: int
    seconds: float
    bytes_sent: float
    bytes_paper: float
    over_local_sgd: float = 1.0
    over_one_worker: float = 1.0

    @property
    def reservation(self) -> str:
        """Why these numbers are no promise, in a few words; empty where nothing speaks against them."""
        if self.method in EVERY_STEP or self.workers == 1 or self.rounds >= FEWEST_ROUNDS:
            return ""
        return f"fewer than {FEWEST_ROUNDS} rounds"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Advice for so many workers.

    Attributes:
        depth: blocks a worker, k.
        depth_seconds: a run's seconds with it.
        local_iterations: l; None where even the longest round the paper found sound does not hide synchronising.
        rounds: that a run has with that l.
        sync_share: synchronisation's share of a round with it.
    """

    workers: int
    depth: int
    depth_seconds: float
    local_iterations: int | None
    rounds: int
    sync_share: float


class Limit(NamedTuple):
    """Up to how many workers ResIST pays, and why not beyond."""

    workers: int
    reason: str


class Planner:
    """Forecasts for one network on one kind of machine.

    Args:
        settings: what the plan is made for.
        rates: by method, the FLOP/s of a worker where they were measured; the settings' own for the others.
    """

    def __init__(self, settings: PlanSettings, rates: Mapping[MethodCosted, float] | None = None) -> None:
        self.settings = settings
        self.network = network_of(settings)
        self._thinned = thinned_of(settings, self.network)
        self._rates = dict(rates or {})

    def rate(self, method: MethodCosted) -> float:
        """Return a worker's FLOP/s by a method: measured, or of a measured method like it, or as the settings say."""
        like: MethodCosted = "resist" if method == "resist" else "local-sgd"
        return self._rates.get(like) or next(iter(self._rates.values()), self.settings.flops)

    def round(self, method: MethodCosted, workers: int, **changes: int) -> Cost:
        """Return what a round costs; with another l, m or T if given."""
        work, machine = work_of(self.settings, workers, **changes), machine_of(self.settings, self.rate(method))
        match method:
            case "resist":
                return cost.resist(self.network, work, machine)
            case "local-sgd":
                return cost.local_sgd(self.network, work, machine)
            case "data-parallel":
                return cost.data_parallel(self.network, work, machine)
            case "gpipe":
                return cost.gpipe(self.network, work, machine)
            case "federated-dropout":
                return cost.federated_dropout(self.network, self._thinned, work, machine)

    def run(self, method: MethodCosted, workers: int, **changes: int) -> Forecast:
        """Return what a run costs, its warm-up included; speed-ups are not yet worked out."""
        settings = self.settings
        length = changes.get("local_iterations", settings.local_iterations)
        each = settings.data.batch_size * workers
        iterations = -(-max(1, round(settings.epochs * settings.facts.train)) // each)
        rounds = -(-iterations // length)
        once = self.round(method, workers, **changes)
        warm = 0
        if method == "resist":
            warm = min(rounds, -(-round(settings.warmup_epochs * settings.facts.train) // (each * length)))
        seconds, sent, paper = _times(once, rounds - warm, max(0, iterations - warm * length), length)
        if warm:
            whole = self.round("local-sgd", workers, **changes, overlap=0)  # a warm-up has no steps beside its averages
            warming = _times(whole, warm, min(iterations, warm * length), length)
            seconds, sent, paper = seconds + warming[0], sent + warming[1], paper + warming[2]
        return Forecast(
            method=method,
            workers=workers,
            round=once,
            rounds=rounds,
            iterations=iterations,
            seconds=seconds,
            bytes_sent=sent,
            bytes_paper=paper,
        )

    def compare(self, workers: int) -> list[Forecast]:
        """Return a run by each method on so many workers, with speed-ups."""
        local, alone = self.run("local-sgd", workers).seconds, self.run("local-sgd", 1).seconds
        runs = (self.run(method, workers) for method in METHODS)
        return [
            Forecast(**{**run.__dict__, "over_local_sgd": local / run.seconds, "over_one_worker": alone / run.seconds})
            for run in runs
        ]

    def stops_paying(self) -> Limit:
        """Return the number of workers up to which twice as many are worth having, and what ends it."""
        runs = {workers: self.run("resist", workers) for workers in SCALE}
        for workers, twice in pairwise(SCALE):
            if runs[twice].seconds > (1 - GAIN) * runs[workers].seconds:
                return Limit(workers, f"twice as many make a run less than {GAIN:.0%} shorter")
            if runs[twice].rounds < FEWEST_ROUNDS:
                few = (
                    f"twice as many leave {counted(runs[twice].rounds, 'round')} of "
                    f"{counted(self.settings.local_iterations, 'iteration')}"
                )
                return Limit(workers, f"{few}, and with fewer than {FEWEST_ROUNDS} the paper's accuracy falls")
        return Limit(SCALE[-1], "no more were planned for")

    def advise(self, workers: int) -> Advice:
        """Return the depth and the l to take on so many workers."""
        deck = max(map(len, self.network.decks), default=0)
        shallowest = depth(deck, workers, PAPERS_DEPTH)
        fastest = self.run("resist", workers, min_blocks=shallowest).seconds
        deeper = range(shallowest + 1, deck + 1)
        # Deeper is slower, so that a few of them tell.
        deepest = shallowest + bisect_right(
            deeper, (1 + DEPTH_PRICE) * fastest, key=lambda k: self.run("resist", workers, min_blocks=k).seconds
        )
        once = self.round("resist", workers, local_iterations=1, overlap=0)
        least = math.ceil(once.seconds_sync * (1 / SYNC_SHARE - 1) / once.seconds_compute) or 1
        length = min(least, PAPERS_LONGEST_ROUND)
        run = self.run("resist", workers, local_iterations=length)
        return Advice(
            workers=workers,
            depth=deepest,
            depth_seconds=self.run("resist", workers, min_blocks=deepest).seconds,
            local_iterations=least if least <= PAPERS_LONGEST_ROUND else None,
            rounds=run.rounds,
            sync_share=run.round.seconds_sync / run.round.seconds,
        )


def _times(once: Cost, rounds: int, iterations: int, length: int) -> tuple[float, float, float]:
    """Return seconds, bytes and the paper's bytes of so many rounds, which have so many iterations together."""
    steps = iterations / length
    ends = steps if once.method in EVERY_STEP else rounds
    return steps * once.seconds_compute + ends * once.seconds_sync, ends * once.bytes_sent, ends * once.bytes_paper
