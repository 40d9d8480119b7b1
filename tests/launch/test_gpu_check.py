"""launch/gpu-check: what its steps make of what programs answer, their limits, and the whole of it without a GPU."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from gpu_check import __main__ as program
from gpu_check import comparing, looking, measuring, running, steps, suites, training
from gpu_check.check import Check
from gpu_check.machine import Gpu, Machine
from gpu_check.programs import transport
from gpu_check.steps import Step, choose, make
from gpu_check.verdicts import FailedError, Finding, Result, SkippedError, Verdict
from safetensors.torch import save_file

from . import runs

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch/gpu-check"
H100 = Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-1", memory=85 * 10**9, capability="9.0")
SOUND = Machine(
    gpus=(H100,),
    driver="580.159.04",
    torch="2.15.0",
    cuda="13.2",
    architectures=("sm_80", "sm_90"),
    nccl=(2, 30, 7),
    horovod_nccl=True,
    dali="2.4.0",
    libcuda=("libcuda.so.1",),
    compiler="/usr/bin/cc",
    headers=True,
    cores=2,
    pytest="9",
)

Make = Callable[..., Check]


@pytest.fixture
def check(tmp_path: Path) -> Make:
    """Makes a check whose programs are a script of Python, which finds what it was told in sys.argv."""

    def make(lines: str = "", machine: Machine = SOUND, limit: float = 60, **changes: Any) -> Check:
        stand_in = tmp_path / "stand-in"
        stand_in.write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys, time\n{HELPERS}\n{lines}\n")
        stand_in.chmod(0o755)
        folder = tmp_path / "step"
        folder.mkdir()
        return Check(machine, 2, folder, limit, python=stand_in, run=stand_in, **changes)

    return make


HELPERS = """
def flag(name):
    for number, word in enumerate(sys.argv):
        if word == name:
            return sys.argv[number + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]

def answer(**found):
    pathlib.Path(flag("--answer")).write_text(json.dumps(found))
"""

TRAINS = """
folder = pathlib.Path(flag("--output") or ".")
off = {off} if flag("--device") == "cuda" else 0
if flag("--precision") == "bf16":
    off = {rounded}
if "resist_hvd.train" in sys.argv:
    folder.mkdir()
    lines = [json.dumps({{"round": n, "loss": 2.0 - n / 4 + off}}) for n in range(3)]
    for name in ("rounds", "eval"):
        (folder / (name + ".jsonl")).write_text("\\n".join(lines) + "\\n")
    import struct
    header = json.dumps({{"w": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}}}).encode()
    numbers = struct.pack("<2f", 1.0, 2.0 + off)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + numbers)
else:
    answer(fp32=dict(accuracy=90.0, loss=0.3), bf16=dict(accuracy=90.0 - {points}, loss=0.3), images=360)
"""


# Steps, and how they are made


def act(check: Check) -> None:
    check.finding.words.append("acted")


def fail(check: Check) -> None:
    check.finding.figures["measured"] = 1
    raise FailedError("it is wrong", "the last line")


def skip(check: Check) -> None:
    raise SkippedError("no such thing here")


def raise_key_error(check: Check) -> None:
    check.finding.figures["no such figure"]


def hang(check: Check) -> None:
    check.do("sleeper", "sleeping")


THREE = (Step(1, "one", "", 9, fail), Step(2, "two", "", 9, skip), Step(3, "three", "", 9, act))


def test_a_step_goes_on_after_one_that_fails_and_keeps_its_figures(check: Make, tmp_path: Path) -> None:
    failed, skipped, passed = make(THREE, check(), tmp_path, 100)
    assert [result.verdict for result in (failed, skipped, passed)] == [Verdict.FAIL, Verdict.SKIP, Verdict.PASS]
    assert failed.to_json()["figures"] == {"measured": 1}
    assert [failed.reason, skipped.reason, passed.reason] == ["it is wrong", "no such thing here", ""]
    assert failed.told()[-1].endswith("| the last line")
    assert re.fullmatch(r" 3 three +PASS +\d\.\d s  acted", passed.told()[0])


def test_an_answer_of_another_shape_is_a_failure(check: Make, tmp_path: Path) -> None:
    (result,) = make([Step(1, "one", "", 9, raise_key_error)], check(), tmp_path, 100)
    assert result.verdict is Verdict.FAIL
    assert "no such figure" in result.reason


def test_a_step_that_hangs_is_ended_with_all_its_processes_and_tells_where_it_stood(
    check: Make, tmp_path: Path
) -> None:
    lines = """
