"""launch/setup without its long steps: flags, messages, patch, the wheel's key, the record; launch/test's summary."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import summary
from provision import __main__ as setup
from provision import environment, horovod_wheel, toolchain
from provision.__main__ import parse_flags
from provision.cuda import Cuda, PyTorch
from provision.horovod_wheel import apply_patch
from provision.installation import NVCC
from provision.record import Choice, Record, read_record
from provision.steps import Log, StepFailedError, Steps
from provision.toolchain import SiteMpi

from .programs import make_programs

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "launch/setup"
FACTS = {
    "torch": "2.15.0+cu132",
    "openmpi": "4.1.8",
    "abi": "cpython-311-x86_64-linux-gnu",
    "libc": "glibc2.36",
}
KEY = horovod_wheel.key(FACTS, None, None)


def run_setup(*flags: str, path: str = os.environ["PATH"], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", SETUP, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd="/",
        env=os.environ | {"PATH": path} | variables,
    )


# Flags


def test_help_names_every_flag_and_where_wheels_are_kept(tmp_path: Path) -> None:
    done = run_setup("--help", RESIST_HVD_CACHE=str(tmp_path / "kept"))
    assert done.returncode == 0
    flags = "--python --mpi --cuda --cuda-arch --dali --timm --tests --dev --fresh --pack --offline"
    for flag in (*flags.split(), "--for-python", "--for-torch"):
        assert flag in done.stdout
    assert "kept" in done.stdout


@pytest.mark.parametrize("flags", [["--mpi", "mpich"], ["--cuda", "maybe"], ["--cuda-arch", "hopper"], ["--nonsense"]])
def test_a_wrong_flag_is_refused_with_its_name(flags: list[str]) -> None:
    done = run_setup(*flags)
    assert done.returncode == 2
    assert flags[0] in done.stderr


def test_compute_capabilities_are_sorted_and_plain() -> None:
    assert parse_flags(["--cuda-arch", "9.0,80,100"]).cuda_arch == "80,90,100"


def test_no_python_on_the_path_is_said(tmp_path: Path) -> None:
    # A copy, beside which there is no .venv to fall back to.
    launch = tmp_path / "launch"
    launch.mkdir()
    copy = launch / "setup"
    copy.write_bytes(SETUP.read_bytes())
    old = make_programs(tmp_path, python3="exit 1")
    done = subprocess.run(["/bin/bash", copy], capture_output=True, text=True, env={"PATH": old}, check=False)
    assert done.returncode == 1
    assert "no Python 3.11 or newer is on the PATH" in done.stderr
    assert "--python PATH" in done.stderr


@pytest.mark.parametrize("flags", [["--python", "/bin/false"], ["--python=/nowhere/python3"]])
def test_a_wrong_python_is_refused(flags: list[str]) -> None:
    done = run_setup(*flags)
    assert done.returncode == 1
    assert "--python" in done.stderr


# A step that fails


def test_a_failing_step_is_named_with_the_end_of_its_log_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def action(log: Log) -> str:
        log.run(["/bin/sh", "-c", "seq 100; echo broken >&2; exit 3"], mend="Mend it so.")
        return "not reached"

    steps = Steps(total=2, log_folder=tmp_path / "logs")
    steps.do("first", lambda log: "well")
    with pytest.raises(SystemExit) as ended:
        steps.do("second", action)
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].startswith("[1/2] first ... ")
    assert printed.out.splitlines()[1] == "[2/2] second ... failed"
    assert "step 2 of 2 (second) failed" in printed.err
    assert "status 3" in printed.err
    assert str(tmp_path / "logs/2-second.log") in printed.err
    assert "| broken" in printed.err
    assert "| 82" in printed.err
    assert "| 81\n" not in printed.err
    assert "What to do: Mend it so." in printed.err


def test_a_folder_that_cannot_be_written_is_a_failed_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def action(log: Log) -> str:
        (tmp_path / "no/such/folder").mkdir()
        return "not reached"

    with pytest.raises(SystemExit):
        Steps(total=1, log_folder=tmp_path).do("only", action)
    assert str(tmp_path / "no/such/folder") in capsys.readouterr().err


def test_a_missing_program_is_a_failed_step(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match="cannot be run"):
        Log(tmp_path / "log").run(["/nowhere/program"], mend="Install it.")


def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(StepFailedError, match=r"no C\+\+ compiler .* is on the PATH.*apt-get install g\+\+"):
        toolchain.find_compiler(Log(tmp_path / "log"), tmp_path)


def test_setup_without_a_compiler_stops_at_its_first_step(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    path = make_programs(programs, python3=f'exec "{sys.executable}" "$@"')
    done = subprocess.run(
        ["/bin/bash", tmp_path / "launch/setup"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": path, "HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stdout.startswith("[1/6] tools ... failed")
    assert "step 1 of 6 (tools) failed: no C++ compiler" in done.stderr
    assert "What to do: Install a C++ compiler" in done.stderr
    assert not (tmp_path / ".venv/bin").exists()


def test_missing_python_headers_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", make_programs(tmp_path, **{"c++": "exit 0"}))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(StepFailedError, match=r"headers are not in .*python3-dev"):
        toolchain.find_compiler(Log(tmp_path / "log"), tmp_path / "include")


def test_a_compiler_without_cxx20_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", "old")
    monkeypatch.setenv("PATH", make_programs(tmp_path, old="echo unrecognized option >&2; exit 1"))
    log = Log(tmp_path / "log")
    with pytest.raises(StepFailedError, match=r"C\+\+20"):
        toolchain.find_compiler(log, tmp_path)
    assert "unrecognized option" in log.tail()


def test_a_missing_site_mpi_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", make_programs(tmp_path, mpicc="exit 0"))
    with pytest.raises(StepFailedError, match=r"mpicxx and mpirun not found .*module load"):
        toolchain.find_site_mpi(Log(tmp_path / "log"))


CRAY = {"CRAYPE_VERSION": "2.7.30", "CRAY_MPICH_VERSION": "8.1.28"}
LOADED_ON_A_CRAY = """cat <<END
    libmpi_gtl_cuda.so.0 => /opt/cray/pe/lib64/libmpi_gtl_cuda.so.0 (0x1)
    libmpi_gnu_123.so.12 => /opt/cray/pe/lib64/libmpi_gnu_123.so.12 (0x2)
