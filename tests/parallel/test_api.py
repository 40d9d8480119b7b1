"""A user's own loop, through the public names: what our loop computes, exact resume, evaluation, export, refusals."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import resist_hvd as resist
from resist_hvd.comm.world import World
from resist_hvd.methods.state import FlatState
from resist_hvd.nets.norms import Norm
from resist_hvd.records import RoundRecord
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Overlap
from resist_hvd.tasks.classification import AccuracyAndLoss
from resist_hvd.training import hiding
from resist_hvd.training.hiding import MEASURED, SKIPPED, Choice
from resist_hvd.training.loop import train

from . import tiny
from .assembly import assemble, named_parameters

WIDTH, BLOCKS, ITERATIONS = 6, 5, 3


class Block(nn.Module):
    """A residual block with a branch that ends in a linear layer, and with something random in it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.dropout(torch.tanh(self.up(self.norm(x)))))


def parts(*, branches: tuple[str, ...] = ("down",), dropout: float = 0.0) -> list[resist.Part]:
    make = partial(Block, dropout)
    blocks = [resist.Part(f"blocks.{b}", make, deck="blocks", branches=branches) for b in range(BLOCKS)]
    return [resist.Part("stem", lambda: nn.Linear(4, WIDTH)), *blocks, resist.Part("head", lambda: nn.Linear(WIDTH, 3))]


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)


