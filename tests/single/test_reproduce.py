"""What `reproduce` runs, goes on with, and makes of runs: with a stand-in for ranks, which leaves a run's folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from resist_hvd import bench, plan, reproduce
from resist_hvd.errors import Stopped, UserError
from resist_hvd.guard import launcher as guard
from resist_hvd.nets.users import network
from resist_hvd.planning.forecast import Planner
from resist_hvd.planning.measured import measured_rates
from resist_hvd.records import EvaluationRecord, Summary
from resist_hvd.reporting import paper
from resist_hvd.reporting.reading import read_run
from resist_hvd.reproduction import launching, page, tables
from resist_hvd.reproduction.differences import differences
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, bound_of
from resist_hvd.reproduction.ladder import POST_ACTIVATION
from resist_hvd.reproduction.launching import Ended, find_mpirun, launcher
from resist_hvd.reproduction.measures import ACCURACY, BYTES_TO_GOAL, PAPERS_ROUND, SENT, papers_bytes_a_round, reach
from resist_hvd.reproduction.outcome import outcome_of
from resist_hvd.reproduction.registry import EXPERIMENTS, named
from resist_hvd.reproduction.runs import planned, run_all, runs_of
from resist_hvd.reproduction.theorem import HELD, RATE
from resist_hvd.settings import reading
from resist_hvd.settings.reproduce import BudgetName, ImagesSettings, ReproduceSettings

from .report_runs import write_run

BUDGETS: tuple[BudgetName, ...] = get_args(BudgetName)


def asked(folder: Path, **changes: Any) -> ReproduceSettings:
    return ReproduceSettings(output=folder, data=ImagesSettings(root=folder / "data"), **changes)


class StandIn:
    """Leaves a run's folder in place of training; notes what it was told to start."""

    def __init__(self, accuracies: dict[str, float] | None = None, *, fails_at: int = 0, stops_at: int = 0) -> None:
        self.started: list[list[str]] = []
        self.accuracies, self.fails_at, self.stops_at = accuracies or {}, fails_at, stops_at

    def __call__(self, workers: int, arguments: Sequence[str], log: Path) -> Ended:
        self.started.append(list(arguments))
        words = dict(word[2:].split("=", 1) for word in arguments if "=" in word)
        if "compare" in arguments:
            measured = {words["rows"]: [{"bytes_counted": 2000}]}
            Path(words["json"]).write_text(json.dumps({"ranks": workers, "measured": measured}))
            return Ended(0)
        folder = Path(words["output"])
        if len(self.started) == self.fails_at:
            log.write_text("a line\nresist_hvd: There is no folder [data]. Give one.\n")
            return Ended(2)
        if len(self.started) == self.stops_at:
            folder.mkdir()
            return Ended(75, signal.SIGINT)
        folder.exists() and folder.rmdir()
        write_run(folder, method=words["method"], workers=workers)
        accuracy = self.accuracies.get(words["method"], 50.0) + float(words["seed"])
        lines = EvaluationRecord.read_lines(folder / "eval.jsonl").records
        last = replace(lines[-1], accuracy=accuracy)
        (folder / "eval.jsonl").write_text("".join(line.as_line() for line in [*lines[:-1], last]))
        return Ended(0)