END"""


def on_a_cray(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Have a Cray's compilers on the PATH, which note how they are called."""
    note = f'echo "$0 $*" >>"{folder}/called"; : >"$3"'
    programs = {"cc": note, "CC": note, "ldd": LOADED_ON_A_CRAY, **scripts}
    monkeypatch.setenv("PATH", f"{make_programs(folder, **programs)}:/usr/bin:/bin")
    monkeypatch.setattr(shutil, "which", lambda name: str(folder / name) if (folder / name).exists() else None)
    for name, value in CRAY.items():
        monkeypatch.setenv(name, value)


def test_a_cray_s_mpi_is_found_by_its_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cray(tmp_path, monkeypatch)
    found = toolchain.find_site_mpi(Log(tmp_path / "log"))
    assert (found.name, found.compilers, found.is_cray) == ("cray-mpich-8.1.28", ("cc", "CC"), True)
    assert (found.soname, found.library.name) == ("libmpi_gnu_123.so.12", "libmpi_gnu_123.so.12")
    assert "/cc " in (tmp_path / "called").read_text()


def test_another_mpi_that_is_loaded_on_a_cray_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = ': >"$3"'
    on_a_cray(
        tmp_path,
        monkeypatch,
        mpicc=compiler,
        mpicxx=compiler,
        mpirun="echo 'mpirun (Open MPI) 4.1.6'",
        ldd="echo 'libmpi.so.40 => /opt/openmpi/lib/libmpi.so.40 (0x1)'",
    )
    found = toolchain.find_site_mpi(Log(tmp_path / "log"))
    assert (found.name, found.compilers, found.is_cray) == ("openmpi-4.1.6", ("mpicc", "mpicxx"), False)


