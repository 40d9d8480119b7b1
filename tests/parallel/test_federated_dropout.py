"""A distributed run of federated dropout equals Caldas et al.'s in one process, whose server is a dictionary."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch
from resist_hvd.methods.federated_dropout import FederatedDropout
from resist_hvd.nets import families
from resist_hvd.nets.parts import Network
from resist_hvd.protocol.filters import Hand, deal
from resist_hvd.seeds import derive
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.loop import train

from . import tiny
from .assembly import assemble, named_parameters
from .oracle import Oracle, cosine, initial_parameters

TOLERANCE = 1e-12
BASIC = ModelSettings(sections="1,2,4", width_factor=1 / 8, zero_init_residual=False)
MODELS = {
    "basic": BASIC,
    "bottleneck": replace(BASIC, block="bottleneck", final_norm=False),
    "all-sections": replace(BASIC, partition="all"),
}

Channels = tuple[str | None, ...]


def channels_of(name: str, *, projects: bool) -> Channels:
    """The names of the channels along a parameter's first axes, by the parameter's name.

    Args:
        name: of the parameter.
        projects: whether the first section's first block has a projection, as bottlenecks have.
    """

    def stream(section: int) -> str:
        return f"sections.{section}.0" if section > 0 or projects else "stem"

    place, _, last = name.rpartition(".")
    words = place.split(".")
    match words:
        case ["stem", *_]:
            return ("stem", None)
        case ["head", "norm"]:
            return (stream(2),)
        case ["head", "linear"]:
            return (None, stream(2)) if last == "weight" else (None,)
    section, block = int(words[1]), int(words[2])
    prefix = f"sections.{section}.{block}"
    entering = stream(section)
    if block == 0:
        entering = stream(section - 1) if section > 0 else "stem"
    if words[3] == "shortcut":
        return (stream(section), entering)
    unit, units = int(words[4]), 3 if projects else 2
    before = entering if unit == 0 else f"{prefix}.units.{unit - 1}"
    after = stream(section) if unit == units - 1 else f"{prefix}.units.{unit}"
    return (after, before) if words[5] == "conv" else (before,)


def chosen(hand: Hand, name: str, value: Tensor, *, projects: bool) -> tuple[Tensor, ...]:
    """The index of what a worker has of a parameter."""
    channels = channels_of(name, projects=projects)
    axes = [
        torch.arange(size) if along is None else torch.tensor(hand[along])
        for size, along in zip(value.shape, channels, strict=False)
    ]
    return tuple(torch.meshgrid(*axes, indexing="ij"))


class Server:
    """The global network, and the workers that it sends parts of it to."""

    def __init__(self, settings: Settings, thin: Network, whole: Network, streams: Sequence[Iterator[Batch]]) -> None:
        self.settings, self.thin, self.streams = settings, thin, streams
        self.parameters = initial_parameters(whole, settings.seed)
        self.projects = settings.model.block == "bottleneck"
        self.iterations = 0

    def part(self, hand: Hand) -> dict[str, Tensor]:
        """What a worker is sent."""
        return {
            name: value[chosen(hand, name, value, projects=self.projects)] for name, value in self.parameters.items()
        }

    def round(self, hands: Sequence[Hand], rates: list[float]) -> None:
        """Train each worker's network; then average each number over those that had it."""
        sums = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        counts = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        blocks = range(len(self.thin.blocks))
        for hand, stream in zip(hands, self.streams, strict=True):
            worker = Oracle(self.thin, self.part(hand), [stream], self.settings.optim, rates)
            worker.round([blocks], len(rates))
            for name, value in worker.parameters.items():
                place = chosen(hand, name, self.parameters[name], projects=self.projects)
                sums[name][place] += value
                counts[name][place] += 1
        for name, value in self.parameters.items():
            self.parameters[name] = torch.where(counts[name] > 0, sums[name] / counts[name].clamp(min=1), value)


def assert_equal(ours: dict[str, Tensor], oracles: dict[str, Tensor], when: str) -> None:
    assert ours.keys() == oracles.keys()
    for name, value in ours.items():
        assert (value - oracles[name]).abs().max().item() <= TOLERANCE, f"{name} {when}"


@pytest.mark.parametrize(("kind", "kept"), [("basic", 4), ("basic", 8), ("bottleneck", 3), ("all-sections", 6)])
def test_it_is_what_a_server_makes_of_thin_networks(kind: str, kept: int, world: World, folder: Path) -> None:
    model = MODELS[kind]
    settings = tiny.settings(world, method="federated-dropout", model=model, keep_filters=kept / 8)
    data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size))
    run = tiny.make_run(settings, world, folder, data=data, dtype=torch.float64)
    method = run.method
    assert isinstance(method, FederatedDropout)
    found = [(assemble(method, world), world.gather_objects(own_arrays(method)))]
    train(
        run,
        tiny.Watching(run, lambda _: found.append((assemble(method, world), world.gather_objects(own_arrays(method))))),
    )
    if not world.is_first:
        return
    thin = families.chosen(replace(model, width_factor=kept / 64), channels=3, image_size=8, classes=tiny.CLASSES)
    sources = [tiny.source(settings, rank=rank, size=world.size) for rank in range(world.size)]
    server = Server(settings, thin, method.network, [tiny.doubled(source).train() for source in sources])
    rates = cosine(settings.optim.lr, 6)
    channels = method._thinning.channels
    assert len(found) == 4
    for number, (whole, own) in enumerate(found):
        assert_equal(whole, server.parameters, f"after {number} rounds")
        seed = derive(settings.seed, "round", number)
        hands = [deal(channels, seed, worker) for worker in range(world.size)]
        for hand, theirs in zip(hands, own, strict=True):
            arrays = {name: torch.from_numpy(array) for name, array in theirs.items()}
            assert_equal(arrays, server.part(hand), f"of a worker after {number} rounds")
        if number < 3:
            server.round(hands, rates[2 * number : 2 * number + 2])


def own_arrays(method: FederatedDropout) -> dict[str, object]:
    """This worker's thin network; arrays are pickled many times faster than tensors."""
    return {name: value.numpy() for name, value in named_parameters(method).items()}


def test_with_all_filters_it_is_local_sgd(world: World, folder: Path) -> None:
    trained = []
    for method, changes in (("local-sgd", {}), ("federated-dropout", {"keep_filters": 1.0})):
        settings = tiny.settings(world, method=method, **changes)
        data = tiny.doubled(tiny.source(settings, rank=world.rank, size=world.size))
        run = tiny.make_run(settings, world, folder / method, data=data, dtype=torch.float64)
        tiny.train_on(run, rounds=3)
        trained.append(assemble(run.method, world))
    assert_equal(*trained, "after 3 rounds")


def test_nobody_keeps_more_of_the_whole_network_than_others(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, method="federated-dropout"), world, folder)
    kept = sum(piece.numel() for (piece,) in run.method.read_by_this_worker().values())
    everyone = world.gather([kept]).ravel()
    assert everyone.sum() == run.method.network.parameters
    assert everyone.max() - everyone.min() <= run.method.network.parameters / 840 + world.size
