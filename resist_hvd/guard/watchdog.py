"""Ends the world when a rank dies, hangs, or is cut off: the others say which one it was, and where.

Every rank tells rank 0 once a second what it does, and rank 0 tells them that it is there (`lifeline`). Rank 0 judges
all (`judging`), the others only rank 0. So where a network falls apart, both sides end.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

from resist_hvd.comm.world import World
from resist_hvd.guard import endings, reaper, stacks
from resist_hvd.guard.door import Door, Stranger
from resist_hvd.guard.endings import LOST
from resist_hvd.guard.judging import LONG_LIMIT, NAMED, ROUNDS, Sight, limit_of, said_of_silent, time_of, verdict
from resist_hvd.guard.lifeline import Line, Meeting
from resist_hvd.guard.pulse import Pulse

BEAT = 1.0
"""Seconds between two words."""

MISSED = 3
"""Words that a rank may miss before it is worth a mention."""

LEAVING = 15.0
"""Seconds in which all others must have ended once a rank has ended by a failure: launchers see to it, mostly."""


@dataclass
class Peer:
    """Another rank, as last heard of.

    Attributes:
        beat: what it last said of itself.
        heard: when, on the monotonic clock.
        status: what it said it would end with, None as long as it goes on.
    """

    line: Line
    beat: dict[str, Any]
    heard: float
    status: int | None = None

    def sight(self, rank: int, now: float) -> Sight:
        """Return what is known of it."""
        return sight_of(rank, self.beat, silent=now - self.heard if self.status is None else 0.0)


class Watchdog:
    """A thread of this rank's that watches the others; all ranks make it together, and leave it together.

    Args:
        world: all ranks.
        seconds: without progress, after which a rank counts as lost; None for what fits the run's rounds.
    """

    def __init__(self, world: World, seconds: float | None) -> None:
        self.world = world
        self._asked = seconds
        self._peers: dict[int, Peer] = {}
        self._hosts: list[str] = []
        self._pulse = Pulse(world.activity)
        self._door: Door | None = None
        self._all_in = threading.Event()
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wakeup = socket.socketpair()
        self._selector.register(self._wakeup[1], selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        endings.ending.before = self._say_goodbye
        world.unheard = self.unheard
        if world.size == 1:
            self._all_in.set()
            self._thread.start()
        elif not self._meet():
            self.stop()

    def _meet(self) -> bool:
        """Connect all ranks with rank 0; return whether all are."""
        world = self.world
        self._hosts = world.gather_objects(world.host)
        meeting: Meeting | None = None
        if world.is_first:
            one_host = world.local_size == world.size
            self._door = Door(world.host, world.size, one_host=one_host, selector=self._selector)
            meeting = self._door.meeting
            self._thread.start()
        meeting = world.broadcast_object(meeting)
        assert meeting is not None
        if not world.is_first and (line := meeting.connect(world)) is not None:
            self._add(0, line)
            self._thread.start()
        connected = world.gather_objects(world.is_first or bool(self._peers))
        if not all(connected):
            self._over.set()
        self._all_in.set()
        self._wake()
        if all(connected):
            return True
        if world.is_first:
            rank = connected.index(False)
            endings.write(
                f"The watchdog is off: rank {rank} on {self._hosts[rank]} cannot reach {world.host} by TCP at "
                f"{' or '.join(meeting.addresses) or '127.0.0.1'}, port {meeting.port}.\n"
            )
        return False

    def _add(self, rank: int, line: Line) -> None:
        beat = {"host": self._hosts[rank], "words": "setting up", "idle": 0.0, "still": 0.0, "long_limit": True}
        self._peers[rank] = Peer(line, beat, time.monotonic())
        self._selector.register(line.connection, selectors.EVENT_READ, rank)

    def _wake(self) -> None:
        self._wakeup[0].send(b"!")

    # -- its thread ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._watch_until_over()
        except Exception as error:  # a defect here must not end a sound run, nor look like a rank that is lost
            self._say_goodbye(0)
            endings.write(f"The watchdog of rank {self.world.rank} is off: {type(error).__name__}: {error}\n")

    def _watch_until_over(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            self._hear_all(max(0.01, last + BEAT - time.monotonic()))
            now = time.monotonic()
            if self._door is not None:
                self._door.turn_away_idle(now)
                if self._all_in.is_set():
                    self._close_door()
            if now - last < BEAT:
                continue
            if now - last > 5 * BEAT:
                self._forgive(now - last)
            last = now
            beat = self._own_beat(now)
            for peer in list(self._peers.values()):
                peer.line.send(beat)
            if self._all_in.is_set():
                self._judge(now, beat)

    def _close_door(self) -> None:
        """Listen no more, now that all ranks have been in: who is not there any more has died since."""
        if self._door is not None:
            self._door.close()
            self._door = None
        for rank, host in enumerate(self._hosts):
            if rank not in (self.world.rank, *self._peers) and not self._over.is_set():
                self._end(f"Rank {rank} of {self.world.size} on {host} has died [setting up]")

    def _hear_all(self, patience: float) -> None:
        """Wait for what comes, and take all of it; who is in is heard before others are let in, who may displace it."""
        events = self._selector.select(patience)
        for key, _ in sorted(events, key=lambda event: isinstance(event[0].data, Door)):
            self._hear(key)

    def _hear(self, key: selectors.SelectorKey) -> None:
        """Take a connection, or what has come by one."""
        if key.data is None:  # somebody wakes this thread
            self._wakeup[1].recv(64)
        elif isinstance(key.data, Door):
            key.data.let_in()
        elif isinstance(key.data, Stranger):
            self._admit(key.data)
        elif key.data in self._peers:
            self._hear_peer(key.data, self._peers[key.data])

    def _admit(self, stranger: Stranger) -> None:
        """Make a peer of a connection that has said whose it is; no one takes the place of a rank that is there.

        A rank that was not heard for a while comes again, and both of its calls may be heard at once. Only the one that
        is taken gets the welcome, so that the rank never holds a connection which is none here: without one it comes
        once more, and by then the end of its first call has been seen.
        """
        if self._door is None or stranger.connection.fileno() < 0 or (said := self._door.hear(stranger)) is None:
            return
        rank, line = said
        if rank in self._peers:
            line.close()
        else:
            self._door.meeting.welcome(line)
            self._add(rank, line)

    def _hear_peer(self, rank: int, peer: Peer) -> None:
        for message in peer.line.receive():
            peer.heard = time.monotonic()
            if "goodbye" in message:
                peer.status = int(message["goodbye"])
            elif "lost" in message:
                self._follow(stalled=bool(message["lost"]))
            else:
                peer.beat = message
        if peer.line.closed:
            self._selector.unregister(peer.line.connection)
            if not self._all_in.is_set():  # it did not wait for its welcome, and comes again
                del self._peers[rank]
                peer.line.close()
            elif peer.status is None:
                self._end(f"Rank {rank} of {self.world.size} on {peer.beat['host']} has died [{peer.beat['words']}]")

    def _own_beat(self, now: float) -> dict[str, Any]:
        activity, vitals = self.world.activity, self._pulse.feel(now)
        return {
            "host": self.world.host,
            "words": activity.words,
            "idle": round(vitals.idle, 1),
            "still": round(vitals.still, 1),
            "processors": round(vitals.processors, 3),
            "starved": round(vitals.starved, 1),
            "waiting": activity.waits > 0,
            "wait": activity.wait,
            "long_limit": activity.has_long_limit,
        }

    def _forgive(self, seconds: float) -> None:
        """Take nobody's silence amiss while this rank itself was stopped."""
        self.world.activity.progressed += seconds
        for peer in self._peers.values():
            peer.heard += seconds

    def _judge(self, now: float, beat: dict[str, Any]) -> None:
        limit = limit_of(self._asked, list(self.world.activity.rounds))
        sights = [peer.sight(rank, now) for rank, peer in sorted(self._peers.items()) if peer.status is None]
        if self.world.is_first:
            sights = [sight_of(self.world.rank, beat, silent=0.0), *sights]
        if said := verdict(sights, limit, size=self.world.size):
            self._end(said, stalled=True)
        for rank, peer in self._peers.items():
            if peer.status and now - peer.heard > LEAVING:
                since = time_of(time.time() - (now - peer.heard))
                self._end(f"Rank {rank} of {self.world.size} has ended with status {peer.status}, at {since}")

    def unheard(self) -> str:
        """Return which ranks have missed several words, empty if none has.

        Open MPI's launcher may find a host gone before a patient watchdog does, and ends the others by TERM: they say
        then what they know.
        """
        now = time.monotonic()
        sights = [peer.sight(rank, now) for rank, peer in sorted(self._peers.items())]
        silent = [sight for sight in sights if sight.silent > MISSED * BEAT]
        return ". ".join(said_of_silent(silent, self.world.size, time.time())[:NAMED])

    # -- the end -------------------------------------------------------------------------------------------------

    def _end(self, message: str, *, stalled: bool = False) -> None:
        """Say what was seen, and end all ranks that can be reached; not while this one ends already.

        Args:
            message: what was seen, without a full stop.
            stalled: whether ranks stand still: then each one writes its stacks.
        """
        if self._over.is_set() or not endings.ending.begin(LOST):
            return
        here = f"rank {self.world.rank} of {self.world.size} on {self.world.host}"
        # Rank 0 speaks for all that it reaches; without it, the lowest.
        patience = 0.2 if self.world.is_first else 0.2 + 0.15 * min(self.world.rank, 8)
        for peer in self._peers.values():
            peer.line.send({"lost": stalled})
        reaper.call()
        advice = endings.advice()
        if stalled:
            self._write_stacks(0.5)
            advice = f"Stacks: {stacks.place()}. {advice}" if stacks.place() else advice
        endings.end_now(f"{message}, says {here}. {advice}", LOST, patience)

    def _follow(self, *, stalled: bool) -> NoReturn:
        """End as rank 0 has decided, once it has said why."""
        if endings.ending.begin(LOST):
            reaper.call()
            end = time.monotonic() + 1.5
            if stalled:
                self._write_stacks(1.5)
            time.sleep(max(0.0, end - time.monotonic()))
            endings.ending.spoken.set()
        else:
            endings.ending.spoken.wait(timeout=5.0)
        os._exit(LOST)

    def _write_stacks(self, patience: float) -> None:
        """Write where this rank is, and how it fares, for whoever looks for the cause; whatever happens, go on."""
        with suppress(Exception):
            beat = self._own_beat(time.monotonic())
            told = "; ".join(f"{name} {value}" for name, value in beat.items())
            stacks.write(self.world.rank, f"rank {self.world.rank} of {self.world.size}: {told}", patience)

    def _say_goodbye(self, status: int) -> None:
        """Have the others know that this rank ends by its own will."""
        self._over.set()
        for peer in list(self._peers.values()):
            peer.line.send({"goodbye": status})

    def stop(self) -> None:
        """End watching; all ranks do, one after another."""
        self._say_goodbye(0)
        endings.ending.before = None
        self.world.unheard = str
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=5 * BEAT)
        for peer in self._peers.values():
            peer.line.close()
        if self._door is not None:
            self._door.close()
        for end in self._wakeup:
            end.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()


