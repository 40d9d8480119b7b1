"""Runs that send few bits: equal bits wherever they must be, no change lost, bytes as foreseen, an exact end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resist_hvd.comm.codec import CODECS, Codec
from resist_hvd.comm.encoded_blocks import part_of
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.resist import Resist, WarmUp
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.partition import Partition
from resist_hvd.records import RoundRecord
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny

METHODS = [
    pytest.param({"min_blocks": 3}, id="resist"),
    pytest.param({"method": "local-sgd"}, id="local-sgd"),
    pytest.param({"min_blocks": 3, "warmup": True}, id="after-a-warm-up"),
]


def run_of(changes: dict[str, Any], world: World, folder: Path) -> Run:
    """Return a run of six rounds, the first three of which may be a warm-up."""
    changes = dict(changes)
    warm_up = changes.pop("warmup", False)
    settings = tiny.settings(world, iterations=12, **changes)
    return tiny.make_run(replace(settings, warmup_epochs=settings.epochs / 2 if warm_up else 0), world, folder)


def shared(run: Run) -> Tensor:
    """Return what all workers average."""
    subnet = run.method.subnet
    return subnet.trunk if isinstance(run.method, Resist) else subnet.parameters_flat


def unsent(run: Run) -> Tensor:
    """Return what is still to be added to this rank's share of the averages, in double precision."""
    if run.method.changes is None:
        return torch.zeros(len(shared(run)), dtype=torch.float64)
    return run.method.changes.left.double()


@pytest.mark.parametrize(("codec", "keep"), [("fp16", 1), ("int8", 1), ("int4", 1), ("fp32", 0.25)])
@pytest.mark.parametrize("changes", METHODS)
def test_averages_among_all(
    changes: dict[str, Any], codec: Any, keep: float, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of({**changes, "exchange": ExchangeSettings(trunk=codec, keep=keep)}, world, folder)
    due: list[Tensor] = []
    exact: list[bool] = []

    def look_before(method: type) -> None:
        depart = method.depart  # type: ignore[attr-defined]

        def departing(self: Any, seed: int) -> None:
            if run.method is self and len(due) == len(exact):
                due.append(shared(run) + unsent(run))
            depart(self, seed)

        monkeypatch.setattr(method, "depart", departing)

    def look(_: RoundRecord) -> None:
        exact.append(run.method.exact)
        assert len(set(world.gather_objects(shared(run).numpy().tobytes()))) == 1
        everyone = [torch.stack(world.gather_objects(tensor)).mean(0) for tensor in (due[-1], unsent(run))]
        torch.testing.assert_close(shared(run) + everyone[1], everyone[0], rtol=0, atol=2e-6)
        assert exact[-1] == (not unsent(run).any()) or world.size == 1

    for method in (Resist, WarmUp if "warmup" in changes else type(run.method)):
        if method is not Resist or "method" not in changes:
            look_before(method)
    train(run, tiny.Watching(run, look))
    assert exact == [False, False, "warmup" in changes, False, False, True]


def test_bytes_follow_the_codec(world: World, folder: Path) -> None:
    run = run_of({"exchange": ExchangeSettings(trunk="int8")}, world, folder)
    codes = CODECS["int8"](world.device).bytes_of(len(run.method.subnet.trunk))
    records: list[RoundRecord] = []
    train(run, tiny.Watching(run, records.append))
    trunks = [record.bytes_trunk for record in records]
    assert trunks[:-1] == [2 * (world.size - 1) * codes] * 5
    assert trunks[-1] == pytest.approx(2 * (world.size - 1) * run.method.subnet.trunk.nbytes, abs=world.size)


@pytest.mark.parametrize("min_blocks", [0, 3])
def test_blocks_have_the_same_bits_with_all_holders(min_blocks: int, world: World, folder: Path) -> None:
    run = run_of({"min_blocks": min_blocks, "exchange": ExchangeSettings(blocks="int4")}, world, folder)
    codec = CODECS["int4"](world.device)
    sent, multiples = [], []

    def look(record: RoundRecord) -> None:
        slots = {block: slot.numpy().tobytes() for block, slot in run.method.slots.items()}
        everyone = world.gather_objects(slots)
        for block in range(run.method.rule.blocks):
            assert len({theirs[block] for theirs in everyone if block in theirs}) == 1
        before, after = Partition(record.partition, run.method.rule.blocks), run.method.partition
        plan = exchange(before, after)
        exact = run.method.exact
        numbers = len(run.method.subnet.slots[0])
        each = [part_of(plan, m, numbers, 1 if exact else codec.group) for m in (*plan.shares, *plan.fetches)]
        size = (lambda count: 4 * count) if exact else codec.bytes_of
        sent.append((record.bytes_blocks, sum(size(part.stop - part.start) for part in each)))
        came = set(after.held[world.rank]) - set(before.held[world.rank])
        multiples.extend(encodes_to_itself(codec, run.method.slots[block]) == (not exact) for block in came)

    train(run, tiny.Watching(run, look))
    assert [one for one, _ in sent] == [other for _, other in sent]
    assert all(multiples)
    assert multiples or world.size == 1


def encodes_to_itself(codec: Codec, numbers: Tensor) -> bool:
    """Return whether numbers are what their codes say."""
    codes, found = torch.empty(codec.bytes_of(len(numbers)), dtype=torch.uint8), torch.empty_like(numbers)
    codec.encode(numbers, codes)
    codec.decode(codes, found)
    return torch.equal(numbers, found)


@pytest.mark.parametrize(("flag", "value"), [("trunk", "int8"), ("blocks", "int8"), ("keep", 0.25)])
def test_parameters_of_another_type_are_refused(flag: Any, value: Any, world: World, folder: Path) -> None:
    settings = tiny.settings(world, exchange=ExchangeSettings(**{flag: value}))
    with pytest.raises(UserError, match=rf"exchange\.{flag}.*{value}.*float64") as caught:
        tiny.make_run(settings, world, folder, dtype=torch.float64)
    assert caught.value.everywhere
