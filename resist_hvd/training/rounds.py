"""Rounds: so many local iterations, then a synchronisation and the round's account; in whoever's loop."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor

from resist_hvd.comm.devices import finish
from resist_hvd.records import RoundRecord
from resist_hvd.seeds import derive
from resist_hvd.settings.run import Overlap
from resist_hvd.training.account import Round, add_round
from resist_hvd.training.hiding import Choice, Chooser
from resist_hvd.training.run import Training


class Clock:
    """Seconds between laps, of work that a device has really done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        finish(self._device)
        last, self._last = self._last, perf_counter()
        return self._last - last


class RoundCounter:
    """Counts local iterations, and ends each round of them by a synchronisation; all ranks count alike.

    Args:
        training: the method, and how far it has come.
        seed: the run's; each round's partition comes from it.
        length: returns how many local iterations the round has that begins now.
        longest: the most that a round can have.
        overlap: T, how many local iterations come between a synchronisation's departure and its arrival, where the
            method has it so. A round that has no more than T departs after its first one: it must have trained. With
            auto, T is what the training's progress says; where that says nothing, it is chosen after some rounds.

    Attributes:
        made: local iterations of the present round so far.
        losses: each one's loss [longest].
        rates: the learning rate of each so far.
        choice: of T, when the last round has led to it, until the next one begins.
    """

    def __init__(
        self, training: Training, *, seed: int, length: Callable[[], int], longest: int, overlap: Overlap = 0
    ) -> None:
        self.training = training
        self._wanted = overlap
        self._longest = longest
        self.choice: Choice | None = None
        self.made = 0
        self._seed = seed
        self._length = length
        self.losses = torch.zeros(longest, device=training.world.device)
        self.rates: list[float] = []
        self._clock = Clock(training.world.device)
        self.resume()
        self.begin()

    @property
    def under_way(self) -> bool:
        """True between a synchronisation's departure and its arrival."""
        return self._departs_after <= self.made

    def resume(self) -> None:
        """Take over what the training's progress says of steps beside synchronisations."""
        method, chosen = self.training.method, self.training.progress.overlap
        auto = self._wanted == "auto"
        self._chooser = Chooser(self._longest) if auto and chosen is None and method.can_overlap else None
        if auto and chosen and method.can_overlap and not method.overlaps:
            method.make_room()
        overlap = chosen or 0 if self._wanted == "auto" else self._wanted
        self._overlap = overlap if method.overlaps else 0

    def begin(self) -> None:
        """Begin a round: what lay between it and the one before, as an evaluation, is no round's time."""
        training = self.training
        self.choice = None
        self._iterations = self._length()
        self._departs_after = max(1, self._iterations - self._overlap)
        training.method.exact = training.ends_with(self._iterations)
        self._sent = training.method.transport.sent
        self._seconds = training.world.stopwatch.seconds.copy()
        self._clock.lap()
        training.world.position = f"round {training.progress.round + 1}, local training"

    def step(self, loss: Tensor, rate: float) -> RoundRecord | None:
        """Take note of a local iteration that was made, and end the round where it was the last of it.

        Args:
            loss: of the iteration, a scalar.
            rate: the learning rate.

        Returns:
            The round's record if this ended it; `begin` begins the next.

        Raises:
            UserError: on every rank, where the loss of one was not finite.
        """
        self.losses[self.made] = loss.detach()
        self.rates.append(rate)
        self.made += 1
        if self.made == self._iterations:
            return self._end(rate)
        if self.made == self._departs_after:
            self._depart(early=True)
        return None

    def _depart(self, *, early: bool) -> None:
        """Begin the synchronisation; `early` where steps follow before its end."""
        world, number = self.training.world, self.training.progress.round
        position, world.position = world.position, f"round {number + 1}, synchronising"
        seed = world.broadcast_seed(derive(self._seed, "round", number + 1))
        if not early:
            self.training.method.depart(seed)
            return
        with world.stopwatch.measure("depart"):
            self.training.method.depart(seed, early=True)
        world.position = position

    def _end(self, rate: float) -> RoundRecord:
        training, before, clock = self.training, self._seconds, self._clock
        world, method, number = training.world, training.method, training.progress.round
        partition, watch = method.partition, world.stopwatch
        departed = watch.seconds["depart"] - before["depart"]
        aside = sum(watch.seconds[phase] - before[phase] for phase in ("prepare", "evaluate", "checkpoint"))
        trained = clock.lap() - aside - departed
        world.position = f"round {number + 1}, synchronising"
        with watch.measure("synchronise"):
            method.begin_outer_step(fmean(self.rates))
            if self._departs_after == self._iterations:
                self._depart(early=False)
            method.arrive()
            method.finish_outer_step()
        synchronised = clock.lap() + departed
        world.activity.round_took(trained + synchronised)
        made = Round(
            number=number,
            iterations=self.made,
            losses=self.losses[: self.made],
            lr=rate,
            seconds_data=(data := watch.seconds["data"] - before["data"]),
            seconds_compute=trained - data,
            seconds_sync=synchronised,
            seconds_hidden=watch.seconds["hidden"] - before["hidden"],
            seconds_prepare=watch.seconds["prepare"] - before["prepare"],
            seconds_trunk=watch.seconds["trunk"] - before["trunk"],
            seconds_blocks=watch.seconds["blocks"] - before["blocks"],
            bytes_sent=method.transport.sent - self._sent,
            overlap=self._iterations - self._departs_after,
            partition=partition,
        )
        self.made = 0
        self.rates.clear()
        record = add_round(training, made)
        if self._chooser is not None and (choice := self._chooser.take(record)) is not None:
            training.progress.overlap = choice.overlap
            self.choice = choice
            self.resume()
        return record
