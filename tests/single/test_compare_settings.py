"""What can be asked of `bench compare`, and what is said of what cannot."""

import pytest

from resist_hvd import bench
from resist_hvd.benchmarks.rivals import address_of, way_to
from resist_hvd.errors import UserError
from resist_hvd.guard.rendezvous import own_addresses

ALL = "resist, local-sgd, data-parallel, pytorch-ddp, pytorch-post-local-sgd"


def test_a_choice_of_candidates() -> None:
    _, settings = bench.parse(["compare", "--candidates", "resist,pytorch-ddp", "--optim.lr=0.2"])
    assert settings.names == ["resist", "pytorch-ddp"]
    assert settings.optim.lr == 0.2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--candidates", "resist,sgd"], f"--candidates is 'resist,sgd'. Give some of {ALL}."),
        (["--candidates="], f"--candidates is ''. Give some of {ALL}."),
        (["--repeats", "0"], "--repeats is 0. Give 1 or more."),
        (["--batch_size", "8"], "There is no flag --batch_size. Perhaps you mean --data.batch_size; see --help."),
    ],
)
def test_what_is_wrong_is_told(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        bench.parse(["compare", *flags])
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["sync", "step", "compare"])
def test_benchmarks_that_need_no_flag(name: str) -> None:
    _, settings = bench.parse([name, "--repeats", "2"])
    assert settings.repeats == 2


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--interface is 'eth-none'"):
        address_of("eth-none")
    assert address_of("lo") == "127.0.0.1"


def test_a_name_that_leads_to_no_other_host_is_told_with_the_flag() -> None:
    with pytest.raises(UserError, match="--interface") as caught:
        way_to(["localhost", "localhost"])
    assert "(localhost)" in caught.value.seen


@pytest.mark.parametrize("address", own_addresses())
def test_the_way_to_another_host_is_by_an_interface_that_has_its_address(address: str) -> None:
    interface, found = way_to(["localhost", address])
    assert found == address
    assert interface != "lo"