class Loop:
    """The loop that a user writes.

    Args:
        world: all ranks.
        options: of `deal`.
    """

    def __init__(
        self,
        world: World,
        *,
        network: Any = None,
        folder: Path | None = None,
        overlap: Overlap = 0,
        **options: Any,
    ) -> None:
        self.world = world
        self.net = resist.deal(network or parts(), world, **{"min_blocks": 3, **options})
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        self.rounds = resist.Rounds(
            self.net, self.optimizer, local_iterations=ITERATIONS, overlap=overlap, folder=folder
        )

    def step(self) -> RoundRecord | None:
        inputs, targets = batch(self.rounds.steps * self.world.size + self.world.rank)
        loss = functional.cross_entropy(self.net(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.rounds.step(loss)

    def steps(self, count: int) -> list[RoundRecord]:
        return [record for _ in range(count) if (record := self.step()) is not None]


@pytest.fixture(autouse=True)
def _signals_end_tests(world: World) -> Iterator[None]:
    yield
    world.stop.heeded = False


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"momentum": "restart"}, id="restart"),
        pytest.param({"momentum": "keep", "outer_momentum": 0.4, "outer_momentum_blocks": 0.3}, id="keep"),
        pytest.param({"momentum": "keep", "local_iterations": 3, "overlap": 2}, id="overlap"),
    ],
)
def test_it_is_what_our_loop_computes(changes: dict[str, Any], world: World, folder: Path) -> None:
    settings = tiny.settings(world, min_blocks=3, optim=OptimSettings(schedule="constant"), **changes)
    run = tiny.make_run(settings, world, folder)
    train(run, tiny.Watching(run))

    network = run.method.setup.network
    net = resist.deal(
        network,
        world,
        min_blocks=3,
        seed=settings.seed,
        momentum=settings.momentum,
        outer_momentum=settings.outer_momentum,
        outer_momentum_blocks=settings.outer_momentum_blocks,
    )
    optim = settings.optim
    optimizer = torch.optim.SGD(net.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    rounds = resist.Rounds(net, optimizer, local_iterations=settings.local_iterations, overlap=settings.overlap)
    batches = tiny.source(settings, rank=world.rank, size=world.size).train()
    records = []
    for _ in range(6):
        images, labels = next(batches)
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        records.append(rounds.step(loss))
    assert net.blocks == run.method.blocks
    for name, value in named_parameters(run.method).items():
        torch.testing.assert_close(named_parameters(net.method)[name], value, rtol=1e-5, atol=1e-6)
    ours = tiny.timeless_lines(folder / "rounds.jsonl") if world.is_first else []
    for line, record in zip(ours, filter(None, records), strict=False):
        assert (line["round"], line["bytes_sent"]) == (record.round, record.bytes_sent)
        assert line["partition"] == [list(held) for held in record.partition]
        assert line["loss"] == pytest.approx(record.loss, rel=1e-4)
    # What all have of a parameter is the same, whatever optimizer has moved it.
    with net.method.averaged():
        assemble(net.method, world)


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_nothing_after_a_round(set_to_none: bool, overlap: int, world: World) -> None:
    loop = Loop(world, overlap=overlap)
    for _ in range(2 * ITERATIONS):
        inputs, targets = batch(loop.rounds.steps)
        loss = functional.cross_entropy(loop.net(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=set_to_none)
        loop.rounds.step(loss)
        assert all(p.grad is None or not p.grad.any() for p in loop.net.parameters())


@pytest.mark.parametrize("momentum", ["restart", "keep"])
def test_an_optimizers_state_follows_its_block(momentum: Any, world: World) -> None:
    loop = Loop(world, momentum=momentum)
    for _ in range(4):
        loop.steps(ITERATIONS - 1)
        before = {
            block: [loop.optimizer.state[p]["step"].item() for p in module.parameters()]
            for block, module in zip(loop.net.blocks, loop.net.subnet.slot_modules, strict=True)
        }
        loop.step()
        for block, module in zip(loop.net.blocks, loop.net.subnet.slot_modules, strict=True):
            kept = [loop.optimizer.state[p]["step"].item() for p in module.parameters() if p in loop.optimizer.state]
            stays = momentum == "keep" and block in before
            assert kept == ([steps + 1 for steps in before[block]] if stays else [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": "keep"},
        {"momentum": "keep", "overlap": 1},
        {"exchange": {"trunk": "int4"}},
        {"exchange": {"trunk": "int4", "blocks": "int8"}, "overlap": 1},
        {"exchange": {"keep": 0.25}},
        {"min_blocks": 3, "outer_momentum_blocks": 0.4},
        {"exchange": {"trunk": "int4"}, "method": "local-sgd", "outer_momentum": 0.4},
    ],
)
def test_it_resumes_exactly(changes: dict[str, Any], world: World, folder: Path) -> None:
    options: dict[str, Any] = {"network": parts(dropout=0.5), **changes}
    torch.manual_seed(world.rank)
    whole = Loop(world, folder=folder / "whole", **options)
    expected = whole.steps(4 * ITERATIONS)

    torch.manual_seed(world.rank)
    first = Loop(world, folder=folder / "parted", **options)
    between_rounds_and_within = (2 * ITERATIONS, 2 * ITERATIONS + 1)
    paths = {steps: folder / f"state-{world.rank}-{steps}.pt" for steps in between_rounds_and_within}
    for steps, path in paths.items():
        first.steps(steps - first.rounds.steps)
        torch.save(first.rounds.state(), path)
    first.steps(ITERATIONS)  # which are lost
    for steps, path in paths.items():
        second = Loop(world, folder=folder / "parted", **options)
        second.rounds.load(torch.load(path, weights_only=True))
        assert second.rounds.steps == steps
        records = second.steps(4 * ITERATIONS - steps)
        assert torch.equal(second.net.subnet.parameters_flat, whole.net.subnet.parameters_flat)
        assert [record.loss for record in records] == [record.loss for record in expected[-len(records) :]]
        if world.is_first:
            lines = [tiny.timeless_lines(folder / name / "rounds.jsonl") for name in ("whole", "parted")]
            assert lines[0] == lines[1]
            assert [line["round"] for line in lines[1]] == [0, 1, 2, 3]


@pytest.mark.world_size(2)
@pytest.mark.parametrize("rounds", [SKIPPED + MEASURED - 2, SKIPPED + MEASURED + 1], ids=["measuring", "chosen"])
def test_it_chooses_its_overlap_and_goes_on_with_it(
    rounds: int, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hiding, "choose", lambda *_: Choice(1, "as a test has it"))
    whole = Loop(world, overlap="auto")
    records = whole.steps(ITERATIONS * (rounds + 2))
    overlaps = [record.overlap or 0 for record in records]
    assert overlaps == [int(number >= SKIPPED + MEASURED) for number in range(rounds + 2)]
    assert capsys.readouterr().out.count("T = 1 ") == world.is_first

    first = Loop(world, overlap="auto")
    first.steps(ITERATIONS * rounds)
    state = first.rounds.state()
    second = Loop(world, overlap="auto")
    second.rounds.load(state)
    again = second.steps(ITERATIONS * 2)
    assert [record.overlap or 0 for record in again] == overlaps[rounds:]
    assert [record.loss for record in again] == [record.loss for record in records[rounds:]]
    assert torch.equal(second.net.subnet.parameters_flat, whole.net.subnet.parameters_flat)
    with pytest.raises(resist.UserError, match="auto for overlap, where it is 1"):
        Loop(world, overlap=1).rounds.load(state)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 2}, "2 .*1|1 .*2"),
        ({"min_blocks": 5}, "parameters"),
        ({"exchange": {"trunk": "int8"}}, "fp32.*int8"),
        ({"outer_momentum": 0.4}, "0.0 .*0.4"),
        ({"outer_momentum_blocks": 0.3}, "0.0 .*0.3"),
    ],
)
def test_another_networks_state_is_refused(changes: dict[str, Any], says: str, world: World) -> None:
    if world.size == 1 and "min_blocks" in changes:
        pytest.skip("one worker has all blocks anyway")
    state = Loop(world).rounds.state()
    with pytest.raises(resist.UserError, match=says) as caught:
        Loop(world, **changes).rounds.load(state)
    assert caught.value.everywhere