# -- what is run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_has_settings_that_its_program_takes(name: str, budget: BudgetName, tmp_path: Path) -> None:
    """A wrong flag would end the experiment after its first runs."""
    runs = planned(named(name), asked(tmp_path, budget=budget, seeds=1))
    assert runs
    for run in runs:
        if run.case.computed:
            assert run.flags == ["--seed=1"]
        elif run.case.counted:
            chosen, compared = bench.parse(run.arguments[2:])
            assert (chosen, compared.names, compared.json) == ("compare", ["gpipe"], run.result)
        else:
            settings = reading.parse([*run.flags, f"--output={run.folder}"])
            assert settings.seed == 1
            assert settings.method == run.case.settings["method"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_have_names_of_their_own_and_the_paper_s_columns(name: str, tmp_path: Path) -> None:
    experiment = named(name)
    for budget in BUDGETS:
        cases = experiment.cases(asked(tmp_path, budget=budget))
        assert len({case.name for case in cases}) == len(cases)
        columns = {measure.name for measure in experiment.measures}
        told = any(set(case.paper) & columns or case.place is not None for case in cases)
        assert told or experiment.compare == "bound" or not experiment.source


def test_the_paper_s_budget_is_the_paper_s_setting(tmp_path: Path) -> None:
    runs = planned(named("table2"), ReproduceSettings(budget="paper", output=tmp_path, seeds=1))
    by_name = {run.case.name: reading.parse(run.flags) for run in runs}
    assert len(by_name) == 12
    for name, settings in by_name.items():
        assert (settings.epochs, settings.local_iterations, settings.min_blocks) == (160, 50, 5)
        assert (settings.data.batch_size, settings.optim.lr, settings.optim.schedule) == (128, 0.03, "step")
        assert settings.model.counts == (3, 4, 23, 3)
        assert settings.data.name == ("cifar100" if "CIFAR-100" in name else "cifar10")


def test_table1_deals_out_as_many_blocks_as_the_paper_s_volumes_are_of(tmp_path: Path) -> None:
    cases = named("table1").cases(asked(tmp_path))
    volumes = {(case.settings["method"], case.workers): case.paper[PAPERS_ROUND.name] for case in cases}
    shared, block, blocks = 15_422_116, 1_180_672, 22
    for (method, workers), volume in volumes.items():
        held = blocks if method == "local-sgd" else {2: 11, 4: 6, 8: 4}[workers]
        assert 8 * workers * (shared + held * block) == pytest.approx(volume, rel=2e-3)


def test_experiments_share_runs_of_the_same_settings(tmp_path: Path) -> None:
    settings = asked(tmp_path)
    folders = {name: {run.folder for run in planned(named(name), settings)} for name in EXPERIMENTS}
    assert folders["table4"] < folders["table2"] < folders["a2"]
    assert folders["a6"] <= folders["table2"] & folders["figure4"] & folders["a3"]
    assert folders["table3"] == folders["table5"]


def test_first_seeds_of_all_rows_come_first(tmp_path: Path) -> None:
    seeds = [run.seed for run in planned(named("table2"), asked(tmp_path, seeds=3))]
    assert seeds == [1] * 6 + [2] * 6 + [3] * 6


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_arithmetic_of_local_sgd_buys_as_many_samples_as_the_plan_says(
    budget: BudgetName, workers: int, tmp_path: Path
) -> None:
    cases = {case.name: case for case in named("ahead").cases(asked(tmp_path, budget=budget, ranks=workers))}
    more = cases.pop("resist, its best, in local SGD's arithmetic").settings
    assert len({case.settings["epochs"] for case in cases.values()}) == 1
    best = cases["resist, its best"].settings
    of_shared_blocks = "outer_momentum_blocks", "exchange.blocks"
    changed = {(name, best[name]) for name in ("epochs", "evaluate_every", "min_blocks", *of_shared_blocks)}
    assert set(best.items()) - set(more.items()) == changed
    names = ("recipe", "min_blocks", "local_iterations")
    settings = plan.parse([*(f"--{name}={more[name]}" for name in names), f"--workers={workers}"])
    flops = {run.method: run.round.flops for run in Planner(settings, measured_rates(settings)).compare(workers)}
    assert more["epochs"] / best["epochs"] == pytest.approx(flops["local-sgd"] / flops["resist"], rel=0.01)


def test_the_best_of_resist_is_a_recipe_too(tmp_path: Path) -> None:
    cases = {case.name: case for case in named("ahead").cases(asked(tmp_path))}
    (run,) = runs_of(cases["resist, its best, in local SGD's arithmetic"], asked(tmp_path))
    ours, recipe = (
        replace(settings, evaluate_every=0, seed=1)
        for settings in (
            reading.parse(run.flags),
            reading.parse(["--recipe=cifar10-tiny-best", f"--data.root={tmp_path / 'data'}"]),
        )
    )
    assert ours == recipe


def test_a_row_that_cannot_be_had_says_why_and_is_not_run(tmp_path: Path) -> None:
    cases = {case.name: case for name in ("a1", "a5") for case in named(name).cases(asked(tmp_path))}
    assert "strided" in cases["S = 2, all blocks"].lacking
    assert "7 bits" in cases["7 bits, CIFAR-10"].lacking
    assert runs_of(cases["7 bits, CIFAR-10"], asked(tmp_path)) == []


def test_imagenet_says_what_it_needs() -> None:
    cases = named("table3").cases(ReproduceSettings())
    assert {("--data.root" in case.lacking, case.paper[ACCURACY.name] > 70) for case in cases} == {(True, True)}


@pytest.mark.parametrize(("partition", "decks"), [("section3", (12,)), ("all", (1, 12))])
def test_post_activation_network_deals_out_what_keeps_the_shape(partition: str, decks: tuple[int, ...]) -> None:
    """Deep enough for a deck in the first section, and none in the second and fourth, whose only blocks are strided."""
    options = {"sections": "1,1,13,1", "width": 8, "partition": partition}
    made = network(POST_ACTIVATION, channels=3, image_size=32, classes=10, options=options)
    assert made.deck_sizes == decks
    x = torch.randn(2, 3, 32, 32)
    for part in made.parts:
        x = part.make()(x)
    assert x.shape == (2, 10)


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_finished_runs_are_not_run_again_and_half_done_ones_go_on(tmp_path: Path, capsys: Any) -> None:
    runs = planned(named("a6"), asked(tmp_path))
    first = StandIn(stops_at=2)
    with pytest.raises(Stopped) as stopped:
        run_all(runs, first)
    assert "INT" in str(stopped.value)
    assert str(runs[1].folder) in str(stopped.value)
    second = StandIn()
    run_all(runs, second)
    assert second.started == [first.started[1]]  # the same command, with --resume
    assert "--resume" in second.started[0]
    assert f"goes on [{runs[1].folder}]" in capsys.readouterr().out
    third = StandIn()
    run_all(runs, third)
    assert third.started == []


def test_told_to_stop_in_a_run_s_last_moment_it_begins_no_other(tmp_path: Path) -> None:
    runs = planned(named("a6"), asked(tmp_path))

    def start(workers: int, arguments: Sequence[str], log: Path) -> Ended:
        StandIn()(workers, arguments, log)
        return Ended(75, signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        run_all(runs, start)
    assert "when it was done" in str(stopped.value)
    assert [run.finished for run in runs] == [True, False]


def test_a_run_that_fails_is_named_with_its_folder_and_what_it_said(tmp_path: Path) -> None:
    runs = planned(named("a6"), asked(tmp_path))
    with pytest.raises(UserError) as failed:
        run_all(runs, StandIn(fails_at=2))
    said = str(failed.value)
    for part in (runs[1].title, "status 2", "There is no folder [data]. Give one", str(runs[1].folder), "console.log"):
        assert part in said
    assert runs[0].finished
    assert not runs[1].finished


def test_a_summary_that_is_damaged_is_no_end(tmp_path: Path) -> None:
    (run, *_) = planned(named("a6"), asked(tmp_path))
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text('{"method": "res')
    assert not run.finished


def other_rows(computed: Any) -> Experiment:
    """Return an experiment of a trained row, one of `bench compare`, and one that is computed."""
    return Experiment(
        name="others",
        title="Others",
        source="nowhere",
        about="",
        cases=lambda settings: [
            Case(name="trained", workers=2, group="a", settings={"method": "data-parallel"}, place=0),
            Case(
                name="counted",
                workers=2,
                group="a",
                settings={"rows": "gpipe"},
                counted=lambda told, goal: {SENT.name: told["ranks"] * (goal.samples or 0)},
                place=1,
            ),
            Case(name="computed", workers=1, group="b", computed=computed),
        ],
        measures=(SENT, BYTES_TO_GOAL),
    )


def test_rows_that_are_no_training_are_run_once_and_told_beside_it(tmp_path: Path) -> None:
    settings, seeds = asked(tmp_path), []

    def computed(seed: int) -> dict[str, float]:
        seeds.append(seed)
        return {SENT.name: 5.0}

    experiment = other_rows(computed)
    for _ in range(2):
        run_all(planned(experiment, settings), StandIn())
    assert seeds == [1]
    outcome = outcome_of(experiment, settings)
    # The best accuracy of data-parallel training is that after 3,000 samples.
    assert [row.values[SENT.name].mean for row in outcome.rows] == [8e6, 6000.0, 5.0]
    assert [(verdict.other, verdict.says) for verdict in outcome.verdicts] == [("counted", "differs")]


@pytest.mark.parametrize(("value", "says"), [(5.0, "agrees"), (3.0, "differs")])
def test_a_bound_is_held_or_not(value: float, says: str, tmp_path: Path) -> None:
    """The bound is computed with the row, of each seed its own."""
    computed = other_rows(lambda seed: {SENT.name: value, bound_of(SENT): 2.0 + seed})
    experiment, settings = replace(computed, compare="bound"), asked(tmp_path, seeds=3)
    run_all(planned(experiment, settings), StandIn())
    assert outcome_of(experiment, settings).rows[2].case.paper == {SENT.name: 4.0}
    (verdict,) = outcome_of(experiment, settings).verdicts
    assert (verdict.other, verdict.says) == ("computed", says)


# -- what comes of it --------------------------------------------------------------------------------------------------


def two_rows(**paper_of: float) -> Experiment:
    """Return an experiment of two methods of which the paper says accuracies."""
    return Experiment(
        name="two",
        title="Two <rows>",
        source="nowhere",
        about="About.",
        cases=lambda settings: [
            Case(
                name=method,
                workers=2,
                group="all",
                settings={"recipe": "cifar10-tiny", "method": method},
                paper={ACCURACY.name: told},
            )
            for method, told in (("local-sgd", paper_of["local"]), ("resist", paper_of["resist"]))
        ],
        measures=(ACCURACY, SENT),
    )


@pytest.mark.parametrize(
    ("resist", "seeds", "says"),
    [
        (45.0, 1, "agrees"),
        (55.0, 1, "differs"),
        (49.0, 1, "too close to tell"),  # 1 point with one seed
        (49.0, 3, "agrees"),  # with three
    ],
)
def test_signs_are_compared_beyond_the_noise_of_seeds(resist: float, seeds: int, says: str, tmp_path: Path) -> None:
    experiment, settings = two_rows(local=92.9, resist=92.35), asked(tmp_path, seeds=seeds)
    run_all(planned(experiment, settings), StandIn({"resist": resist}))
    (verdict,) = outcome_of(experiment, settings).verdicts
    assert (verdict.says, verdict.above) == (says, False)
    assert verdict.paper == pytest.approx(-0.55)
    assert verdict.ours == pytest.approx(resist - 50)


def test_rows_are_means_over_seeds_with_deviations(tmp_path: Path) -> None:
    experiment, settings = two_rows(local=92.9, resist=92.35), asked(tmp_path, seeds=3)
    run_all(planned(experiment, settings), StandIn())
    row = outcome_of(experiment, settings).rows[0]
    assert row.values[ACCURACY.name] == (pytest.approx(52.0), pytest.approx(1.0), 3)
    assert tables.ours(ACCURACY, row) == "52.00 ± 1.00"


def test_what_is_not_run_is_said_and_the_rest_is_reported(tmp_path: Path) -> None:
    experiment, settings = two_rows(local=92.9, resist=92.35), asked(tmp_path)
    run_all(planned(experiment, settings)[:1], StandIn())
    outcome = outcome_of(experiment, settings)
    assert [verdict.says for verdict in outcome.verdicts] == ["not run"]
    assert [cells[1] for cells in tables.results(outcome).rows] == ["1 of 1", "0 of 1"]
    assert tables.results(outcome).rows[1][2] == tables.UNKNOWN


def test_page_and_tables_have_ours_beside_the_paper_s(tmp_path: Path) -> None:
    experiment, settings = two_rows(local=92.9, resist=92.35), asked(tmp_path)
    run_all(planned(experiment, settings), StandIn({"resist": 45.0}))
    outcome = outcome_of(experiment, settings)
    html = page.write(outcome, tmp_path / "two").read_text()
    assert "Two &lt;rows&gt;" in html
    assert "<script" not in html
    for text in ("51.00", "92.90", "46.00", "92.35", "agrees"):
        assert text in html
    told = (tmp_path / "two/table.md").read_text()
    assert "| local-sgd | 1 of 1 | 51.00 | 92.90 | 8.00 MB |" in told
    written = json.loads((tmp_path / "two/table.json").read_text())
    assert [row["ours"][ACCURACY.name]["mean"] for row in written["rows"]] == [51.0, 46.0]
    assert [each["says"] for each in written["comparisons"]] == ["agrees"]
    assert (tmp_path / "two/rows.png").stat().st_size > 1000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_page_before_and_after_its_runs(name: str, tmp_path: Path) -> None:
    experiment, settings = named(name), asked(tmp_path)
    assert "<h1>" in page.html(outcome_of(experiment, settings), [])
    if name not in ("table1", "theorem"):  # the one's plan is of real runs, the other's numbers take half a minute
        run_all(planned(experiment, settings), StandIn())
    outcome = outcome_of(experiment, settings)
    assert tables.markdown(outcome).startswith(f"# {experiment.title}")
    assert page.html(outcome, [])


def test_what_differs_from_the_paper_is_told_from_settings(tmp_path: Path) -> None:
    said = differences(outcome_of(named("table2"), asked(tmp_path)))
    assert "epochs, summed over workers: 1; the paper: 160." in said
    assert "sections: 1,1,13,1; the paper: 3,4,23,3." in said
    assert "local iterations a round: 10; the paper: 50." in said
    assert any("means of three" in text for text in said)
    assert not any("images:" in text for text in said)
    in_paper = differences(outcome_of(named("table2"), ReproduceSettings(budget="paper", output=tmp_path)))
    assert in_paper == []


def test_how_many_images_were_trained_on_is_told_from_runs(tmp_path: Path) -> None:
    """500 samples are half an epoch in a stand-in's file."""
    settings = asked(tmp_path)
    run_all(planned(named("table6"), settings)[:1], StandIn())
    said = differences(outcome_of(named("table6"), settings))
    assert "training images: 1,000; the paper: 16,551." in said
    assert "pixels a side: 256; the paper: 448." in said


def test_volume_in_the_paper_s_convention_counts_what_each_worker_holds(tmp_path: Path) -> None:
    """8 blocks of 24 and a trunk of 8 numbers; 4 workers hold 3 each."""
    folder = write_run(tmp_path / "run")
    summary = Summary.read(folder / "summary.json")
    whole = replace(summary, parameters_global=8 + 8 * 24, parameters_worker=8 + 3 * 24)
    (folder / "summary.json").write_text(whole.as_text())
    assert papers_bytes_a_round(read_run(folder), Goal()) == 8 * 4 * (8 + 3 * 24)


def test_bytes_to_an_accuracy_are_between_two_evaluations(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))  # 52 % with 2 MB, 54 % with 4 MB
    assert reach(run, Goal(accuracy=53.0), lambda line: line.bytes_sent) == pytest.approx(3e6)
    assert reach(run, Goal(accuracy=10.0), lambda line: line.bytes_sent) == pytest.approx(2e6)
    assert reach(run, Goal(accuracy=99.0), lambda line: line.bytes_sent) is None
    assert reach(run, Goal(), lambda line: line.bytes_sent) is None


def test_gpipe_s_bytes_are_those_of_a_step_times_the_steps_of_data_parallel_training(tmp_path: Path) -> None:
    """2,000 bytes in 2 rounds of 10 steps; 3,000 samples by steps of 4 x 32."""
    settings = asked(tmp_path)
    run_all(planned(named("figure4"), settings), StandIn({"data-parallel": 70.0}))
    rows = {row.case.name: row for row in outcome_of(named("figure4"), settings).rows}
    goal = rows["data-parallel"].values[BYTES_TO_GOAL.name].mean / 1e6  # a million each 500 samples
    assert rows["gpipe"].values[BYTES_TO_GOAL.name].mean == pytest.approx(2000 / 20 * 500 * goal / (4 * 32))
    assert ACCURACY.name not in rows["gpipe"].values


def test_theorem_s_rows_have_a_rate_beside_its_bound_and_whether_it_held(tmp_path: Path) -> None:
    experiment, settings = named("theorem"), asked(tmp_path)
    narrow = [run for run in planned(experiment, settings) if run.title.startswith("width: n = 8, m = 4,")]
    run_all(narrow, StandIn())
    outcome = outcome_of(experiment, settings)
    (row,) = [row for row in outcome.rows if row.finished]
    assert row.values[RATE.name].mean > row.case.paper[RATE.name] > 0
    (verdict,) = [verdict for verdict in outcome.verdicts if verdict.other == row.case.name]
    assert (verdict.measure.name, verdict.says) == (HELD.name, "agrees")
    assert "yes" in tables.markdown(outcome)


def test_lengths_of_rounds_have_a_number_each() -> None:
    assert {len(values) for values in paper.BY_LOCAL_ITERATIONS.values()} == {len(paper.LOCAL_ITERATIONS)}


# -- the program -------------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
    reproduce.main()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table9"], "There is no experiment 'table9'"),
        ([], "0 experiments"),
        (["table1", "table2"], "2 experiments"),
        (["a6", "--budget", "days"], "minutes, hours, paper"),
        (["a6", "--part", "2"], "--part is 2"),
        (["a6", "--describe"], "--part"),
        (["a6", "--page", "--dry"], "--page runs nothing"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_wrong_name_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "table9")
    said = capsys.readouterr().err
    assert all(name in said for name in EXPERIMENTS)


def test_list_has_every_experiment(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    call(monkeypatch, "list")
    told = capsys.readouterr().out
    for experiment in EXPERIMENTS.values():
        assert re.search(rf"{experiment.name} .*{experiment.source}.*\d+ runs?", told), experiment.name


def test_dry_prints_commands_and_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    call(monkeypatch, "table1", "--dry", "--output", tmp_path / "a folder")
    commands = capsys.readouterr().out.splitlines()
    assert [command.split()[:3] for command in commands] == [["mpirun", "-np", str(n)] for n in (2, 2, 4, 4, 8, 8)]
    assert all(f"'--output={tmp_path}/a folder/" in command for command in commands)
    assert list(tmp_path.iterdir()) == []


def test_part_is_described_for_a_batch_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    call(monkeypatch, "table1", "--part", "4", "--describe", "--output", tmp_path)
    workers, folder, *flags = capsys.readouterr().out.splitlines()
    run = planned(named("table1"), ReproduceSettings(output=tmp_path))[4]
    assert (workers, folder, flags) == ("8", str(run.folder), run.flags)
    call(monkeypatch, "figure4", "--part", "3", "--describe", "--output", tmp_path)
    assert capsys.readouterr().out == ""  # GPipe's, which is no training


def test_part_runs_one_run_and_makes_no_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = StandIn()
    monkeypatch.setattr(reproduce, "Launcher", lambda: type("Fake", (), {"start": staticmethod(stand_in)}))
    call(monkeypatch, "a6", "--part", "1", "--output", tmp_path)
    assert len(stand_in.started) == 1
    assert "--method=local-sgd" in stand_in.started[0]
    assert not (tmp_path / "a6-minutes").exists()
    call(monkeypatch, "a6", "--page", "--output", tmp_path)
    assert len(stand_in.started) == 1
    assert "1 of 1" in (tmp_path / "a6-minutes/table.md").read_text()


# -- starting ranks ----------------------------------------------------------------------------------------------------


def test_ranks_share_this_machine_and_a_job_s_are_where_mpirun_puts_them() -> None:
    alone = launcher("mpirun", 3, {}, open_mpi=True)
    assert alone == ["mpirun", "-np", "3", "--host", "localhost:3", "--bind-to", "none", "--quiet"]
    assert launcher("mpirun", 3, {"SLURM_JOB_ID": "7"}, open_mpi=True) == ["mpirun", "-np", "3"]
    assert launcher("mpiexec.hydra", 3, {}, open_mpi=False) == ["mpiexec.hydra", "-np", "3"]


def test_where_there_is_no_mpirun_it_is_said_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_mpirun(str(tmp_path))
    assert "--dry" in caught.value.mend
    assert "slurm/reproduce.sbatch" in caught.value.mend


def test_environment_of_ranks_keeps_what_is_set() -> None:
    made = launching.child_environment({"PATH": "/x", "KEPT": "1"}, open_mpi=True, root=True)
    assert made["KEPT"] == "1"
    assert made["PATH"].endswith(f"{os.pathsep}/x")
    assert made["OMPI_MCA_oob_tcp_if_include"] == "lo"
    assert made["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in launching.child_environment({}, open_mpi=True, root=False)
    own = launching.child_environment({"OMPI_MCA_oob_tcp_if_include": "ib0"}, open_mpi=True, root=False)
    assert own["OMPI_MCA_oob_tcp_if_include"] == "ib0"


PROGRAM = """
import signal, sys, time
from pathlib import Path
from resist_hvd.reproduction.launching import Launcher

ended = Launcher(sys.argv[1]).start(2, ["-c", "pass"], Path(sys.argv[2]))
print(ended.status, ended.signal, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
MPIRUN = """#!/bin/sh
if [ "$1" = --version ]; then exit; fi
trap 'echo USR2; exit 75' USR2
echo ready
for each in $(seq 1200); do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_what_stops_this_program_is_passed_on_as_usr2(number: int, tmp_path: Path) -> None:
    mpirun, log = tmp_path / "mpirun", tmp_path / "log"
    mpirun.write_text(MPIRUN)
    mpirun.chmod(0o755)
    command = [sys.executable, "-c", PROGRAM, str(mpirun), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while "ready" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.05)
        process.send_signal(number)
        told, _ = process.communicate(timeout=60)
    assert told.split() == ["75", str(int(number)), "True"]
    assert log.read_text().split() == ["ready", "USR2"]


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["python", "-m", "resist_hvd.reproduce", "table1"], True),
        (["python", "-u", "-m", "resist_hvd.reproduce", "table1"], True),
        (["python", "/home/x/.venv/bin/resist-hvd-reproduce", "table1"], True),
        (["bash", "/home/x/launch/run", "-np", "2"], True),
        (["/bin/sh", "-c", "mpirun -np 2 python -m resist_hvd.train"], True),
        (["bash"], False),
        ([], False),
    ],
)
def test_ranks_end_with_the_program_that_started_their_launcher(
    words: list[str], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is killed it passes nothing on; ranks look after it."""
    parent = SimpleNamespace(pid=41, cmdline=lambda: words)
    monkeypatch.setattr(guard.psutil, "Process", lambda pid: SimpleNamespace(parent=lambda: parent))
    assert guard.shell_around(40) == (41 if known else 0)


@pytest.mark.parametrize(
    ("other", "one", "words"),
    [
        ("resist, S = 2", "local-sgd, S = 2", "resist against local-sgd, S = 2"),
        ("resist, CIFAR-10, S = 2", "local-sgd, CIFAR-10, S = 2", "resist against local-sgd, CIFAR-10, S = 2"),
        ("8 bits, CIFAR-10", "32 bits, CIFAR-10", "8 bits against 32 bits, CIFAR-10"),
        ("resist, S = 4, l = 10", "resist, S = 4, l = 5", "resist, S = 4: l = 10 against l = 5"),
        ("gpipe", "resist", "gpipe against resist"),
        ("a, b", "b", "a, b against b"),
    ],
)
def test_what_compared_rows_share_is_said_once(other: str, one: str, words: str) -> None:
    assert tables.against(other, one) == words
