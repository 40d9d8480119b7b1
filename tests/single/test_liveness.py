"""What counts as a sign of life of a rank that does not get on: bytes beyond chatter, and having no processor."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from resist_hvd.comm.activity import Activity
from resist_hvd.guard import liveness
from resist_hvd.guard.liveness import (
    CHATTER,
    ENOUGH,
    ENOUGH_ON_PORT,
    SETTLING,
    Carried,
    Liveness,
    Sample,
    fabric_ports,
    tcp_connections,
)

MTU = 1448


def sample(at: float, *, carried: Carried | None = None, delay: float = 0.0, processor: float = 0.0) -> Sample:
    return Sample(at, processor, {"1": delay, "2": 0.0}, {} if carried is None else {"socket 1": carried})


def scripted(activity: Activity, samples: list[Sample]) -> Liveness:
    """A measurement that takes these samples, one after another."""
    return Liveness(activity, take=iter(samples).__next__)


def activity(*, waits: int = 1) -> Activity:
    return Activity(progressed=0.0, waits=waits)


def test_chatter_is_no_movement_and_full_packets_are() -> None:
    before = sample(0.0, carried=Carried(10**6, 1000))
    chatter = Carried(10**6 + 20_000 * 120, 1000 + 20_000)
    assert not sample(1.0, carried=chatter).moved_since(before)
    assert not sample(1.0, carried=Carried(10**6 + 3 * MTU, 1003)).moved_since(before)
    assert sample(1.0, carried=Carried(10**6 + 90 * MTU, 1090)).moved_since(before)
    # Between chatter, too, as on a link that a large message fills.
    assert sample(1.0, carried=Carried(10**6 + 90 * MTU + 60 * 120, 1150)).moved_since(before)
    assert CHATTER < MTU < ENOUGH


def test_chatter_of_many_connections_does_not_add_up_to_movement() -> None:
    def many(packets: int) -> Sample:
        return Sample(0.0, 0.0, {}, {str(n): Carried(packets * (CHATTER + 100), packets) for n in range(512)})

    assert not many(2).moved_since(many(1))


def test_a_connection_that_is_new_has_moved_nothing_yet() -> None:
    assert not sample(1.0, carried=Carried(10**9, 10**5)).moved_since(sample(0.0))


def test_a_rank_that_gets_on_costs_no_look() -> None:
    found = scripted(activity(), [])
    for now in (0.5, 1.0, SETTLING - 0.1):
        assert found.measure(now).still == now


def test_who_waits_stands_still_only_since_bytes_moved() -> None:
    carried = [Carried(0, 0), Carried(90 * MTU, 90), Carried(180 * MTU, 180), Carried(180 * MTU + 500, 182)]
    samples = [sample(float(at), carried=one) for at, one in zip((2, 3, 4, 5), carried, strict=True)]
    found = scripted(activity(), samples)
    assert [found.measure(float(at)).still for at in (2, 3, 4, 5)] == [2.0, 0.0, 0.0, 1.0]
    alone = scripted(activity(waits=0), samples)
    assert [alone.measure(float(at)).still for at in (2, 3, 4, 5)] == [2.0, 3.0, 4.0, 5.0]
    assert scripted(activity(), samples).measure(2.0).idle == 2.0


def test_seconds_without_a_processor_do_not_count() -> None:
    samples = [sample(float(at), delay=0.9 * (at - 2), processor=0.1 * (at - 2)) for at in (2, 3, 12)]
    found = scripted(activity(), samples)
    vitals = [found.measure(float(at)) for at in (2, 3, 12)][-1]
    assert vitals.idle == 12.0
    assert vitals.starved == pytest.approx(9.0)
    assert vitals.still == pytest.approx(3.0)
    assert vitals.processors == pytest.approx(0.1)


def test_a_thread_is_never_starved_for_longer_than_time_goes() -> None:
    assert sample(3.0, delay=100.0).starved_since(sample(1.0)) == 2.0


def test_getting_on_forgets_what_was_before() -> None:
    a = activity()
    found = scripted(a, [sample(2.0), sample(3.0, delay=1.0), sample(102.0, delay=1.0), sample(103.0, delay=1.0)])
    found.measure(2.0), found.measure(3.0)
    a.progressed = 100.0
    assert found.measure(100.5).still == 0.5
    found.measure(102.0)
    assert found.measure(103.0).still == 3.0


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        with one, other:
            yield one, other


def test_the_kernel_counts_this_process_s_connections() -> None:
    with connection() as (one, other):
        name = f"socket {os.fstat(one.fileno()).st_ino}"
        before = dict(tcp_connections())[name]
        one.sendall(bytes(50_000))
        received = 0
        while received < 50_000:
            received += len(other.recv(2**16))
        end = time.monotonic() + 60
        while (after := dict(tcp_connections())[name]).bytes - before.bytes < 50_000:
            assert time.monotonic() < end
        assert after.packets > before.packets
        # Sampleing at a connection closes it not, and changes nothing of it.
        one.sendall(b"!")
        assert other.recv(1) == b"!"


def test_many_small_messages_are_chatter_to_the_kernel_s_counters_and_a_large_one_is_not() -> None:
    with connection() as (one, other):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = Sample.take()
        for _ in range(300):
            one.sendall(bytes(100))
            other.recv(100)
        assert not Sample.take().moved_since(before)
        reader = threading.Thread(target=lambda: [other.recv(2**16) for _ in range(1000)], daemon=True)
        reader.start()
        one.sendall(bytes(2**20))
        end = time.monotonic() + 60
        while not Sample.take().moved_since(before):
            assert time.monotonic() < end
        one.close()
        reader.join()


def test_ports_of_adapters_count_in_words_of_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = tmp_path / "mlx5_0/ports/1/counters"
    counters.mkdir(parents=True)
    for name, value in {"xmit_data": 10, "rcv_data": 5, "xmit_packets": 3, "rcv_packets": 1}.items():
        (counters / f"port_{name}").write_text(f"{value}\n")
    verbs = tmp_path / "infiniband_verbs"
    for number, adapter in enumerate(("mlx5_1", "mlx5_0")):
        (verbs / f"uverbs{number}").mkdir(parents=True)
        (verbs / f"uverbs{number}" / "ibdev").write_text(f"{adapter}\n")
    monkeypatch.setattr(liveness, "_FABRICS", tmp_path)
    monkeypatch.setattr(liveness, "_VERBS", verbs)
    assert list(fabric_ports()) == []  # of an adapter that this process has not opened, all traffic is another's
    device = tmp_path / "uverbs1"
    with device.open("w"):
        assert list(fabric_ports()) == [(f"port {counters}", Carried(60, 4, ENOUGH_ON_PORT))]


def test_a_port_that_others_use_must_carry_much_to_count_as_movement() -> None:
    before = sample(0.0, carried=Carried(0, 0, ENOUGH_ON_PORT))
    few, many = (Carried(n * 4096, n, ENOUGH_ON_PORT) for n in (10_000, 30_000))
    assert not sample(1.0, carried=few).moved_since(before)
    assert sample(1.0, carried=many).moved_since(before)


def test_a_thread_that_must_wait_for_a_processor_is_seen() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one core for two threads that want it
    try:
        before = Sample.take()
        if not before.delays:
            pytest.skip("this kernel does not count what threads wait for a processor")
        child = os.fork()
        if child == 0:
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
            os._exit(0)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        os.waitpid(child, 0)
        assert Sample.take().starved_since(before) > 0.1
    finally:
        os.sched_setaffinity(0, cores)


def test_without_descriptors_it_sees_nothing_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "listdir", refuse)
    assert Sample.take().delays == {}