def test_compilers_named_cc_are_no_mpi_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cray(tmp_path, monkeypatch)
    monkeypatch.delenv("CRAYPE_VERSION")
    with pytest.raises(StepFailedError, match=r"mpicc and mpicxx and mpirun not found .*cray-mpich"):
        toolchain.find_site_mpi(Log(tmp_path / "log"))


def test_mpi4py_and_horovod_are_built_by_a_cray_s_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cray(tmp_path, monkeypatch)
    mpi = toolchain.find_site_mpi(Log(tmp_path / "log"))
    monkeypatch.setattr(environment, "VENV", tmp_path)
    (tmp_path / "bin").mkdir()
    make_programs(tmp_path / "bin", uv=f'echo "MPICC=$MPICC $*" >"{tmp_path}/uv-called"')
    environment.build_mpi4py(Log(tmp_path / "log"), mpi)
    called = (tmp_path / "uv-called").read_text()
    assert called.startswith("MPICC=cc -shared pip install --python ")
    for words in ("--no-binary mpi4py", "--reinstall-package mpi4py", "--require-hashes", "--no-deps", "--no-cache"):
        assert words in called
    variables = horovod_wheel._build_environment(mpi)
    assert (variables["CC"], variables["CXX"]) == ("cc", "CC")
    assert "-rpath,/opt/cray/pe/lib64" in variables["LDFLAGS"]


def test_the_source_of_mpi4py_is_locked_too() -> None:
    """It is what is built on a Cray: `sha256sum` of the archive of 4.1.2."""
    lock = (ROOT / "launch/requirements.txt").read_text()
    _, _, entry = lock.partition("\nmpi4py==4.1.2 ")
    assert "56860286dc45f20e8821e93cb06669e30462348bf866f685553fa4b712d58d02" in entry.partition("\n    #")[0]


def test_a_folder_that_is_no_virtual_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / ".venv/precious"
    precious.parent.mkdir()
    precious.touch()
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    with pytest.raises(StepFailedError, match="is not a virtual environment"):
        environment.clear_venv()
    assert precious.exists()


# Horovod's source and wheel


def test_a_source_of_another_digest_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "horovod-0.28.1.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(StepFailedError, match=horovod_wheel.SDIST_SHA256):
        horovod_wheel.verify_sha256(archive, horovod_wheel.SDIST_SHA256)


@pytest.mark.parametrize("fact", FACTS)
def test_each_fact_leads_to_a_wheel_of_its_own(fact: str) -> None:
    assert horovod_wheel.key(FACTS | {fact: "another"}, None, None) != KEY


def test_a_key_tells_the_mpi_the_gpus_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEY.startswith("horovod-0.28.1_torch-2.15.0+cu132_openmpi-4.1.8_cpu_cpython-311-x86_64-linux-gnu_")
    sites = [SiteMpi("openmpi-5.0.3", Path(f"/opt/{site}/lib/libmpi.so.40"), "libmpi.so.40") for site in "ab"]
    gpus = Cuda(None, "13.0", ("80", "90"), PyTorch("13.2", "libnccl.so.2", "include"))
    one, other = (horovod_wheel.key(FACTS, site, gpus) for site in sites)
    assert one != other
    assert one[:-12] == other[:-12]
    assert "_openmpi-5.0.3_cuda13.0-80-90_" in one
    assert "/" not in one
    (tmp_path / "patch").write_text("another")
    monkeypatch.setattr(horovod_wheel, "PATCH", tmp_path / "patch")
    assert horovod_wheel.key(FACTS, None, None) != KEY


def test_a_wheel_is_found_only_under_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIST_HVD_CACHE", str(tmp_path))
    assert horovod_wheel.cached_wheel(KEY) is None
    wheel = tmp_path / KEY / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    wheel.parent.mkdir()
    wheel.touch()
    assert horovod_wheel.cached_wheel(KEY) == wheel
    assert horovod_wheel.cached_wheel(horovod_wheel.key(FACTS | {"torch": "2.14.0"}, None, None)) is None


# The patch

DIFF = "why\n--- a/dir/file\n+++ b/dir/file\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n+2.5\n three\n@@ -5 +6 @@\n-five\n+5\n"