import subprocess
def stand_still():
    time.sleep(1000)
if "child" not in sys.argv:
    subprocess.Popen([sys.argv[0], "child"], start_new_session=True)
stand_still()
"""
    began = time.monotonic()
    hung, after = make([Step(1, "one", "", 5, hang), Step(3, "three", "", 9, act)], check(lines), tmp_path, 100)
    assert time.monotonic() - began < 300
    assert (hung.verdict, after.verdict) == (Verdict.FAIL, Verdict.PASS)
    assert "still ran at the step's limit of 5 s" in hung.reason
    assert "in stand_still" in hung.finding.tail
    assert running.marked(running.SESSION) == {}


def test_what_a_program_leaves_behind_is_ended_and_told(check: Make, tmp_path: Path) -> None:
    lines = """
import subprocess
if "child" in sys.argv:
    time.sleep(1000)
subprocess.Popen([sys.argv[0], "child"], start_new_session=True)
"""
    (result,) = make([Step(1, "one", "", 30, hang)], check(lines), tmp_path, 100)
    assert result.reason == "sleeper left 1 processes behind"
    assert running.marked(running.SESSION) == {}


def test_no_step_is_begun_without_time(check: Make, tmp_path: Path) -> None:
    results = list(make(THREE, check(), tmp_path, 1))
    assert [result.verdict for result in results] == 3 * [Verdict.SKIP]
    assert "no time" in results[0].reason


@pytest.mark.parametrize(
    ("words", "numbers"),
    [("1,2,8", [1, 2, 8]), ("3-5,tests", [3, 4, 5, 7]), ("facts", [1]), ("8, 1", [1, 8]), ("1-10", list(range(1, 11)))],
)
def test_steps_are_chosen_by_number_and_name(words: str, numbers: list[int]) -> None:
    assert [step.number for step in choose(words)] == numbers


@pytest.mark.parametrize("words", ["", "0", "11", "1-11", "speed", "3-", "-3", "5-4"])
def test_no_such_step(words: str) -> None:
    with pytest.raises(ValueError, match="step"):
        choose(words)


def test_limits_are_more_than_twice_what_steps_took_and_fit_into_the_time_that_they_took_in_all() -> None:
    """Seconds that each step took on one H100 and 16 cores; of step 7, that it is to take."""
    took = {1: 0, 2: 7, 3: 22, 4: 32, 5: 18, 6: 41, 7: 120, 8: 250, 9: 7, 10: 16}
    assert [step.number for step in steps.STEPS] == list(took)
    for step in steps.STEPS:
        assert 2 * took[step.number] <= step.limit, step.name
    assert sum(step.limit for step in steps.STEPS) <= 2.5 * sum(took.values())


# The command


def test_the_file_is_written_after_each_step_and_the_status_tells_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    seen: list[Any] = []

    def look_back(check: Check) -> None:
        seen.append(json.loads(file.read_text()))

    monkeypatch.setattr(program, "STEPS", (*THREE, Step(4, "four", "", 9, look_back)))
    monkeypatch.setattr(program, "look", lambda check: SOUND)
    monkeypatch.setattr(program, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert program.main(["--json", str(file), "--logs", str(tmp_path / "logs")]) == 1
    (before,) = seen
    assert [step["verdict"] for step in before["steps"]] == ["FAIL", "SKIP", "PASS"]
    assert not before["complete"]
    written = json.loads(file.read_text())
    assert (written["complete"], written["ranks"]) == (True, 4)
    assert written["machine"]["gpus"][0]["name"] == H100.name
    printed = capsys.readouterr().out.splitlines()
    assert "NVIDIA H100 80GB HBM3, driver 580.159.04" in printed[0]
    assert printed[-1].startswith("2 PASS, 1 FAIL, 1 SKIP; ")
    monkeypatch.setattr(program, "STEPS", THREE[1:])
    assert program.main([]) == 0


def test_packing_and_installing_are_setups(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    def setup(*flags: Any, seconds: float) -> int:
        assert 0 < seconds <= 100
        told.append(flags)
        return 3

    monkeypatch.setattr(program, "setup", setup)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert program.main(["--pack", "parts", "--seconds", "100"]) == 3
    assert program.main(["--offline", "parts", "--dali", "--seconds", "100"]) == 3  # and no step, where it fails
    monkeypatch.setattr(program, "PYTHON", Path("/nowhere"))
    assert program.main(["--seconds", "100"]) == 3
    assert told == [("--pack", Path("parts")), ("--offline", Path("parts"), "--dali"), ()]


@pytest.mark.parametrize(
    "flags", [["--ranks", "0"], ["--steps", "11"], ["--images", "/nowhere"], ["--frobnicate"], ["--seconds", "x"]]
)
def test_a_wrong_flag_is_a_mistake(flags: list[str]) -> None:
    done = subprocess.run([COMMAND, *flags], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert flags[0] in done.stderr


def test_told_to_end_it_ends_all_that_it_has_started_and_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    flags = ("--ranks", "2", "--steps", "demonstration,facts", "--json", str(file))
    with runs.started(*flags, program=[COMMAND], launcher="none") as running:
        end = time.monotonic() + runs.LONGEST
        while not running.ranks():
            assert time.monotonic() < end
            time.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        ended = running.end()
    assert ended.status == 130
    assert "SIGTERM" in ended.stderr
    found = json.loads(file.read_text())
    assert not found["complete"]
    assert [(step["name"], step["verdict"]) for step in found["steps"]] == [
        ("facts", "PASS"), ("demonstration", "FAIL"),
    ]  # fmt: skip
    assert "SIGTERM" in found["steps"][1]["reason"]


def test_an_installation_is_ended_when_the_time_for_all_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "setup").write_text("#!/bin/sh\nsleep 1000 &\nwait\n")
    (tmp_path / "setup").chmod(0o755)
    monkeypatch.setattr(program, "LAUNCH", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert program.main(["--offline", "parts", "--seconds", "1"]) == 1
    assert "--seconds" in capsys.readouterr().err
    assert running.marked(running.SESSION) == {}


def test_a_gpu_that_is_needed_and_cannot_be_used_fails_the_facts_and_no_step_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(program, "look", lambda check: Machine(torch="2.15.0"))
    monkeypatch.setattr(program, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert program.main(["--need-gpu", "--steps", "2,8", "--json", str(file), "--logs", str(tmp_path / "logs")]) == 1
    found = json.loads(file.read_text())
    (facts,) = found["steps"]
    assert (facts["name"], facts["verdict"], found["complete"]) == ("facts", "FAIL", False)
    assert "--need-gpu" in facts["reason"]


def ended_within(seconds: float, ended: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not ended() and time.monotonic() < end:
        time.sleep(0.05)
    return ended()


STARTS = """
import sys, time
from pathlib import Path
from gpu_check import running
{more}
running.start([sys.executable, "-c", "import time; time.sleep(1000)"], Path(sys.argv[1]), {{}})
Path(sys.argv[2]).write_text(running.SESSION)
time.sleep(1000)
"""


def test_programs_that_a_program_starts_end_with_it(tmp_path: Path) -> None:
    told = tmp_path / "session"
    command = [sys.executable, "-c", STARTS.format(more=""), tmp_path / "inner.log", told]
    outer = running.start(command, tmp_path / "outer.log", {"PYTHONPATH": str(COMMAND.parent)})
    assert ended_within(runs.LONGEST, lambda: told.is_file() and told.read_text().startswith(outer.mark)), (
        outer.output()
    )
    assert len(outer.processes()) == 2
    outer.end()
    assert running.marked(outer.mark) == {}


def test_killed_it_leaves_no_program_behind(tmp_path: Path) -> None:
    told = tmp_path / "session"
    killed = subprocess.Popen(
        [sys.executable, "-c", STARTS.format(more="kept = running.guard()"), tmp_path / "inner.log", told],
        env={**os.environ, "PYTHONPATH": str(COMMAND.parent)},
    )
    try:
        assert ended_within(runs.LONGEST, lambda: told.is_file() and told.read_text() != "")
        session = told.read_text()
        assert len(running.marked(session)) == 1
    finally:
        killed.kill()
        killed.wait()
    assert ended_within(runs.LONGEST, lambda: running.marked(session) == {})


# The machine


def test_what_stands_in_the_way_is_named() -> None:
    assert looking.faults(SOUND) == []
    assert looking.faults(Machine()) == []
    wrong = replace(
        SOUND, driver="535.54", architectures=("sm_80",), horovod_nccl=False, libcuda=(), unusable="cannot be used"
    )
    said = "\n".join(looking.faults(wrong))
    for fact in ("cannot be used", "535.54", "580", "capability 9.0", "--cuda yes", "libcuda.so.1"):
        assert fact in said


@pytest.mark.parametrize(
    ("capability", "architectures", "runs_there"),
    [
        ("9.0", ["sm_80", "sm_90"], True),
        ("8.9", ["sm_86", "sm_90"], True),
        ("8.0", ["sm_86"], False),
        ("9.0", ["sm_80"], False),
        ("12.0", ["sm_90", "compute_90"], True),
        ("7.5", ["sm_80", "compute_80"], False),
    ],
)
def test_what_runs_on_a_gpu(capability: str, architectures: list[str], runs_there: bool) -> None:
    assert looking.is_built_for(capability, architectures) is runs_there


def test_nccl_shares_a_gpu_from_2_30_on() -> None:
    assert SOUND.why_no_nccl(4) == ""
    old = replace(SOUND, nccl=(2, 28, 9))
    assert "2.28.9" in old.why_no_nccl(2)
    assert old.why_no_nccl(1) == replace(old, gpus=2 * (H100,)).why_no_nccl(2) == ""
    assert "without NCCL" in replace(SOUND, horovod_nccl=False).why_no_nccl(1)


def test_nccl_is_told_to_share_only_where_it_has_to_and_can() -> None:
    told = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    assert SOUND.sharing(2) == told
    assert SOUND.sharing(1) == replace(SOUND, gpus=2 * (H100,)).sharing(2) == {}
    assert replace(SOUND, nccl=(2, 28, 9)).sharing(2) == replace(SOUND, gpus=()).sharing(2) == {}


def test_a_machine_survives_json() -> None:
    assert Machine.of(json.loads(json.dumps(SOUND.to_json()))) == SOUND


def test_facts_are_told_in_full(check: Make) -> None:
    own = check()
    looking.facts(own)
    assert "NCCL 2.30.7" in own.finding.words[0]
    assert "80GB" in own.finding.lines[0]
    assert "DALI 2.4.0" in own.finding.lines[1]


# Horovod, and ways between ranks


def test_wrong_averages_are_a_failure(check: Make) -> None:
    own = check("answer(calls=4, wrong={'float32 1000 on another stream': 7}, milliseconds={'1000': 0.2})")
    with pytest.raises(FailedError, match="7 numbers of float32 1000 on another stream"):
        looking.horovod(own)
    assert own.finding.figures["calls"] == 4


WAY = """
way = flag("--way")
shared = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"
answer(by_nccl=way in {by!r} and shared, gpus=["GPU-1"], worst={worst}, milliseconds={{"1000": 1.0}})
"""


def test_every_way_is_gone_with_two_and_all_ranks(check: Make) -> None:
    own = replace(check(WAY.format(by=("nccl", "bound"), worst=1e-8)), ranks=4)
    looking.ranks(own)
    assert own.finding.faults == []
    assert set(own.finding.figures) == {"2-nccl", "2-host", "4-nccl", "4-host", "4-bound", "4-uneven"}
    assert own.finding.words == ["6 worlds, averages at most 1.0e-08 off"]


def test_an_older_nccl_is_skipped_by_name(check: Make) -> None:
    own = check(WAY.format(by=(), worst=0.0), replace(SOUND, nccl=(2, 28, 9)))
    looking.ranks(own)
    assert own.finding.faults == []
    assert "2 ranks, nccl: skipped" in own.finding.lines[0]


@pytest.mark.parametrize(
    ("by", "worst", "fault"), [("host", 0.0, "averages went by"), (("nccl", "bound"), 1e-3, "1.0e-03 off")]
)
def test_another_way_and_other_numbers_are_failures(by: Any, worst: float, fault: str, check: Make) -> None:
    own = check(WAY.format(by=by, worst=worst))
    looking.ranks(own)
    assert fault in own.finding.faults[0]


def test_tensors_travel_between_ranks_on_cpus(tmp_path: Path) -> None:
    own = Check(Machine(cores=2), 2, tmp_path, runs.LONGEST)
    assert "by MPI" in looking.travel(own, 2, "host")
    assert own.finding.figures["2-host"]["worst"] < 1e-6
    assert own.finding.figures["2-host"]["device"] == "cpu"


# Training

OTHER_INSTRUCTIONS = {
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
"""Have a CPU add up in another order, as a GPU does."""


def test_cpu_and_gpu_are_compared_for_each_method(check: Make) -> None:
    own = check(TRAINS.format(off=1e-5, rounded=0.01, points=0.5))
    training.same(own)
    assert own.finding.faults == []
    assert [line.split()[0] for line in own.finding.lines] == list(training.METHODS)
    assert own.finding.figures["resist cpu to gpu"]["loss"] == pytest.approx(1e-5)
    assert own.finding.words == ["one network 90.00 % in fp32, 89.50 % in bf16"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"off": 2e-3}, "losses 2.0e-03 apart"),
        ({"rounded": 0.1}, "bf16's loss is 5.7 % off"),
        ({"points": 2}, "2.00 points apart"),
        ({"off": "float('nan')"}, "nan"),
        ({"off": 3e-5}, "losses 3.0e-05 apart"),
    ],
)
def test_differences_that_are_too_large_are_failures(changes: dict[str, Any], fault: str, check: Make) -> None:
    own = check(TRAINS.format(**{"off": 0, "rounded": 0, "points": 0, **changes}))
    training.same(own)
    assert any(fault in found for found in own.finding.faults), own.finding.faults


def test_a_training_that_fails_is_told_with_its_last_lines(check: Make) -> None:
    own = check("print('no such flag'); sys.exit(2)")
    training.same(own)
    assert len(own.finding.faults) == len(training.METHODS) + 1
    assert "ended with status 2" in own.finding.faults[0]
    assert own.finding.tail == "no such flag"


def test_models_are_compared_by_their_norms() -> None:
    one, other = ({"w": array("f", [3.0, 4.0]), "b": array("f", [0.0])} for _ in range(2))
    assert comparing.difference(one, other) == 0
    other["b"][0] = 0.5
    assert comparing.difference(one, other) == pytest.approx(0.1)
    with pytest.raises(FailedError, match="different parameters"):
        comparing.difference(one, {"w": one["w"]})
    with pytest.raises(FailedError, match="no number in float32"):
        comparing.difference({}, {})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_number_is_never_close_to_one(number: float) -> None:
    one, other = {"w": array("f", [3.0, 4.0])}, {"w": array("f", [3.0, number])}
    assert comparing.difference(one, other) == comparing.difference(other, one) == math.inf
    two, three = torch.tensor([3.0, 4.0]).double(), torch.tensor([3.0, number])
    assert transport.difference(three, two) == math.inf
    assert training.too_far(comparing.Difference(0.0, 0.0, 0.0, math.nan)) != []


def test_models_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4), "b": torch.rand(5), "n": torch.arange(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = comparing.read_model(tmp_path / "model.safetensors")
    assert {name: list(values) for name, values in found.items()} == {
        name: tensors[name].flatten().tolist() for name in "ab"
    }
    (tmp_path / "model.safetensors").write_bytes(b"\1\2")
    with pytest.raises(FailedError, match=r"model\.safetensors"):
        comparing.read_model(tmp_path / "model.safetensors")


def test_limits_tell_a_wrong_step_from_rounding(tmp_path: Path) -> None:
    own = Check(Machine(cores=2), 1, tmp_path, limit=600)

    def trained(name: str, variables: Mapping[str, str] = training.TINY_RUN, **changes: Any) -> Path:
        flags = training.flags(device="cpu", max_rounds=training.ROUNDS, evaluate_every=1, **changes)
        return own.train(name, *flags, ranks=0, variables=variables)

    with own.at_once(1) as pool:
        right, rounded, without_momentum, without_decay = (
            pool.submit(trained, "right"),
            pool.submit(trained, "rounded", {**training.TINY_RUN, **OTHER_INSTRUCTIONS}),
            pool.submit(trained, "without-momentum", optim__momentum=0),
            pool.submit(trained, "without-decay", optim__weight_decay=0),
        )
        assert training.too_far(comparing.compare(right.result(), rounded.result())) == []
        for wrong in (without_momentum, without_decay):
            assert "models" in training.too_far(comparing.compare(right.result(), wrong.result()))[-1]


def test_without_a_compiler_nothing_is_compiled(check: Make) -> None:
    with pytest.raises(SkippedError, match="compiler"):
        training.compiled(check(machine=replace(SOUND, compiler="")))


@pytest.mark.parametrize("act", [training.resume, training.kill, measuring.synchronise])
def test_what_cpus_can_do_of_a_step(act: Callable[[Check], None], tmp_path: Path) -> None:
    own = Check(Machine(cores=2), 2, tmp_path, limit=600)
    act(own)
    assert len(own.finding.words) == 1
    assert own.finding.faults == []


def test_a_network_is_evaluated_in_both_precisions(tmp_path: Path) -> None:
    own = Check(Machine(cores=2), 1, tmp_path, limit=600)
    found = training.both_precisions(own)
    assert found["images"] == 360
    assert found["fp32"]["accuracy"] == pytest.approx(found["bf16"]["accuracy"], abs=training.POINTS)
    assert found["fp32"]["accuracy"] > 50


COMPILES = (
    TRAINS.format(off=0, rounded=0, points=0)
    + """
