"""The plan that a user reads: its numbers, its files, what it says of wrong settings, and that it answers at once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resist_hvd import plan, units
from resist_hvd.errors import UserError
from resist_hvd.planning.cost import TRAINING
from resist_hvd.planning.forecast import FEWEST_ROUNDS, SCALE, Planner
from resist_hvd.planning.inputs import network_of
from resist_hvd.planning.measured import measured_rates
from resist_hvd.records import EvaluationRecord
from resist_hvd.settings.data import FACTS
from resist_hvd.settings.plan import PlanSettings
from resist_hvd.settings.reading import parse, to_yaml

from .report_runs import round_line

TABLE_1 = ["--model.final_norm", "false", "--min_blocks", "4", "--workers", "2,4,8"]


def settings(*arguments: str) -> PlanSettings:
    return plan.parse(arguments)


def run_plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    plan.main()


def test_the_plan_reproduces_table_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "plan.json"
    run_plan(monkeypatch, *TABLE_1, "--json", str(path))
    runs = json.loads(path.read_text())["runs"]
    volumes = {(run["method"], run["workers"]): run["round"]["bytes_paper"] / 1e9 for run in runs}
    local_sgd = [volumes["local-sgd", workers] for workers in (2, 4, 8)]
    assert [round(volume, 3) for volume in local_sgd] == [0.662, 1.325, 2.649]
    assert [volumes["resist", workers] for workers in (2, 4, 8)] == pytest.approx([0.454, 0.720, 1.289], abs=6e-4)
    printed = capsys.readouterr().out
    assert all(figure in printed for figure in ("455 MB", "720 MB", "1.29 GB", "662 MB", "1.32 GB", "2.65 GB"))


def test_it_loads_no_mpi_and_what_is_wrong_is_told_before_pytorch(tmp_path: Path) -> None:
    # What takes seconds to load; with it, no answer could come at once.
    program = "import sys; from resist_hvd import plan; plan.main(); print(*sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", program, "--workers", "2,4096", "--json", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "resist_hvd.plan" in loaded
    assert not loaded & {"horovod", "mpi4py", "matplotlib", "torchvision"}
    program = "import sys; from resist_hvd import plan; sys.argv[1:] = ['--workers', '0']\ntry: plan.main()\n"
    program += "finally: print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n", done.stderr


def test_resist_that_leaves_nothing_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run_plan(monkeypatch, "--model.sections", "1,1,6,1", "--workers", "2")
    printed = " ".join(capsys.readouterr().out.split())
    assert "all 5 blocks (--min_blocks 5)" in printed
    assert "ResIST pays up to" not in printed


def test_the_picture_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    run_plan(monkeypatch, "--workers", "4", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_seconds_of_a_run_are_those_of_its_rounds() -> None:
    planner = Planner(settings("--epochs", "16", "--workers", "4"))
    once = planner.round("resist", 4)
    run = planner.run("resist", 4)
    # 16 x 50,000 images are 1,563 steps of 4 x 128: 31 rounds of 50, and one of 13.
    assert (run.iterations, run.rounds) == (1563, 32)
    assert run.seconds == pytest.approx(1563 / 50 * once.seconds_compute + 32 * once.seconds_sync)
    assert run.bytes_sent == 32 * once.bytes_sent
    steps = planner.run("data-parallel", 4)
    assert steps.bytes_sent == pytest.approx(1563 / 50 * steps.round.bytes_sent)


def test_a_warm_up_costs_what_local_sgd_does() -> None:
    cold, warm = (Planner(settings("--epochs", "90", "--warmup_epochs", epochs)) for epochs in ("0", "30"))
    rounds = cold.run("resist", 4).rounds
    ours, whole = cold.round("resist", 4).bytes_sent, cold.round("local-sgd", 4).bytes_sent
    warming = -(-30 * 50_000 // (4 * 128 * 50))
    assert warm.run("resist", 4).bytes_sent == warming * whole + (rounds - warming) * ours
    assert warm.run("resist", 4).seconds > cold.run("resist", 4).seconds


def test_how_far_it_pays() -> None:
    short = Planner(settings()).stops_paying()
    runs = Planner(settings()).run("resist", 2 * short.workers).rounds
    assert runs < FEWEST_ROUNDS
    assert f"{runs} rounds" in short.reason
    slow = Planner(settings("--epochs", "1e6", "--latency", "10ms", "--bandwidth", "100gbit")).stops_paying()
    assert "10% shorter" in slow.reason
    assert 2 < slow.workers < SCALE[-1]
    assert Planner(settings("--epochs", "1e6")).stops_paying().workers == SCALE[-1]


def test_what_to_take() -> None:
    planner = Planner(settings("--bandwidth", "1gbit"))
    advice = planner.advise(4)
    assert advice.local_iterations is not None
    once = planner.round("resist", 4, local_iterations=advice.local_iterations)
    less = planner.round("resist", 4, local_iterations=advice.local_iterations - 1)
    assert once.seconds_sync / once.seconds <= 0.2 < less.seconds_sync / less.seconds
    fastest = planner.run("resist", 4, min_blocks=5).seconds
    assert advice.depth_seconds <= 1.1 * fastest < planner.run("resist", 4, min_blocks=advice.depth + 1).seconds
    assert Planner(settings("--bandwidth", "1mbit")).advise(4).local_iterations is None


def write_run(folder: Path, **changes: Any) -> str:
    folder.mkdir()
    model = {"name": "preact_resnet101", "sections": None, "width_factor": 1.0, **changes.pop("model", {})}
    config = {"method": "resist", "min_blocks": 5, "model": model, "data": {"batch_size": 64}, **changes}
    (folder / "config.yaml").write_text(json.dumps(config))
    line = replace(round_line(0, "resist", 4), seconds_compute=9.0, seconds_data=1.0, ranks=None).as_line()
    (folder / "rounds.jsonl").write_text(line * 3 + line[:40])
    return str(folder)


def test_a_runs_pace_is_taken_for_the_plans(tmp_path: Path) -> None:
    asked = settings("--measured", write_run(tmp_path / "run"))
    rates = measured_rates(asked)
    load = network_of(asked).sub_network(4, 5)
    assert rates == {"resist": TRAINING * load.flops * 64 / 2.0}
    planner = Planner(asked, rates)
    assert planner.rate("resist") == planner.rate("local-sgd") == rates["resist"]
    both = settings("--measured", f"{tmp_path / 'run'},{write_run(tmp_path / 'other', method='local-sgd')}")
    planner = Planner(both, measured_rates(both))
    assert planner.rate("local-sgd") == planner.rate("gpipe") == TRAINING * network_of(both).whole.flops * 64 / 2.0


def test_the_slowest_ranks_pace_counts(tmp_path: Path) -> None:
    folder = Path(write_run(tmp_path / "run"))
    line = round_line(0, "resist", 4)
    assert line.ranks is not None
    ranks = replace(line.ranks, seconds_compute=(7.0, 9.0, 9.0, 11.0), seconds_data=(1.0, 2.0, 0.5, 0.5))
    (folder / "rounds.jsonl").write_text(3 * replace(line, ranks=ranks).as_line())
    asked = settings("--measured", str(folder))
    load = network_of(asked).sub_network(4, 5)
    assert measured_rates(asked) == {"resist": TRAINING * load.flops * 64 / (11.5 / 5)}


def test_wrong_runs_are_told(tmp_path: Path) -> None:
    def refusal(folder: str) -> str:
        with pytest.raises(UserError) as caught:
            measured_rates(settings("--measured", folder))
        return str(caught.value)

    mend = "Give --measured the folder of a run of the planned network, by resist or local-sgd."
    nothing = refusal(str(tmp_path))
    assert str(tmp_path / "config.yaml") in nothing
    assert "the folder of a run" in nothing
    ensemble = write_run(tmp_path / "ensemble", method="ensemble")
    assert refusal(ensemble) == f"The run's method is ensemble [{ensemble}]. {mend}"
    deep = write_run(tmp_path / "deep", model={"name": "preact_resnet152"})
    assert refusal(deep).endswith(f"Plan with --model.sections 3,4,36,3, or with --run {deep}.")
    thin = write_run(tmp_path / "thin", model={"width_factor": 0.5})
    assert refusal(thin).endswith(f"Plan with --model.width_factor 0.5, or with --run {thin}.")
    empty = write_run(tmp_path / "empty")
    (Path(empty) / "rounds.jsonl").write_text("")
    assert refusal(empty) == f"There is no finished round here [{empty}]. {mend}"
    (Path(empty) / "rounds.jsonl").write_text('{"round": 0}')
    assert "rounds.jsonl, line 1: there is no iterations" in refusal(empty)


WRONG = {
    "--workers two": ("--workers", "'two'", "1 to 4096"),
    "--workers 0": ("--workers", "'0'", "1 to 4096"),
    "--bandwidth fast": ("--bandwidth", "'fast'", "10gbit"),
    "--bandwidth 0gbit": ("--bandwidth", "'0gbit'", "10gbit"),
    "--latency 3": ("--latency", "'3'", "50us"),
    "--compute_rate 6tbit": ("--compute_rate", "'6tbit'", "6tflop"),
    "--efficiency 1.5": ("--efficiency", "1.5", "at most 1"),
    "--epochs 0": ("--epochs", "0.0", "above 0"),
    "--image_size 0": ("--image_size", "0", "1 or more"),
    "--plot plan.gif": ("--plot", "'plan.gif'", ".png, .svg or .pdf"),
    "--dataset mnist": ("--dataset", "'mnist'", "digits, cifar10, cifar100, svhn, folder, imagenet"),
    "--recipe x --run y": ("--recipe", "--run", "one"),
    "--recipe x": ("recipe", "'x'", "cifar10-resnet101"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_told(wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(*wrong.split())
    assert all(fact in str(caught.value) for fact in WRONG[wrong]), caught.value


@pytest.mark.parametrize("recipe", ["cifar10-resnet101", "imagenet-resnet50", "digits"])
def test_a_recipe_is_planned_as_it_is_trained(recipe: str, tmp_path: Path) -> None:
    run = parse(["--recipe", recipe])
    planned = settings("--recipe", recipe, "--workers", "4")
    for name in ("model", "local_iterations", "min_blocks", "epochs", "warmup_epochs"):
        assert getattr(planned, name) == getattr(run, name)
    assert (planned.data.name, planned.data.batch_size) == (run.data.name, run.data.batch_size)
    assert planned.facts == FACTS[run.data.name]
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert settings("--run", str(tmp_path), "--workers", "4") == planned
    assert settings("--run", str(tmp_path), "--min_blocks", "1").min_blocks == 1


def test_flags_of_earlier_versions_go_by_a_runs_names() -> None:
    asked = settings("--dataset", "cifar10", "--model.name=preact_resnet50", "--batch_size=8", "--image_size", "64")
    assert (asked.data.name, asked.data.batch_size, asked.facts.size) == ("cifar10", 8, 64)


def test_other_images_are_planned_by_what_is_said_of_them() -> None:
    flags = ["--data.name=folder", "--model.sections=1,1,2"]
    with pytest.raises(UserError) as caught:
        settings(*flags)
    assert all(flag in caught.value.mend for flag in ("--data.image_size", "--classes", "--images"))
    facts = settings(*flags, "--image_size=48", "--classes=7", "--images=900").facts
    assert facts == (3, 48, 7, 900)


def test_a_runs_own_images_are_planned_by_its_files(tmp_path: Path) -> None:
    run = parse(["--recipe=cifar10-tiny", "--data.name=folder", "--data.root=somewhere"])
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    with pytest.raises(UserError, match="--images"):
        settings("--run", str(tmp_path))
    line = EvaluationRecord(round=1, epoch=0.5, samples=450, seconds=1.0, bytes_sent=0, accuracy=50.0, loss=1.0)
    described = {"image_size": 48, "channels": 1, "classes": ["cat", "dog"]}
    (tmp_path / "model.json").write_text(json.dumps(described))
    (tmp_path / "eval.jsonl").write_text(line.as_line())
    assert settings("--run", str(tmp_path)).facts == (1, 48, 2, 900)
    assert settings("--run", str(tmp_path), "--classes=7").facts == (1, 48, 7, 900)
    assert settings("--run", str(tmp_path), "--data.name=cifar100").facts == FACTS["cifar100"]


def test_no_network_is_planned_silently_for_other_images() -> None:
    with pytest.raises(UserError) as caught:
        settings("--data.name=imagenet")
    assert all(words in caught.value.mend for words in ("imagenet-resnet50", "--run", "--model.name"))
    assert settings("--data.name=imagenet", "--model.name=preact_resnet50").model.counts == (3, 4, 6, 3)


def test_networks_of_other_families_are_planned() -> None:
    planner = Planner(settings("--model.name=torchvision/resnet50", "--data.name=imagenet", "--min_blocks=3"))
    assert planner.network.whole.parameters == 25_557_032
    assert planner.network.partitionable == 5
    resist, local, *_ = planner.compare(4)
    assert resist.round.bytes_sent < local.round.bytes_sent


def test_a_file_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "missing" / "plan.json"
    with pytest.raises(SystemExit) as ended:
        run_plan(monkeypatch, "--json", str(path))
    assert ended.value.code == 2
    told = "resist_hvd: Cannot write the plan: No such file or directory"
    assert capsys.readouterr().err == f"{told} [{path}]. Give a file that can be written.\n"


def test_quantities() -> None:
    def rate(text: str) -> float:
        return units.quantity(text, units.RATES, setting="bandwidth", example="10gbit")

    for zero in ("0gbit", "0", "-1gbit", "nangbit", "1e999gbit"):
        with pytest.raises(ValueError, match="bandwidth"):
            rate(zero)
    assert units.quantity("0us", units.TIMES, setting="latency", example="50us", may_be_zero=True) == 0
    assert [rate("10gbit"), rate("1.25 GByte/s"), rate("100Mbit"), rate("8bit")] == [1.25e9, 1.25e9, 12.5e6, 1.0]
    read = [units.scaled(value, "B") for value in (0, 12, 999.4, 999.6, 1.2949e9, 3.5e18)]
    assert read == ["0 B", "12.0 B", "999 B", "1.00 kB", "1.29 GB", "3500 PB"]
    spans = [units.duration(seconds) for seconds in (0.00321, 41, 750, 15120, 267840)]
    assert spans == ["3.21 ms", "41.0 s", "12.5 min", "4.20 h", "3.10 d"]


def test_what_is_no_promise_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "plan.json"
    run_plan(monkeypatch, "--workers", "8,4096", "--json", str(path))
    plan = json.loads(path.read_text())
    for run in (*plan["runs"], *plan["growth"]):
        few = run["method"] not in ("data-parallel", "gpipe") and run["rounds"] < FEWEST_ROUNDS
        assert bool(run["reservation"]) == few, run
    assert sum(bool(run["reservation"]) for run in plan["growth"]) == 6
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    for run in plan["growth"]:
        (row,) = (
            line for line in rows if line.startswith(f"│ {run['workers']:,} ") and "%" in line and "compute" in line
        )
        assert (f"│ {run['rounds']:>4} ! │" in row) == bool(run["reservation"]), row
    assert any(line.startswith("│ resist ! ") for line in rows)
    # A worker's share of the arithmetic stands beside an efficiency above 100 %, and why.
    whole, ours = (
        next(run["round"]["flops"] for run in plan["runs"] if run["method"] == m) for m in ("local-sgd", "resist")
    )
    assert f"{ours / whole:.0%}" in next(line for line in rows if line.startswith("│ 8 ") and "207%" in line)


def test_numbers_are_written_as_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    run_plan(
        monkeypatch, "--workers", "4", "--epochs", "3", "--bandwidth", "1gbit", "--latency", "0s", "--json", str(path)
    )
    plan = json.loads(path.read_text())
    written = plan["settings"]
    assert (written["data.batch_size"], written["epochs"], written["data.image_size"]) == (128, 3.0, None)
    assert (written["bandwidth"], written["json"]) == ("1gbit", str(path))
    assert plan["machine"]["bandwidth"] == pytest.approx(0.94 * 1.25e8)
    assert (plan["machine"]["flops"], plan["machine"]["latency"]) == (6e12, 0)


def test_one_of_a_thing_is_one() -> None:
    assert [units.counted(count, "round") for count in (0, 1, 2, 1200)] == [
        "0 rounds",
        "1 round",
        "2 rounds",
        "1,200 rounds",
    ]
    assert [units.counted(count, "class", "classes") for count in (1, 10)] == ["1 class", "10 classes"]
    assert [units.counted(count, "epoch") for count in (1.0, 0.5)] == ["1 epoch", "0.5 epochs"]


def test_a_warm_up_is_planned_without_steps_beside_its_averages() -> None:
    flags = ["--epochs", "8", "--warmup_epochs", "8", "--bandwidth", "10mbit"]
    waits, hides = (Planner(settings(*flags, "--overlap", steps)).run("resist", 4) for steps in ("0", "5"))
    assert hides.round.seconds < waits.round.seconds
    assert hides.seconds == waits.seconds
