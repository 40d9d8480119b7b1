"""The examples, as whole programs: they do what they say, stop and go on exactly, and end together when one fails."""

import json
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import resist_hvd

from . import runs

ROOT = Path(resist_hvd.__file__).parents[1]
EXAMPLES = ROOT / "examples"
OWN_LOOP = [runs.PYTHON, str(EXAMPLES / "own_loop.py")]
TEXT = Path(__file__)
STOPPED = 75


def own_loop(folder: Path, steps: int) -> list[str]:
    return [f"--folder={folder}", f"--steps={steps}", f"--text={TEXT}"]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("example", ["own_loop.py", "own_model.py"])
def test_an_example_is_short(example: str) -> None:
    assert len((EXAMPLES / example).read_text().splitlines()) < 80


def assert_learnt(ended: runs.Ended, folder: Path, rounds: int) -> None:
    """See that a run has learnt to foretell bytes, from round to round, and left its model."""
    assert ended.status == 0, ended
    bits = re.search(r"resist: ([\d.]+) bits per byte", ended.stdout)
    assert bits, ended
    # A byte has 8; those of a text that a network knows nothing of but how frequent they are have about 5.
    assert float(bits[1]) < 5.5
    losses = [line["loss"] for line in lines(folder)]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == rounds
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_transformer_in_a_loop_of_ones_own(ranks: int, tmp_path: Path) -> None:
    assert_learnt(runs.run(*own_loop(tmp_path, 60), ranks=ranks, program=OWN_LOOP), tmp_path, rounds=3)


WAITS_IN_THE_SECOND_ROUND = f"""
import os, runpy, sys, time
import resist_hvd

sound = resist_hvd.Rounds.step


def step(self, loss):
    while self.steps == 30 and not os.path.exists({{go!r}}):
        time.sleep(0.02)
    return sound(self, loss)


resist_hvd.Rounds.step = step
sys.argv[0] = {OWN_LOOP[-1]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_told_to_stop_it_goes_on_exactly(tmp_path: Path) -> None:
    whole = runs.run(*own_loop(tmp_path / "whole", 60), program=OWN_LOOP)
    assert_learnt(whole, tmp_path / "whole", rounds=3)
    waits, go = tmp_path / "waits.py", tmp_path / "go"
    waits.write_text(WAITS_IN_THE_SECOND_ROUND.format(go=str(go)))
    with runs.started(*own_loop(tmp_path / "parted", 60), program=[runs.PYTHON, str(waits)]) as running:
        running.wait_for("round 1 ")
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("Told to stop by USR2", running.err)
        go.touch()
        ended = running.end()
    assert ended.status == STOPPED, ended
    assert "goes on" in ended.mistake
    assert len(lines(tmp_path / "parted")) == 2
    again = runs.run(*own_loop(tmp_path / "parted", 60), program=OWN_LOOP)
    assert again.status == 0, again
    assert [line["loss"] for line in lines(tmp_path / "parted")] == [line["loss"] for line in lines(tmp_path / "whole")]
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parted")]
    assert models[0] == models[1]


def test_the_first_example_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    text = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    program = tmp_path / "first.py"
    program.write_text(text.replace("runs/first", str(tmp_path)))
    ended = runs.run(program=[runs.PYTHON, str(program)])
    assert ended.status == 0, ended
    accuracy = re.search(r"accuracy ([\d.]+) %", ended.stdout)
    assert accuracy, ended
    assert float(accuracy[1]) > 80
    assert len(lines(tmp_path)) == 20
    saved = load_file(tmp_path / "model.safetensors")
    assert {"blocks.0.norm.weight", "blocks.7.down.bias", "head.weight"} <= saved.keys()


BROKEN = """
import torch
from torch import nn

import resist_hvd as resist

world = resist.join()
parts = [resist.Part(str(n), lambda: nn.Linear(4, 4), deck="all" if n else None) for n in range(5)]
net = resist.deal(parts, world)
rounds = resist.Rounds(net, torch.optim.SGD(net.parameters(), lr=0.1), local_iterations=2)
for step in range(1000):
    loss = net(torch.ones(2, 4)).square().mean()
    if (world.rank, step) == ({rank}, 5):
        {what}
    loss.backward()
    rounds.step(loss)
"""


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        pytest.param("raise RuntimeError('something of mine')", 70, ["RuntimeError", "something of mine"], id="error"),
        pytest.param("loss = loss * float('nan')", 2, ["rank 1 of 2", "round 3", "local iteration 2"], id="nan"),
    ],
)
def test_an_error_on_one_rank_ends_all_with_one_message(
    what: str, status: int, says: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "broken.py"
    program.write_text(BROKEN.format(rank=1, what=what))
    ended = runs.run(program=[runs.PYTHON, str(program)])
    assert ended.status == status, ended
    assert all(fact in ended.message for fact in says), ended
    assert runs.HOST in ended.message


def test_a_network_of_ones_own_in_our_loop(tmp_path: Path) -> None:
    flags = ["--data.name=digits", "--optim.name=adamw", "--optim.lr=2e-3", "--local_iterations=5", "--epochs=4"]
    parts = f"--model.parts={EXAMPLES / 'own_model.py'}:parts"
    ended = runs.run(parts, *flags, "--model.options.width=16", "--evaluate_every=0", f"--output={tmp_path}")
    assert ended.status == 0, ended
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-4:]) < sum(losses[:4])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parameters_worker"] < summary["parameters_global"]
