"""What a list of parts says of a network, and the lists that are refused."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.errors import UserError
from resist_hvd.nets import Network, Norm, Part
from resist_hvd.nets.parts import Deck, check_residual, seeded
from resist_hvd.nets.sizes import Size, part_sizes


class Residual(nn.Module):
    """x + s f(x), with s = 1, or f(x) alone."""

    def __init__(self, width: int = 4, *, passes: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.last(functional.relu(self.first(x)))
        return x + branch if self.passes else branch


def stem() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 8 * 8, 5))


def network_of(*parts: Part, size: int | None = 8, **others: Any) -> Network:
    example = None if size is None else torch.empty(2, 3, size, size, device="meta")
    return Network(parts, example=example, **others)


def around(*blocks: Part) -> Network:
    return network_of(Part("stem", stem), *blocks, Part("head", head))


def block(name: str, make: Callable[[], nn.Module] = Residual, **others: Any) -> Part:
    return Part(name, make, **{"deck": "blocks", **others})


def test_a_network_is_the_composition_of_its_parts() -> None:
    network = around(block("one"), block("two", branches=("last",)))
    assert network.decks == (Deck("blocks", 1, 2),)
    assert [part.name for part in network.blocks] == ["one", "two"]
    assert [list(output.shape) for output in network.outputs] == [[2, 4, 8, 8]] * 3 + [[2, 5]]
    assert all(output.is_meta for output in network.outputs)
    assert network.parameters == (27 * 4 + 4) + 2 * 2 * (9 * 16 + 4) + (4 * 64 * 5 + 5)
    assert [part.prefixed("weight") for part in network.parts[:2]] == ["stem.weight", "one.weight"]
    assert Part("", stem).prefixed("conv1.weight") == "conv1.weight"


def test_sizes_are_of_one_input() -> None:
    network = around(block("one"), block("two"))
    conv = 2 * 8 * 8 * 4 * 4 * 9
    # Each convolution keeps its input, and a block the output of its ReLU besides.
    residual = Size(2 * (16 * 9 + 4), 2 * conv, 2 * 4 * 8 * 8, 4 * 8 * 8)
    assert part_sizes(network) == (
        Size(3 * 4 * 9 + 4, conv * 3 // 4, 3 * 8 * 8, 4 * 8 * 8),
        residual,
        residual,
        Size(4 * 64 * 5 + 5, 2 * 4 * 64 * 5, 4 * 64, 5),
    )


def test_a_network_is_described_without_the_compiler() -> None:
    """PyTorch loads it to compute on the meta device, and to count operations its own way: seconds of each start."""
    program = (
        "import sys; from resist_hvd.nets import preact_resnet, sizes; "
        "from resist_hvd.nets.architecture import Architecture; from resist_hvd.settings.model import ModelSettings; "
        "architecture = Architecture.of(ModelSettings(sections='1,1,2', width_factor=1/16), channels=3, classes=5); "
        "sizes.part_sizes(preact_resnet.network(architecture, image_size=8)); "
        "sys.exit(','.join({'sympy', 'torch._dynamo'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip() == ""


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=6))
def test_decks_are_runs_of_blocks(runs: list[tuple[bool, int]]) -> None:
    parts, expected = [], []
    for place, (dealt, count) in enumerate(runs):
        if dealt:
            expected.append(Deck(f"deck{place}", len(parts), count))
        parts += [Part(f"{place}.{n}", nn.Identity, f"deck{place}" if dealt else None) for n in range(count)]
    network = object.__new__(Network)
    object.__setattr__(network, "parts", tuple(parts))
    assert network.decks == tuple(expected)
    assert network.deck_sizes == tuple(deck.blocks for deck in expected)
    assert network.blocks == tuple(part for part in parts if part.deck is not None)


def refused(words: str, parts: Sequence[Part], size: int | None = 8) -> None:
    with pytest.raises(UserError, match=words):
        network_of(*parts, size=size)


def test_names_are_different() -> None:
    refused("'one'", [Part("stem", stem), block("one"), block("one"), Part("head", head)])
    network_of(Part("", stem), block("one"), Part("", head))
    with pytest.raises(UserError, match=r"'' and '0' both have a parameter '0\.weight'"):
        Network((Part("", lambda: nn.Sequential(nn.Linear(4, 4))), Part("0", lambda: nn.Linear(4, 4))))


def test_blocks_of_a_deck_lie_together() -> None:
    refused("'blocks'.*between", [Part("stem", stem), block("one"), Part("two", Residual), block("three")])


def test_a_part_is_a_module() -> None:
    refused("'stem' makes a Tensor", [Part("stem", lambda: torch.ones(3))])  # type: ignore[arg-type, return-value]


def test_parts_share_no_parameter() -> None:
    shared = Residual()
    refused(
        r"'first\.weight' of part 'two' is tied to part 'one'",
        [block("one", lambda: shared), block("two", lambda: shared)],
    )
    tied = stem()
    refused("'weight' of part 'b' is tied to part 'a'", [Part("a", lambda: tied), Part("b", lambda: tied)], size=None)


def test_a_parameter_has_one_name_and_is_trained() -> None:
    def tied() -> nn.Module:
        module = Residual()
        module.last.weight = module.first.weight
        return module

    refused(r"'last\.weight' of part 'one' is tied to its 'first\.weight'", [Part("one", tied)], size=None)
    refused(
        "'weight' of part 'one' requires no gradient", [Part("one", lambda: stem().requires_grad_(False))], size=None
    )


def test_parameters_are_floats() -> None:
    def whole_numbers() -> nn.Module:
        module = nn.Module()
        module.register_parameter("count", nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False))
        return module

    refused(r"'count' of part 'one' is of type torch\.int64", [Part("one", whole_numbers)], size=None)
    # Half of its digits would be gone without a word.
    double = Part("one", lambda: nn.Linear(4, 4, dtype=torch.float64))
    refused(r"'weight' of part 'one' is of type torch\.float64.*float32", [double], size=None)


def test_norms_keep_no_statistics() -> None:
    refused(
        "'1' of part 'stem' keeps running statistics.*track_running_stats=False",
        [Part("stem", lambda: nn.Sequential(stem(), nn.BatchNorm2d(4)))],
    )
    network_of(Part("stem", lambda: nn.Sequential(stem(), Norm(4))))


def test_blocks_of_a_deck_have_equal_parameters() -> None:
    refused(
        r"first\.bias is \[5\] in 'two' and \[4\] in 'one'",
        [Part("stem", stem), block("one"), block("two", lambda: Residual(5))],
    )
    refused(
        r"last\.bias is missing in 'two' and \[4\] in 'one'",
        [Part("stem", stem), block("one"), block("two", without_bias)],
    )
    refused("'blocks' have no parameters", [Part("stem", stem), block("one", nn.ReLU)])


def without_bias() -> nn.Module:
    module = Residual()
    module.last.bias = None
    return module


def test_blocks_of_a_deck_compute_alike() -> None:
    """A worker's module stays while its parameters come and go: what else differs would not go with them."""
    with pytest.raises(UserError, match=r"dilation=\(2, 2\).* in 'two'.* in 'one'"):
        around(block("one"), block("two", lambda: Residual(dilation=2)))
    with pytest.raises(UserError, match=r"p=0\.2.* in 'two'.*p=0\.1.* in 'one'"):
        around(
            *(block(n, lambda p=p: nn.Sequential(Residual(), nn.Dropout(p))) for n, p in (("one", 0.1), ("two", 0.2)))
        )


