"""Training on a GPU: as on a CPU, in both precisions, compiled, stopped, resumed, and with a rank killed."""

import pytest
from gpu_check import training
from gpu_check.check import Check


@pytest.mark.parametrize("method", training.METHODS)
def test_cpu_and_gpu_train_alike(method: str, check: Check) -> None:
    with check.at_once(check.ranks) as pool:
        training.judge(check, method, training.begin(check, pool, method))


def test_one_network_is_as_accurate_in_bf16(check: Check) -> None:
    training.judge_precisions(check, training.both_precisions(check))


def test_a_resumed_run_goes_the_way_of_one_that_never_stopped(check: Check) -> None:
    training.resume(check)


def test_a_killed_rank_takes_the_others_with_it(check: Check) -> None:
    training.kill(check)


def test_compiled_it_trains_alike_and_recompiles_nothing(check: Check) -> None:
    training.compiled(check)
