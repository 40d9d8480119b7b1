"""Federated dropout (Caldas, Konecny, McMahan and Talwalkar 2018), with which the paper compares in its supplement A.7.

Every worker trains a network with a random part of each layer's filters, truly smaller, and another one each round. Its
authors have a server, which holds the whole network, sends each worker its thin one, and averages what comes back. Here
each worker is the server of a stretch of the whole network's numbers. So the same numbers travel, but for those that a
worker keeps itself, no link carries more than another, and nobody has the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, Setup, Stage
from resist_hvd.methods.state import NamedPieces
from resist_hvd.nets.subnet import SubNet, initialise, make_part, seeds_of_parts
from resist_hvd.nets.thinning import thinning_of
from resist_hvd.protocol import filters
from resist_hvd.protocol.exchange import part_edges
from resist_hvd.protocol.filters import Hand

PIECES = 840
"""Into so many pieces the whole network is cut, for workers to keep and for checkpoints to name; 1 to 8 workers share
them evenly."""


class Stretch:
    """A stretch of the whole network's numbers, and the average of what workers have made of it; in host memory.

    Args:
        first: where it begins.
        end: where it ends.
        dtype: of numbers.

    Attributes:
        numbers: [end - first].
    """

    def __init__(self, first: int, end: int, dtype: torch.dtype) -> None:
        self.first, self.end = first, end
        self.numbers = torch.zeros(end - first, dtype=dtype)
        self._sums, self._holders = torch.zeros_like(self.numbers), torch.zeros_like(self.numbers)

    def add(self, places: NDArray[np.int64], values: Tensor) -> None:
        """Add a worker's values of the numbers that it has trained to the average that is to be taken."""
        self._sums.numpy()[places] += values.numpy()
        self._holders.numpy()[places] += 1

    def average(self) -> None:
        """Replace each number by the average of what was added; what nobody has trained stays."""
        sums, holders = self._sums.numpy(), self._holders.numpy()
        np.divide(sums, holders, out=self.numbers.numpy(), where=holders > 0)
        self._sums.zero_()
        self._holders.zero_()