def test_branches_are_layers_with_a_weight() -> None:
    for branch in ("middle", "last.weight", "nothing"):
        refused(f"'one' has no layer '{branch}'", [Part("stem", stem), block("one", branches=(branch,))])


def test_a_branchs_weight_is_its_own() -> None:
    """A scale has to be able to go into it."""

    def normed() -> nn.Module:
        module = Residual()
        nn.utils.parametrizations.weight_norm(module.last)
        return module

    def without_weight() -> nn.Module:
        return nn.Sequential(Residual(), nn.GroupNorm(1, 4, affine=False))

    refused("'one' has no layer 'last'", [Part("stem", stem), block("one", normed, branches=("last",))])
    refused("'one' has no layer '1'", [Part("stem", stem), block("one", without_weight, branches=("1",))])


def misfit(words: str, *parts: Part, size: int = 8) -> None:
    network = network_of(*parts, size=size)
    with pytest.raises(UserError, match=words):
        check_residual(network)


def test_blocks_keep_the_shape_and_take_what_comes_before() -> None:
    misfit(
        r"'one' turns inputs of shape \[2, 4, 8, 8\] into \[2, 4, 6, 6\]",
        Part("stem", stem),
        block("one", lambda: nn.Conv2d(4, 4, 3)),
    )
    misfit(
        r"'head' of the network does not take an input of shape \[2, 4, 9, 9\].*--data\.image_size",
        Part("stem", stem),
        Part("head", head),
        size=9,
    )
    misfit("'stem' of the network puts out a tuple", Part("stem", Both))


class Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("branches", [(), ("last",)])
def test_blocks_are_residual(branches: tuple[str, ...]) -> None:
    check_residual(around(block("one", branches=branches)))
    check_residual(network_of(block("one", lambda: Residual(3), branches=branches)))
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"'one' is not residual.*x \+ f\(x\)"):
        check_residual(around(block("one", lambda: Residual(passes=False), branches=branches)))
    assert torch.equal(torch.get_rng_state(), state)


class Picking(Residual):
    """A block with a buffer that has to have its content."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(4).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(x[:, self.get_buffer("order")])


def test_buffers_have_their_content() -> None:
    network = around(block("one", Picking), block("two", Picking))
    check_residual(network)
    assert list(network.outputs[2].shape) == [2, 4, 8, 8]


def test_a_norm_alone_passes_its_input_on() -> None:
    check_residual(around(block("one", lambda: Norm(4)), block("two", lambda: Norm(4))))
    with pytest.raises(UserError, match="'one' is not residual"):
        check_residual(around(block("one", lambda: nn.Sequential(Norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)))))


def test_seeded_draws_are_nobody_elses() -> None:
    state, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with seeded(7):
            drawn.append(torch.rand(3))
        torch.rand(1)
    assert torch.equal(drawn[0], drawn[1])
    torch.set_rng_state(state)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += self.linear(x)
        return x


@pytest.mark.parametrize("branches", [(), ("linear",)])
def test_a_block_without_named_branches_leaves_its_input_alone(branches: tuple[str, ...]) -> None:
    parts = tuple(Part(str(n), InPlace, deck="d", branches=branches) for n in range(2))
    network = Network(parts, example=torch.empty(2, 4, device="meta"))
    with nullcontext() if branches else pytest.raises(UserError, match="in place"):
        check_residual(network)
