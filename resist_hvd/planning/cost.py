"""Cost of a round, by ResIST and by what it is compared with: bytes, arithmetic, memory and seconds.

A round is the same work for every method: S workers make l steps of a batch each (for GPipe, l steps of S batches that
all workers make together). Bytes are counted in two conventions.

* Ours: payload that ranks hand over to be sent, summed over ranks; a collective by its algorithm's cost, for a ring
  all-reduce of n bytes 2 (S - 1) / S n a rank (Patarasuk and Yuan 2009).
* The paper's (Table 1): every number is counted once up and once down for each worker that holds it, 8 bytes in all.

Seconds are those of the latency-bandwidth model (Hockney 1994): a message of n bytes takes alpha + n beta. A ring
all-reduce takes 2 (S - 1) alpha + 2 (S - 1) / S n beta (Thakur, Rabenseifner and Gropp 2005).

Workers are taken to be alike, links to carry both directions at once, and parameters to be single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from resist_hvd.planning.loads import Load, Network, Part, total
from resist_hvd.protocol.codes import RECORDS, encoded_bytes, record_of
from resist_hvd.protocol.exchange import BUCKET_BYTES, piece_bytes
from resist_hvd.protocol.rule import depth

MethodCosted = Literal["resist", "local-sgd", "data-parallel", "gpipe", "federated-dropout"]
FLOAT = 4
"""Bytes of a number."""

TRAINING = 3
"""Passes a training step takes, in forward passes: the backward pass computes two gradients in each convolution."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A round's work.

    Attributes:
        workers: S.
        batch: images of one worker's step.
        local_iterations: l, steps of a round.
        min_blocks: m, the fewest blocks of a deck that ResIST's sub-networks have.
        micro_batches: into how many GPipe cuts a step's images; None for four times its stages, from where on its
            authors found the pipeline's bubble negligible.
        trunk: codec of averages among all workers.
        keep: share of numbers that these send.
        blocks: codec of blocks.
        outer: whether what all workers share has outer momentum, with ResIST and local SGD.
        outer_blocks: whether ResIST's blocks have.
        overlap: T, steps beside a synchronisation of these two; auto counts for its memory, and for no seconds, since
            what it chooses is measured.
    """

    workers: int
    batch: int
    local_iterations: int
    min_blocks: int = 0
    micro_batches: int | None = None
    trunk: str = "fp32"
    keep: float = 1.0
    blocks: str = "fp32"
    outer: bool = False
    outer_blocks: bool = False
    overlap: int | Literal["auto"] = 0

    @property
    def hidden_steps(self) -> int:
        """Steps that are made while a synchronisation is under way: one comes before it at least."""
        return 0 if self.overlap == "auto" else min(self.overlap, self.local_iterations - 1)

    def bytes_of_average(self, numbers: int) -> int:
        """Return what so many numbers take where they are averaged among all workers."""
        return encoded_bytes(self.trunk, numbers, self.keep)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A worker's compute rate, and the network that joins workers.

    Attributes:
        flops: arithmetic that a worker does in a second of training.
        bandwidth: payload in bytes that a host's link carries in a second, each way.
        latency: seconds until the first byte of a message arrives (alpha).
        overhead: seconds that a synchronisation takes besides: agreeing on it, and starting it.
        ranks_per_host: workers that share a host's link; they are numbered host by host.
    """

    flops: float
    bandwidth: float
    latency: float
    overhead: float = 0.0
    ranks_per_host: int = 1


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one round.

    Attributes:
        bytes_sent: payload handed over to be sent, summed over ranks: our convention. For ResIST the expectation over
            deals.
        bytes_paper: in the paper's convention.
        bytes_busiest: payload through the busiest host's link, in its busier direction.
        flops: of the busiest worker.
        memory: bytes of the busiest worker: parameters, gradients and momentum, what a backward pass keeps, and what
            codecs, outer momentum and steps beside a synchronisation take.
        seconds_compute: arithmetic, waiting in a pipeline's bubble included.
        seconds_bandwidth: for payload, beyond what arithmetic hides.
        seconds_latency: of messages, beyond that, and of starting synchronisations.
    """

    method: MethodCosted
    bytes_sent: float
    bytes_paper: float
    bytes_busiest: float
    flops: float
    memory: float
    seconds_compute: float
    seconds_bandwidth: float
    seconds_latency: float

    @property
    def seconds_sync(self) -> float:
        """All that is not arithmetic."""
        return self.seconds_bandwidth + self.seconds_latency

    @property
    def seconds(self) -> float:
        """Of the whole round."""
        return self.seconds_compute + self.seconds_sync

    @property
    def bound(self) -> str:
        """Name of the largest part: compute, bandwidth or latency."""
        parts = {
            "compute": self.seconds_compute,
            "bandwidth": self.seconds_bandwidth,
            "latency": self.seconds_latency,
        }
        return max(parts, key=lambda name: parts[name])


def resist(network: Network, work: Work, machine: Machine) -> Cost:
    """Return the cost of a round of ResIST (Algorithm 1 and section 2.5 of the paper).

    The trunk of T bytes is averaged among all workers: 2 (S - 1) T in all. Blocks' exchanges are those of some rounds
    of the protocol itself (`exchanges.exchanged`).

    In the paper's convention: 8 (S T + sum over workers of the parameters of their blocks).

    Both of the trunk's average and the blocks' exchange use the link at the same time, so their bytes add. T and what
    blocks take are those of codes, but for the last bytes of a part that is no whole group.
    """
    workers, shared = work.workers, network.trunk.parameters
    load = network.sub_network(workers, work.min_blocks)
    trunk, blocks = work.bytes_of_average(shared), load.parameters - shared
    each = RECORDS[work.blocks].bytes / RECORDS[work.blocks].numbers
    codes = 0.0 if work.blocks == "fp32" or workers == 1 else 2 * each * blocks
    outer = 2.0 * FLOAT * blocks if work.outer_blocks else 0.0
    several_hold = any(len(deck) < workers * depth(len(deck), workers, work.min_blocks) for deck in network.decks)
    sent, busiest = 2.0 * (workers - 1) * trunk, _ring(trunk, workers)
    from resist_hvd.planning.exchanges import exchanged  # loads NumPy, which flags do without

    sizes = tuple(network.block(deck).parameters if deck else 0 for deck in network.decks)
    all_sent, most = exchanged(tuple(map(len, network.decks)), sizes, workers, work.min_blocks)
    sent += each * all_sent
    busiest += each * most * _leaving(workers, machine)
    return _local(
        "resist",
        load,
        work,
        machine,
        sent=sent,
        paper=8.0 * workers * load.parameters,
        busiest=busiest,
        memory=codes
        + outer
        + _memory_of_averages(work, shared)
        + _memory_of_overlap(work, shared, load.parameters if several_hold else shared),
    )


def local_sgd(network: Network, work: Work, machine: Machine) -> Cost:
    """Return the cost of a round of local SGD (Stich 2019), the paper's baseline (section 2.4).

    All P parameters are averaged once a round: 2 (S - 1) P in all, or that of codes; in the paper's convention 8 S P.
    """
    load, workers = network.whole, work.workers
    size = work.bytes_of_average(load.parameters)
    return _local(
        "local-sgd",
        load,
        work,
        machine,
        sent=2.0 * (workers - 1) * size,
        paper=8.0 * workers * load.parameters,
        busiest=_ring(size, workers),
        memory=_memory_of_averages(work, load.parameters) + _memory_of_overlap(work, load.parameters, load.parameters),
    )


def data_parallel(network: Network, work: Work, machine: Machine) -> Cost:
    """Return the cost of a round of data-parallel training, as Horovod does it (Sergeev and Del Balso 2018).

    All P gradients are averaged in each of l steps: l times local SGD's bytes. The average of what the backward pass
    has computed goes on beside the rest of it: of a step's transfer, what exceeds two thirds of its arithmetic is seen,
    and in any case that of the last bucket, which is full when the pass is over.
    """
    once = local_sgd(network, replace(work, trunk="fp32", keep=1.0, outer=False, overlap=0), machine)
    steps = work.local_iterations
    hidden = once.seconds_compute * (TRAINING - 1) / TRAINING
    transfer = steps * once.seconds_bandwidth
    last = transfer * min(1.0, BUCKET_BYTES / (FLOAT * network.whole.parameters))
    return Cost(
        method="data-parallel",
        bytes_sent=steps * once.bytes_sent,
        bytes_paper=steps * once.bytes_paper,
        bytes_busiest=steps * once.bytes_busiest,
        flops=once.flops,
        memory=once.memory,
        seconds_compute=once.seconds_compute,
        seconds_bandwidth=max(last, transfer - hidden),
        seconds_latency=steps * once.seconds_latency,
    )


def gpipe(network: Network, work: Work, machine: Machine) -> Cost:
    """Return the cost of a round of pipelined model-parallel training by GPipe (Huang et al. 2019).

    The network is cut into K = min(S, parts) stages of arithmetic as even as can be. A step's S batches pass through
    them in M micro-batches. At each of the K - 1 cuts every image's activations go forward and as many gradients back:
    2 x 4 x S x batch x (numbers at the cut) bytes a step; in the paper's convention, sent and received, twice that.

    A step takes M + K - 1 turns of the slowest stage (section 2.3: the bubble's share is (K - 1) / (M + K - 1)). A
    stage keeps its inputs alone and computes the rest again in the backward pass: 4 passes instead of 3. A transfer
    goes on beside the next micro-batch's arithmetic.
    """
    stages = balanced_stages(network.parts, work.workers)
    loads = [total(stage) for stage in stages]
    images = work.workers * work.batch
    micro = min(work.micro_batches or 4 * len(stages), images)
    slowest = max(load.flops for load in loads)
    turns = work.local_iterations * (micro + len(stages) - 1)
    cuts = [stage[-1].output for stage in stages[:-1]]
    passing = 2.0 * FLOAT * images * work.local_iterations
    compute = turns * (TRAINING + 1) * slowest * images / micro / machine.flops
    # A stage in the middle sends on at one cut and back at the other.
    through = [FLOAT * (left + right) for left, right in zip([0, *cuts], [*cuts, 0], strict=True)]
    transfer = turns * max(through) * images / micro / machine.bandwidth
    inputs = [network.parts[0].kept, *cuts]
    memory = max(
        3 * FLOAT * load.parameters + FLOAT * (images * entering + images / micro * load.kept)
        for load, entering in zip(loads, inputs, strict=True)
    )
    return Cost(
        method="gpipe",
        bytes_sent=passing * sum(cuts),
        bytes_paper=2 * passing * sum(cuts),
        bytes_busiest=max(through) * images * work.local_iterations,
        flops=(TRAINING + 1) * slowest * images * work.local_iterations,
        memory=memory,
        seconds_compute=compute,
        seconds_bandwidth=max(0.0, transfer - compute),
        seconds_latency=2 * turns * machine.latency if cuts else 0.0,
    )


def federated_dropout(network: Network, thinned: Network, work: Work, machine: Machine) -> Cost:
    """Return the cost of a round of federated dropout (Caldas et al. 2018), which the paper compares with in its A.7.

    Each worker is the server of an equal part of the network. A thin network of P' bytes goes to all of them after l
    steps, and another comes back; what a worker keeps itself is not sent: 2 (S - 1) P' in all, the expectation over
    deals of filters. In the paper's convention 2 S P', as with a server apart.

    Args:
        network: the whole one, of which a worker keeps its part, and room for its average.
        thinned: the network that a worker trains.
        work: the round.
        machine: a worker's.
    """
    load, workers = thinned.whole, work.workers
    size = FLOAT * load.parameters
    return _local(
        "federated-dropout",
        load,
        replace(work, overlap=0),
        machine,
        sent=2.0 * (workers - 1) * size,
        paper=2.0 * workers * size,
        busiest=_ring(size, workers) * _leaving(workers, machine),
        memory=3.0 * FLOAT * network.whole.parameters / workers,
    )


def balanced_stages(parts: Sequence[Part], workers: int) -> list[list[Part]]:
    """Cut a network into at most so many runs of consecutive parts, so that the most arithmetic in one is the least."""
    flops = [part.flops for part in parts]
    low, high = max(flops), sum(flops)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(parts, middle)) <= workers:
            high = middle
        else:
            low = middle + 1
    return _cut(parts, low)


def _cut(parts: Sequence[Part], limit: int) -> list[list[Part]]:
    stages: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        if stages[-1] and used + part.flops > limit:
            stages.append([])
            used = 0
        stages[-1].append(part)
        used += part.flops
    return stages


def _memory_of_averages(work: Work, numbers: int) -> float:
    """Return what a worker keeps beside so many numbers that all average.

    For averages by their changes (`comm.changes`), and for outer momentum (`methods.outer`), if there are. The room
    that a codec works in is not counted: it depends on the device, and not on the network.
    """
    outer = 2.0 * FLOAT * numbers if work.outer else 0.0
    if record_of(work.trunk, work.keep) == record_of("fp32") or work.workers == 1:
        return outer
    return outer + 2 * FLOAT * numbers + (3 - 1 / work.workers) * work.bytes_of_average(numbers)


def _memory_of_overlap(work: Work, averaged: int, copied: int) -> float:
    """Return what steps beside a synchronisation take, if there are: copies, and without codes two pieces under way.

    Args:
        work: the round.
        averaged: numbers that all workers average.
        copied: numbers of which a worker has a copy (`Method.make_room`).
    """
    if work.overlap == 0:
        return 0.0
    encoded = record_of(work.trunk, work.keep) != record_of("fp32")
    return float(FLOAT * copied + (0 if encoded else 2 * piece_bytes(FLOAT * averaged)))


def _ring(size: float, workers: int) -> float:
    return 2.0 * size * (workers - 1) / workers


def _leaving(workers: int, machine: Machine) -> float:
    """Return how much goes through a host's link for each byte that every rank sends to a rank anywhere.

    Ranks of a host share its link, and what stays on the host does not use it. (A ring through all ranks leaves each
    host once, however many ranks it has.)
    """
    here = min(machine.ranks_per_host, workers)
    return here * (workers - here) / (workers - 1) if workers > 1 else 0.0


def _local(
    method: MethodCosted,
    load: Load,
    work: Work,
    machine: Machine,
    *,
    sent: float,
    paper: float,
    busiest: float,
    memory: float = 0.0,
) -> Cost:
    """Return the cost of l local steps on a worker's own network, and one synchronisation, after them or beside some.

    That takes the memory given beside the network's own.
    """
    alone = work.workers == 1
    within = machine.ranks_per_host >= work.workers
    flops = float(TRAINING * load.flops * work.batch * work.local_iterations)
    compute = flops / machine.flops
    hidden = compute * work.hidden_steps / work.local_iterations
    transfer = 0.0 if alone or within else busiest / machine.bandwidth
    messages = 0.0 if alone else 2 * (work.workers - 1) * machine.latency
    return Cost(
        method=method,
        bytes_sent=sent,
        bytes_paper=paper,
        bytes_busiest=busiest,
        flops=flops,
        memory=3.0 * FLOAT * load.parameters + FLOAT * work.batch * load.kept + memory,
        seconds_compute=compute,
        seconds_bandwidth=max(0.0, transfer - hidden),
        seconds_latency=max(0.0, messages - max(0.0, hidden - transfer)) + (0.0 if alone else machine.overhead),
    )
