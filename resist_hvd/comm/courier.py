"""Communication that is advanced in a thread of its own, while the main thread computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch

from resist_hvd.comm.world import World

INTERVAL = 1e-3
"""Seconds between two looks at what has come, while the main thread computes: each takes some microseconds, and a
thread that waited in MPI instead would take a core."""

AWAITED = 1e-4
"""The same while the main thread waits."""


class UnderWay(Protocol):
    """Communication that has begun."""

    def advance(self) -> bool:
        """Take in what has come, and send what has become ready, without waiting; return whether all is done."""


class Courier:
    """Advances what is under way, from now until all is done or `finish` is called.

    The thread touches neither the account of what this rank waits for nor its stopwatch. An error in it is raised by
    `finish`, on the main thread, as if it had come up there.

    Args:
        world: all workers.
        under_way: each thing by the stopwatch's phase in which it is waited for, in that order.
    """

    def __init__(self, world: World, under_way: Mapping[str, UnderWay]) -> None:
        self._world = world
        self._under_way = dict(under_way)
        self._called_back = threading.Event()
        self._error: BaseException | None = None
        self._began = perf_counter()
        self._ended: float | None = None
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        on_device: AbstractContextManager[Any] = (
            torch.cuda.device(self._world.device) if self._world.device.type == "cuda" else nullcontext()
        )
        try:
            with on_device:
                while not self._called_back.wait(INTERVAL):
                    if self._advance():
                        self._ended = perf_counter()
                        return
        except BaseException as error:  # it is the main thread's to raise
            self._error = error

    def _advance(self) -> bool:
        """Advance everything; return whether all is done."""
        left = len(self._under_way)
        for each in self._under_way.values():
            left -= each.advance()
        return left == 0

    def finish(self) -> None:
        """Wait until all is done, and count as hidden for how long it was under way before.

        Raises:
            Exception: what ended the thread.
        """
        world = self._world
        self._called_back.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        world.stopwatch.beside("hidden", "hidden", self._began, self._ended or perf_counter())
        for phase, awaited in self._under_way.items():
            with world.stopwatch.measure(phase, f"wait for {phase}"), world.activity.waiting():
                while not awaited.advance():
                    self._advance()
                    time.sleep(AWAITED)