class FederatedDropout(Method):
    """Train a thin network for l local iterations; then average each parameter over those that had it.

    Args:
        setup: what it is made from.
        seed: of the first round's filters, the same on every rank.
    """

    def __init__(self, setup: Setup, seed: int) -> None:
        super().__init__(setup)
        rank, size, device = setup.world.rank, setup.world.size, setup.world.device
        self.scales = (1.0,) * len(self.rule.decks)
        self.partition = self.rule.replicated()
        self.transport = Transport(setup.world)
        self._thinning = thinning_of(setup.network, setup.keep_filters)
        self.subnet = SubNet(self._thinning.thin, (), device=device, dtype=setup.dtype)
        self.optimizer_state = setup.optimizer_state(self.subnet)
        self._pieces = part_edges(self._thinning.firsts[-1], PIECES)
        self._edges = [self._pieces[place] for place in part_edges(PIECES, size)]
        self._stretch = Stretch(self._edges[rank], self._edges[rank + 1], setup.dtype)
        self._room = torch.empty(0, dtype=setup.dtype)
        self._begin_round(seed)
        self._take_initial_weights()

    @classmethod
    def begin(cls, setup: Setup, *, seed: int, samples: int = 0) -> Method:
        """Return the method with the filters that the seed deals."""
        return cls(setup, seed)

    def _begin_round(self, seed: int) -> None:
        """Deal all workers their filters."""
        self._hands = [filters.deal(self._thinning.channels, seed, worker) for worker in range(self.setup.world.size)]

    @property
    def _own(self) -> Hand:
        """This worker's filters."""
        return self._hands[self.setup.world.rank]

    def _take_initial_weights(self) -> None:
        """Take this worker's share of initial weights, and its thin network of them, out of one part after another."""
        setup, thinning, stretch = self.setup, self._thinning, self._stretch
        edges = thinning.part_edges
        cuts = thinning.cut(self._own, edges)
        seeds = seeds_of_parts(setup.network, setup.seed)
        for place, (part, seed) in enumerate(zip(setup.network.parts, seeds, strict=True)):
            module, flat = make_part(part, torch.device("cpu"), setup.dtype)
            initialise(part, module, seed)
            if setup.fill is not None:
                setup.fill(part, module)
            first, end = edges[place], edges[place + 1]
            kept = torch.from_numpy(thinning.places(self._own, first, end))
            self.subnet.trunk[cuts[place] : cuts[place + 1]].copy_(flat[kept])
            low, high = max(first, stretch.first), min(end, stretch.end)
            if low < high:
                stretch.numbers[low - stretch.first : high - stretch.first].copy_(flat[low - first : high - first])

    # -- the end of a round ----------------------------------------------------------------------------------------

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Send what this worker has trained to those that keep it, and average what this one keeps.

        A thin network's numbers ascend as the whole one's do: what a keeper gets is a stretch of it, and never packed.
        """
        thin, stretch, rank = self._in_host_memory(), self._stretch, self.setup.world.rank
        if thin is not self.subnet.trunk:
            thin.copy_(self.subnet.trunk)
        outgoing, incoming = self._by_keeper(thin), self._in_room()
        self.transport.all_to_all(outgoing, incoming, "thin networks to their keepers")
        incoming[rank] = outgoing[rank]
        for hand, values in zip(self._hands, incoming, strict=True):
            stretch.add(self._thinning.places(hand, stretch.first, stretch.end), values)
        stretch.average()
        self._begin_round(seed)

    def arrive(self) -> None:
        """Fetch this worker's next thin network from those that keep it."""
        self._fetch()
        self.optimizer_state.restart()

    def rejoin(self) -> None:
        """Fetch this worker's thin network of what all have read."""
        self._fetch()

    def _fetch(self) -> None:
        thin, stretch, rank = self._in_host_memory(), self._stretch, self.setup.world.rank
        incoming, outgoing = self._by_keeper(thin), self._in_room()
        outgoing[rank] = incoming[rank]
        for hand, values in zip(self._hands, outgoing, strict=True):
            places = torch.from_numpy(self._thinning.places(hand, stretch.first, stretch.end))
            torch.index_select(stretch.numbers, 0, places, out=values)
        self.transport.all_to_all(outgoing, incoming, "thin networks from their keepers")
        if thin is not self.subnet.trunk:
            self.subnet.trunk.copy_(thin)

    def _in_host_memory(self) -> Tensor:
        return self.transport.host_memory_for(self.subnet.trunk)

    def _by_keeper(self, thin: Tensor) -> list[Tensor]:
        """Return the pieces of this worker's thin network that each worker keeps."""
        cuts = self._thinning.cut(self._own, self._edges)
        return [thin[first:end] for first, end in pairwise(cuts)]

    def _in_room(self) -> list[Tensor]:
        """Return buffers for what this worker keeps of each other one's thin network, and an empty one for its own.

        They are in the gradients' memory, which nobody needs meanwhile; on a GPU, and where this worker happens to get
        more than a thin network has, in some that stays.
        """
        stretch, rank = self._stretch, self.setup.world.rank
        cuts = [self._thinning.cut(hand, (stretch.first, stretch.end)) for hand in self._hands]
        sizes = [0 if worker == rank else end - first for worker, (first, end) in enumerate(cuts)]
        edges = list(accumulate(sizes, initial=0))
        room = self.subnet.gradients_flat
        if room.device.type != "cpu" or len(room) < edges[-1]:
            if len(self._room) < edges[-1]:
                self._room = torch.empty(edges[-1], dtype=room.dtype)
            room = self._room
        return [room[first:end] for first, end in pairwise(edges)]

    # -- the whole network -----------------------------------------------------------------------------------------

    def stages(self) -> Iterator[Stage]:
        """Yield the whole network part by part, each sent to all by its keepers; blocks of a deck in the same memory.

        Its weights are scaled by the share of their inputs that thin networks have (`Thinning.scales`), if activations
        are to be scaled.
        """
        made: tuple[str | None, nn.Module, Tensor] = (None, nn.Identity(), torch.empty(0))
        for place, part in enumerate(self.network.parts):
            if part.deck is None or part.deck != made[0]:
                made = (part.deck, *make_part(part, self.setup.world.device, self.setup.dtype))
            _, module, flat = made
            self._bring(self._thinning.part_edges[place], flat)
            if self.setup.scale_activations:
                for name, scale in self._thinning.scales(place).items():
                    module.get_parameter(name).data.mul_(scale)
            yield Stage(part, module)

    def _bring(self, first: int, flat: Tensor) -> None:
        """Fill a buffer with the whole network's numbers from a place on; all ranks call it together."""
        end = first + len(flat)
        for keeper, (low, high) in enumerate(pairwise(self._edges)):
            low, high = max(low, first), min(high, end)
            if low < high:
                piece = flat[low - first : high - first]
                if keeper == self.setup.world.rank:
                    piece.copy_(self._stretch.numbers[low - self._stretch.first : high - self._stretch.first])
                self.transport.broadcast(piece, root=keeper)

    def lent(self) -> Iterator[nn.Module]:
        """Yield the dealt blocks of the whole network."""
        return (stage.module for stage in self.stages() if stage.part.deck is not None)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def hold(self, held: Sequence[Sequence[int]]) -> bool:
        """Return whether a checkpoint was written by as many workers."""
        return len(held) == self.setup.world.size

    def written_by_this_worker(self) -> dict[str, NamedPieces]:
        """Return what this worker keeps of the whole network; thin networks are fetched from it again."""
        kept = self.read_by_this_worker()
        return {f"kept-{self.setup.world.rank:04d}": kept} if kept else {}

    def read_by_this_worker(self) -> NamedPieces:
        """Return the pieces that this worker keeps, by numbers that mean the same to any number of workers."""
        own = self._stretch
        return {
            f"piece.{number}": [own.numbers[first - own.first : end - own.first]]
            for number, (first, end) in enumerate(pairwise(self._pieces))
            if own.first <= first < end <= own.end
        }


METHOD = FederatedDropout
