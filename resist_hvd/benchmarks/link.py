"""`bench link`: how much of what the links carry a synchronisation uses: the trunk alone, blocks alone, and both.

Beside them stands what the same MPI carries on the same hosts at best: as many bytes, each rank's in one message to the
next rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from resist_hvd.benchmarks import results
from resist_hvd.benchmarks.sync import begin
from resist_hvd.benchmarks.table import Column, print_rows
from resist_hvd.benchmarks.timing import slowest
from resist_hvd.comm.encoded_blocks import part_of
from resist_hvd.comm.probe import pass_on
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.methods.resist import Resist
from resist_hvd.protocol.codes import encoded_bytes, record_of
from resist_hvd.protocol.exchange import Exchange, Fetch, Share, exchange, ring_bytes
from resist_hvd.protocol.hands import give
from resist_hvd.protocol.partition import Partition
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import LinkSettings
from resist_hvd.units import PAYLOAD, counted

BARE = "bare MPI"
"""Row of what MPI alone does."""

Sent = Iterable[tuple[int, int, int]]
"""Source, destination and bytes of messages."""


@dataclass(frozen=True)
class Measurement:
    """One repeat.

    Attributes:
        payload: what the busiest link carries in one direction, in bytes.
        seconds: of the slowest rank.
    """

    payload: int
    seconds: float

    def bound(self, rate: float) -> float:
        """Return the seconds that this payload takes at a raw rate in Mbit/s."""
        return self.payload * 8 / (rate * 1e6 * PAYLOAD)


class Exchanges:
    """Blocks without a network, exchanged as those of a run are.

    Args:
        method: whose blocks are imitated.
        sizes: how many numbers each block has.
    """

    def __init__(self, method: Resist, sizes: tuple[int, ...]) -> None:
        self._rule, self._sizes, self._rank = method.rule, sizes, method.setup.world.rank
        codec = method.setup.exchange.blocks
        self._transport = Transport(method.setup.world, self._rule.groups, block_codec=codec)
        self._partition = method.partition
        self._held = {block: torch.zeros_like(slot) for block, slot in method.slots.items()}
        self._spare: list[Tensor] = [torch.zeros_like(slot) for slot in method.slots.values()]
        self._scratch = [torch.zeros_like(method.subnet.trunk)]

    def deal(self, seed: int) -> Exchange:
        """Return the exchange that leads to the next partition."""
        self._next = give(self._rule, self._partition, self._rule.deal(seed), self._sizes)
        return exchange(self._partition, self._next)

    def run(self, plan: Exchange) -> None:
        """Carry it out."""
        held, coming = self._held, [b for b in self._next.held[self._rank] if b not in self._held]
        arriving = {}
        for block in coming:
            place = next(n for n, spare in enumerate(self._spare) if len(spare) == self._sizes[block])
            arriving[block] = self._spare.pop(place)
        self._transport.exchange(plan, held, arriving, self._scratch)
        self._spare += [buffer for block, buffer in held.items() if block not in self._next.held[self._rank]]
        self._held = {block: {**held, **arriving}[block] for block in self._next.held[self._rank]}
        self._partition = self._next


def run(settings: LinkSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio; all ranks call it together."""
    with world.agree("opening the file of measurements"):
        if world.is_first:
            results.check(settings.json)
    method = begin(settings, world, classes=10)
    hosts = world.gather_objects(world.host)
    everyone = world.gather_objects({block: slot.numel() for block, slot in method.slots.items()})
    sizes = {block: numbers for theirs in everyone for block, numbers in theirs.items()}
    numbers, codecs = tuple(sizes[block] for block in sorted(sizes)), settings.exchange
    exchanges = Exchanges(method, numbers)
    trunk, changes, transport = method.subnet.trunk, method.changes, method.transport
    trained = torch.randn(len(trunk), generator=torch.Generator().manual_seed(world.rank)).to(trunk.device)
    averaged = encoded_bytes(codecs.trunk, len(trunk), codecs.keep)
    of_trunk = list(sent_in_a_ring(averaged, world.size) if changes is None else sent_by_all(averaged, world.size))
    measured: dict[str, list[Measurement]] = {BARE: [], "trunk": [], "blocks": [], "trunk and blocks": []}

    def measure(name: str, action: Callable[[], None], sent: Callable[[], Sent]) -> None:
        seconds = slowest(world, action)
        if repeat >= 0:
            measured[name].append(Measurement(busiest(sent(), hosts), seconds))

    def sent_of_both(before: Partition) -> Sent:
        return [*of_trunk, *sent_by(exchange(before, method.partition), numbers, codecs.blocks)]

    for repeat in range(-1, settings.repeats):
        seed = derive(settings.seed, "round", repeat + 2)
        plan, before = exchanges.deal(seed), method.partition
        trunk.add_(trained, alpha=1e-3)
        measure("trunk", lambda: transport.finish(transport.start_average(trunk, "link", changes)), lambda: of_trunk)
        measure(
            "blocks",
            lambda plan=plan: exchanges.run(plan),  # type: ignore[misc]
            lambda plan=plan: sent_by(plan, numbers, codecs.blocks),  # type: ignore[misc]
        )
        trunk.add_(trained, alpha=1e-3)
        measure(
            "trunk and blocks",
            lambda seed=seed: method.synchronise(seed),  # type: ignore[misc]
            lambda before=before: sent_of_both(before),  # type: ignore[misc]
        )
        size = busiest(sent_of_both(before), hosts)
        message = torch.zeros(2, size, dtype=torch.uint8)
        to_next = [(rank, (rank + 1) % world.size, size) for rank in range(world.size)]
        measure(BARE, lambda message=message: pass_on(world, *message), lambda to_next=to_next: to_next)  # type: ignore[misc]
    if world.is_first:
        show(settings, world, len(set(hosts)), measured)
        written = {name: [asdict(each) for each in repeats] for name, repeats in measured.items()}
        results.write(settings.json, {"ranks": world.size, "rate": settings.rate, "measured": written})
    both = measured["trunk and blocks"]
    if settings.rate is None:
        apart = [a.seconds + b.seconds for a, b in zip(measured["trunk"], measured["blocks"], strict=True)]
        return median(each.seconds / alone for each, alone in zip(both, apart, strict=True))
    return median(each.seconds / max(each.bound(settings.rate), 1e-9) for each in both)


