"""What can be asked of `bench compare`, and what is said of what cannot."""

import pytest

from resist_hvd import bench
from resist_hvd.benchmarks import compare
from resist_hvd.benchmarks.compare import Measurement
from resist_hvd.benchmarks.rivals import address_of, way_to
from resist_hvd.errors import UserError
from resist_hvd.guard.rendezvous import own_addresses
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.rows import Row

ALL = "resist, local-sgd, data-parallel, federated-dropout, pytorch-ddp, pytorch-post-local-sgd, gpipe"


def rows(flag: str, *flags: str) -> list[Row]:
    """The rows that a flag asks for."""
    _, settings = bench.parse(["compare", "--rows", flag, *flags])
    return [Row.read(name) for name in settings.names]


def test_a_choice_of_rows() -> None:
    _, settings = bench.parse(["compare", "--rows", "resist, pytorch-ddp,resist", "--optim.lr=0.2"])
    assert settings.names == ["resist", "pytorch-ddp"]
    assert settings.optim.lr == 0.2


def test_what_follows_a_name() -> None:
    plain, both, split, average, rival, kept, too = rows(
        "resist,resist+overlap2+int8,resist+int4/int8,local-sgd+int8+overlap3,pytorch-ddp,resist+keep0.25+int8,"
        "resist+int8+keep0.25"
    )
    assert (plain.method, plain.overlap, plain.exchange) == ("resist", 0, ExchangeSettings())
    assert (both.overlap, both.exchange) == (2, ExchangeSettings(trunk="int8", blocks="int8"))
    assert split.exchange == ExchangeSettings(trunk="int4", blocks="int8")
    assert (average.method, average.overlap) == ("local-sgd", 3)
    assert average.exchange == ExchangeSettings(trunk="int8")
    assert rival.method is None
    assert kept.exchange == too.exchange == ExchangeSettings(trunk="int8", keep=0.25, blocks="int8")


def test_a_row_is_trained_with_what_follows_its_name() -> None:
    _, settings = bench.parse(["compare", "--rows", "resist+overlap2+int8", "--optim.warmup_epochs=2"])
    training = settings.training(Row.read(settings.names[0]))
    assert (training.method, training.overlap, training.exchange.trunk) == ("resist", 2, "int8")
    # So few steps would all be of a warm-up in epochs.
    assert training.optim.warmup_epochs == 0


def test_a_pipeline_has_no_norm_of_all_gradients() -> None:
    with pytest.raises(UserError, match=r"--optim\.clip_norm is 1\.0.*gpipe"):
        bench.parse(["compare", "--rows=gpipe,resist", "--optim.clip_norm=1"])
    bench.parse(["compare", "--rows=resist,pytorch-ddp", "--optim.clip_norm=1"])


def test_a_pipeline_is_compared_where_it_is_asked_for() -> None:
    _, settings = bench.parse(["compare", "--rows=gpipe,resist", "--micro_batches=8", "--stages=[3,4]"])
    assert (settings.micro_batches, settings.stages) == (8, (3, 4))
    assert settings.training(Row.read("gpipe")).method == "local-sgd"
    _, settings = bench.parse(["compare"])
    assert "gpipe" not in settings.names  # one rank has none


@pytest.mark.parametrize(("iterations", "overlap"), [(1, ""), (2, "+overlap1"), (10, "+overlap2")])
def test_the_usual_rows_can_be_trained(iterations: int, overlap: str) -> None:
    _, settings = bench.parse(["compare", "--local_iterations", str(iterations)])
    assert settings.names[0] == "pytorch-post-local-sgd"
    assert "resist+int8" + overlap in settings.names
    assert {Row.read(name).overlap for name in settings.names} == {0, *([int(overlap[-1])] if overlap else [])}


def test_the_ratio_is_that_of_resists_fastest_row_to_the_fastest_other() -> None:
    def measured(**seconds: float) -> dict[str, list[Measurement]]:
        rest = {"seconds_arithmetic": 1.0, "seconds_communication": 1.0, "seconds_hidden": 0.0, "accuracy": None}
        sent = {"bytes_counted": 0, "bytes_network": 0, "bytes_loopback": 0, "memory": None}
        return {
            name.replace("_", "-"): [Measurement(seconds_step=value, **rest, **sent)]  # type: ignore[arg-type]
            for name, value in seconds.items()
        }

    assert (
        compare.ratio_to_the_best(measured(**{"pytorch_ddp": 4, "resist": 3, "resist+int8": 1, "local_sgd": 2})) == 0.5
    )
    assert compare.ratio_to_the_best(measured(local_sgd=3, pytorch_ddp=2)) == 1.5
    assert compare.ratio_to_the_best(measured(**{"resist": 3, "resist+int8": 1})) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "resist,sgd"], f"--rows has 'sgd': there is no 'sgd'. Give some of {ALL}."),
        (["--rows="], f"--rows has '': there is no ''. Give some of {ALL}."),
        (
            ["--rows", "resist+overlap10"],
            "--rows has 'resist+overlap10': --overlap is 10, but a round has --local_iterations 10. Give fewer.",
        ),
        (
            ["--rows", "pytorch-ddp+int8"],
            "--rows has 'pytorch-ddp+int8': what follows pytorch-ddp is for our methods. Leave +int8 out.",
        ),
        (["--repeats", "0"], "--repeats is 0. Give 1 or more."),
        (["--rows=gpipe", "--micro_batches=1"], "--micro_batches is 1. Give 2 or more."),
        (["--rows=gpipe", "--stages=[4,0]"], "--stages is [4, 0]. Give numbers of at least 1."),
        (
            ["--rows=resist", "--micro_batches=4"],
            "--micro_batches is for gpipe, and --rows has none. Leave it out, or add gpipe to --rows.",
        ),
        (["--batch_size", "8"], "There is no flag --batch_size. Perhaps you mean --data.batch_size; see --help."),
    ],
)
def test_what_is_wrong_is_told(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        bench.parse(["compare", *flags])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "word", ["int3", "overlap", "overlap-1", "int8/", "/int8", "int4/int8/int8", "keep", "keephalf", ""]
)
def test_words_that_follow_no_name(word: str) -> None:
    with pytest.raises(UserError) as caught:
        rows(f"resist+{word}")
    assert f"'resist+{word}': nothing is called {word!r}" in caught.value.seen
    assert "+overlapT" in caught.value.mend
    assert "int8" in caught.value.mend


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("data-parallel+int8", "--exchange.trunk"),
        ("data-parallel+overlap1", "--overlap"),
        ("data-parallel+keep0.25", "--exchange.keep"),
        ("resist+keep0", "--exchange.keep"),
        ("local-sgd+int4/int8", "--exchange.blocks"),
    ],
)
def test_rows_that_no_run_could_have(name: str, flag: str) -> None:
    with pytest.raises(UserError) as caught:
        rows(name)
    assert caught.value.seen.startswith(f"--rows has {name!r}: {flag}")


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
