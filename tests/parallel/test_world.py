"""Words among all ranks, and how they fail together."""

from collections.abc import Collection

import numpy as np
import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.errors import UserError


def test_every_rank_is_there_once(world: World) -> None:
    assert world.gather_objects(world.rank) == list(range(world.size))
    assert world.device == torch.device("cpu")
    assert world.is_first == (world.rank == 0)


def test_small_words(world: World) -> None:
    assert world.broadcast_seed(2**62 + world.rank) == 2**62
    assert world.broadcast_object({"from": world.rank}) == {"from": 0}
    everyone = world.gather([world.rank, 0.5])
    assert everyone.tolist() == [[rank, 0.5] for rank in range(world.size)]
    total = world.sum(np.array([[1.0, world.rank]]))
    assert total.tolist() == [[world.size, sum(range(world.size))]]


def test_a_step_that_succeeds_is_forgotten(world: World) -> None:
    world.position = "before"
    with world.agree("a step"):
        assert world.position == "a step"
    assert world.position == "before"


def fail_together(world: World, failing: Collection[int], error: UserError) -> str:
    """Run a step that fails on some ranks; return what this rank then raises, once all have met again."""

    def step() -> None:
        with world.agree("reading the data"):
            if world.rank in failing:
                raise error

    with pytest.raises(UserError) as caught:
        step()
    assert caught.value.everywhere
    assert world.gather_objects(world.rank) == list(range(world.size))
    return str(caught.value)


@pytest.mark.world_size(2)
def test_an_error_on_one_rank_is_raised_on_all(world: World) -> None:
    culprit = world.size - 1
    error = UserError("The folder is empty", where="/some/folder", mend="Give another.")
    message = fail_together(world, [culprit], error)
    host = world.gather_objects(world.host)[culprit]
    place = f"/some/folder, rank {culprit} of {world.size} on {host}, reading the data"
    assert message == f"The folder is empty [{place}]. Give another."


@pytest.mark.world_size(3)
def test_the_lowest_of_several_failing_ranks_is_told(world: World) -> None:
    message = fail_together(world, range(1, world.size), UserError(f"Rank {world.rank} saw it", mend="Mend it."))
    assert message.startswith(f"Rank 1 saw it [rank 1 of {world.size} on ")


@pytest.mark.world_size(2)
def test_an_error_on_all_ranks_says_so(world: World) -> None:
    message = fail_together(world, range(world.size), UserError("The disk is full", mend="Free some."))
    assert message == f"The disk is full [all {world.size} ranks, reading the data]. Free some."


def test_what_is_made_once_a_host_is_made_once(world: World) -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(world.rank)
        return [7, world.rank]

    assert world.once_a_host(make, lambda value: f"{len(value)} numbers") == [7, 0]
    assert world.gather_objects(made) == [[0], *[[]] * (world.size - 1)]


@pytest.mark.world_size(2)
def test_what_one_host_cannot_make_all_hosts_go_without(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts_of_their_own(monkeypatch)
    culprit = world.size - 1
    made: list[int] = []

    def make() -> int:
        if world.rank == culprit:
            raise UserError("There is no such folder", where="/data", mend="Give another.")
        return 1

    def step() -> None:
        with world.agree("loading"):
            made.append(world.once_a_host(make, str))

    with pytest.raises(UserError, match=rf"no such folder \[/data, rank {culprit} of {world.size} on \S+, loading\]"):
        step()
    assert made == []


@pytest.mark.world_size(2)
@pytest.mark.parametrize("culprit", [0, -1])
def test_a_rank_that_fails_before_others_wait_for_it_fails_them_too(culprit: int, world: World) -> None:
    failing = range(world.size)[culprit]

    def step() -> None:
        with world.agree("loading"):
            if world.rank == failing:
                raise UserError("There is no decoder", mend="Install one.")
            world.once_a_host(lambda: 5, str)

    with pytest.raises(UserError) as caught:
        step()
    assert caught.value.everywhere
    assert caught.value.seen == "There is no decoder"
    assert caught.value.where == f"rank {failing} of {world.size} on {world.host}, loading"
    assert len(set(world.gather_objects(str(caught.value)))) == 1


@pytest.mark.world_size(2)
def test_hosts_that_see_different_things_are_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts_of_their_own(monkeypatch)
    monkeypatch.setattr(world, "host", f"n{world.rank}")
    with pytest.raises(UserError, match=r"n0 12 images; n1 13 images"):
        world.once_a_host(lambda: 12 + min(world.rank, 1), lambda count: f"{count} images")
    assert world.once_a_host(lambda: 5, str) == 5


def hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every rank be alone on its host."""
    monkeypatch.setattr("resist_hvd.comm.world.host_comm", lambda comm: comm.Split(color=comm.Get_rank()))
