"""GPipe of PyTorch's trains as one process does that takes the same micro-batches, and counts what it sends."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from resist_hvd.benchmarks import compare
from resist_hvd.benchmarks.bare import optimizer_of
from resist_hvd.benchmarks.candidates import make
from resist_hvd.benchmarks.rivals import process_group
from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch
from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network, Part
from resist_hvd.nets.sizes import part_sizes
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.rows import Row

from . import tiny

STAGES = {2: (4, 7), 3: (1, 8, 2), 4: (2, 5, 1, 3)}
"""Cuts of the network's 11 parts by the number of ranks: between images of one size and where it changes."""

STEPS = 3
RATE = 0.05
SETTINGS = CompareSettings(
    local_iterations=1,
    rounds=2,
    repeats=1,
    rows="gpipe",
    micro_batches=4,
    model=tiny.MODEL,
    data=DataSettings(batch_size=8, test_batch_size=16, calibration_images=12),
    optim=OptimSettings(lr=RATE, schedule="constant"),
)
ROW = Row.read("gpipe")


def steps_of_all(world: World, settings: CompareSettings) -> Iterator[Batch]:
    """A step's images and labels of all workers, in the workers' order."""
    workers = [tiny.source(settings, rank=rank, size=world.size).train() for rank in range(world.size)]
    while True:
        images, labels = zip(*map(next, workers), strict=True)
        yield torch.cat(images), torch.cat(labels)


def one_process(world: World, settings: CompareSettings, dtype: torch.dtype, steps: int) -> tuple[Any, torch.Tensor]:
    """A run's method, and the weights that plain SGD gives its network, micro-batch by micro-batch."""
    run = tiny.make_run(settings.training(ROW), world, Path(), dtype=dtype)
    network, optimizer = run.method.subnet, optimizer_of(run.method.subnet, settings.optim)
    first, batches = network.parameters_flat.clone(), steps_of_all(world, settings)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        images, labels = next(batches)
        assert settings.micro_batches is not None
        for some, targets in zip(
            images.to(dtype).chunk(settings.micro_batches), labels.chunk(settings.micro_batches), strict=True
        ):
            torch.autograd.backward(functional.cross_entropy(network(some), targets))
        network.gradients_flat.div_(settings.micro_batches)
        optimizer.step()
    trained = network.parameters_flat.clone()
    network.parameters_flat.copy_(first)
    return run.method, trained


@pytest.mark.world_sizes(2, 3, 4)
@pytest.mark.parametrize("model", [tiny.MODEL, tiny.VIT], ids=["preact_resnet", "vit"])
def test_it_ends_where_one_process_does(world: World, model: ModelSettings) -> None:
    settings = replace(SETTINGS, model=model, optim=replace(SETTINGS.optim, label_smoothing=0.0))
    from resist_hvd.benchmarks.pipeline import GPipe  # PyTorch's compiler comes with it, which takes seconds

    method, expected = one_process(world, settings, torch.float64, STEPS)
    parts = len(method.network.parts)
    stages = STAGES[world.size] if parts == 11 else (*[1] * (world.size - 1), parts - world.size + 1)
    batches = steps_of_all(world, settings)

    def draw() -> Batch:
        images, labels = next(batches)
        return images.double(), labels

    with process_group(world, None):
        pipe = GPipe(
            method.network,
            stages,
            world,
            settings.optim,
            seed=settings.seed,
            batch=8 * world.size,
            micro_batches=4,
            dtype=torch.float64,
        )
        pipe.collect(list(method.subnet.layers))
        first = method.subnet.parameters_flat.clone()
        for _ in range(STEPS):
            pipe.step(draw, RATE)
        pipe.collect(list(method.subnet.layers))
    assert (first - expected).norm() > 1e-3 * expected.norm()
    torch.testing.assert_close(method.subnet.parameters_flat, expected, rtol=1e-9, atol=1e-11)
    assert sum(parameter.numel() for parameter in pipe.stage.parameters()) < expected.numel()


