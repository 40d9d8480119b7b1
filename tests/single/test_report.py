"""What a report says of runs: whole ones, and those that are unfinished, damaged, of different lengths, or older."""

import json
import re
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from resist_hvd import drawing, report
from resist_hvd.errors import UserError
from resist_hvd.reporting import detectors, results
from resist_hvd.reporting.curves import Link, curves, group
from resist_hvd.reporting.figures import figures, mosaic, running_mean
from resist_hvd.reporting.page import Drawn, page
from resist_hvd.reporting.panels import Figure
from resist_hvd.reporting.paper import papers_row
from resist_hvd.reporting.phases import PHASES, seconds_of_ranks
from resist_hvd.reporting.reading import RunRecord, read_run, read_runs
from resist_hvd.tasks.detection import Example
from resist_hvd.tasks.precision import Wanted
from resist_hvd.tasks.yolo import Detections

from .report_runs import write_run


def rewrite(path: Path, change: Any) -> None:
    """Change every line of a run's file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def make_report(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_whole_run_lacks_nothing(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.missing == []
    assert (run.method, run.workers, run.data, run.finished) == ("resist", 4, "digits", True)
    assert (len(run.rounds), len(run.evaluations)) == (8, 4)
    assert run.bytes_sent == 8 * 10**6
    assert run.seconds == pytest.approx(8 * (2.5 + 1.0 + 2.75))


def test_what_is_hidden_stands_beside_what_is_waited_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (plain,) = results.rows([read_run(folder)])
    rewrite(folder / "rounds.jsonl", lambda line: {**line, "seconds_hidden": 1.25})
    (row,) = results.rows([read_run(folder)])
    place = results.COLUMNS.index("synchronising")
    assert (plain.cells[place], row.cells[place]) == ("44%", "44%, 20% hidden")


def test_an_unfinished_run_is_reported_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    (folder / "eval.jsonl").unlink()
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 8, "iterations": 5, "lo')
    run = read_run(folder)
    assert run.missing == [
        "It has not ended, or was cut: there is no summary.json; figures are those so far.",
        "1 of 9 lines cannot be read and was left out: rounds.jsonl, line 9: it is no JSON, or cut short.",
        "There is no eval.jsonl.",
        "It has not been evaluated.",
    ]
    assert (len(run.rounds), run.workers, run.method) == (8, 4, "resist")
    (row,) = results.rows([run])
    assert row.cells[:6] == ("run (unfinished)", "resist", "4", "8", results.UNKNOWN, results.UNKNOWN)


def test_damage_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("method: [resist")
    (folder / "summary.json").write_text("[]")
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"loss": 0.5', '"loss": null')
    del lines[5]
    lines.append(lines[0])
    (folder / "rounds.jsonl").write_text("\n".join([*lines, "\x00\x00", "7"]))
    run = read_run(folder)
    assert run.missing == [
        "config.yaml is damaged and was left out.",
        "A damaged file was left out: summary.json: it is no JSON object.",
        "3 of 10 lines cannot be read and were left out: the first: rounds.jsonl, line 4: loss is null.",
        "1 line of rounds.jsonl is repeated; the last of each counts.",
        "2 of 8 rounds are missing: sums are too small.",
    ]
    assert [line.round for line in run.rounds] == [0, 1, 2, 4, 6, 7]
    assert run.method == "unknown method"
    assert figures([run])


def test_an_older_run_has_means(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rewrite(folder / "rounds.jsonl", lambda line: {k: v for k, v in line.items() if k != "ranks"})
    run = read_run(folder)
    assert run.missing == ["It does not say each rank's seconds, as an older version's: means over ranks are shown."]
    assert seconds_of_ranks(run) == [pytest.approx({"compute": 2.5, "data": 1.0, "synchronising": 2.75})]


def test_a_run_that_went_on_in_a_newer_version(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rewrite(folder / "rounds.jsonl", lambda line: {**line, "ranks": line["ranks"] if line["round"] > 2 else None})
    run = read_run(folder)
    assert run.missing == ["3 rounds without each rank's seconds are left out of that picture."]
    assert len(seconds_of_ranks(run)) == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(st.data())
def test_whatever_stands_in_its_files_a_run_is_reported(choice: st.DataObject) -> None:
    with TemporaryDirectory() as parent:
        folder = write_run(Path(parent) / "run", rounds=3, detects=choice.draw(st.booleans()))
        for name in choice.draw(
            st.sets(st.sampled_from(["config.yaml", "summary.json", "rounds.jsonl", "eval.jsonl"]))
        ):
            lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            damaged = choice.draw(st.sampled_from(lines))
            place = damaged["ranks"] if "ranks" in damaged and choice.draw(st.booleans()) else damaged
            place[choice.draw(st.sampled_from(sorted(place)))] = choice.draw(JSON)
            (folder / name).write_text("\n".join(map(json.dumps, lines)))
        run = read_run(folder)
        table = results.rows([run])
        assert len(table[0].cells) == len(results.COLUMNS)
        for phases in seconds_of_ranks(run):
            assert min(phases.values()) >= 0
        assert "<table>" in page("title", [run], [], "0")
        figures([run])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place / "run") for place in ("first", "second")]
    assert [run.label for run in read_runs(folders)] == ["first/run", "second/run"]


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    mend = "Give the folder that --output named in training."
    with pytest.raises(UserError) as caught:
        read_run(tmp_path)
    assert str(caught.value) == f"There is nothing of a run here [{tmp_path}]. {mend}"
    with pytest.raises(UserError) as caught:
        read_run(tmp_path / "missing")
    assert str(caught.value) == f"There is no such folder [{tmp_path / 'missing'}]. {mend}"


# -- where time went ---------------------------------------------------------------------------------------------------


def test_early_ranks_wait_for_the_slowest(tmp_path: Path) -> None:
    ranks = seconds_of_ranks(read_run(write_run(tmp_path / "run")))
    for rank, phases in enumerate(ranks):
        expected = {"compute": 1.0 + rank, "data": 1.0, "blocks": 0.75, "trunk": 0.5, "waiting": 3.0 - rank}
        assert phases == pytest.approx(expected)
    # All come to the end of a round together.
    assert len({round(sum(phases.values()), 6) for phases in ranks}) == 1


@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout"])
def test_no_second_is_lost_or_counted_twice(method: str, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", method=method))
    ranks = seconds_of_ranks(run)
    assert [list(phases) for phases in ranks] == [list(PHASES)] * 4
    told = run.rounds[0].ranks
    assert told is not None
    for rank, phases in enumerate(ranks):
        whole = told.seconds_compute[rank] + told.seconds_data[rank] + told.seconds_sync[rank]
        assert sum(phases.values()) == pytest.approx(whole)


# -- the paper's row ---------------------------------------------------------------------------------------------------


def test_the_papers_row_stands_beside_its_like(tmp_path: Path) -> None:
    papers = {"sections": None, "width_factor": 1.0}
    run = read_run(write_run(tmp_path / "run", name="cifar100", model=papers))
    paper = papers_row(run)
    assert paper is not None
    assert (paper.accuracy, paper.seconds, paper.gigabytes) == (71.30, 1545, 0.720)
    ours, theirs = results.rows([run])
    assert (ours.is_paper, theirs.is_paper) == (False, True)
    assert theirs.cells[0] == "the paper, Tables 1, 2, 4"
    assert {"71.30 %", "25.8 min", "0.720 GB*"} <= set(theirs.cells)
    assert len(ours.cells) == len(theirs.cells) == len(results.COLUMNS)

    folder = read_run(write_run(tmp_path / "folder", name="folder", root="/data/CIFAR-10/", model=papers))
    assert papers_row(folder) == (92.35, 1532, 0.720, "Tables 1, 2, 4")
    for other in ({"workers": 3}, {"model": {**papers, "width_factor": 0.5}}, {"model": {"sections": "1,1,9,1"}}):
        changed = {"name": "cifar100", "model": papers, **other}
        assert papers_row(read_run(write_run(tmp_path / str(len(list(tmp_path.iterdir()))), **changed))) is None


# -- curves of accuracy ------------------------------------------------------------------------------------------------


def runs_of(folder: Path, **settings: Any) -> list[RunRecord]:
    """Three runs of three seeds; the accuracy of the n-th is n points higher."""
    found = []
    for seed in (1, 2, 3):
        place = write_run(folder / f"seed-{seed}")
        config = json.loads((place / "config.yaml").read_text()) | settings | {"seed": seed}
        (place / "config.yaml").write_text(json.dumps(config))
        rewrite(place / "eval.jsonl", lambda line, more=seed: {**line, "accuracy": line["accuracy"] + more})
        found.append(read_run(place))
    return found


def test_runs_that_differ_in_their_seeds_are_one_curve(tmp_path: Path) -> None:
    short = runs_of(tmp_path / "short", local_iterations=5, exchange={"trunk": "int8", "blocks": "fp32"})
    long = runs_of(tmp_path / "long", local_iterations=10, exchange={"trunk": "fp32", "blocks": "fp32"})
    (long[2].folder / "eval.jsonl").write_text(long[2].evaluations[0].as_line())
    runs = [*short, *long[:2], read_run(long[2].folder)]
    group(runs)
    assert [run.colour for run in runs] == [0, 0, 0, 1, 1, 1]
    first, second = curves(runs)
    assert first.label == "local_iterations 5, exchange.trunk int8 (3 runs)"
    assert second.label == "local_iterations 10, exchange.trunk fp32 (3 runs)"
    assert [point.round for point in first.points] == [2, 4, 6, 8]
    # 50 and the round and the seed.
    assert first.points[1] == (4, 28.0, 4 * 10**6, 56.0, 55.0, 57.0)
    assert [point.round for point in second.points] == [2]  # where all of them were evaluated


def test_runs_of_unknown_settings_are_curves_of_their_own(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / name) for name in ("one", "other")])
    assert [curve.label for curve in curves(runs)] == ["one", "other"]
    for run in runs:
        run.config = {}
    group(runs)
    assert [curve.label for curve in curves(runs)] == ["one", "other"]


def test_seconds_are_computed_from_bytes_that_were_counted(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    # A round's 1 MB are of four workers; 20 Mbit/s are 2.5 MB/s, of which headers take 6 %.
    transfer = 0.25 / (0.94 * 2.5)
    (measured,) = curves([run], Link(rate=2.5e6))
    assert [point.seconds for point in measured.points] == pytest.approx([n * (3.5 + transfer) for n in (2, 4, 6, 8)])
    (given,) = curves([run], Link(rate=2.5e6, step=0.15))
    assert [point.seconds for point in given.points] == pytest.approx([n * (0.75 + transfer) for n in (2, 4, 6, 8)])
    assert [point.accuracy for point in given.points] == [52, 54, 56, 58]


def test_computed_seconds_are_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    places = [run.folder for run in runs_of(tmp_path)]
    for place in places:
        (place / "rounds.jsonl").unlink()  # fewer pictures take less time
    make_report(monkeypatch, *places, "--group", "--bandwidth", "20mbit", "--step=150ms", "--output", tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Seconds are computed, not measured: 0.15 s a local iteration" in html
    assert "20.0 Mbit/s" in html
    runs = read_runs(places)
    group(runs)
    link = Link(rate=2.5e6)
    drawn = next(each for each in figures(runs, link) if each.name == "accuracy").draw(drawing.LIGHT)
    assert [axes.get_xlabel() for axes in drawn.axes][1] == "seconds, computed for 20.0 Mbit/s"
    assert [len(axes.get_lines()) for axes in drawn.axes] == [1, 1, 1]


# -- page and pictures -------------------------------------------------------------------------------------------------


def test_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / "ours"), write_run(tmp_path / "theirs <b>", method="local-sgd", rounds=5)]
    out = tmp_path / "report"
    make_report(monkeypatch, *runs, "--output", out, "--title", "A & B")
    printed = capsys.readouterr().out
    assert "57.00 %" in printed or "58.00 %" in printed
    assert f"Written: {out / 'report.html'}" in printed
    names = {"accuracy", "loss", "time", "deal-1", "memory"}
    assert {path.stem for path in out.glob("*.png")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    html = (out / "report.html").read_text()
    assert html.count("<img ") == len(names)
    assert "A &amp; B" in html
    assert "theirs &lt;b&gt;" in html
    assert "theirs <b>" not in html
    # Nothing is fetched: whatever has an address has its content in it.
    assert set(re.findall(r'(?:src|srcset|href)="(.{5})', html)) == {"data:"}
    assert "<script" not in html


def test_the_report_goes_into_the_first_runs_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run")
    (run / "rounds.jsonl").unlink()
    make_report(monkeypatch, run)
    html = (run / "report" / "report.html").read_text()
    assert "There is no rounds.jsonl." in html
    assert {path.stem for path in (run / "report").glob("*.png")} == {"accuracy", "memory"}
    # Whoever may write there cannot have it written elsewhere.
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    for path in (written := sorted(run.rglob("report/*"))):
        path.unlink()
        path.symlink_to(theirs)
    make_report(monkeypatch, run)
    assert theirs.read_text() == "theirs"
    assert len(written) > 1
    assert not any(path.is_symlink() for path in written)


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "file"
    file.touch()
    told = {
        (): "There is no run to report. Give the folders of runs before any flag.",
        (str(write_run(tmp_path / "run")), "--output", str(file)): "Cannot write the report: File exists "
        f"[{file}]. Give an --output that can be written.",
        (str(tmp_path / "run"), "--bandwidth", "20"): "--bandwidth is '20'. Give a number and a unit, like 20mbit.",
        (str(tmp_path / "run"), "--step", "1s"): "--step is for seconds that are computed. Give --bandwidth, too.",
        (str(tmp_path / "run"), "--titel", "x"): "There is no flag --titel. Perhaps you mean --title; see --help.",
    }
    for arguments, message in told.items():
        with pytest.raises(SystemExit) as ended:
            make_report(monkeypatch, *arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"resist_hvd: {message}\n"


def test_a_mosaic_divides_a_tile_among_holders() -> None:
    red, blue, gap = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
    tiles = mosaic([[[0, 1], [1]]], 2, [red, blue], gap)
    upper, lower = ({tiles[row][0] for row in range(first, first + 24)} for first in (0, 24))
    assert upper == {red, gap}
    assert lower == {red, blue, gap}
    assert all(row[-1] == gap for row in tiles)


def test_a_running_mean_keeps_the_mean_of_a_constant() -> None:
    assert running_mean([2.0] * 100) == [2.0] * 100
    assert running_mean([]) == []
    assert running_mean([1.0, 3.0]) == [1.0, 3.0]


# -- detectors ---------------------------------------------------------------------------------------------------------


def test_a_detector_has_precision_against_recall(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = read_runs([write_run(tmp_path / name, detects=True) for name in ("one", "other")])
    made = {figure.name: figure for figure in figures(runs)}
    drawn = made["precision"].draw(drawing.LIGHT)
    drawn.canvas.draw()
    left, right = drawn.axes
    # Each class's curve and the mean, of each run: dogs are found up to a recall of a half, pigs all.
    means = [line.get_ydata() for line in left.lines[2::3]]
    assert [list(values) for values in means] == [[1.0] * 11 + [0.5] * 10] * 2
    assert [label.get_text() for label in right.get_yticklabels()] == [r"\$dog", "<pig>"]
    assert [bar.get_width() for bar in right.patches] == [pytest.approx(width) for width in (600 / 11, 100)] * 2
    assert made["accuracy"].title == "Mean average precision"
    assert made["accuracy"].draw(drawing.LIGHT).axes[0].get_ylabel() == "mAP, %"
    assert results.columns(runs)[results.COLUMNS.index("accuracy")] == "mAP"


@pytest.mark.parametrize("last", [{}, None])
def test_a_last_evaluation_may_have_no_precisions(last: Any, tmp_path: Path) -> None:
    """Of a test set without objects there are none; and an older version's line has none."""
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "run", detects=True)
    rewrite(folder / "eval.jsonl", lambda line: {**line, "precisions": last if line["round"] == 8 else {}})
    for figure in figures([read_run(folder)]):
        assert figure.name != "precision"
        figure.draw(drawing.LIGHT)