lines = [json.dumps({"round": n, "loss": 1.0} | ({"seconds_prepare": 18 - n} if n in (0, 2) else {})) for n in range(6)]
(folder / "rounds.jsonl").write_text("\\n".join(lines) + "\\n")
if flag("--compile"):
    for _ in range(%d):
        print("Recompiling function forward in resnet.py:1", flush=True)
"""
)


def test_a_network_and_its_heir_are_compiled_once_each(check: Make) -> None:
    own = check(COMPILES % 2)
    training.compiled(own)
    assert own.finding.figures["recompilations"] == 2
    assert own.finding.figures["seconds_to_compile"] == [18, 16]
    own.folder.rename(own.folder.with_name("before"))
    with pytest.raises(FailedError, match="4 recompilations, 2 expected"):
        training.compiled(check(COMPILES % 4))


# Benchmarks and tests


STEP = """
rate = {rate} if flag("--compile") == "true" else 3000
pathlib.Path(flag("--json")).write_text(json.dumps(
    dict(images_a_second={{"through method and loop": rate, "bare PyTorch loop": 3100}}, ratio=1.01)
))
"""


@pytest.mark.parametrize(("rate", "fault"), [(4100, ""), (3900, "4,000 are aimed at")])
def test_images_a_second_are_held_against_the_aim(rate: float, fault: str, check: Make) -> None:
    own = check(STEP.format(rate=rate), replace(SOUND, dali=""))
    measuring.throughput(own)
    assert len(own.finding.figures) == len(measuring.ROWS)
    assert f"{rate:,} images/s of 4,000" in own.finding.words[0]
    assert fault in "; ".join(own.finding.faults)
    assert bool(own.finding.faults) is bool(fault)
    assert own.finding.lines[-1] == "loader: skipped, DALI is not installed"


LOADER = """
│ bare DALI, the same operators, hardware load 0.65 │         4100 │     4000 │     4200 │ 1.000 │
│ this loader, hardware load 0.65                   │         3061 │     2990 │     3100 │ 0.750 │
│ bare DALI, the same operators, hardware load 0.95 │         4100 │     4000 │     4200 │ 1.000 │
│ this loader, hardware load 0.95                   │         4061 │     3990 │     4100 │ 0.990 │
2 passes in turn, each of 16 batches; rank 0's. This loader against bare
DALI: 0.750 with hardware load 0.65, 0.990 with hardware load 0.95. Beside training 25,503,912 parameters (bf16):
3021.5 images/s, a step of 85 ms (mean of 40), of which 0.42 % wait
for data.
ratio 0.990: images a second by this loader, over those by bare DALI
"""


def test_what_the_loaders_benchmark_prints_is_read() -> None:
    assert measuring.read_loader(LOADER) == {
        "images_a_second": 4061.0, "ratio": 0.99, "beside_training": 3021.5, "waiting": 0.42,
    }  # fmt: skip
    with pytest.raises(FailedError, match="waiting"):
        measuring.read_loader(LOADER.replace("0.42 %", "some"))


def test_photographs_are_laid_out_for_the_loader(tmp_path: Path) -> None:
    own = Check(Machine(), 1, tmp_path, runs.LONGEST)
    found = own.ask("photographs", "photographs", "--root", tmp_path / "root", "--count", "16")
    assert found["images"] == 16 + 8
    assert 60_000 < found["mean_bytes"] < 200_000
    assert len(list((tmp_path / "root/train").iterdir())) == len(list((tmp_path / "root/val").iterdir())) == 8


PRINTED = "\nx: y\ntests/gpu/test_loader.py::test_a[1] PASSED [ 50%]\ntests/gpu/test_loader.py::test_b "


def check_that_is_ended(folder: Path, log: str) -> Path:
    program = folder / "ended"
    program.write_text(f"#!{sys.executable}\nimport os\nprint({log!r}, flush=True)\nos.abort()\n")
    program.chmod(0o755)
    return program


def test_files_of_tests_that_take_longest_come_last() -> None:
    names = [file.stem for file in sorted(suites.TESTS.glob("test_*.py"), key=suites.order)]
    assert names[-2:] == list(suites.LONGEST)
    assert names.index("test_clock") < names.index("test_loader")


REPORT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no GPU"/></testcase>
<testcase name="c"><failure message="assert 1 == 2&#10;more"/></testcase></testsuite></testsuites>"""


