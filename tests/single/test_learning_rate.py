"""The learning rate over a run, at the corners of each schedule."""

import pytest

from resist_hvd.settings.optim import OptimSettings
from resist_hvd.training.optim import learning_rate


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 1.0), (0.4999, 1.0), (0.5, 0.1), (0.7499, 0.1), (0.75, 0.01), (0.9999, 0.01)]
)
def test_steps_divide_at_each_milestone(progress: float, rate: float) -> None:
    assert learning_rate(OptimSettings(lr=1.0, schedule="step"), progress) == pytest.approx(rate)


def test_steps_as_they_are_set() -> None:
    settings = OptimSettings(lr=1.0, schedule="step", milestones=(0.2, 0.4, 0.6), divide_by=2.0)
    rates = [learning_rate(settings, progress) for progress in (0.1, 0.3, 0.5, 0.7)]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.125])


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 1.0), (0.25, 0.853553), (0.5, 0.5), (0.75, 0.146447), (1.0, 0.0)])
def test_a_cosine_falls_to_zero(progress: float, rate: float) -> None:
    assert learning_rate(OptimSettings(lr=1.0, schedule="cosine"), progress) == pytest.approx(rate, abs=1e-6)


def test_constant() -> None:
    settings = OptimSettings(lr=0.3, schedule="constant")
    assert {learning_rate(settings, progress) for progress in (0.0, 0.5, 0.99, 1.0)} == {0.3}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_warm_up_rises_evenly_to_the_peak(schedule: str) -> None:
    settings = OptimSettings(lr=0.8, schedule=schedule, warmup=0.2)  # type: ignore[arg-type]
    rates = [learning_rate(settings, progress) for progress in (0.0, 0.05, 0.1, 0.2)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.8])


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_no_step_of_a_warm_up_is_for_nothing(schedule: str) -> None:
    # Twenty steps, the first four of which warm up; and a fifth that a warm-up ends within.
    settings = OptimSettings(lr=0.8, schedule=schedule, warmup=0.2)  # type: ignore[arg-type]
    rates = [learning_rate(settings, done / 20, step=1 / 20) for done in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert learning_rate(settings, 0.18, step=0.05) == pytest.approx(0.8)
    assert learning_rate(OptimSettings(lr=0.8, warmup=0.01), 0.0, step=0.05) == pytest.approx(0.8)


def test_after_a_warm_up_the_cosine_has_the_rest_of_the_run() -> None:
    settings = OptimSettings(lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(settings, progress) for progress in (0.2, 0.6, 1.0)]
    assert rates == pytest.approx([1.0, 0.5, 0.0])


def test_it_never_turns_negative_nor_rises_again() -> None:
    # The last round may train a few images more than the epochs say.
    settings = OptimSettings(lr=1.0, schedule="cosine")
    assert learning_rate(settings, 1.01) == pytest.approx(0.0, abs=1e-12)


def test_a_warm_up_in_epochs_is_one_in_shares_of_the_run() -> None:
    by_share, by_epochs = OptimSettings(lr=0.8, warmup=0.25), OptimSettings(lr=0.8, warmup_epochs=5.0)
    for progress in (0.0, 0.1, 0.24, 0.26, 0.9):
        expected = learning_rate(by_share, progress, step=0.05)
        assert learning_rate(by_epochs, progress, step=0.05, epochs=20.0) == expected


def test_a_warm_up_may_begin_at_a_share_of_the_peak() -> None:
    # The paper's detector: from 1e-5 to 1e-4 over the first 30 of 100 epochs, divided by 10 at 60 and 90.
    settings = OptimSettings(lr=1e-4, schedule="step", milestones=(0.6, 0.9), warmup_epochs=30, warmup_from=0.1)
    rates = [learning_rate(settings, epoch / 100, epochs=100) for epoch in (0, 15, 30, 59, 60, 90)]
    assert rates == pytest.approx([1e-5, 5.5e-5, 1e-4, 1e-4, 1e-5, 1e-6])
    with pytest.raises(ValueError, match=r"--optim\.warmup_from"):
        OptimSettings(warmup_from=0.1)
