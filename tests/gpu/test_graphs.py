"""A training step that is replayed as a CUDA graph is the step that is launched kernel by kernel."""

from pathlib import Path

import pytest
from gpu_check import training
from gpu_check.check import Check, lines
from gpu_check.comparing import compare

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


def trained(check: Check, name: str, *flags: str) -> Path:
    return check.train(name, *FLAGS, *flags, ranks=2, variables=training.with_nccl(check))


def prepared(run: Path) -> list[int]:
    """The rounds before whose first step something was captured, or compiled."""
    return [line["round"] for line in lines(run / "rounds.jsonl") if "seconds_prepare" in line]


def test_a_graph_trains_as_single_kernels_do(check: Check) -> None:
    plain = trained(check, "plain")
    trained(check, "graph", "--cuda_graphs=true", "--max_rounds=4")
    graph = trained(check, "graph", "--cuda_graphs=true", "--resume=true")
    # For the warm-up, for ResIST, and where it was resumed.
    assert prepared(graph) == [0, 2, 4]
    assert training.too_far(compare(plain, graph)) == []


def test_a_compiled_network_can_be_captured(check: Check) -> None:
    if not (check.machine.compiler and check.machine.headers):
        pytest.skip("--compile needs a C compiler and Python.h")
    apart = compare(trained(check, "plain"), trained(check, "both", "--cuda_graphs=true", "--compile=true"))
    assert training.too_far(apart) == []
