"""To encode and to decode takes no memory but what a codec has had since it was made."""

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch.autograd.profiler import profile

from resist_hvd.comm.codec import CODECS, Codec
from resist_hvd.comm.sparse import Largest, codec_of
from resist_hvd.protocol.codes import GROUP
from resist_hvd.settings.exchange import CodecName

CPU = torch.device("cpu")

A_SCALAR, SOME_OBJECTS = 8, 8 * 2**10
"""Bytes that PyTorch takes for a number that it is given, and Python for views of tensors."""


def most_by_pytorch(action: Callable[[], object]) -> int:
    """The bytes of the largest tensor that is allocated meanwhile, even if it is freed at once."""
    with profile(profile_memory=True) as seen:
        action()
    return max((event.nbytes() for event in seen.kineto_results.events() if event.name() == "[memory]"), default=0)


def most_by_python_and_numpy(action: Callable[[], object]) -> int:
    """The most bytes that are allocated at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def ways(codec: Codec, flat: torch.Tensor) -> list[Callable[[], object]]:
    codes = torch.zeros(codec.bytes_of(len(flat)), dtype=torch.uint8)
    into = torch.empty_like(flat)
    return [
        lambda: codec.encode(flat, codes),
        lambda: codec.encode(into.copy_(flat), codes, subtract=True),
        lambda: codec.decode(codes, into),
        lambda: codec.decode(codes, into, add=True),
    ]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("keep", [1.0, 0.25])
@pytest.mark.parametrize("equal", [False, True], ids=["random", "equal-magnitudes"])
def test_nothing_is_allocated(name: CodecName, keep: float, equal: bool) -> None:
    codec = codec_of(name, CPU, keep)
    flat = torch.randn(2 * codec.piece + codec.group // 2, generator=torch.Generator().manual_seed(1))
    # NumPy lists where the numbers lie that are sent.
    listed = 8 * codec.piece // codec.group * GROUP if isinstance(codec, Largest) else 0
    for action in ways(codec, flat.sign() if equal else flat):
        action()
        assert most_by_pytorch(action) <= A_SCALAR
        assert most_by_python_and_numpy(action) <= listed + SOME_OBJECTS


def test_it_would_be_seen() -> None:
    flat = torch.ones(1000)
    assert most_by_pytorch(lambda: flat.add_(flat * 2)) == 4000
    assert most_by_python_and_numpy(lambda: flat.numpy() * 2) >= 4000
