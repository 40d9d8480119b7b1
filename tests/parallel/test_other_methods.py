"""What ResIST is compared with does what it says, too: one worker, data-parallel training, the ensemble."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch
from resist_hvd.methods import data_parallel
from resist_hvd.methods.base import Setup
from resist_hvd.methods.data_parallel import DataParallel
from resist_hvd.nets import Network, Part
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import MethodName
from resist_hvd.training.loop import train

from . import tiny
from .assembly import assemble, named_parameters
from .oracle import Oracle, PlainNetwork, cosine, gradients_of, initial_parameters, update

TOLERANCE = 1e-12


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max().item() <= TOLERANCE, name


def test_one_worker_is_plain_sgd(world: World, alone: World, folder: Path) -> None:
    settings = tiny.settings(alone, momentum="keep")
    stream = tiny.doubled(tiny.source(settings, rank=0, size=1)).train()
    data = tiny.doubled(tiny.source(settings, rank=0, size=1))
    run = tiny.make_run(settings, alone, folder / str(world.rank), data=data, dtype=torch.float64)
    initial = initial_parameters(run.method.network, settings.seed)
    network = PlainNetwork(run.method.network, initial, run.method.blocks, scale=1.0)
    train_plainly(network, stream, settings.optim, cosine(settings.optim.lr, 6))
    run.folder.mkdir()
    train(run, tiny.Watching(run))
    trained = {network.names[name]: value.detach() for name, value in network.named_parameters()}
    assert_equal(named_parameters(run.method), trained)
    assert run.method.transport.sent == type(run.method.transport.sent)()


def train_plainly(network: nn.Module, stream: Iterator[Batch], optim: OptimSettings, rates: list[float]) -> None:
    parameters, velocities = dict(network.named_parameters()), dict[str, Tensor]()
    for rate in rates:
        update(parameters, gradients_of(network, next(stream)), velocities, rate=rate, optim=optim)


@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout"])
@pytest.mark.parametrize("zero", [False, True])
def test_blocks_begin_as_the_identity_where_that_is_asked_for(
    method: MethodName, zero: bool, world: World, folder: Path
) -> None:
    settings = tiny.settings(world, method=method, model=replace(tiny.MODEL, zero_init_residual=zero))
    blocks = [
        module for module in tiny.make_run(settings, world, folder).method.subnet.layers if hasattr(module, "units")
    ]
    assert {bool(block.units[-1].conv.weight.any()) for block in blocks} == {not zero}


@pytest.mark.parametrize("bucket_bytes", [2**25, 4096])
def test_data_parallel_follows_the_workers_average_gradient(
    bucket_bytes: int, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batch norm sees each worker's own batch, so this is not the joint batch's gradient.
    monkeypatch.setattr(data_parallel, "BUCKET_BYTES", bucket_bytes)
    settings = tiny.settings(world, method="data-parallel")
    data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size))
    run = tiny.make_run(settings, world, folder, data=data, dtype=torch.float64)
    train(run, tiny.Watching(run))
    ours = assemble(run.method, world)
    if not world.is_first:
        return
    network = run.method.network
    parameters = initial_parameters(network, settings.seed)
    streams = [tiny.doubled(tiny.source(settings, rank=rank, size=world.size)).train() for rank in range(world.size)]
    velocities: dict[str, Tensor] = {}
    for rate in cosine(settings.optim.lr, 6):
        plain = PlainNetwork(network, parameters, range(len(network.blocks)), scale=1.0)
        everyone = [gradients_of(plain, next(stream)) for stream in streams]
        mean = {
            name: torch.stack([gradients[own] for gradients in everyone]).mean(dim=0)
            for own, name in plain.names.items()
        }
        update(parameters, mean, velocities, rate=rate, optim=settings.optim)
    assert_equal(ours, parameters)


class Unused(nn.Module):
    """A block with a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.used(x)


def test_data_parallel_averages_beside_what_no_output_depends_on(world: World) -> None:
    network = Network(tuple(Part(f"blocks.{b}", Unused, deck="blocks", branches=("used",)) for b in range(2)))
    method = DataParallel(Setup(network=network, world=world, seed=1))
    for _ in range(2):
        method.subnet.gradients_flat.zero_()
        method.subnet(torch.ones(1, 4) * (1 + world.rank)).sum().backward()
        method.gradients_ready()
        everyone = world.gather(method.subnet.gradients_flat.tolist())
        assert everyone.any()
        assert (everyone == everyone[0]).all()


def test_members_of_an_ensemble_never_mix(world: World, folder: Path) -> None:
    settings = tiny.settings(world, method="ensemble", min_blocks=2)
    data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size))
    run = tiny.make_run(settings, world, folder, data=data, dtype=torch.float64)
    blocks = run.method.blocks
    oracle = Oracle(
        network=run.method.setup.network,
        parameters=named_parameters(run.method),
        streams=[tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size)).train()],
        optim=settings.optim,
        rates=cosine(settings.optim.lr, 6),
        keep_momentum=True,
    )
    stems = world.gather_objects(oracle.parameters["stem.0.weight"].numpy().tobytes())
    assert len(set(stems)) == world.size
    train(run, tiny.Watching(run))
    assert run.method.blocks == blocks
    oracle.round([blocks], 6)
    assert_equal(named_parameters(run.method), oracle.parameters)
    assert run.progress.bytes_sent == 0