def watched(world: World, seconds: float | None) -> AbstractContextManager[object]:
    """Return the context in which all ranks watch one another: without a watchdog where `seconds` is 0."""
    return nullcontext() if seconds == 0 else Watchdog(world, seconds)


def leave_stalls_to_watchdog(seconds: float | None) -> None:
    """Have Horovod's own limit for stalled collectives never come before the watchdog's; call it before Horovod starts.

    It knows neither who works nor what moves. It stays for ranks that cannot reach one another by TCP, and goes
    where there is to be no limit; what the user has set stays.

    Args:
        seconds: as of `watched`.
    """
    if seconds == 0:
        os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")
    else:
        limit = ROUNDS * max(seconds or 0.0, LONG_LIMIT)
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", f"{limit:.0f}")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", f"{limit:.0f}")


def sight_of(rank: int, beat: dict[str, Any], silent: float) -> Sight:
    """Return what is known of a rank from what it last said, so many seconds ago."""
    return Sight(
        rank=rank,
        host=str(beat["host"]),
        words=str(beat["words"]),
        idle=float(beat["idle"]) + silent,
        still=float(beat["still"]) + silent,
        silent=silent,
        waiting=bool(beat.get("waiting")),
        long_limit=bool(beat["long_limit"]),
        wait=int(beat.get("wait", 0)),
        processors=float(beat.get("processors", 0.0)),
        starved=float(beat.get("starved", 0.0)),
    )
