"""Labs that tests share: made once, on machines that can have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import labs


@pytest.fixture
def needs_lab() -> None:
    """Skip where no lab can be made."""
    if reason := labs.lack(slurm=False):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """Two hosts with SLURM, two GPUs each as far as SLURM knows, and accounts."""
    if reason := labs.lack(slurm=True):
        pytest.skip(reason)
    with labs.made(tmp_path_factory.mktemp("slurm"), hosts=2) as lab:
        ended = lab.do("slurm", "--gpus", "2", "--accounting")
        assert ended.status == 0, ended
        yield lab


@pytest.fixture
def lab_of_two(needs_lab: None, tmp_path: Path) -> Iterator[labs.Lab]:
    """Two hosts."""
    with labs.made(tmp_path, hosts=2) as lab:
        yield lab


@pytest.fixture
def lab_of_four(needs_lab: None, tmp_path: Path) -> Iterator[labs.Lab]:
    """Four hosts."""
    with labs.made(tmp_path, hosts=4) as lab:
        yield lab