def test_what_lies_between_rounds_is_refused_while_a_synchronisation_is_under_way(world: World, folder: Path) -> None:
    loop = Loop(world, overlap=1)
    state = loop.rounds.state()
    loop.steps(ITERATIONS - 1)
    inputs = batch(1)
    for act in (
        loop.rounds.state,
        lambda: loop.rounds.load(state),
        lambda: resist.evaluate(loop.net, [inputs], AccuracyAndLoss()),
        lambda: loop.net.save(folder / "model.safetensors"),
    ):
        with pytest.raises(resist.UserError, match=r"under way.*Rounds\.step returns a record") as caught:
            act()
        assert caught.value.everywhere
    loop.steps(1)
    found = resist.evaluate(loop.net, [inputs], AccuracyAndLoss())
    loop.rounds.load(state)
    loop.steps(ITERATIONS)
    assert resist.evaluate(loop.net, [inputs], AccuracyAndLoss()) == found
    with pytest.raises(resist.UserError, match="0 for overlap, where it is 1"):
        loop.rounds.load({**state, "overlap": 0})


@pytest.mark.world_size(2)
def test_each_rank_loads_its_own_state_of_one_time(world: World) -> None:
    loop = Loop(world)
    early = loop.rounds.state()
    loop.steps(ITERATIONS)
    late = loop.rounds.state()
    with pytest.raises(resist.UserError, match=f"0 steps.*{ITERATIONS}|{ITERATIONS} steps.*0") as caught:
        loop.rounds.load(early if world.is_first else late)
    assert caught.value.everywhere
    with pytest.raises(resist.UserError, match="Rank 0 loads what rank 1 saved"):
        loop.rounds.load({**early, "rank": 1 - world.rank})
    loop.net(batch(1)[0]).sum().backward()
    loop.rounds.load(early)
    assert loop.rounds.steps == 0
    assert not loop.net.subnet.gradients_flat.any()


def test_an_evaluation_leaves_nothing_behind(world: World) -> None:
    loop = Loop(world, network=parts(dropout=0.5))
    loop.net.eval()
    inputs, targets = batch(1)
    found = [resist.evaluate(loop.net, [(inputs, targets)], AccuracyAndLoss()) for _ in range(2)]
    assert found[0] == found[1]
    assert not any(module.training for module in loop.net.modules())
    with pytest.raises(resist.UserError, match="no inputs to evaluate on") as caught:
        resist.evaluate(loop.net, [], AccuracyAndLoss())
    assert caught.value.everywhere


def test_nothing_is_kept_for_an_optimizer_that_keeps_its_own(world: World) -> None:
    net = resist.deal(parts(), world)
    assert not cast(FlatState, net.method.optimizer_state).buffers


def test_rounds_are_not_written_behind_others(world: World, folder: Path) -> None:
    Loop(world, folder=folder).steps(ITERATIONS)
    world.barrier()
    again = Loop(world, folder=folder)
    if world.is_first:
        with pytest.raises(resist.UserError, match=r"rounds\.jsonl"):
            again.rounds.step(torch.tensor(1.0))


