"""What goes wrong on one rank ends training on all of them, with one message, and leaves the last checkpoint alone."""

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.training import checkpoint
from resist_hvd.training.checkpoint import find_newest, save
from resist_hvd.training.loop import train
from resist_hvd.training.run import Run

from . import tiny


def everyone_raises(world: World, run: Run) -> str:
    """Train; return the message, which must be the same on all ranks."""
    with pytest.raises(UserError) as caught:
        train(run, tiny.Watching(run))
    assert caught.value.everywhere
    messages = world.gather_objects(str(caught.value))
    assert len(set(messages)) == 1
    return messages[0]


@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout"])
def test_a_loss_that_is_not_finite(method: Any, world: World, folder: Path) -> None:
    settings = tiny.settings(world, iterations=12, method=method, checkpoint_every=1)
    culprit = world.size - 1

    def alter(images: torch.Tensor, batch: int) -> torch.Tensor:
        return images * math.nan if world.rank == culprit and batch == 5 else images

    data = tiny.Altered(tiny.source(settings, rank=world.rank, size=world.size), alter)
    message = everyone_raises(world, tiny.make_run(settings, world, folder, data=data))
    # Batch 5, counted from 0, is the second of the third round.
    host = world.gather_objects(world.host)[culprit]
    assert f"[rank {culprit} of {world.size} on {host}, round 3, local iteration 2]" in message
    assert "not finite" in message
    assert "--optim.lr" in message
    if world.is_first:
        newest, passed_over = find_newest(folder)
        assert newest is not None
        assert (newest.progress.round, passed_over) == (2, [])
        assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("lr", "evaluate_every", "seen", "place"),
    [
        (1e30, 1, "The loss on the test set is not finite", "[all ranks, after round 1]"),
        (1e45, 0, "A parameter is not finite", "writing the checkpoint of round 1]"),
    ],
)
def test_numbers_that_are_not_finite_are_neither_reported_nor_saved(
    lr: float, evaluate_every: int, seen: str, place: str, world: World, folder: Path
) -> None:
    settings = tiny.settings(
        world,
        local_iterations=1,
        evaluate_every=evaluate_every,
        checkpoint_every=1,
        optim=OptimSettings(lr=lr, schedule="constant"),
    )
    run = tiny.make_run(settings, world, folder)
    save(run)
    message = everyone_raises(world, run)
    assert message.startswith(seen)
    assert place in message
    assert "--optim.lr" in message
    world.barrier()
    assert [entry.name for entry in sorted((folder / "checkpoints").iterdir())] == ["latest", "round-000000"]
    assert not (folder / "eval.jsonl").exists() or "NaN" not in (folder / "eval.jsonl").read_text()


HIDDEN = {"overlap": 1, "exchange": ExchangeSettings(trunk="int8", blocks="int8")}


@contextmanager
def files_may_grow_to(size: int) -> Iterator[None]:
    """Have the kernel refuse to let a file of this process grow beyond a size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("culprit", "changes"), [("first", {}), ("last", HIDDEN)], ids=["first", "last-and-hidden"])
def test_no_room_for_a_checkpoint(
    culprit: str, changes: dict[str, Any], world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(world, iterations=12, checkpoint_every=1, **changes)
    run = tiny.make_run(settings, world, folder)
    save(run)
    rank = 0 if culprit == "first" else world.size - 1
    really_save = checkpoint.write_tensors

    def save_in_little_room(path: Path, tensors: Mapping[str, Sequence[torch.Tensor]]) -> None:
        with files_may_grow_to(4 if world.rank == rank else resource.RLIM_INFINITY):
            really_save(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", save_in_little_room)
    message = everyone_raises(world, run)
    assert message.startswith("Cannot write: File too large [")
    assert f"{folder}/checkpoints/.round-000001.partial" in message
    assert "writing the checkpoint of round 1" in message
    assert "Free space" in message
    if world.size > 1:
        assert f"rank {rank} of {world.size} on" in message
    world.barrier()
    assert [entry.name for entry in sorted((folder / "checkpoints").iterdir())] == ["latest", "round-000000"]
    newest, passed_over = find_newest(folder)
    assert newest is not None
    assert (newest.progress.round, passed_over) == (0, [])


def test_a_folder_that_cannot_be_written(world: World, folder: Path) -> None:
    run = tiny.make_run(tiny.settings(world), world, folder)
    (folder / "checkpoints").touch()
    world.barrier()
    message = everyone_raises(world, run)
    assert message.startswith("Cannot write: ")
    assert "checkpoints" in message
