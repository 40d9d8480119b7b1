"""The ranks' watchdogs: who says what when a host is cut off, a rank leaves, or no connection can be made."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from typing import Any

import pytest

from resist_hvd.comm.world import World
from resist_hvd.guard import endings, liveness, watchdog
from resist_hvd.guard.channel import Channel
from resist_hvd.guard.rendezvous import Rendezvous
from resist_hvd.guard.watchdog import Watchdog, watched

# Alone; and with ranks that neither judge nor are to blame, beside one that does and one that is.
pytestmark = pytest.mark.world_sizes(1, 4)

LIMIT = 1.5
LONGEST = 60.0
"""Seconds after which what was to happen counts as never happening."""


class Listening(Watchdog):
    """A watchdog that keeps what it would say, and does not bite."""

    def __init__(self, world: World, seconds: float | None) -> None:
        self.said: list[str] = []
        super().__init__(world, seconds)

    def _end(self, message: str, *, stalled: bool = False) -> None:
        self.said.append(message)

    def stopped(self) -> list[list[str]]:
        """Stop it; return what each rank's had said by then. All ranks call it together."""
        said = list(self.said)
        self.stop()
        return self.world.gather_objects(said)


@pytest.fixture(autouse=True)
def _beats_fast_and_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watchdog, "HEARTBEAT", 0.2)
    world.activity.rounds.clear()
    world.activity.long_limit = False
    world.activity.wait = 0  # in tests of before, only some ranks waited
    yield
    world.activity.long_limit = True
    assert endings.ending.watchdog is None
    assert endings.ending.status is None


def wait_in_a_collective(world: World, seconds: float) -> None:
    with world.activity.waiting():
        time.sleep(seconds)


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_until(world: World, happened: Callable[[], bool], ranks: Sequence[int], *, culprit: int | None = None) -> None:
    """Wait until something has happened on some ranks, for which all others wait, but a culprit, which stands still.

    All ranks call it together.
    """
    with nullcontext() if world.rank == culprit else world.activity.waiting():
        until(lambda: world.rank not in ranks or happened())
        meeting = world.comm.Ibarrier()
        until(meeting.Test)


def stand_still(world: World, culprit: int, dog: Listening) -> None:
    """Have a rank get on no more until the first one's watchdog has spoken, while the others wait for it."""
    wait_until(world, lambda: bool(dog.said), [0], culprit=culprit)


def test_a_world_that_gets_on_is_left_alone(world: World) -> None:
    dog = Listening(world, LIMIT)
    with dog:
        for _ in range(5):
            time.sleep(0.5)
            world.activity.progress()
        world.barrier()
    assert dog.said == []


def test_0_is_no_watchdog(world: World) -> None:
    with watched(world, 0) as dog:
        assert not isinstance(dog, Watchdog)


@pytest.mark.world_size(2)
def test_where_a_host_is_cut_off_both_sides_say_so(world: World) -> None:
    world.barrier()
    dog = Listening(world, LIMIT)
    culprit = world.size - 1
    if world.rank == culprit:
        # Nothing gets through any more, in either direction; the connection looks sound.
        class Cut(Channel):
            def send_bytes(self, message: bytes) -> None:
                return

            def receive(self) -> list[dict[str, Any]]:
                super().receive()
                return []

        dog._peers[0].channel.__class__ = Cut
    wait_until(world, lambda: bool(dog.said), [0, culprit])
    everyone = dog.stopped()
    assert everyone[0][0].startswith(f"Rank {culprit} of {world.size} on {world.host} has not been heard of for ")
    assert everyone[culprit][0].startswith(f"Rank 0 of {world.size} on {world.host} has not been heard of for ")
    assert not any(everyone[1:culprit])


@pytest.mark.world_size(2)
def test_who_has_missed_some_words_is_known_before_it_counts_as_lost(world: World) -> None:
    culprit = world.size - 1
    dog = Listening(world, 1000)
    time.sleep(0.5)
    until(lambda: dog.silent_ranks() == "")
    world.barrier()
    if world.rank == culprit:
        dog._over.set()  # it beats no more
    wait_until(world, lambda: (dog.silent_ranks() != "") == world.is_first, range(culprit))
    silent = dog.silent_ranks()
    world.barrier()
    dog.stop()
    everyone = world.gather_objects(silent)
    assert everyone[0].startswith(f"Rank {culprit} of {world.size} on {world.host} has not been heard of for ")
    assert not any(everyone[1:culprit])


@pytest.mark.world_size(2)
def test_the_rank_that_does_not_get_on_is_named_and_not_those_that_wait(world: World) -> None:
    culprit = world.size - 1
    dog = Listening(world, LIMIT)
    world.position = "round 7, local training"
    stand_still(world, culprit, dog)
    everyone = dog.stopped()
    assert everyone[0][0].startswith(f"Rank {culprit} of {world.size} on {world.host} has made no progress for ")
    assert "[round 7, local training]" in everyone[0][0]
    assert not any(everyone[1:])


