"""Folders as runs leave them, made without training."""

import json
from pathlib import Path
from typing import Any

from resist_hvd.protocol.partition import deal, replicate


def write_run(folder: Path, *, method: str = "resist", rounds: int = 8, workers: int = 4, **data: Any) -> Path:
    """Write a finished run of a network with 8 blocks to deal out."""
    folder.mkdir(parents=True)
    model = {"name": "preact_resnet101", "sections": "1,1,9,1", "block": "basic", "width_factor": 0.25}
    config = {"method": method, "model": {**model, **data.pop("model", {})}, "data": {"name": "digits", **data}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = [round_line(number, method, workers) for number in range(rounds)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations = [
        {"round": n, "seconds": 7.0 * n, "bytes_sent": 10**6 * n, "accuracy": 50.0 + n} for n in range(2, rounds + 1, 2)
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    summary = {"method": method, "workers": workers, "parameters_global": 200, "parameters_worker": 118}
    summary["peak_memory_bytes"] = [10**9 + rank for rank in range(workers)]  # type: ignore[assignment]
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def round_line(number: int, method: str, workers: int) -> dict[str, Any]:
    """Return a round's line, in which every rank takes a second longer to come to the end than the one before it."""
    dealt = deal([8], workers, 3, number) if method == "resist" else replicate([8], workers)
    slowest = 1.0 + workers
    ranks = {
        "seconds_compute": [1.0 + rank for rank in range(workers)],
        "seconds_data": [1.0] * workers,
        # Of the exchange itself 0.75 s are blocks', 0.5 s the trunk's; who comes early waits in the blocks' exchange.
        "seconds_sync": [slowest - 2.0 - rank + 1.25 for rank in range(workers)],
        "seconds_trunk": [0.5] * workers,
        "seconds_blocks": [slowest - 2.0 - rank + 0.75 for rank in range(workers)],
    }
    means = {name: sum(ranks[name]) / workers for name in ("seconds_compute", "seconds_data", "seconds_sync")}
    return {
        "round": number,
        "iterations": 5,
        "loss": 2.0 / (1 + number),
        "lr": 0.1,
        **means,
        "bytes_sent": 10**6,
        "partition": dealt.held,
        "ranks": ranks,
    }
