"""A training step that is replayed as a CUDA graph is the step that is launched kernel by kernel."""

import json
from pathlib import Path

import pytest
from gpu_check import training
from gpu_check.check import EXACT, Check
from gpu_check.comparing import compare

ROUND = 2 * training.TINY["local_iterations"] * training.TINY["data.batch_size"]  # type: ignore[operator]
"""Images of a round of two ranks."""

IMAGES = 1437
"""Of digits' training set."""


def trained(check: Check, name: str, *flags: str) -> Path:
    """Two rounds of warm-up and three of ResIST, the last one shorter; evaluated, stopped and resumed within ResIST."""
    own = training.flags(
        device="cuda",
        warmup_epochs=2 * ROUND / IMAGES,
        epochs=4.5 * ROUND / IMAGES,
        evaluate_every=1,
        momentum="keep",
        optim__clip_norm=1.0,
        optim__nesterov="true",
    )
    check.train(name, *own, *flags, "--max_rounds=4", ranks=2, variables=EXACT)
    return check.train(name, *own, *flags, "--resume=true", ranks=2, variables=EXACT)


@pytest.mark.parametrize("flags", [("--cuda_graphs=true",), ("--cuda_graphs=true", "--compile=true")])
def test_a_graph_trains_as_single_kernels_do(flags: tuple[str, ...], check: Check) -> None:
    if "--compile=true" in flags and not (check.machine.compiler and check.machine.headers):
        pytest.skip("--compile needs a C compiler and Python.h")
    apart = compare(trained(check, "eager"), run := trained(check, "graph", *flags))
    assert max(apart.loss, apart.parameters) <= training.MODEL
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    # Captured for the warm-up, for ResIST, and where it was resumed.
    assert [line["round"] for line in lines if "seconds_prepare" in line] == [0, 2, 4]