def test_a_patch_changes_its_lines_once(tmp_path: Path) -> None:
    patch, file = tmp_path / "patch", tmp_path / "dir/file"
    patch.write_text(DIFF)
    file.parent.mkdir()
    file.write_text("one\ntwo\nthree\nfour\nfive\n")
    apply_patch(patch, tmp_path)
    assert file.read_text() == "one\n2\n2.5\nthree\nfour\n5\n"
    with pytest.raises(StepFailedError, match=r"does not fit dir/file.*Take patch from a fresh copy"):
        apply_patch(patch, tmp_path)


@pytest.mark.parametrize("content", [None, "one\nzwei\nthree\nfive\n", 2 * "one\ntwo\nthree\nfive\n"])
def test_a_patch_that_does_not_fit_is_refused(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "patch").write_text(DIFF)
    if content is not None:
        (tmp_path / "dir").mkdir()
        (tmp_path / "dir/file").write_text(content)
    with pytest.raises(StepFailedError, match="does not fit dir/file"):
        apply_patch(tmp_path / "patch", tmp_path)


# The record


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": "a", "venv": "b", "python": "c", "choice": 1}'])
def test_a_damaged_record_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "record").write_text(content)
    assert read_record(tmp_path / "record") == Record()


class Failing:
    """Stands in for an installation, notes what it was to be, and fails in its first step."""

    made: ClassVar[list[tuple[Choice, bool, Path]]] = []

    def __init__(self, choice: Choice, *, keep_venv: bool, python: Path) -> None:
        self.made.append((choice, keep_venv, python))
        self.environment = self.packages = self.horovod = self.project = self.check = self.tools

    def tools(self, log: Log) -> str:
        raise StepFailedError("the pack is gone", mend="Bring it back.")


