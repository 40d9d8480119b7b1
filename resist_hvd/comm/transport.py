"""The one module that sends parameters, by collectives and by messages; it counts what it sends.

What all workers share is averaged by Horovod. Parts of blocks that some workers share are averaged by their owners, to
which copies come in MPI subcommunicators, made once; then blocks and parts travel between ranks (`blocks`).

MPI and Horovod are imported by the functions that use them: importing mpi4py starts MPI, unless `World.join` came
first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from resist_hvd.comm.blocks import WINDOW, Mail, PendingExchange
from resist_hvd.comm.changes import ChangesAverage, EncodedShift
from resist_hvd.comm.codec import CODECS, Float32
from resist_hvd.comm.encoded_blocks import CodeRoom, EncodedExchange
from resist_hvd.comm.shift import Shift
from resist_hvd.comm.sparse import codec_of
from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import Exchange, Fetch, Share, ring_bytes
from resist_hvd.settings.exchange import CodecName, ExchangeSettings

AWAITED = 1e-4
"""Seconds between two looks at what has come, where two things are waited for."""

PIECE_BYTES = 4 * 2**20
"""A buffer in host memory is averaged in pieces of this size, in bytes, all handed over at once: what a rank reduces
and divides is then still in its cache, which takes 0.6 of the time of a single call (four ranks on two cores)."""


@dataclass(frozen=True)
class BytesSent:
    """Payload in bytes, handed over to be sent.

    Attributes:
        trunk: by averages among all workers, and by messages from each to all others.
        blocks: for single blocks, by shares and fetches.
    """

    trunk: int = 0
    blocks: int = 0

    def __add__(self, other: BytesSent) -> BytesSent:
        return BytesSent(self.trunk + other.trunk, self.blocks + other.blocks)

    def __sub__(self, other: BytesSent) -> BytesSent:
        return BytesSent(self.trunk - other.trunk, self.blocks - other.blocks)


@dataclass
class PendingAverage:
    """An average under way.

    Attributes:
        handles: of the all-reduce, none where changes are averaged.
        flat: what is replaced by the average.
        buffer: what is reduced: `flat` itself, or the copy in host memory that stands in for it.
        changes: by what this buffer's changes are averaged.
    """

    name: str
    began: float
    handles: list[int]
    flat: Tensor
    buffer: Tensor
    changes: ChangesAverage | None


class Transport:
    """Moves parameters between workers.

    Payload is counted as it is handed over to be sent by this rank, a collective by its algorithm's cost: ring
    all-reduce, 2 (S - 1) / S of the buffer.

    Seconds that this rank waits for averages among all are the stopwatch's `trunk`, those of blocks its `blocks`.

    Args:
        world: all workers.
        groups: every group of ranks that can come to share a block (`Rule.groups`).
        staged: whether buffers pass through pinned host memory. By default a GPU's do: what MPI sends always, since
            its non-blocking averages take no GPU memory, and averages among all where `world.averages_on_gpus` is
            false.
        block_codec: encodes blocks that are exchanged.

    Attributes:
        sent: payload that this rank has sent since the start.
    """

    def __init__(
        self,
        world: World,
        groups: Sequence[tuple[int, ...]] = (),
        *,
        staged: bool | None = None,
        block_codec: CodecName = "fp32",
    ) -> None:
        self.world = world
        self.sent = BytesSent()
        self._messages = world.comm.Dup()
        # In one order that all ranks agree on, each by its members alone: no deadlock, no work for the others.
        self._groups = {group: world.group(group) for group in groups if world.rank in group}
        on_gpu = world.device.type == "cuda"
        self._stages_collectives = on_gpu and not world.averages_on_gpus if staged is None else staged
        self._stages_messages = on_gpu if staged is None else staged
        self._host_copies: dict[tuple[str, int], Tensor] = {}
        self._codec = None if block_codec == "fp32" else CODECS[block_codec](world.device)
        self._room = CodeRoom(world.device, staged=self._stages_messages)
        self._encoded: ChangesAverage | None = None
        self._returning: list[tuple[Tensor, Tensor]] = []
        self._window = WINDOW if world.local_size < world.size else None

    def host_memory_for(self, flat: Tensor) -> Tensor:
        """Return what stands in for a buffer in host memory: itself, where it lies there already."""
        return self._host_copy(("stand-in", 0), flat) if self._stages_messages else flat

    @property
    def between_hosts(self) -> bool:
        """True where there are several hosts."""
        return self._window is not None

    # -- among all workers ---------------------------------------------------------------------------------------

    def count_changes(self, flat: Tensor, exchange: ExchangeSettings) -> ChangesAverage | None:
        """Return what averages a buffer by encoding how it changes from what it is now; None where all of it is sent.

        Args:
            flat: the buffer, equal on all ranks.
            exchange: the codec of averages, and the share of numbers that they send.
        """
        codec = codec_of(exchange.trunk, flat.device, exchange.keep)
        if isinstance(codec, Float32) or self.world.size == 1:
            return None
        return ChangesAverage(self.world, flat, codec, staged=self._stages_messages, window=self._window)

    def start_average(
        self, flat: Tensor, name: str, changes: ChangesAverage | None = None, *, exact: bool = False
    ) -> PendingAverage | None:
        """Begin to replace `flat` by its average over all workers; `finish` ends it.

        Args:
            flat: a contiguous buffer, laid out alike on all ranks.
            name: the same for the same buffer every time, so that Horovod negotiates it once.
            changes: by what its changes are encoded, if they are.
            exact: send all numbers as they are, with all that encoding has left out so far.
        """
        if self.world.size == 1:
            return None
        began = perf_counter()
        if changes is not None and not exact:
            self.sent += BytesSent(trunk=changes.bytes_sent)
            changes.begin(flat)
            self._encoded = changes
            return PendingAverage(name, began, [], flat, flat, changes)
        import horovod.torch as hvd

        if changes is not None:
            changes.add_what_is_left(flat)
        self.sent += BytesSent(trunk=ring_bytes(flat.nbytes, self.world.size))
        buffer = self._outgoing(name, 0, flat) if self._stages_collectives else flat
        pieces = [buffer] if buffer.is_cuda else torch.split(buffer, PIECE_BYTES // buffer.itemsize)
        handles = [
            hvd.allreduce_async_(piece, name=f"{name}.{number}", op=hvd.Average) for number, piece in enumerate(pieces)
        ]
        return PendingAverage(name, began, handles, flat, buffer, changes)

    def finish(self, pending: PendingAverage | None) -> None:
        """Wait until an average has arrived in its buffer."""
        if pending is None:
            return
        watch, flat, changes = self.world.stopwatch, pending.flat, pending.changes
        with watch.measure("trunk", f"wait for {pending.name}"):
            for handle in pending.handles:
                self._await(handle)
            if pending.buffer is not flat:
                flat.copy_(pending.buffer)
            if changes is not None and pending.handles:
                changes.restart()
            elif changes is not None:
                self._encoded = None
                with self.world.activity.waiting():
                    changes.wait()
        watch.keep(f"average {pending.name}", "averages", pending.began, perf_counter())

    def _await(self, handle: int) -> None:
        """Wait for one of Horovod's handles."""
        import horovod.torch as hvd

        with self.world.activity.waiting():
            hvd.synchronize(handle)

    def make_shift(self, flat: Tensor, name: str, changes: ChangesAverage | None = None) -> Shift | EncodedShift:
        """Return what replaces a buffer by its average over all workers minus itself, beside steps; see `Shift`.

        Args:
            flat: the buffer.
            name: of the average, the same on all ranks.
            changes: by what its changes are encoded, if they are.
        """
        if changes is not None:
            return EncodedShift(changes, flat)
        return Shift(self.world, flat, name, staged=self._stages_collectives)

    def begin_shift(self, shift: Shift | EncodedShift) -> None:
        """Begin with the present content of the shift's buffer."""
        self.sent += BytesSent(trunk=shift.bytes_sent)
        shift.begin()

    def all_to_all(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor], what: str) -> None:
        """Send a piece to each other rank, and receive one from each; all ranks call it together.

        Args:
            outgoing: for each rank a contiguous flat buffer in host memory; this rank's own is left alone.
            incoming: the same, each as long as what its rank sends.
            what: is sent, in words, for a trace.
        """
        rank, size = self.world.rank, self.world.size
        if size == 1:
            return
        # Each begins with its next neighbour, so that none receives from all at once.
        after, before = ([(rank + way * step) % size for step in range(1, size)] for way in (1, -1))
        with self.world.stopwatch.measure("trunk", what), self.world.activity.waiting():
            requests = [self._messages.Irecv(incoming[other].numpy(), source=other) for other in before]
            requests += [self._messages.Isend(outgoing[other].numpy(), dest=other) for other in after]
            for request in requests:
                request.Wait()
                self.world.activity.progress()
        self.sent += BytesSent(trunk=sum(outgoing[other].nbytes for other in after))

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

    def exchange(
        self,
        plan: Exchange,
        held: Mapping[int, Tensor],
        arriving: Mapping[int, Tensor],
        scratch: Sequence[Tensor] = (),
        *,
        exact: bool = False,
    ) -> None:
        """Average the blocks that several hold, and move every block to its next holders; see `begin_exchange`."""
        self.finish_exchange(self.begin_exchange(plan, held, arriving, scratch, exact=exact))

    def begin_exchange(
        self,
        plan: Exchange,
        held: Mapping[int, Tensor],
        arriving: Mapping[int, Tensor],
        scratch: Sequence[Tensor] = (),
        *,
        exact: bool = False,
    ) -> PendingExchange | EncodedExchange:
        """Begin to average the blocks that several hold, and to move every block to its next holders.

        Blocks with one holder leave at once, parts of the others as soon as they are averaged: copies are summed in
        ascending order of ranks, so that the bits do not depend on who sums them. Its `advance` has it go on
        meanwhile, and `finish_exchange` ends it, before another begins; until then all buffers are in use.

        Args:
            plan: the exchange, the same on every rank.
            held: by block number, the buffers of the blocks this rank holds; averages of blocks that stay arrive in
                them, and what is in those of others is of no use afterwards.
            arriving: by block number, the buffers for the blocks this rank receives.
            scratch: flat buffers that nobody needs meanwhile, of the blocks' type and device, for copies that are to be
                averaged; those for which there is no room take memory of their own, once.
            exact: send them as they are, whatever the codec.
        """
        with self.world.stopwatch.measure("blocks"):
            rank, room = self.world.rank, [] if self._stages_messages else list(scratch)
            messages: list[Share | Fetch] = [*plan.shares, *plan.fetches]
            used = dict.fromkeys(message.block for message in messages if rank in (message.source, message.destination))
            buffers = {block: held[block] if block in held else arriving[block] for block in used}
            mail = Mail(self._messages, self._groups, self.world.activity.progress)
            if self._codec is not None and not exact:
                return EncodedExchange(rank, plan, buffers, self._codec, self._room, mail, self._window)
            if self._stages_messages:
                for number, (block, buffer) in enumerate(buffers.items()):
                    copy = self._host_copy(("exchange", number), buffer)
                    if block in held:
                        copy.copy_(buffer)
                    if rank in plan.next_holders[block]:
                        self._returning.append((buffer, copy))
                    buffers[block] = copy
            copies: dict[tuple[int, int], Tensor] = {}
            for share in plan.shares:
                if share.destination == rank:
                    whole = buffers[share.block]
                    part = whole[plan.part(share.block, share.part, whole.numel())]
                    cut = cut_off(room, part.numel())
                    if cut is None:
                        cut = self._host_copy(("share", len(copies)), part)
                    copies[share.block, share.source] = cut
            return PendingExchange(rank, plan, buffers, copies, mail, self._window)

    def finish_exchange(self, pending: PendingExchange | EncodedExchange) -> None:
        """Wait until an exchange is done."""
        with self.world.stopwatch.measure("blocks"):
            with self.world.activity.waiting():
                # What encodes an average beside it has nobody else to advance it.
                while self._encoded is not None and not pending.advance():
                    self._encoded.advance()
                    time.sleep(AWAITED)
                pending.finish()
            self.sent += BytesSent(blocks=pending.bytes_sent)
            for buffer, copy in self._returning:
                buffer.copy_(copy)
            self._returning.clear()

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


def cut_off(room: list[Tensor], numbers: int) -> Tensor | None:
    """Take a piece of so many numbers off the first flat buffer that is large enough, None if none is."""
    for place, buffer in enumerate(room):
        if buffer.numel() >= numbers:
            room[place] = buffer[numbers:]
            return buffer[:numbers]
    return None
