"""A run is as long as its epochs say, to the iteration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.run import Progress, Run


def run(epochs: float, *, images: int = 1000, workers: int = 2, samples: int = 0, **changes: Any) -> Run:
    """A run in batches of 50 a worker, in rounds of 11."""
    settings = Settings(epochs=epochs, local_iterations=11, data=DataSettings(batch_size=50), **changes)
    source, world = SimpleNamespace(spec=SimpleNamespace(train_size=images)), SimpleNamespace(size=workers)
    return Run(
        settings=settings,
        world=cast(Any, world),
        source=cast(Any, source),
        method=cast(Any, None),
        folder=Path(),
        progress=Progress(samples=samples),
    )


def test_epochs_that_are_no_binary_fractions_take_no_iteration_more() -> None:
    assert 1.1 * 50_000 > 55_000
    cifar = run(1.1, images=50_000)
    assert (cifar.iterations_left, cifar.rounds()) == (550, 50)
    for hundredths in range(1, 400):
        assert run(hundredths / 100, images=50_000).iterations_left == 5 * hundredths, hundredths


@pytest.mark.parametrize(("epochs", "iterations"), [(0.0004, 1), (0.1, 1), (0.101, 2), (1, 10), (1.05, 11)])
def test_a_part_of_an_iteration_is_a_whole_one(epochs: float, iterations: int) -> None:
    assert run(epochs).iterations_left == iterations


def test_what_is_left_after_some_samples_on_any_number_of_workers() -> None:
    assert run(1.1, samples=1000).iterations_left == 1
    assert run(1.1, samples=1000, workers=1).iterations_left == 2
    assert run(1.1, samples=1001, workers=1).iterations_left == 2
    done = run(1.1, samples=1100, workers=3)
    assert done.iterations_left == 0
    assert done.finished
    assert run(1.1, samples=1150).iterations_left == 0