def sent_in_a_ring(size: int, ranks: int) -> Sent:
    """Yield what an all-reduce of so many bytes sends, by its algorithm's cost."""
    return ((rank, (rank + 1) % ranks, ring_bytes(size, ranks)) for rank in range(ranks))


def sent_by_all(size: int, ranks: int) -> Sent:
    """Yield what an average of so many bytes sends where every rank averages a part of it."""
    others = ((rank, other) for rank in range(ranks) for other in range(ranks) if other != rank)
    return ((rank, other, ring_bytes(size, ranks) // (ranks - 1)) for rank, other in others)


def sent_by(plan: Exchange, numbers: tuple[int, ...], codec: str) -> Sent:
    """Yield what an exchange sends of blocks that have so many numbers, by a codec."""
    messages: list[Share | Fetch] = [*plan.shares, *plan.fetches]
    for message in messages:
        part = part_of(plan, message, numbers[message.block], record_of(codec).numbers)
        yield message.source, message.destination, encoded_bytes(codec, part.stop - part.start)


def busiest(sent: Sent, hosts: Sequence[str]) -> int:
    """Return the bytes that the busiest link carries in one direction, given every rank's host."""
    leaving: Counter[str] = Counter()
    coming: Counter[str] = Counter()
    for source, destination, size in sent:
        if hosts[source] != hosts[destination]:
            leaving[hosts[source]] += size
            coming[hosts[destination]] += size
    return max((*leaving.values(), *coming.values()), default=0)


def show(settings: LinkSettings, world: World, hosts: int, measured: dict[str, list[Measurement]]) -> None:
    """Print a row each for MPI alone, the trunk, blocks and both."""
    rate = settings.rate
    bare = median(m.payload / m.seconds for m in measured[BARE]) or 1.0  # on one host nothing crosses a link
    columns: list[Column[list[Measurement]]] = [
        ("payload MB", lambda each: f"{median(m.payload for m in each) / 1e6:.2f}"),
        ("seconds", lambda each: f"{median(m.seconds for m in each):.3f}"),
        ("min", lambda each: f"{min(m.seconds for m in each):.3f}"),
        ("max", lambda each: f"{max(m.seconds for m in each):.3f}"),
        ("Mbit/s", lambda each: f"{median(m.payload * 8e-6 / m.seconds for m in each):,.1f}"),
        ("of bare MPI", lambda each: f"{median(m.payload / m.seconds for m in each) / bare:.3f}"),
    ]
    note = (
        "Payload: what the busiest link carries one way. Seconds: the slowest rank's. Bare MPI: as many bytes as of "
        "trunk and blocks, each rank's in one message to the next rank."
    )
    if rate is not None:
        columns += [
            ("bound s", lambda each: f"{median(m.bound(rate) for m in each):.3f}"),
            ("share", lambda each: f"{median(m.bound(rate) / m.seconds for m in each):.3f}"),
            ("least", lambda each: f"{min(m.bound(rate) / m.seconds for m in each):.3f}"),
        ]
        note += f" Bound: those in which a link of {rate:g} Mbit/s, {PAYLOAD:.0%} of it payload, carries that."
    print_rows(
        f"{counted(world.size, 'rank')} on {counted(hosts, 'host')}, {counted(settings.repeats, 'repeat')} in turn",
        measured,
        columns,
        note,
    )
