"""A training step that is replayed as a CUDA graph is the step that is launched kernel by kernel."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from gpu_check import training
from gpu_check.check import lines
from gpu_check.comparing import compare
from gpu_check.machine import Machine

from .conftest import check_of

ROUND = 2 * training.LOCAL_ITERATIONS * training.BATCH
"""Images of a round of two ranks."""

# Two rounds of warm-up and three of ResIST, the last one shorter; evaluated after each.
FLAGS = training.flags(
    device="cuda",
    warmup_epochs=2 * ROUND / training.IMAGES,
    epochs=4.5 * ROUND / training.IMAGES,
    evaluate_every=1,
    momentum="keep",
    optim__clip_norm=1.0,
    optim__nesterov="true",
)


@pytest.fixture(scope="module")
def runs(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """The folders of all runs, which begin at once: most of their seconds go by before their first step."""
    check = check_of(machine, tmp_path_factory.mktemp("graphs"))

    def trained(name: str, *flags: str) -> Path:
        return check.train(name, *FLAGS, *flags, ranks=2, variables=training.with_nccl(check))

    def resumed(name: str, *flags: str) -> Path:
        trained(name, *flags, "--max_rounds=4")
        return trained(name, *flags, "--resume=true")

    with check.at_once(2) as pool:
        begun = {
            "plain": pool.submit(trained, "plain"),
            "graph": pool.submit(resumed, "graph", "--cuda_graphs=true"),
        }
        if machine.compiler and machine.headers:
            begun["both"] = pool.submit(trained, "both", "--cuda_graphs=true", "--compile=true")
        yield begun


def prepared(run: Path) -> list[int]:
    """The rounds before whose first step something was captured, or compiled."""
    return [line["round"] for line in lines(run / "rounds.jsonl") if "seconds_prepare" in line]


def test_a_graph_trains_as_single_kernels_do(runs: dict[str, Future[Path]]) -> None:
    plain, graph = runs["plain"].result(), runs["graph"].result()
    # For the warm-up, for ResIST, and where it was resumed.
    assert prepared(graph) == [0, 2, 4]
    assert training.too_far(compare(plain, graph)) == []


def test_a_compiled_network_can_be_captured(runs: dict[str, Future[Path]]) -> None:
    if "both" not in runs:
        pytest.skip("--compile needs a C compiler and Python.h")
    assert training.too_far(compare(runs["plain"].result(), runs["both"].result())) == []
