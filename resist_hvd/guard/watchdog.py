"""Watchdog that ends the world when a rank dies, hangs, or is cut off: the others say which one it was, and where.

Every rank sends rank 0 a heartbeat once a second with its state, and rank 0 sends each its own (`channel`). Rank 0
judges all (`judging`), the others only rank 0. So where a network falls apart, both sides end.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from resist_hvd import console
from resist_hvd.guard import endings, reaper, stacks
from resist_hvd.guard.channel import Channel
from resist_hvd.guard.endings import LOST
from resist_hvd.guard.judging import LONG_LIMIT, NAMED, ROUNDS, RankState, limit_of, said_of_silent, time_of, verdict
from resist_hvd.guard.liveness import Liveness
from resist_hvd.guard.rendezvous import Caller, Listener, Rendezvous

if TYPE_CHECKING:
    from resist_hvd.comm.world import World

HEARTBEAT = 1.0
"""Seconds between two heartbeats."""

MISSED = 3
"""Heartbeats that a rank may miss before it is worth a mention."""

STOPPED = 2
"""Heartbeats after which a rank that has not come to send its own counts as stopped, or starved: it has heard nobody
meanwhile, and would blame all others where the limit is short."""

LEAVING = 15.0
"""Seconds in which all others must have ended once a rank has ended by a failure: launchers see to it, mostly."""


@dataclass
class Peer:
    """Another rank, as last heard of.

    Attributes:
        state: that of its last heartbeat.
        heard: when, on the monotonic clock.
        status: its exit status, once it has said that it ends; None as long as it goes on.
    """

    channel: Channel
    state: RankState
    heard: float
    status: int | None = None

    def state_at(self, now: float) -> RankState:
        """Return its state at a time of the monotonic clock, if it has stood still since its last heartbeat."""
        silent = now - self.heard if self.status is None else 0.0
        return replace(self.state, idle=self.state.idle + silent, still=self.state.still + silent, silent=silent)


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
        self._liveness = Liveness(world.activity)
        self._listener: Listener | None = None
        self._all_in = threading.Event()
        self._over = threading.Event()
        self._beat = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._wakeup = socket.socketpair()
        self._selector.register(self._wakeup[1], selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        endings.ending.watchdog = self
        if world.size == 1:
            self._all_in.set()
            self._thread.start()
        elif not self._meet():
            self.stop()

    def _meet(self) -> bool:
        """Connect all ranks with rank 0; return whether all are."""
        world = self.world
        self._hosts = world.gather_objects(world.host)
        rendezvous: Rendezvous | None = None
        if world.is_first:
            one_host = world.local_size == world.size
            self._listener = Listener(world.host, world.size, one_host=one_host, selector=self._selector)
            rendezvous = self._listener.rendezvous
            self._thread.start()
        rendezvous = world.broadcast_object(rendezvous)
        assert rendezvous is not None
        if not world.is_first and (channel := rendezvous.connect(world)) is not None:
            self._add(0, channel)
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
            console.urgent(
                f"The watchdog is off: rank {rank} on {self._hosts[rank]} cannot reach {world.host} by TCP at "
                f"{' or '.join(rendezvous.addresses) or '127.0.0.1'}, port {rendezvous.port}."
            )
        return False

    def _add(self, rank: int, channel: Channel) -> None:
        state = RankState(rank=rank, host=self._hosts[rank], words="setting up", idle=0.0, still=0.0, long_limit=True)
        self._peers[rank] = Peer(channel, state, time.monotonic())
        self._selector.register(channel.connection, selectors.EVENT_READ, rank)

    def _wake(self) -> None:
        self._wakeup[0].send(b"!")

    # -- its thread ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._watch_until_over()
        except Exception as error:  # a defect here must not end a sound run, nor look like a rank that is lost
            self.leave(0)
            console.urgent(f"The watchdog of rank {self.world.rank} is off: {type(error).__name__}: {error}")

    def _watch_until_over(self) -> None:
        self._beat = last = time.monotonic()
        while not self._over.is_set():
            self._receive_all(max(0.01, last + HEARTBEAT - time.monotonic()))
            now = time.monotonic()
            if self._listener is not None:
                self._listener.reject_idle(now)
                if self._all_in.is_set():
                    self._stop_listening()
            if now - last < HEARTBEAT:
                continue
            if now - last > STOPPED * HEARTBEAT:
                self._excuse_silence(now - last)
            self._beat = last = now
            own = self._own_state(now)
            for peer in list(self._peers.values()):
                peer.channel.send(asdict(own))
            if self._all_in.is_set():
                self._judge(now, own)

    def _stop_listening(self) -> None:
        """Listen no more, now that all ranks have been in: who is not there any more has died since."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for rank, host in enumerate(self._hosts):
            if rank not in (self.world.rank, *self._peers) and not self._over.is_set():
                self._end(f"Rank {rank} of {self.world.size} on {host} has died [setting up]")

    def _receive_all(self, patience: float) -> None:
        """Wait, and read all that has come; callers are read before others are accepted, who may displace them."""
        events = self._selector.select(patience)
        for key, _ in sorted(events, key=lambda event: isinstance(event[0].data, Listener)):
            self._receive(key)

    def _receive(self, key: selectors.SelectorKey) -> None:
        """Accept callers, or read what one or a rank has sent."""
        if key.data is None:  # somebody wakes this thread
            self._wakeup[1].recv(64)
        elif isinstance(key.data, Listener):
            key.data.accept()
        elif isinstance(key.data, Caller):
            self._admit(key.data)
        elif key.data in self._peers:
            self._receive_from(key.data, self._peers[key.data])

    def _admit(self, caller: Caller) -> None:
        """Make a peer of a caller that has shown its rank; no one takes the place of a rank that is there.

        A rank that was not heard for a while comes again, and both of its calls may be heard at once. Only the one that
        is taken gets the welcome, so that the rank never holds a connection which is none here: without one it comes
        once more, and by then the end of its first call has been seen.
        """
        if self._listener is None or caller.connection.fileno() < 0 or (shown := self._listener.read(caller)) is None:
            return
        rank, channel = shown
        if rank in self._peers:
            channel.close()
        else:
            self._listener.rendezvous.welcome(channel)
            self._add(rank, channel)

    def _receive_from(self, rank: int, peer: Peer) -> None:
        for message in peer.channel.receive():
            peer.heard = time.monotonic()
            if "leaving" in message:
                peer.status = int(message["leaving"])
            elif "lost" in message:
                self._follow(stalled=bool(message["lost"]))
            else:
                peer.state = RankState(**message)
        if peer.channel.closed:
            self._selector.unregister(peer.channel.connection)
            if not self._all_in.is_set():  # it did not wait for its welcome, and comes again
                del self._peers[rank]
                peer.channel.close()
            elif peer.status is None:
                self._end(f"Rank {rank} of {self.world.size} on {peer.state.host} has died [{peer.state.words}]")

    def _own_state(self, now: float) -> RankState:
        world, activity = self.world, self.world.activity
        return RankState(
            rank=world.rank,
            host=world.host,
            words=activity.words,
            waiting=activity.waits > 0,
            wait=activity.wait,
            long_limit=activity.has_long_limit,
            **{name: round(value, 3) for name, value in self._liveness.measure(now)._asdict().items()},
        )

    def _excuse_silence(self, seconds: float) -> None:
        """Take nobody's silence amiss while this rank itself was stopped."""
        self.world.activity.progressed += seconds
        for peer in self._peers.values():
            peer.heard += seconds

    def _judge(self, now: float, own: RankState) -> None:
        limit = limit_of(self._asked, list(self.world.activity.rounds))
        states = [peer.state_at(now) for _, peer in sorted(self._peers.items()) if peer.status is None]
        if self.world.is_first:
            states = [own, *states]
        if said := verdict(states, limit, size=self.world.size):
            self._end(said, stalled=True)
        for rank, peer in self._peers.items():
            if peer.status and now - peer.heard > LEAVING:
                since = time_of(time.time() - (now - peer.heard))
                self._end(f"Rank {rank} of {self.world.size} has ended with status {peer.status}, at {since}")

    def silent_ranks(self) -> str:
        """Return a sentence on the ranks that have missed several heartbeats, empty if none has.

        Open MPI's launcher may find a host gone before a patient watchdog does, and ends the others by TERM: they say
        then what they know. A rank that was stopped itself has heard nobody meanwhile, and blames nobody for it.
        """
        now = min(time.monotonic(), self._beat + HEARTBEAT)
        states = [peer.state_at(now) for _, peer in sorted(self._peers.items())]
        silent = [state for state in states if state.silent > MISSED * HEARTBEAT]
        return ". ".join(said_of_silent(silent, self.world.size, time.time())[:NAMED])

    # -- the end -------------------------------------------------------------------------------------------------

    def _end(self, message: str, *, stalled: bool = False) -> None:
        """Report what was seen, and end all ranks that can be reached; not while this one ends already.

        Args:
            message: what was seen, without a full stop.
            stalled: whether ranks stand still: then each one writes its stacks.
        """
        if self._over.is_set() or not endings.ending.begin(LOST):
            return
        here = f"rank {self.world.rank} of {self.world.size} on {self.world.host}"
        # Rank 0 speaks for all that it reaches; without it, the lowest, which may see it a heartbeat after the others.
        patience = 0.2 + 1.5 * HEARTBEAT * min(max(self.world.rank - 1, 0), 3)
        for peer in self._peers.values():
            peer.channel.send({"lost": stalled})
        reaper.start()
        advice = endings.ending.advice
        if stalled:
            self._write_stacks(0.5)
            advice = f"Stacks: {stacks.place()}. {advice}" if stacks.place() else advice
        endings.ending.exit_now(f"{message}, says {here}. {advice}", LOST, patience)

    def _follow(self, *, stalled: bool) -> NoReturn:
        """End as rank 0 has decided, once it has said why."""
        if endings.ending.begin(LOST):
            reaper.start()
            end = time.monotonic() + 1.5
            if stalled:
                self._write_stacks(1.5)
            time.sleep(max(0.0, end - time.monotonic()))
            endings.ending.reported.set()
        else:
            endings.ending.reported.wait(timeout=5.0)
        os._exit(LOST)

    def _write_stacks(self, patience: float) -> None:
        """Write where this rank is, and how it fares, for whoever looks for the cause; whatever happens, go on."""
        with suppress(Exception):
            own = asdict(self._own_state(time.monotonic()))
            told = "; ".join(f"{name} {value}" for name, value in own.items())
            stacks.write(self.world.rank, f"rank {self.world.rank} of {self.world.size}: {told}", patience)

    def leave(self, status: int) -> None:
        """Tell the others that this rank ends by its own will, with an exit status."""
        self._over.set()
        for peer in list(self._peers.values()):
            peer.channel.send({"leaving": status})

    def stop(self) -> None:
        """End watching; all ranks do, one after another."""
        self.leave(0)
        endings.ending.watchdog = None
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=5 * HEARTBEAT)
        for peer in self._peers.values():
            peer.channel.close()
        if self._listener is not None:
            self._listener.close()
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
