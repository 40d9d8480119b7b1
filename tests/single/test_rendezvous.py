"""The port where ranks find rank 0, and callers who try to end, blind or slow a run by it."""

import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resist_hvd.comm import activity
from resist_hvd.comm.world import World
from resist_hvd.guard import endings, rendezvous
from resist_hvd.guard import watchdog as guard
from resist_hvd.guard.channel import Channel
from resist_hvd.guard.judging import RankState
from resist_hvd.guard.rendezvous import LONGEST_HELLO, MOST_CALLERS, Caller, Listener, Rendezvous, receive_exactly
from resist_hvd.guard.watchdog import Peer, Watchdog

SIZE = 4


class Rank0:
    """Rank 0's side: a listener, and a thread that serves it as the watchdog's does."""

    def __init__(self, *, one_host: bool = True) -> None:
        self.selector = selectors.DefaultSelector()
        self.listener = Listener("n1", SIZE, one_host=one_host, selector=self.selector)
        self.ranks: dict[int, Channel] = {}
        self.most_callers = 0
        self.turns = 0
        self.errors: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def rendezvous(self) -> Rendezvous:
        return self.listener.rendezvous

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                for key, _ in self.selector.select(0.02):
                    if key.data is self.listener:
                        self.listener.accept()
                    elif isinstance(key.data, Caller) and key.data.connection.fileno() >= 0:
                        said = self.listener.read(key.data)
                        if said is not None:
                            self.rendezvous.welcome(said[1])
                            self.ranks.setdefault(*said)
                self.listener.reject_idle(time.monotonic())
            except Exception as error:
                self.errors.append(error)
                return
            self.most_callers = max(self.most_callers, len(self.listener.callers))
            self.turns += 1

    def caller(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.rendezvous.port), timeout=60)
        connection.settimeout(60)
        return connection

    def joined_by(self, rank: int) -> bool:
        world: Any = SimpleNamespace(host="n1", rank=rank)
        channel = self.rendezvous.connect(world)
        if channel is None:
            return False
        until(lambda: rank in self.ranks)
        channel.close()
        return True

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        self.listener.close()
        for channel in self.ranks.values():
            channel.close()
        self.selector.close()
        assert self.errors == []


def until(happened: Any) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def rank0(**options: bool) -> Iterator[Rank0]:
    found = Rank0(**options)
    try:
        yield found
    finally:
        found.stop()


def is_turned_away(caller: socket.socket) -> bool:
    with suppress(ConnectionError):
        return caller.recv(100) == b""
    return True


def send(caller: socket.socket, said: bytes) -> None:
    with suppress(ConnectionError):
        caller.sendall(said)


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 100_000 + b"\n",
        b"x" * 10**6,
        b"\n",
        b"\0\xff\n" * 100,
        b'{"question": "", "rank": 1}\n',
        b"0123456789abcdef0123456789abcdef 1\n",
    ],
    ids=["deep", "endless", "empty", "binary", "json", "wrong words"],
)
def test_whatever_a_caller_says_it_is_turned_away_and_a_rank_gets_in(said: bytes) -> None:
    with rank0() as first, first.caller() as caller:
        send(caller, said)
        assert is_turned_away(caller)
        assert first.joined_by(1)
        assert list(first.ranks) == [1]


@pytest.mark.parametrize("rank", ["0", "-1", str(SIZE), "9" * 5000, "1 2", "", "1.0", "٣", "True"])
def test_the_right_words_with_a_wrong_rank_are_refused(rank: str) -> None:
    with rank0() as first, first.caller() as caller:
        send(caller, f"{first.rendezvous.question} {rank}\n".encode())
        assert is_turned_away(caller)
        assert first.ranks == {}


def test_the_first_words_prove_who_a_rank_is() -> None:
    rendezvous = Rendezvous("n1", [], 1)
    assert rendezvous.rank_of(rendezvous.hello(3).rstrip(b"\n"), SIZE) == 3
    assert rendezvous.rank_of(rendezvous.hello(3).rstrip(b"\n"), 3) is None
    assert rendezvous.rank_of(Rendezvous("n1", [], 1).hello(3).rstrip(b"\n"), SIZE) is None


def test_who_says_nothing_must_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.2)
    with rank0() as first, first.caller() as caller:
        assert is_turned_away(caller)


def test_who_drips_must_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.5)
    with rank0() as first, first.caller() as caller:
        caller.settimeout(0.05)
        for _ in range(600):
            try:
                caller.sendall(b"x")
                if caller.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it may drip for ever")
        assert first.joined_by(1)


def test_of_many_idle_ones_only_so_many_are_kept_and_a_rank_gets_in() -> None:
    with rank0() as first, ExitStack() as callers:
        for _ in range(3 * MOST_CALLERS):
            callers.enter_context(first.caller())
        assert first.joined_by(2)
        assert first.most_callers <= MOST_CALLERS