def test_a_report_of_pytest_is_read(tmp_path: Path, check: Make) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert suites.read(tmp_path / "report.xml") == (1, {"b": "no GPU"}, {"c": "assert 1 == 2"})
    own = check(f"pathlib.Path(flag('--junitxml')).write_text('''{REPORT}'''); print('1 failed'); sys.exit(1)")
    suites.tests(own)
    assert set(own.finding.figures) >= {"test_loader", "test_clock", "test_graphs"}
    assert "test_loader: c: assert 1 == 2" in own.finding.faults
    assert own.finding.tail == "1 failed"
    assert own.finding.figures["test_loader"] == {
        "passed": 1, "skipped": {"b": "no GPU"}, "failed": {"c": "assert 1 == 2"},
    }  # fmt: skip
    own = replace(own, finding=Finding(), python=check_that_is_ended(tmp_path, PRINTED))
    suites.tests(own)
    assert own.finding.lines.count("test_a[1] PASSED") == len(own.finding.faults) > 2
    assert own.finding.lines.count("test_b was under way") == len(own.finding.faults)
    with pytest.raises(SkippedError, match="--tests"):
        suites.tests(replace(own, machine=replace(SOUND, pytest="")))


def test_a_signal_leaves_which_tests_had_passed_and_which_was_under_way(check: Make) -> None:
    def interrupted(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGUSR1, interrupted)
    signalling = f"os.kill(os.getppid(), {signal.SIGUSR1.value})"
    try:
        own = check(f"print({PRINTED!r}, end='', flush=True); {signalling}; time.sleep(1000)")
        result = steps.make_one(Step(7, "tests", "", 60, suites.tests), own)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (result.verdict, result.reason) == (Verdict.FAIL, "ended by SIGUSR1")
    assert result.finding.lines == ["test_a[1] PASSED", "test_b was under way"]


