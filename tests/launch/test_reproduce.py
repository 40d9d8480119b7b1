"""An experiment of two small runs by the whole program: stopped in the first, it goes on, and makes its page."""

import json
import signal
import time
from pathlib import Path

from resist_hvd.records import RoundRecord

from . import runs

PROGRAM = """
import json, sys
from resist_hvd import reproduce
from resist_hvd.reproduction import registry
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.measures import ACCURACY, SENT

flags = json.loads({flags!r})

def cases(settings):
    return [
        Case(name=method, workers=2, group="all", settings={{**flags, "method": method}}, paper={{SENT.name: told}})
        for method, told in (("local-sgd", 2e9), ("resist", 1e9))
    ]

registry.EXPERIMENTS["tiny"] = Experiment(
    name="tiny", title="Tiny", source="none", about="", cases=cases, measures=(SENT, ACCURACY)
)
reproduce.main()
"""


def test_an_experiment_is_stopped_goes_on_and_has_its_page(tiny: list[str], tmp_path: Path) -> None:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in tiny)
    # Rounds enough that the first run is under way when the signal comes.
    flags |= {"epochs": "4", "evaluate_every": "0", "checkpoint_every": "0"}
    program = [runs.PYTHON, "-c", PROGRAM.format(flags=json.dumps(flags))]
    arguments = ["tiny", "--output", tmp_path / "out"]
    with runs.started(*arguments, launcher="none", program=program) as running:
        first = await_round(tmp_path / "out")
        running.process.send_signal(signal.SIGINT)
        ended = running.end()
    assert ended.status == 75, ended
    assert "The same command goes on" in ended.message
    done = len(RoundRecord.read_lines(first).records)
    assert (first.parent / "checkpoints/latest").is_file()
    assert not (first.parent / "summary.json").exists()

    ended = runs.run(*arguments, launcher="none", program=program)
    assert ended.status == 0, ended
    assert f"goes on [{first.parent}]" in ended.stdout
    starts = [json.loads(line) for line in (first.parent / "starts.jsonl").read_text().splitlines()]
    assert [start["round"] for start in starts] == [0, done]
    told = json.loads((tmp_path / "out/tiny-minutes/table.json").read_text())
    assert [row["finished"] for row in told["rows"]] == [1, 1]
    assert [each["says"] for each in told["comparisons"]] == ["agrees"]
    assert "agrees" in (tmp_path / "out/tiny-minutes/page.html").read_text()

    ended = runs.run(*arguments, launcher="none", program=program)
    assert ended.status == 0, ended
    assert "All runs are finished." in ended.stdout


def await_round(output: Path) -> Path:
    """Return the file of rounds of the run under way, once it has one."""
    end = time.monotonic() + runs.SOON
    while time.monotonic() < end:
        for found in output.glob("runs/*/rounds.jsonl"):
            if found.stat().st_size:
                return found
        time.sleep(0.02)
    raise AssertionError("no run has come to the end of a round")
