"""Bytes are counted as they are sent, and are those that the exchange foresees, on every rank and in every round."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.comm.transport import BytesSent
from resist_hvd.comm.world import World
from resist_hvd.methods import data_parallel
from resist_hvd.nets.sizes import deck_ranges, part_sizes
from resist_hvd.nets.thinning import thin_network
from resist_hvd.planning import cost
from resist_hvd.planning.loads import Network
from resist_hvd.protocol.exchange import exchange, ring_bytes
from resist_hvd.protocol.partition import Partition
from resist_hvd.records import RoundRecord
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny

ALL = ModelSettings(sections="2,2,5,2", width_factor=1 / 16, partition="all")


def block_bytes(run: Run) -> tuple[int, ...]:
    """The size of every partitionable block in bytes, whoever holds it."""
    return tuple(sum(4 * p.numel() for p in part.make().parameters()) for part in run.method.network.blocks)


class Sent:
    """What this rank has sent, from one look to the next."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before = run.method.transport.sent

    def since(self) -> BytesSent:
        before, self._before = self._before, self._run.method.transport.sent
        return self._before - before


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no-shared-blocks"),
        pytest.param({"min_blocks": 3}, id="shared-blocks"),
        pytest.param({"model": ALL, "min_blocks": 2}, id="blocks-of-several-sizes"),
    ],
)
def test_a_round_of_resist(changes: dict[str, Any], world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, **changes), world, folder)
    sizes, trunk = block_bytes(run), ring_bytes(run.method.subnet.trunk.nbytes, world.size)
    expected: list[tuple[int, int]] = []
    sent = Sent(run)

    def look(done: RoundRecord) -> None:
        plan = exchange(Partition(done.partition, len(sizes)), run.method.partition)
        counted = sent.since()
        assert counted == BytesSent(trunk=trunk, blocks=plan.bytes_sent(world.rank, sizes))
        counts = [bytes_sent.blocks for bytes_sent in world.gather_objects(counted)]
        arrived = [plan.bytes_received(rank, sizes) for rank in range(world.size)]
        assert sum(counts) == sum(arrived)
        assert max(*counts, *arrived, 0) == plan.busiest(sizes)
        expected.append((world.size * trunk, sum(plan.bytes_sent(rank, sizes) for rank in range(world.size))))

    train(run, tiny.Watching(run, look))
    # Evaluation, which lends every block to every rank, belongs to no round.
    assert run.progress.bytes_sent == sum(map(sum, expected))
    if world.is_first:
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert [(line["bytes_trunk"], line["bytes_blocks"]) for line in lines] == expected
        assert all(line["bytes_sent"] == line["bytes_trunk"] + line["bytes_blocks"] for line in lines)


@pytest.mark.parametrize(
    ("min_blocks", "codecs"),
    [(0, {}), (5, {}), (5, {"trunk": "int8", "blocks": "fp16"}), (5, {"keep": 0.25, "blocks": "int4"})],
)
def test_a_run_sends_what_was_planned(min_blocks: int, codecs: dict[str, Any], world: World, folder: Path) -> None:
    # A plan knows no seed: deals differ from what is to be expected of them by less, the more rounds there are.
    model = ModelSettings(sections="1,1,9,2", width_factor=1 / 16)
    settings = tiny.settings(world, iterations=60, local_iterations=1, min_blocks=min_blocks, model=model)
    settings = replace(settings, exchange=ExchangeSettings(**codecs), max_rounds=59)
    run = tiny.make_run(settings, world, folder)
    train(run, tiny.Watching(run))
    network = Network(part_sizes(run.method.network), deck_ranges(run.method.network))
    work = cost.Work(workers=world.size, batch=tiny.BATCH, local_iterations=1, min_blocks=min_blocks, **codecs)
    planned = cost.resist(network, work, cost.Machine(flops=1.0, bandwidth=1.0, latency=0.0))
    assert run.progress.round == 59
    # Blocks of a few groups are cut into parts that are no whole groups.
    tolerance = 0.2 if codecs.get("blocks") == "int4" else 0.03
    assert run.progress.bytes_sent == pytest.approx(59 * planned.bytes_sent, rel=tolerance)
    assert run.method.subnet.parameters_flat.numel() == network.sub_network(world.size, min_blocks).parameters


def test_a_round_of_local_sgd(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, method="local-sgd"), world, folder)
    each = ring_bytes(run.method.subnet.parameters_flat.nbytes, world.size)

    sent = Sent(run)

    def look(_: RoundRecord) -> None:
        assert sent.since() == BytesSent(trunk=each)

    train(run, tiny.Watching(run, look))
    assert run.progress.bytes_sent == 3 * world.size * each


def test_a_round_of_data_parallel_training(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "BUCKET_BYTES", 4096)
    run = tiny.make_run(tiny.settings(world, method="data-parallel"), world, folder)
    each = ring_bytes(run.method.subnet.gradients_flat.nbytes, world.size)

    sent = Sent(run)

    def look(_: RoundRecord) -> None:
        since = sent.since()
        # Two local iterations; each bucket's share is rounded down to a byte.
        assert 0 <= 2 * each - since.trunk <= 2 * 100
        assert since.blocks == 0

    train(run, tiny.Watching(run, look))


@pytest.mark.parametrize("keep_filters", [0.5, 0.75])
def test_federated_dropout_sends_thin_networks_as_planned(keep_filters: float, world: World, folder: Path) -> None:
    settings = tiny.settings(world, iterations=40, local_iterations=1, method="federated-dropout")
    settings = replace(settings, keep_filters=keep_filters, max_rounds=39)
    run = tiny.make_run(settings, world, folder)
    sent, numbers = Sent(run), run.method.subnet.parameters_flat.numel()

    def look(_: RoundRecord) -> None:
        since = sent.since()
        assert since.blocks == 0
        counts = [counted.trunk for counted in world.gather_objects(since)]
        # No more than all thin networks, once up and once down: what a worker keeps itself, it does not send.
        assert sum(counts) <= 2 * 4 * numbers * world.size

    train(run, tiny.Watching(run, look))
    whole, thin = run.method.network, thin_network(run.method.network, keep_filters)
    planned = cost.federated_dropout(
        Network(part_sizes(whole), deck_ranges(whole)),
        Network(part_sizes(thin), ()),
        cost.Work(workers=world.size, batch=tiny.BATCH, local_iterations=1),
        cost.Machine(flops=1.0, bandwidth=1.0, latency=0.0),
    )
    assert run.progress.round == 39
    assert run.progress.bytes_sent == pytest.approx(39 * planned.bytes_sent, rel=0.01)
    assert planned.bytes_sent == 2 * (world.size - 1) * 4 * numbers


def test_the_ensemble_sends_nothing(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world, method="ensemble"), world, folder)
    train(run, tiny.Watching(run))
    assert run.progress.bytes_sent == 0
