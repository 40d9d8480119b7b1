"""A worker never has more of the network than its sub-network: neither its values, nor memory for them."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from resist_hvd.comm.codec import PIECE_NUMBERS
from resist_hvd.comm.world import World
from resist_hvd.methods.base import Method
from resist_hvd.nets import sizes
from resist_hvd.planning import cost
from resist_hvd.planning.cost import Machine, Work
from resist_hvd.planning.loads import Network
from resist_hvd.records import RoundRecord
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny

FEW_BITS = ExchangeSettings(trunk="int8")
WIDE = ModelSettings(sections="1,1,13", width_factor=1 / 4)


@contextmanager
def only_newer_objects() -> Iterator[None]:
    """Have the garbage collector, by which this test finds tensors, know of nothing that was there before."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def live_storages() -> list[torch.UntypedStorage]:
    """The memory of all tensors that Python has made since, each piece once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return list({storage.data_ptr(): storage for storage in storages if storage.nbytes() > 0}.values())


def content(storage: torch.UntypedStorage) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()


def probes(method: Method, world: World) -> dict[int, bytes]:
    """A few weights of every block, as they are in memory."""
    slots = zip(method.blocks, method.subnet.slots, strict=True)
    everyone = world.gather_objects({block: slot[-40:-32].numpy().tobytes() for block, slot in slots})
    return {block: probe for theirs in everyone for block, probe in theirs.items()}


def assert_has_its_sub_network_alone(method: Method, world: World) -> None:
    """Look for the weights of all blocks in all memory, and add it up."""
    storages = live_storages()
    everything = probes(method, world)
    assert len(set(everything.values())) == len(everything)
    memory = [content(storage) for storage in storages]
    found = {block for block, probe in everything.items() if any(probe in piece for piece in memory)}
    assert found == set(method.blocks)
    # Beside it the losses of a round, and a codec's room to work in: plans leave that out, the same for any network.
    room = 9 * PIECE_NUMBERS["cpu"] if method.changes else 0
    assert sum(storage.nbytes() for storage in storages) == pytest.approx(planned(method, world) + room, rel=0.01)


def planned(method: Method, world: World) -> float:
    """What a plan says that a worker keeps from step to step, in bytes: all but what a backward pass needs."""
    setup = method.setup
    network = Network(sizes.part_sizes(method.network), sizes.deck_ranges(method.network))
    work = Work(
        workers=world.size,
        batch=1,
        local_iterations=2,
        min_blocks=method.rule.min_blocks,
        trunk=setup.exchange.trunk,
        outer=method.outer is not None,
        outer_blocks=setup.outer_momentum_blocks > 0,
        overlap=int(method.overlaps),
    )
    kept = network.sub_network(world.size, work.min_blocks).kept
    return cost.resist(network, work, Machine(flops=1.0, bandwidth=1.0, latency=0.0)).memory - 4 * kept


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no-shared-blocks"),
        pytest.param({"min_blocks": 7, "momentum": "keep"}, id="shared-blocks"),
        pytest.param({"warmup_epochs": 1 / 8}, id="after-a-warm-up"),
        pytest.param({"outer_momentum": 0.4}, id="outer-momentum"),
        pytest.param({"min_blocks": 7, "outer_momentum_blocks": 0.4}, id="outer-momentum-of-shared-blocks"),
        pytest.param({"overlap": 1, "min_blocks": 7}, id="overlap-and-shared-blocks"),
        pytest.param({"exchange": FEW_BITS, "outer_momentum": 0.4}, id="few-bits"),
        pytest.param({"exchange": FEW_BITS, "overlap": 1}, id="few-bits-and-overlap"),
        pytest.param({"overlap": 1, "warmup_epochs": 1 / 8}, id="overlap-after-a-warm-up"),
        pytest.param({"model": tiny.VIT}, id="vit"),
        pytest.param({"model": tiny.POST_ACTIVATION}, id="post-activation"),
    ],
)
def test_a_worker_holds_its_sub_network_alone(changes: dict[str, Any], world: World, folder: Path) -> None:
    settings = tiny.settings(world, **{"model": WIDE, **changes})
    data = tiny.source(settings, rank=world.rank, size=world.size)
    looked_at = []

    def look(done: RoundRecord) -> None:
        if len(run.method.blocks) < run.method.rule.blocks:
            looked_at.append(done.round)
            assert_has_its_sub_network_alone(run.method, world)

    with only_newer_objects():
        run = tiny.make_run(settings, world, folder, data=data)
        train(run, tiny.Watching(run, look))
        # Training has ended with an evaluation and a checkpoint.
        assert_has_its_sub_network_alone(run.method, world)
    assert looked_at == ([1, 2] if settings.warmup_epochs else [0, 1, 2])


class Peak(threading.Thread):
    """The most memory that this process has while it runs, of its own: the kernel may drop and load files' at will."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = self.now()
        self._stopped = threading.Event()

    @staticmethod
    def now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("this kernel does not say how much memory is the process's own")

    def run(self) -> None:
        while not self._stopped.wait(0.001):
            self.bytes = max(self.bytes, self.now())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()
        self.bytes = max(self.bytes, self.now())


def train_and_evaluate(settings: Settings, world: World, folder: Path) -> Run:
    run = tiny.make_run(replace(settings, local_iterations=1 + settings.overlap), world, folder)
    tiny.train_on(run, rounds=2)
    evaluate(run.method, run.source, run.task, world, run.autocast)
    return run


@pytest.mark.world_sizes(3)  # the most that each rank has
@pytest.mark.parametrize("overlap", [0, 1])
def test_peak_memory_is_the_sub_networks(overlap: int, world: World, folder: Path) -> None:
    # Each of these buffers comes from the kernel by itself, so that the process grows by exactly what is used of them;
    # and they are large beside the 9 to 14 MB of activations, of the block that is lent, and of MPI's own buffers.
    settings = tiny.settings(world, model=ModelSettings(sections="1,1,161", width_factor=5 / 8), overlap=overlap)
    settings = replace(settings, data=replace(settings.data, batch_size=2))
    # The libraries' own code and buffers come into memory when they are first used.
    train_and_evaluate(replace(settings, model=ModelSettings(sections="1,1,41", width_factor=1 / 4)), world, folder)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = Peak.now()
    with Peak() as peak:
        run = train_and_evaluate(settings, world, folder)
    grown, expected = peak.bytes - before, 3 * run.method.subnet.parameters_flat.nbytes
    assert expected <= grown <= 1.1 * expected + overlap * run.method.subnet.parameters_flat.nbytes