@pytest.mark.world_size(2)
def test_a_process_that_is_gone_is_noticed_at_once(world: World) -> None:
    culprit = world.size - 1
    dog = Listening(world, 1000)
    time.sleep(0.5)
    if world.rank == culprit:
        dog._over.set()
        dog._peers[0].channel.close()  # as the kernel does
    wait_until(world, lambda: bool(dog.said), [0])
    everyone = dog.stopped()
    assert everyone[0][0].startswith(f"Rank {culprit} of {world.size} on {world.host} has died [")
    assert not any(everyone[1:culprit])


@pytest.mark.world_size(2)
def test_a_rank_that_left_with_a_failure_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LEAVING", 0.5)
    dog = Listening(world, 1000)
    if world.rank == world.size - 1:
        dog.leave(143)
    wait_until(world, lambda: bool(dog.said), [0])
    everyone = dog.stopped()
    assert everyone[0][0].startswith(f"Rank {world.size - 1} of {world.size} has ended with status 143, at ")


@pytest.mark.world_size(2)
def test_without_a_connection_it_is_off_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    culprit = world.size - 1
    if world.rank == culprit:
        monkeypatch.setattr(Rendezvous, "connect", lambda *_: None)
    dog = Listening(world, 0.5)
    until(dog._over.is_set)
    assert dog.said == []
    said = capfd.readouterr().err
    text = f"The watchdog is off: rank {culprit} on {world.host} cannot reach {world.host} by TCP at 127.0.0.1, port "
    assert said.startswith(text if world.is_first else "")
    assert (said == "") == (not world.is_first)


@pytest.mark.world_size(2)
def test_where_all_wait_and_nothing_moves_the_verdict_tells_why(world: World) -> None:
    dog = Listening(world, LIMIT)
    wait_until(world, lambda: bool(dog.said), [0])
    everyone = dog.stopped()
    assert everyone[0][0].startswith(f"All {world.size} ranks wait for one another: rank 0 on {world.host} since ")
    assert re.search(r"All are in wait \d+ and keep [\d.]+ processors busy each", everyone[0][0])
    assert not any(everyone[1:])


@pytest.mark.world_size(2)
def test_where_all_wait_before_the_first_round_they_are_left_alone(world: World) -> None:
    world.activity.long_limit = True
    dog = Listening(world, LIMIT)
    wait_in_a_collective(world, LIMIT + 1)
    assert not any(dog.stopped())


@pytest.mark.world_size(2)
def test_where_all_wait_and_bytes_move_they_are_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "SETTLING", 0.2)
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()

        def trickle() -> None:
            while not over.wait(0.05):
                one.sendall(bytes(2**16))
                other.recv(2**20)

        dog = Listening(world, LIMIT)
        link = threading.Thread(target=trickle)
        if world.rank == world.size - 1:  # that they move for one rank is enough
            link.start()
        wait_in_a_collective(world, LIMIT + 1)
        everyone = dog.stopped()
        over.set()
        if link.ident is not None:
            link.join()
        one.close(), other.close()
    assert not any(everyone)


@pytest.mark.world_size(2)
def test_callers_who_come_before_all_ranks_are_in_end_blind_and_delay_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit = world.size - 1
    callers: list[socket.socket] = []
    ports: list[int] = []
    connect = Rendezvous.connect

    def late(rendezvous: Rendezvous, world: World) -> Channel | None:
        ports.append(rendezvous.port)
        if world.rank == culprit:
            for said in (b"[" * 100_000, b"x" * 300_000, b"", b"what? 1\n", b"", b"\n", b"\0" * 5000):
                caller = socket.create_connection(("127.0.0.1", rendezvous.port))
                caller.setblocking(False)
                with suppress(OSError):
                    caller.send(said)
                callers.append(caller)
            time.sleep(1.5 * watchdog.HEARTBEAT)
        return connect(rendezvous, world)

    monkeypatch.setattr(Rendezvous, "connect", late)
    dog = Listening(world, LIMIT)
    until(lambda: dog._listener is None)
    world.barrier()
    for caller in callers:  # they were let go of, every one
        caller.settimeout(LONGEST)
        with suppress(ConnectionError):
            assert caller.recv(1) == b""
        caller.close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    # It still sees a rank that stands still.
    world.barrier()
    stand_still(world, culprit, dog)
    everyone = dog.stopped()
    assert f"Rank {culprit} of {world.size} on {world.host} has made no progress for " in everyone[0][0]
    assert not any(everyone[1:])
