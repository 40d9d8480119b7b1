"""The help of every program says what each of its flags is, in lines that fit."""

import re
import subprocess
import sys
from typing import Any

import pytest

from resist_hvd import __version__, bench, doctor, plan, report, reproduce, train
from resist_hvd.report import ReportSettings
from resist_hvd.settings import flags
from resist_hvd.settings.group import flags_of
from resist_hvd.settings.plan import PlanSettings
from resist_hvd.settings.reproduce import ReproduceSettings
from resist_hvd.settings.tools import EvaluateSettings, PredictSettings

PROGRAMS: dict[str, type[Any]] = {
    "plan": PlanSettings,
    "report": ReportSettings,
    "reproduce": ReproduceSettings,
    "evaluate": EvaluateSettings,
    "predict": PredictSettings,
    **{f"bench {name}": benchmark.settings for name, benchmark in bench.BENCHMARKS.items()},
}


@pytest.mark.parametrize("main", [train.main, plan.main, report.main, reproduce.main, bench.main, doctor.main])
def test_every_program_tells_its_version(main: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"resist_hvd {__version__}\n"


@pytest.mark.parametrize("program", ["train", "evaluate", "predict", "bench", "doctor", "plan", "reproduce"])
@pytest.mark.parametrize("flag", ["--help", "--nonsense"])
def test_neither_help_nor_a_mistake_waits_for_libraries(program: str, flag: str) -> None:
    code = (
        f"import sys\nsys.argv = ['program', '{flag}']\nfrom importlib import import_module\n"
        f"try:\n    import_module('resist_hvd.{program}').main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'mpi4py', 'horovod'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_has_its_text(program: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        flags.parse_settings(program, PROGRAMS[program], ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"typing|Literal|NoneType|<class '|null", text)
    assert max(map(len, text.splitlines())) <= 80
    for name in flags_of(PROGRAMS[program]):
        assert re.search(rf"^  --{re.escape(name)}(.NAME)? \S+\s+\w", text, re.MULTILINE), f"--{name} has no text"