def test_boxes_are_drawn_where_their_pixels_are() -> None:
    pytest.importorskip("matplotlib")
    box = [2.0, 1.0, 5.0, 3.0]
    wanted = Wanted(torch.tensor([box]), torch.tensor([0]))
    found = Detections(torch.tensor([box]), torch.tensor([0.5]), torch.tensor([0]))
    example = Example(name="a", pixels=np.zeros((8, 10, 3), np.uint8), there=wanted, found=found)
    axes = detectors.boxes([example], ["$dog"], drawing.LIGHT).axes[0]
    assert axes.images[0].get_extent() == [0, 10, 8, 0]
    assert [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axes.patches] == [(2, 1, 3, 2)] * 2
    assert [text.get_text() for text in axes.texts] == ["0.50"]


def test_a_classifier_has_none(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "run")])
    assert "precision" not in {figure.name for figure in figures(runs)}
    assert results.columns(runs) == results.COLUMNS


def test_precisions_that_make_no_curve_are_damage(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", detects=True)
    rewrite(folder / "eval.jsonl", lambda line: {**line, "precisions": {"dog": [1.0, 0.5]}})
    run = read_run(folder)
    assert run.missing[0].endswith("eval.jsonl, line 1: precisions are not 21 shares for each class.")
    assert not run.detects


def test_images_that_are_not_there_are_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run", detects=True, model={"name": None})
    make_report(monkeypatch, run)
    assert "run: No images with boxes: " in capsys.readouterr().out
    assert {path.stem for path in (run / "report").glob("*.png")} >= {"accuracy", "precision", "loss"}
    make_report(monkeypatch, run, "--images", "0")
    assert "No images" not in capsys.readouterr().out


# -- names of people's own ---------------------------------------------------------------------------------------------

NAMES = ("x[lr=0.1]", "x[lr=0.2]", "c[red]d", "_$a$ $b$", "caf\udce9", "a\x1b[31mb", "c:smile:d")
SHOWN = ("x[lr=0.1]", "x[lr=0.2]", "c[red]d", "_$a$ $b$", "caf\\udce9", "a\\x1b[31mb", "c:smile:d")


def test_runs_of_any_name_are_told_apart_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folders = [write_run(tmp_path / name, rounds=2) for name in NAMES]
    for folder in folders:
        (folder / "summary.json").unlink()  # so that there is something to be said of each
    make_report(monkeypatch, *folders, "--output", tmp_path / "report", "--title", "Gr\u00fc\u00dfe <b>")
    printed = capsys.readouterr().out
    html = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    for name in SHOWN:
        assert f"│ {name} (unfinished)" in printed
        assert f"{name}: It has not ended" in printed
        assert f"<h3>{escape(name)}</h3>" in html
    assert "<h1>Gr\u00fc\u00dfe &lt;b&gt;</h1>" in html
    assert "\x1b" not in printed + html


def test_no_text_becomes_a_part_of_the_page(tmp_path: Path) -> None:
    hostile = "\"'><script>alert(1)</script>"
    run = read_run(write_run(tmp_path / "run", name=hostile, method=hostile))
    run.label = hostile
    run.missing.append(hostile)
    picture = Drawn(Figure("name", hostile, hostile, lambda theme: None), b"<svg/>", b"<svg/>")
    html = page(hostile, [run], [picture], hostile)
    assert "<script" not in html
    assert hostile[:2] not in html
    shown = str(Markup.escape(hostile))
    # Heading and title, subtitle, card, method, sentence, table, picture, caption, foot.
    assert html.count(shown) == 2 + 1 + 1 + 1 + 2 + 2 + 2 + 1 + 1


def test_legends_have_names_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = read_runs([write_run(tmp_path / name) for name in NAMES])
    drawn = next(figure for figure in figures(runs) if figure.name == "loss").draw(drawing.LIGHT)
    drawn.canvas.draw()
    shown = [text.get_text().replace(r"\$", "$") for text in drawn.legends[0].get_texts()]
    assert shown == list(SHOWN)


@pytest.mark.parametrize("rounds", [2, 3, 60, 157])
def test_rounds_of_a_deal_are_counted_from_1_in_whole_numbers(rounds: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = read_run(write_run(tmp_path / "run", rounds=rounds))
    drawn = next(figure for figure in figures([run]) if figure.name == "deal-1").draw(drawing.LIGHT)
    drawn.canvas.draw()
    axes = drawn.axes[0]
    shown = min(rounds, 60)
    assert axes.get_xlim() == (0.5, shown + 0.5)
    labels = [label.get_text() for label in axes.get_xticklabels() if 1 <= label.get_position()[0] <= shown]
    assert labels
    assert all(label.isdecimal() for label in labels)
