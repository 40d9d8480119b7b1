"""Initial weights beside those of the library whose network it is."""

import pytest
import torch
from torch import Tensor


def assert_same_statistics(name: str, found: Tensor, expected: Tensor) -> None:
    """Drawn otherwise, but of the same mean and spread; a tensor of equal numbers is the same."""
    assert found.shape == expected.shape, name
    if expected.min() == expected.max():
        assert torch.equal(found, expected), name
        return
    spread, few = expected.std().item(), expected.numel() ** -0.5
    assert not torch.equal(found, expected), name
    assert abs(found.mean().item() - expected.mean().item()) < 8 * few * spread, name
    assert found.std().item() == pytest.approx(spread, rel=6 * few), name