def scaled(named: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    return {name: value * scale if ".down." in name else value for name, value in named.items()}


def test_evaluation_and_export_are_of_the_global_network(world: World, folder: Path) -> None:
    loop = Loop(world)
    loop.steps(ITERATIONS)
    (scale,) = loop.net.method.scales
    weights = scaled(assemble(loop.net.method, world), scale)
    whole = nn.Sequential(*(part.make() for part in parts()))
    for place, part in enumerate(parts()):
        whole[place].load_state_dict({n: weights[part.prefixed(n)] for n, _ in whole[place].named_parameters()})

    tests = [batch(100 + n, size=5 + n) for n in range(7)]
    own = tests[world.rank :: world.size]
    figures = resist.evaluate(loop.net, own, AccuracyAndLoss())
    scores, labels = whole(torch.cat([x for x, _ in tests])), torch.cat([y for _, y in tests])
    assert figures["loss"] == pytest.approx(functional.cross_entropy(scores, labels).item(), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(100 * (scores.argmax(1) == labels).float().mean().item())
    mean = resist.evaluate(loop.net, own, resist.Mean(partial(functional.cross_entropy, reduction="none")))
    assert mean == pytest.approx(figures["loss"])

    loop.net.save(folder / "model.safetensors")
    world.barrier()
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == weights.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value, weights[name])


def test_blocks_without_named_branches_are_scaled_as_they_are(world: World) -> None:
    loop = Loop(world, network=parts(branches=()))
    loop.steps(ITERATIONS)
    (scale,) = loop.net.method.scales
    weights = assemble(loop.net.method, world)
    x, labels = batch(1)
    scores = x
    for part in parts():
        module = part.make()
        module.load_state_dict({name: weights[part.prefixed(name)] for name, _ in module.named_parameters()})
        output = module(scores)
        scores = output if part.deck is None else scores + scale * (output - scores)
    found = resist.evaluate(loop.net, [(x, labels)], AccuracyAndLoss())["loss"]
    assert found == pytest.approx(functional.cross_entropy(scores, labels).item(), rel=1e-5)


def test_batch_norms_need_inputs_to_calibrate_on(world: World, folder: Path) -> None:
    network = replace(tiny.make_run(tiny.settings(world), world, folder).method.setup.network)
    net = resist.deal(network, world, min_blocks=3)
    images, labels = next(tiny.source(tiny.settings(world), rank=world.rank, size=world.size).train())
    with pytest.raises(resist.UserError, match="calibration"):
        resist.evaluate(net, [(images, labels)], AccuracyAndLoss())
    with pytest.raises(resist.UserError, match="no inputs to take its statistics from"):
        resist.evaluate(net, [(images, labels)], AccuracyAndLoss(), calibration=[])
    with pytest.raises(resist.UserError, match="calibration"):
        net.save(folder / "model.safetensors")
    resist.evaluate(net, [(images, labels)], AccuracyAndLoss(), calibration=[images])
    assert any(isinstance(module, Norm) for module in net.modules())


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    "changes",
    [
        {"network": parts(branches=())[:-2]},
        {"seed": 3},
        {"min_blocks": 4},
        {"exchange": {"trunk": "int8"}},
        {"outer_momentum": 0.4},
        {"outer_momentum_blocks": 0.4},
    ],
)
def test_ranks_that_deal_out_different_networks_are_told(changes: dict[str, Any], world: World) -> None:
    network = changes.get("network", parts()) if world.rank == 1 else parts()
    others = {name: value for name, value in changes.items() if name != "network" and world.rank == 1}
    with pytest.raises(resist.UserError, match="Rank 1") as caught:
        resist.deal(network, world, **others)
    assert caught.value.everywhere


@pytest.mark.parametrize("overlap", [-1, ITERATIONS, 0.5, "1"])
def test_an_overlap_that_cannot_be_is_refused(overlap: Any, world: World) -> None:
    with pytest.raises(resist.UserError, match=f"overlap is {overlap!r}.*{ITERATIONS} local iterations") as caught:
        Loop(world, overlap=overlap)
    assert caught.value.everywhere


