"""Deals kills from a seed: which run, which rank, which signal, at which moment."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .settings import ROUNDS, SETTINGS, Setting

T = TypeVar("T")

SIGNALS = (
    signal.SIGKILL,
    signal.SIGKILL,
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGSTOP,
    signal.SIGSEGV,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR2,
    signal.SIGHUP,
)
"""A deck of them: what a kernel that is out of memory, a host that freezes, a defect, and schedulers send."""


TWICE = 0.2
"""The share of runs that are killed a second time, while they go on."""


@dataclass(frozen=True)
class Moment:
    """A moment that is aimed at.

    Attributes:
        name: for tables.
        begins: a regular expression for what a rank then says that it is doing (`World.position`), or another mark of
            `aimed.py`; None where the moment is any.
        longest: seconds after it began, at most, when the signal is sent.
        times: how often it comes in a run, at least; a kill is aimed at any of these.
    """

    name: str
    begins: str | None
    longest: float
    times: int = 1


ANY = Moment("any time", None, 0.0)
FINISHING = Moment("finishing", "^finishing$", 0.4)
MOMENTS = (
    ANY,
    Moment("importing", "^importing$", 1.0),
    Moment("starting MPI", "^starting MPI$", 0.5),
    Moment("loading the data", "^loading the data$", 0.05),
    Moment("in a round", "local training$", 0.02, ROUNDS),
    Moment("synchronising", "synchronising$", 0.01, ROUNDS),
    Moment("checkpointing", "^writing the checkpoint", 0.02, 3 * (ROUNDS // 2)),  # three steps each
    Moment("manifest", "^manifest$", 0.003, ROUNDS // 2),
    Moment("evaluating", "evaluating$", 0.03, ROUNDS // 3),
    Moment("exporting", "^exporting the model$", 0.05),
    FINISHING,
)


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        number: in its campaign, from 1.
        setting: what is trained.
        rank: which one is sent the signal.
        signal: the signal.
        moment: when.
        time: at which of the times that the moment comes, from 1.
        share: of the seconds that the moment lasts, after which the signal is sent; for `ANY`, of the whole run's.
        twice: whether the run that goes on is killed, too, before it is left alone.
    """

    number: int
    setting: Setting
    rank: int
    signal: signal.Signals
    moment: Moment
    time: int
    share: float
    twice: bool

    def __str__(self) -> str:
        words = f"{self.number:04d} {self.setting} rank {self.rank} {self.signal.name[3:]} {self.moment.name}"
        return words.replace(",", "").replace(" ", "-")


def deal(seed: int, count: int) -> list[Kill]:
    """Return a campaign's kills; a longer campaign of the same seed begins with those of a shorter one.

    Settings, signals and moments are decks that are dealt to their ends before they are shuffled anew: so ten kills
    try all of them, nearly.
    """
    source = random.Random(seed)
    settings, signals, moments = (_Deck(cards, source) for cards in (SETTINGS, SIGNALS, MOMENTS))
    kills = []
    for number in range(1, count + 1):
        setting = next(settings)
        # Nobody watches a single worker that is paused: its launcher waits until it goes on.
        sent = signals.first(lambda card, alone=setting.ranks == 1: not (alone and card == signal.SIGSTOP))
        moment = next(moments)
        kills.append(
            Kill(
                number,
                setting,
                rank=0 if moment.name == "manifest" else source.randrange(setting.ranks),
                signal=sent,
                moment=moment,
                time=source.randint(1, moment.times),
                share=source.random(),
                twice=source.random() < TWICE,
            )
        )
    return kills


class _Deck(Iterator[T]):
    def __init__(self, cards: Sequence[T], source: random.Random) -> None:
        self._cards, self._source = cards, source
        self._left: list[T] = []

    def __next__(self) -> T:
        return self.first(lambda _: True)

    def first(self, fits: Callable[[T], bool]) -> T:
        """Return the topmost card that fits, and leave the others where they are."""
        while True:
            for place, card in enumerate(self._left):
                if fits(card):
                    return self._left.pop(place)
            self._left += self._source.sample(self._cards, len(self._cards))