CHOSEN = Choice(cuda="yes", cuda_arch="90", dev=True)
PYTHON = Path("/the/python")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of an installation that was finished, of a version of the project before this one."""
    for name in ("ROOT", "LOG_FOLDER"):
        monkeypatch.setattr(setup, name, tmp_path)
    monkeypatch.setattr(setup, "RECORD_FILE", tmp_path / "record")
    monkeypatch.setattr(setup, "Installation", Failing)
    monkeypatch.setattr(setup, "_venv_version", lambda: "3.12.1")
    monkeypatch.setattr(setup, "_in_order", lambda: True)
    monkeypatch.setattr(setup, "_this_python", lambda offline: "3.13.0 /another")
    monkeypatch.setattr(setup, "_files_digest", lambda: "def")
    monkeypatch.setattr(Failing, "made", [])
    Record("abc", str(environment.VENV), f"3.12.1 {PYTHON}", CHOSEN).write(tmp_path / "record")
    return tmp_path / "record"


def install(*flags: str) -> tuple[Choice, bool, Path]:
    """Run setup, and return what it was about to do: the choice, whether `.venv` is kept, and for which Python."""
    with pytest.raises(SystemExit):
        setup.main([*flags])
    return Failing.made[-1]


@pytest.mark.parametrize(
    ("flags", "changes", "keeps", "python"),
    [
        ("", {}, True, PYTHON),
        ("--dali", {"dali": True}, True, PYTHON),
        ("--tests", {"tests": True}, True, PYTHON),
        ("--dev", {"timm": True, "tests": True}, True, PYTHON),
        ("--cuda no", {"cuda": "no"}, True, PYTHON),
        ("--mpi system", {"mpi": "system"}, False, PYTHON),
        ("--fresh", {}, False, PYTHON),
        ("--offline /pack", {"offline": "/pack"}, False, Path("/another")),
        ("--python python3", {}, False, Path("/another")),
    ],
)
def test_a_choice_is_remembered_and_another_python_or_mpi_begins_anew(
    flags: str, changes: dict[str, Any], keeps: bool, python: Path, record: Path
) -> None:
    assert install(*flags.split()) == (dataclasses.replace(CHOSEN, **changes), keeps, python)


def test_what_was_chosen_outlasts_an_installation_that_fails(record: Path) -> None:
    chosen = dataclasses.replace(CHOSEN, offline="/the/pack")
    dataclasses.replace(read_record(record), choice=chosen).write(record)
    assert install() == (chosen, True, PYTHON)
    assert install("--cuda", "no") == (dataclasses.replace(chosen, cuda="no"), False, PYTHON)
    assert install() == (chosen, False, PYTHON)


def test_nothing_is_done_where_nothing_has_changed(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataclasses.replace(read_record(record), files="def").write(record)
    setup.main([])
    assert "nothing to do" in capsys.readouterr().out
    assert not Failing.made
    install("--cuda", "yes")  # It depends on the machine, which is looked at again.


# The locked packages


@pytest.mark.parametrize("lock", sorted((ROOT / "launch").glob("requirements*.txt")), ids=lambda file: file.name)
def test_every_locked_package_has_hashes_and_no_registry_is_named(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = text.replace("\\\n", " ").splitlines()
    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


def test_locks_agree_with_one_another() -> None:
    versions: dict[str, set[str]] = {}
    # The compiler for CUDA has a folder of its own, and is older than PyTorch's libraries on purpose.
    for lock in set((ROOT / "launch").glob("requirements*.txt")) - {NVCC}:
        pins = [line.split()[0] for line in lock.read_text().splitlines() if not line.startswith(" ")]
        for name, version in (pin.split("==") for pin in pins):
            versions.setdefault(f"{name} in {lock.name}", set()).add(version)
    main = {
        key.removesuffix(" in requirements.txt"): each
        for key, each in versions.items()
        if key.endswith("in requirements.txt")
    }
    for key, each in versions.items():
        name = key.partition(" in ")[0]
        assert each <= main.get(name, each), key


# launch/test: its help and its summary


def test_help_that_cannot_be_printed_tests_nothing(tmp_path: Path) -> None:
    """Nothing but a stand-in of launch/setup could be started."""
    for name in ("test", "common.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path)
    make_programs(tmp_path, setup='touch "$0.started"')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(["/bin/bash", tmp_path / "test", "--help"], stdout=full, check=False, timeout=300)
    assert done.returncode != 0
    assert not (tmp_path / "setup.started").exists()


def write_report(file: Path, **outcomes: str) -> None:
    children = {"passed": "", "skipped": "<skipped/>", "failed": '<failure message="so&#10;more"/>'}
    cases = "".join(
        f'<testcase classname="t" name="{name}">{children[each]}</testcase>' for name, each in outcomes.items()
    )
    file.write_text(f'<testsuites><testsuite time="1.5">{cases}</testsuite></testsuites>')


def test_the_summary_adds_up_and_a_failure_on_any_rank_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "single.xml", a="passed", b="skipped")
    (tmp_path / "single.status").write_text("0")
    write_report(tmp_path / "parallel-2-rank0.xml", a="passed", b="passed")
    write_report(tmp_path / "parallel-2-rank1.xml", a="passed", b="failed")
    (tmp_path / "parallel-2.status").write_text("1")
    assert summary.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 1 failed, 1 skipped"
    assert "    t::b on rank 1: so" in lines
    assert any(line.startswith("parallel, 2 ranks     1 passed,    1 failed,    0 skipped") for line in lines)


def test_the_summary_is_good_only_if_something_passed_and_nothing_failed(tmp_path: Path) -> None:
    write_report(tmp_path / "single.xml", a="passed")
    (tmp_path / "single.status").write_text("0")
    assert summary.main(tmp_path) == 0
    write_report(tmp_path / "single.xml", a="skipped")
    assert summary.main(tmp_path) == 1


@pytest.mark.parametrize("status", ["0", "1", "139"])
def test_a_rank_without_a_report_counts_as_failed(
    status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "parallel-2-rank0.xml", a="passed")
    (tmp_path / "parallel-2.status").write_text(status)
    assert summary.main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "no report on rank 1" in printed
    assert printed.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_a_status_that_no_report_explains_counts_as_failed(tmp_path: Path) -> None:
    write_report(tmp_path / "launch.xml", a="passed")
    (tmp_path / "launch.status").write_text("124")
    assert summary.main(tmp_path) == 1


def test_setups_modules_need_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1]); import provision.__main__",
            ROOT / "launch",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
