"""The one module that sends parameters, by collectives and by messages; it counts what it sends.

What all workers share is averaged by Horovod. Blocks that some workers share are averaged in MPI subcommunicators, made
once; then blocks travel between ranks by non-blocking messages, all at once.

MPI and Horovod are imported by the functions that use them: importing mpi4py starts MPI, unless `World.join` came
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import Exchange, ring_bytes

PIECE_BYTES = 4 * 2**20
"""A buffer in host memory is averaged in pieces of this size, in bytes, all handed over at once: what a rank reduces
and divides is then still in its cache, which takes 0.6 of the time of a single call (four ranks on two cores)."""


@dataclass(frozen=True)
class BytesSent:
    """Payload in bytes, handed over to be sent.

    Attributes:
        trunk: by collectives among all workers.
        blocks: for single blocks, by averages among their holders and by transfers.
    """

    trunk: int = 0
    blocks: int = 0

    def __add__(self, other: BytesSent) -> BytesSent:
        return BytesSent(self.trunk + other.trunk, self.blocks + other.blocks)

    def __sub__(self, other: BytesSent) -> BytesSent:
        return BytesSent(self.trunk - other.trunk, self.blocks - other.blocks)


@dataclass
class PendingAverage:
    """An all-reduce under way: of `flat` itself, or of the copy in host memory that stands in for it."""

    name: str
    began: float
    handles: list[int]
    flat: Tensor
    buffer: Tensor


class Transport:
    """Moves parameters between workers.

    Payload is counted as it is handed over to be sent by this rank, a collective by its algorithm's cost: ring
    all-reduce, 2 (S - 1) / S of the buffer.

    Seconds that this rank waits for averages among all are the stopwatch's `trunk`, those of blocks its `blocks`.

    Args:
        world: all workers.
        groups: every group of ranks that can come to share a block (`partition.holder_groups`).
        staged: whether buffers pass through pinned host memory. By default a GPU's do: what MPI sends always, since
            its non-blocking averages take no GPU memory, and averages among all where `world.averages_on_gpus` is
            false.

    Attributes:
        sent: payload that this rank has sent since the start.
    """

    def __init__(self, world: World, groups: Sequence[tuple[int, ...]] = (), *, staged: bool | None = None) -> None:
        self.world = world
        self.sent = BytesSent()
        self._messages = world.comm.Dup()
        # Made in one order that all ranks agree on, each by its members alone: no deadlock, no work for the others.
        self._groups: dict[tuple[int, ...], Any] = {
            group: world.comm.Create_group(world.comm.Get_group().Incl(group), tag=number)
            for number, group in enumerate(groups)
            if world.rank in group
        }
        on_gpu = world.device.type == "cuda"
        self._stages_collectives = on_gpu and not world.averages_on_gpus if staged is None else staged
        self._stages_messages = on_gpu if staged is None else staged
        self._host_copies: dict[tuple[str, int], Tensor] = {}

    # -- among all workers ---------------------------------------------------------------------------------------

    def start_average(self, flat: Tensor, name: str) -> PendingAverage | None:
        """Begin to replace `flat` by its average over all workers; `finish` ends it.

        Args:
            flat: a contiguous buffer, laid out alike on all ranks.
            name: the same for the same buffer every time, so that Horovod negotiates it once.
        """
        if self.world.size == 1:
            return None
        import horovod.torch as hvd

        began = perf_counter()
        self.sent += BytesSent(trunk=ring_bytes(flat.nbytes, self.world.size))
        buffer = self._outgoing(name, 0, flat) if self._stages_collectives else flat
        pieces = [buffer] if buffer.is_cuda else torch.split(buffer, PIECE_BYTES // buffer.itemsize)
        handles = [
            hvd.allreduce_async_(piece, name=f"{name}.{number}", op=hvd.Average) for number, piece in enumerate(pieces)
        ]
        return PendingAverage(name, began, handles, flat, buffer)

    def finish(self, pending: PendingAverage | None) -> None:
        """Wait until an average has arrived in its buffer."""
        if pending is None:
            return
        import horovod.torch as hvd

        watch = self.world.stopwatch
        with watch.measure("trunk", f"wait for {pending.name}"):
            with self.world.activity.waiting():
                for handle in pending.handles:
                    hvd.synchronize(handle)
                    self.world.activity.progress()
            if pending.buffer is not pending.flat:
                pending.flat.copy_(pending.buffer)
        watch.keep(f"average {pending.name}", "averages", pending.began, perf_counter())

    def broadcast(self, flat: Tensor, root: int) -> None:
        """Fill `flat` on every rank with that of rank `root`."""
        buffer = self._host_copy(("broadcast", 0), flat) if self._stages_messages else flat
        sends, copies = self.world.rank == root, buffer is not flat
        if copies and sends:
            buffer.copy_(flat)
        with self.world.activity.waiting():
            self._messages.Bcast(buffer.numpy(), root=root)
        if copies and not sends:
            flat.copy_(buffer)

    # -- blocks --------------------------------------------------------------------------------------------------

    def exchange(self, plan: Exchange, held: Mapping[int, Tensor], arriving: Mapping[int, Tensor]) -> None:
        """Average the blocks that several hold, and move every block to its next holders.

        Blocks with one holder leave at once, the others as soon as their average is there.

        Args:
            plan: the exchange, the same on every rank.
            held: by block number, the buffers of the blocks this rank holds; averages arrive in them.
            arriving: by block number, the buffers for the blocks this rank receives.
        """
        with self.world.stopwatch.measure("blocks"):
            self._exchange(plan, held, arriving)

    def _exchange(self, plan: Exchange, held: Mapping[int, Tensor], arriving: Mapping[int, Tensor]) -> None:
        from mpi4py import MPI

        rank = self.world.rank
        averages = [average for average in plan.averages if rank in average.holders]
        outgoing = [transfer for transfer in plan.transfers if transfer.source == rank]
        incoming = [transfer.block for transfer in plan.transfers if transfer.destination == rank]
        sources = {transfer.block: transfer.source for transfer in plan.transfers if transfer.destination == rank}

        used = {average.block for average in averages} | {transfer.block for transfer in outgoing}
        out = {block: held[block] for block in used}
        into = {block: arriving[block] for block in incoming}
        if self._stages_messages:
            out = {block: self._outgoing("held", n, out[block]) for n, block in enumerate(sorted(used))}
            into = {block: self._host_copy(("arriving", n), into[block]) for n, block in enumerate(incoming)}

        receives = [self._messages.Irecv(into[b].numpy(), source=sources[b], tag=b) for b in incoming]
        averaging = [self._groups[a.holders].Iallreduce(MPI.IN_PLACE, out[a.block].numpy()) for a in averages]
        shared = {average.block for average in averages}
        sends = [self._send(out[t.block], t.destination, t.block) for t in outgoing if t.block not in shared]
        self._wait_for(averaging)
        for average in averages:
            out[average.block].mul_(1.0 / len(average.holders))
            self.sent += BytesSent(blocks=ring_bytes(out[average.block].nbytes, len(average.holders)))
            if self._stages_messages:
                held[average.block].copy_(out[average.block])
        sends += [self._send(out[t.block], t.destination, t.block) for t in outgoing if t.block in shared]
        self._wait_for(receives + sends)
        if self._stages_messages:
            for block in incoming:
                arriving[block].copy_(into[block])

    def _wait_for(self, requests: list[Any]) -> None:
        """Wait until all have ended; each one that does is progress, as a slow link shows no other."""
        from mpi4py import MPI

        with self.world.activity.waiting():
            while MPI.Request.Waitsome(requests) is not None:  # none is left to wait for
                self.world.activity.progress()

    def _send(self, buffer: Tensor, destination: int, block: int) -> Any:
        self.sent += BytesSent(blocks=buffer.nbytes)
        return self._messages.Isend(buffer.numpy(), dest=destination, tag=block)

    # -- host memory that stands in for a GPU's -------------------------------------------------------------------

    def _outgoing(self, name: str, number: int, tensor: Tensor) -> Tensor:
        copy = self._host_copy((name, number), tensor)
        copy.copy_(tensor)
        return copy

    def _host_copy(self, key: tuple[str, int], tensor: Tensor) -> Tensor:
        copy = self._host_copies.get(key)
        if copy is None or copy.numel() < tensor.numel() or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._host_copies[key] = copy
        return copy[: tensor.numel()]