# Without a GPU


def test_gpu_tests_skip_by_name_without_one() -> None:
    done = subprocess.run(
        [runs.PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/gpu", "-rs"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=runs.LONGEST, env=runs.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs 1 GPU, PyTorch sees none" in done.stdout
    assert re.search(r"^\d+ skipped in", done.stdout.splitlines()[-1])


def test_all_other_tests_find_gpus_hidden() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_what_needs_no_gpu_passes_and_the_rest_is_skipped_by_name(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = subprocess.run(
        [COMMAND, "--ranks", "2", "--json", file, "--steps", "1-3,6-8"],
        capture_output=True, text=True, check=False, timeout=runs.LONGEST, env=runs.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    verdicts = {step["name"]: (step["verdict"], step["reason"]) for step in found["steps"]}
    assert verdicts == {
        "facts": ("PASS", ""),
        "horovod": ("SKIP", "no GPU"),
        "ranks": ("PASS", ""),
        "compile": ("SKIP", "no GPU"),
        "tests": ("SKIP", "no GPU"),
        "throughput": ("SKIP", "no GPU"),
    }, done.stdout
    assert found["machine"]["torch"] == torch.__version__
    assert f"{Result(1, 'facts', Verdict.PASS, 0.0, '', Finding()).told()[0][:22]}" in done.stdout