def test_weights_that_are_changed_before_the_first_step_are_no_step_of_outer_momentum(world: World) -> None:
    net = resist.deal(parts(), world, min_blocks=3, outer_momentum=0.4, outer_momentum_blocks=0.4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    resist.Rounds(net, torch.optim.SGD(net.parameters()), local_iterations=ITERATIONS)
    state = net.method.state_in_mid_round()
    assert torch.equal(state["outer.before"][0], net.subnet.trunk)
    assert all(map(torch.equal, state["outer.blocks.before"], net.subnet.slots))


OUTER = ["outer_momentum", "outer_momentum_blocks"]


@pytest.mark.parametrize("name", OUTER)
@pytest.mark.parametrize("beta", [-0.1, 1, True, "0.4"])
def test_outer_momentum_that_cannot_be_is_refused(beta: Any, name: str, world: World) -> None:
    options: dict[str, Any] = {name: beta}
    with pytest.raises(resist.UserError, match=f"{name} is {beta!r}"):
        resist.deal(parts(), world, **options)


@pytest.mark.parametrize("name", OUTER)
@pytest.mark.parametrize("overlap", [1, "auto"])
def test_outer_momentum_and_an_overlap_are_refused_together(overlap: Any, name: str, world: World) -> None:
    with pytest.raises(resist.UserError, match=f"overlap is {overlap!r}.*outer momentum") as caught:
        Loop(world, overlap=overlap, **{name: 0.4})
    assert caught.value.everywhere


@pytest.mark.parametrize("options", [{"exchange": {"blocks": "int8"}}, {"outer_momentum_blocks": 0.4}])
def test_what_is_of_dealt_blocks_is_refused_where_none_are_dealt(options: dict[str, Any], world: World) -> None:
    with pytest.raises(resist.UserError, match="with method='resist' only"):
        resist.deal(parts(), world, method="local-sgd", **options)


@pytest.mark.parametrize("length", [0, 2.5])
def test_rounds_of_no_length_are_refused(length: Any, world: World) -> None:
    net = resist.deal(parts(), world)
    with pytest.raises(resist.UserError, match=f"local_iterations is {length}") as caught:
        resist.Rounds(net, torch.optim.SGD(net.parameters()), local_iterations=length)
    assert caught.value.everywhere


@pytest.mark.world_size(2)
def test_ranks_whose_rounds_differ_are_told(world: World) -> None:
    with pytest.raises(resist.UserError, match=r"Rank 1 has .* overlap 1, and rank 0 .* overlap 0") as caught:
        Loop(world, overlap=world.rank % 2)
    assert caught.value.everywhere


def test_blocks_that_do_not_move_are_not_encoded(world: World) -> None:
    with pytest.raises(resist.UserError, match=r"exchange\.blocks is int8") as caught:
        resist.deal(parts(), world, method="local-sgd", exchange={"blocks": "int8"})
    assert caught.value.everywhere


@pytest.mark.parametrize(
    ("exchange", "facts"),
    [
        ({"trunk": "int3"}, ("exchange.trunk", "int3", "fp32, fp16, int8, int6, int5, int4")),
        ({"trunks": "int8"}, ("trunks", "trunk")),
        ({"trunk": None}, ("exchange.trunk is None", "int8")),
        ("int8", ("exchange is 'int8'", "trunk, ")),
        ({"keep": 0}, ("exchange.keep", "0.01", "1")),
        ({"keep": "half"}, ("exchange.keep", "half", "0.01", "1")),
    ],
)
def test_codecs_that_there_are_not_are_refused(exchange: Any, facts: tuple[str, ...], world: World) -> None:
    with pytest.raises(resist.UserError) as caught:
        resist.deal(parts(), world, exchange=exchange)
    assert caught.value.everywhere
    assert all(fact in str(caught.value) for fact in facts)


def test_what_cannot_be_trained_with_is_refused(world: World) -> None:
    net = resist.deal(parts(), world, min_blocks=1)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(resist.UserError, match="2 parameters that the network does not have"):
        resist.Rounds(net, other)
    rounds = resist.Rounds(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(resist.UserError, match="of type float"):
        rounds.step(cast(Any, 0.5))
    with pytest.raises(resist.UserError, match=r"a tensor \[2\]"):
        rounds.step(torch.zeros(2))


def test_a_loss_that_is_not_finite_ends_all_ranks(world: World) -> None:
    loop, last = Loop(world), world.size - 1
    losses = [torch.tensor(float("nan") if (world.rank, step) == (last, 1) else 1.0) for step in range(ITERATIONS)]
    for loss in losses[:-1]:
        assert loop.rounds.step(loss) is None
    with pytest.raises(resist.UserError, match=f"rank {last} of {world.size}.*round 1, local iteration 2"):
        loop.rounds.step(losses[-1])