def test_a_flood_of_callers_that_hang_up_at_once_keeps_no_rank_out() -> None:
    over = threading.Event()
    with rank0() as first:

        def flood() -> None:
            while not over.is_set():
                with suppress(OSError), first.caller() as caller:
                    # Closed with a reset: whoever reads from it gets an error.
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    send(caller, b"x" * 100)

        floods = [threading.Thread(target=flood, daemon=True) for _ in range(3)]
        for thread in floods:
            thread.start()
        try:
            turns = first.turns
            assert all(first.joined_by(rank) for rank in range(1, SIZE))
            until(lambda: first.turns > turns)
        finally:
            over.set()
            for thread in floods:
                thread.join(10)


def test_without_descriptors_it_makes_room_and_goes_on() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with rank0() as first, ExitStack() as callers:
        sockets = [callers.enter_context(socket.socket()) for _ in range(20)]
        with callers.enter_context(socket.socket()) as probe:
            used = probe.fileno()
        # Room for some of those that call, not for all.
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
        try:
            for caller in sockets:
                caller.connect(("127.0.0.1", first.rendezvous.port))
            turns = first.turns
            until(lambda: first.turns > turns + 20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert first.joined_by(1)


def test_closed_it_takes_no_more_calls() -> None:
    with rank0() as first:
        port = first.rendezvous.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_on_one_host_no_other_host_reaches_it() -> None:
    with rank0(one_host=True) as first:
        assert first.rendezvous.addresses == []
        assert first.listener._server.getsockname()[0] == "127.0.0.1"
    with rank0(one_host=False) as first:
        assert first.listener._server.getsockname()[0] == "0.0.0.0"


def test_a_longest_hello_is_longer_than_any_rank_says() -> None:
    assert len(Rendezvous("n1", [], 1).hello(10**6)) < LONGEST_HELLO // 10


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    """Rank 0's, of two ranks, at its port; its thread has no time."""
    monkeypatch.setattr(endings, "ending", endings.Ending())
    monkeypatch.setattr(Watchdog, "_meet", lambda _: True)
    found = Watchdog(World(None, 0, 2, 0, 2, "n1", torch.device("cpu")), None)
    found._hosts = ["n1", "n1"]
    found._listener = Listener("n1", 2, one_host=True, selector=found._selector)
    yield found
    found.stop()


def call(watchdog: Watchdog, said: bytes = b"") -> socket.socket:
    assert watchdog._listener is not None
    connection = socket.create_connection(("127.0.0.1", watchdog._listener.rendezvous.port), timeout=60)
    connection.sendall(said)
    return connection


def test_a_rank_that_came_twice_before_it_was_heard_is_welcomed_by_one_connection_that_stays(
    watchdog: Watchdog,
) -> None:
    assert watchdog._listener is not None
    rendezvous = watchdog._listener.rendezvous
    with call(watchdog, rendezvous.hello(1)):
        pass  # it gave up
    with call(watchdog, rendezvous.hello(1)) as second:
        for _ in range(3):
            watchdog._receive_all(0.1)
        assert receive_exactly(second, 100) == b""  # not the welcome: the rank comes once more
    with call(watchdog, rendezvous.hello(1)) as third:
        for _ in range(2):
            watchdog._receive_all(0.1)
        assert receive_exactly(third, len(rendezvous.answer)).decode() == rendezvous.answer
        assert not watchdog._peers[1].channel.closed


def test_a_rank_among_more_callers_than_are_kept_is_heard(watchdog: Watchdog) -> None:
    assert watchdog._listener is not None
    with ExitStack() as callers:
        for _ in range(5):
            callers.enter_context(call(watchdog))
        callers.enter_context(call(watchdog, watchdog._listener.rendezvous.hello(1)))
        for _ in range(2 * MOST_CALLERS):
            callers.enter_context(call(watchdog))
        for _ in range(2 * MOST_CALLERS // rendezvous.A_TURN):
            watchdog._receive_all(0.1)
        assert list(watchdog._peers) == [1]


@pytest.mark.parametrize(("stopped", "blames"), [(0.0, True), (2.5, False), (600.0, False)])
def test_a_rank_that_was_stopped_itself_blames_nobody_for_the_silence_meanwhile(
    stopped: float, blames: bool, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, turns, said = 1000.0, 0, list[str]()

    def receive(patience: float) -> None:
        """Hear nothing for three turns, in each of which this process stands still for so long."""
        nonlocal now, turns
        now, turns = now + max(patience, stopped), turns + 1
        if turns == 3:
            watchdog._over.set()

    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now)
    for module in (guard, activity):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(watchdog, "_end", lambda message, *, stalled: said.append(message))
    monkeypatch.setattr(watchdog, "_receive_all", receive)
    monkeypatch.setattr(watchdog, "_asked", 2.0)
    watchdog._all_in.set()
    watchdog.world.activity.progress()
    channel: Any = SimpleNamespace(send=lambda _: None, close=lambda: None)
    watchdog._peers[1] = Peer(channel, RankState(rank=1, host="n1", words="a step", idle=0.0, still=0.0), now)
    watchdog._watch_until_over()
    assert bool(said) == blames