@pytest.mark.world_sizes(2, 3, 4)
def test_a_row_trains_on_the_images_of_all_ranks_and_counts_what_it_sends(world: World) -> None:
    settings = replace(SETTINGS, stages=STAGES[world.size], micro_batches=2)
    source = tiny.source(settings, rank=world.rank, size=world.size)
    with process_group(world, None):
        candidate = make("gpipe", settings, world, source)
        assert [candidate.round() for _ in range(STEPS)] == [None] * STEPS
        trained, sent = candidate.trained(), candidate.sent
        weights = trained.subnet.parameters_flat.clone()
        # It sends nothing, and trains nothing that counts.
        assert candidate.arithmetic() > 0
        assert candidate.sent == sent
        assert torch.equal(candidate.trained().subnet.parameters_flat, weights)
    method, expected = one_process(world, settings, torch.float32, STEPS)
    assert (weights - expected).norm() < 1e-4 * (expected - method.subnet.parameters_flat).norm()
    # Forwards and backwards at each cut, as `plan` counts them; and the labels, which the last rank is sent.
    sizes, images = part_sizes(method.network), 8 * world.size
    cuts = [sizes[end - 1].output for end in list(accumulate(settings.stages))[:-1]]
    of_activations = sum(cuts[max(0, world.rank - 1) : world.rank + 1])
    of_labels = 8 * images if world.is_first else 0
    assert sent == STEPS * (4 * images * of_activations + of_labels)
    assert world.gather([sent]).sum() == STEPS * images * (2 * 4 * sum(cuts) + 8)


@pytest.mark.world_sizes(2, 3, 4)
def test_a_comparison_cuts_by_time_and_writes_how(world: World, folder: Path, capsys: Any) -> None:
    path = folder / "compared.json"
    settings = replace(
        SETTINGS, rows="gpipe,local-sgd", micro_batches=None, data=replace(SETTINGS.data, image_size=16), json=path
    )
    compare.run(settings, world)
    if not world.is_first:
        return
    written, printed = json.loads(path.read_text()), capsys.readouterr().out
    stages = written["gpipe"]["stages"]
    assert len(stages) == world.size
    assert sum(stages) == 11
    assert "-".join(map(str, stages)) in printed
    assert written["gpipe"]["micro_batches"] == 4 * world.size
    (once,) = written["measured"]["gpipe"]
    assert 0 < once["accuracy"] < 100
    assert once["seconds_arithmetic"] > 0
    # Gloo's messages go through the loopback.
    assert 0 < once["bytes_counted"] < once["bytes_loopback"]


@pytest.mark.world_sizes(2, 3, 4)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batches": 7}, "--micro_batches is 7"),
        ({"stages": (11,)}, "11 parts"),
        ({"stages": (1, 1, 1, 1)}, "--stages"),
    ],
)
def test_what_makes_no_pipeline_is_refused_on_all_ranks(world: World, changes: dict[str, Any], words: str) -> None:
    from resist_hvd.benchmarks.pipeline import settled

    settings = replace(SETTINGS, **changes)
    with pytest.raises(UserError, match=words) as caught:
        settled(settings, world, tiny.source(settings, rank=world.rank, size=world.size))
    assert caught.value.everywhere


@pytest.mark.world_sizes(2)
def test_parts_that_make_no_stage(world: World) -> None:
    from resist_hvd.benchmarks.pipeline import measured, refuse_cut

    def network(activation: Callable[[], nn.Module]) -> Network:
        makes = {"one": partial(nn.Linear, 6, 5), "activation": activation, "other": partial(nn.Linear, 5, 4)}
        parts = tuple(Part(name, make) for name, make in makes.items())
        return Network(parts, example=torch.empty(2, 6, device="meta"))

    loads = measured(network(nn.ReLU), 3, seed=1, device=world.device)
    assert [(load.output, load.parameters) for load in loads] == [(5, 35), (5, 0), (4, 24)]
    assert all(load.seconds > 0 for load in loads)
    with pytest.raises(UserError, match=r"--stages is .* stage 2 has no parameters"):
        refuse_cut((1, 1, 1), network(nn.ReLU), replace(world, size=3))
    # A stage keeps what it has received for the backward pass.
    with pytest.raises(UserError, match="'activation'"):
        measured(network(partial(nn.ReLU, inplace=True)), 3, seed=1, device=world.device)


@pytest.mark.world_sizes(1)
def test_one_rank_has_no_pipeline(world: World) -> None:
    with pytest.raises(UserError, match="one rank") as caught:
        compare.run(SETTINGS, world)
    assert "--rows" in caught.value.mend
