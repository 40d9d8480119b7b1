"""`bench cycle`: which worlds it starts, what it makes of their measurements, and that its spinners end."""

import json
import time
from pathlib import Path

import psutil
import pytest

from resist_hvd import bench
from resist_hvd.benchmarks import cycle
from resist_hvd.benchmarks.spinners import Spinners
from resist_hvd.comm.launch import CORES, CYCLE_VARIABLE, YIELD_VARIABLE
from resist_hvd.errors import UserError


def measured(milliseconds: float) -> cycle.Measured:
    parts = {"arithmetic": [milliseconds, milliseconds + 2], "synchronising": [1.0, 1.0]}
    return {cycle.IDLE: parts, cycle.FULL: parts}


def test_every_way_of_waiting_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, str]] = []

    def apart(settings: cycle.CycleSettings, variables: dict[str, str]) -> cycle.Measured:
        started.append(variables)
        # Nothing set: this program's own choice, half as fast again as the best.
        return measured(100.0 if variables.get(CYCLE_VARIABLE) == "1" else 151.0)

    monkeypatch.setattr(cycle, "measure_apart", apart)
    settings = cycle.CycleSettings(cycles="0.1,1", starts=2, json=tmp_path / "all.json")
    assert cycle.compare(settings) == pytest.approx(153 / 102)
    ways = [{CYCLE_VARIABLE: c, YIELD_VARIABLE: y} for c in ("0.1", "1") for y in ("0", "1")]
    assert started == [{}, *ways, *reversed(ways), {}]
    printed = capsys.readouterr().out
    for row in ("as chosen here", "0.1 ms, keep the core", "1 ms, yield"):
        assert row in printed
    assert "0.67" in printed
    assert len(json.loads((tmp_path / "all.json").read_text())["1 ms, yield"]) == 2


@pytest.mark.parametrize("flags", [["--cycles", "0,1"], ["--cycles", "fast"], ["--ranks", "0"], ["--spinners", "-1"]])
def test_wrong_settings(flags: list[str]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        bench.parse(["cycle", *flags])


def test_spinners_spin_only_while_they_are_told_to() -> None:
    here = psutil.Process()
    before = set(here.children())
    with Spinners(2, CORES) as spinners:
        mine = set(here.children()) - before
        assert len(mine) == 2
        wait_for_status(mine, psutil.STATUS_STOPPED)
        spent = [sum(process.cpu_times()[:2]) for process in mine]
        with spinners.running():
            end = time.monotonic() + 60
            while any(sum(process.cpu_times()[:2]) < was + 0.05 for process, was in zip(mine, spent, strict=True)):
                assert time.monotonic() < end
                time.sleep(0.05)
        wait_for_status(mine, psutil.STATUS_STOPPED)
    assert set(here.children()) <= before


def wait_for_status(processes: set[psutil.Process], status: str) -> None:
    end = time.monotonic() + 60
    while any(process.status() != status for process in processes):
        assert time.monotonic() < end
        time.sleep(0.02)
