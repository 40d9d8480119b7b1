"""Folders as runs leave them, made without training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from resist_hvd.protocol.rule import Rule
from resist_hvd.records import EvaluationRecord, RankSeconds, RoundRecord, Summary

SECONDS = ("seconds_compute", "seconds_data", "seconds_sync")


def write_run(
    folder: Path, *, method: str = "resist", rounds: int = 8, workers: int = 4, detects: bool = False, **data: Any
) -> Path:
    """Write a finished run of a network with 8 blocks to deal out: of a classifier, or of a detector of two classes."""
    folder.mkdir(parents=True)
    model = {"name": "preact_resnet101", "sections": "1,1,9,1", "block": "basic", "width_factor": 0.25}
    config = {"method": method, "model": {**model, **data.pop("model", {})}, "data": {"name": "digits", **data}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = [round_line(number, method, workers) for number in range(rounds)]
    (folder / "rounds.jsonl").write_text("".join(line.as_line() for line in lines))
    evaluations = [
        EvaluationRecord(
            round=n,
            epoch=0.5 * n,
            samples=500 * n,
            seconds=7.0 * n,
            bytes_sent=10**6 * n,
            loss=1.0,
            **(boxes_found(n) if detects else {"accuracy": 50.0 + n}),
        )
        for n in range(2, rounds + 1, 2)
    ]
    (folder / "eval.jsonl").write_text("".join(line.as_line() for line in evaluations))
    peaks = tuple(10**9 + rank for rank in range(workers))
    end = summary(method=method, workers=workers, rounds=rounds, peak_memory_bytes=peaks)
    (folder / "summary.json").write_text(end.as_line())
    return folder


def boxes_found(rounds: int) -> dict[str, Any]:
    """Return the figures of a detector that has found half of the dogs, and all pigs, after so many rounds."""
    return {
        "mean_average_precision": 50.0 + rounds,
        "precisions": {"$dog": (1.0,) * 11 + (0.0,) * 10, "<pig>": (1.0,) * 21},
    }


def summary(**changes: Any) -> Summary:
    """Return the summary of a run that was not evaluated and passed over no file."""
    seconds = {"seconds": 6.0, "seconds_compute": 3.0, "seconds_data": 2.0, "seconds_sync": 1.0}
    counts = {"workers": 2, "rounds": 3, "samples": 4, "bytes_sent": 5}
    sizes = {"parameters_global": 200, "parameters_worker": 118}
    base = Summary(
        method="resist", accuracy=None, best_accuracy=None, peak_memory_bytes=(8, 9), **seconds, **counts, **sizes
    )
    return replace(base, **changes)


def round_line(number: int, method: str, workers: int) -> RoundRecord:
    """Return a round's line, in which every rank takes a second longer to come to the end than the one before it."""
    dealt = Rule((8,), workers, 3).deal(number) if method == "resist" else Rule((8,), workers).replicated()
    slowest = 1.0 + workers
    ranks = RankSeconds(
        seconds_compute=tuple(1.0 + rank for rank in range(workers)),
        seconds_data=(1.0,) * workers,
        # Of the exchange itself 0.75 s are blocks', 0.5 s the trunk's; who comes early waits in the blocks' exchange.
        seconds_sync=tuple(slowest - 2.0 - rank + 1.25 for rank in range(workers)),
        seconds_trunk=(0.5,) * workers,
        seconds_blocks=tuple(slowest - 2.0 - rank + 0.75 for rank in range(workers)),
    )
    means = {name: sum(getattr(ranks, name)) / workers for name in SECONDS}
    return RoundRecord(
        round=number,
        iterations=5,
        loss=2.0 / (1 + number),
        lr=0.1,
        **means,
        bytes_sent=10**6,
        bytes_trunk=6 * 10**5,
        bytes_blocks=4 * 10**5,
        partition=dealt.held,
        ranks=ranks,
    )
