"""Packs: cut into parts and joined again, refused where they do not fit, and made for a machine that is another."""

import dataclasses
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from provision import environment, offline, pack, probe
from provision.__main__ import parse_flags
from provision.pack import Manifest
from provision.record import Choice
from provision.steps import Log, StepFailedError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SMALL = 20_000


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, size in (("b.whl", 45_000), ("a.tar.gz", 7), ("c.whl", 0)):
        (folder / name).write_bytes(os.urandom(size))
    return sorted(folder.iterdir())


def make_pack(folder: Path, files: list[Path], **groups: list[Path]) -> Manifest:
    """Make a pack for this Python, of parts that are small."""
    folder.mkdir(exist_ok=True)
    made = {name: pack.write_group(folder, name, each, SMALL) for name, each in {"base": files, **groups}.items()}
    locks = {lock: pack.lock_digest(lock) for name in made for lock in pack.GROUPS[name]}
    manifest = Manifest(PYTHON, platform.machine(), "2.11", locks, made)
    manifest.write(folder)
    return manifest


def open_here(folder: Path, log: Log, **chosen: bool) -> offline.OpenedPack:
    return offline.open_pack(log, folder, Path(sys.executable), Choice(**chosen))


# Parts


def test_files_come_back_from_parts_of_bounded_size(tmp_path: Path, files: list[Path]) -> None:
    folder = tmp_path / "pack"
    group = make_pack(folder, files).groups["base"]
    assert group.files == ("a.tar.gz", "b.whl", "c.whl")
    assert [part.name for part in group.parts] == ["base-01", "base-02", "base-03"]
    assert [part.size for part in group.parts[:-1]] == [SMALL, SMALL]
    for part in group.parts:
        content = (folder / part.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part.size, part.sha256)
    pack.join_group(folder, pack.read_manifest(folder).groups["base"], tmp_path / "joined")
    for file in files:
        assert (tmp_path / "joined" / file.name).read_bytes() == file.read_bytes()


def test_the_same_files_make_the_same_parts(tmp_path: Path, files: list[Path]) -> None:
    first = make_pack(tmp_path / "first", files)
    for file in files:
        os.utime(file, (1, 1))
        file.chmod(0o600)
    assert make_pack(tmp_path / "second", files[::-1]) == first


def test_a_part_that_is_missing_or_another_is_named(tmp_path: Path, files: list[Path]) -> None:
    folder = tmp_path / "pack"
    group = make_pack(folder, files).groups["base"]
    second = folder / "base-02"
    content = second.read_bytes()
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StepFailedError, match=f"base-02 .*{group.parts[1].sha256}"):
        pack.join_group(folder, group, tmp_path / "joined")
    assert not list((tmp_path / "joined").iterdir())
    second.unlink()
    with pytest.raises(StepFailedError, match=f"base-02 of the pack in {folder} is missing"):
        open_here(folder, Log(tmp_path / "log"))


@pytest.mark.parametrize(
    ("content", "seen"),
    [(None, "No such file"), ("{", "damaged"), ("[]", "damaged"), ('{"format": 1}', "damaged"), ('{"format": 7}', "7")],
)
def test_a_manifest_that_cannot_be_read_is_told(content: str | None, seen: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / pack.MANIFEST).write_text(content)
    with pytest.raises(StepFailedError, match=seen) as refused:
        pack.read_manifest(tmp_path)
    assert str(tmp_path) in refused.value.seen


# Installing from one


@pytest.fixture
def torch_is(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Answers in place of PyTorch's; a test changes them."""
    answers: dict[str, object] = {"torch": "2.11.0+cu130", "torch_cuda": "13.0", "torchvision": "0.26.0"}
    answers |= {"folders": ["/usr/lib/python3/dist-packages"], "is_virtual": False, "python": PYTHON}
    monkeypatch.setattr(offline, "ask", lambda *arguments, **options: answers)
    return answers


def test_a_pack_that_fits_is_opened(tmp_path: Path, files: list[Path], log: Log, torch_is: dict[str, object]) -> None:
    make_pack(tmp_path / "pack", files[:1], nvcc=files[1:2], dali=files[2:])
    opened = open_here(tmp_path / "pack", log)
    assert list(opened.groups) == ["base", "nvcc"]
    assert (opened.machine.torch, opened.machine.cuda) == ("2.11.0+cu130", "13.0")
    assert opened.unpack(tmp_path / "joined") == 2
    with_dali = open_here(tmp_path / "pack", log, dali=True)
    assert list(with_dali.groups) == ["base", "nvcc", "dali"]


def test_groups_may_be_left_out_or_sent_apart(
    tmp_path: Path, files: list[Path], log: Log, torch_is: dict[str, object]
) -> None:
    folder = tmp_path / "pack"
    make_pack(folder, files[:1], nvcc=files[1:2], dali=files[2:])
    (folder / "dali-01").rename(tmp_path / "dali-01")
    for part in folder.glob("nvcc-*"):
        part.rename(tmp_path / part.name)
    assert list(open_here(folder, log).groups) == ["base"]
    with pytest.raises(StepFailedError, match="dali-01 of the pack"):
        open_here(folder, log, dali=True)
    (tmp_path / "nvcc-01").rename(folder / "nvcc-01")
    with pytest.raises(StepFailedError, match="nvcc-02"):
        open_here(folder, log)
    (tmp_path / "dali-01").rename(folder / "dali-01")
    for part in tmp_path.glob("nvcc-*"):
        part.rename(folder / part.name)
    assert open_here(folder, log, dali=True).groups.keys() == {"base", "nvcc", "dali"}


def test_a_group_that_a_pack_was_made_without_is_named(
    tmp_path: Path, files: list[Path], log: Log, torch_is: dict[str, object]
) -> None:
    make_pack(tmp_path / "pack", files)
    with pytest.raises(StepFailedError, match=r"without dev.*--pack DIR --dev"):
        open_here(tmp_path / "pack", log, dev=True)


@pytest.mark.parametrize(
    ("change", "seen", "mend"),
    [
        ({"python": "3.10"}, f"is Python {PYTHON}, and the pack is for Python 3.10", f"--for-python {PYTHON}"),
        ({"machine": "abacus"}, f"{platform.machine()}, and the pack is for abacus", platform.machine()),
        ({"locks": {}}, "another version of the project: requirements-without-torch.txt", "--pack DIR"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused(
    change: dict[str, object],
    seen: str,
    mend: str,
    tmp_path: Path,
    files: list[Path],
    log: Log,
    torch_is: dict[str, object],
) -> None:
    dataclasses.replace(make_pack(tmp_path / "pack", files), **change).write(tmp_path / "pack")
    with pytest.raises(StepFailedError) as refused:
        open_here(tmp_path / "pack", log)
    assert seen in refused.value.seen
    assert mend in refused.value.mend


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"torch": None}, "has no torch"),
        ({"torch": None, "torchvision": None}, "has no torch and no torchvision"),
        ({"torchvision": None}, "has no torchvision"),
        ({"torch": "2.10.1+cu128"}, "has PyTorch 2.10.1+cu128, older than 2.11"),
    ],
)
def test_a_python_without_a_pytorch_that_will_do_is_refused(
    change: dict[str, object], seen: str, tmp_path: Path, files: list[Path], log: Log, torch_is: dict[str, object]
) -> None:
    make_pack(tmp_path / "pack", files)
    torch_is |= change
    with pytest.raises(StepFailedError) as refused:
        open_here(tmp_path / "pack", log)
    assert sys.executable in refused.value.seen
    assert seen in refused.value.seen
    assert "--python PATH" in refused.value.mend


def test_setup_says_of_a_missing_pack_that_it_is_missing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = ["/bin/bash", tmp_path / "launch/setup", "--python", sys.executable, "--offline", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stdout == "[1/6] tools ... failed\n"
    assert f"{tmp_path / 'none'} holds no pack" in done.stderr
    assert "--pack DIR" in done.stderr
    assert not (tmp_path / ".venv/bin").exists()


def test_a_machines_pytorch_stays_in_sight_where_more_is_added(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, wheels = tmp_path / "torch", tmp_path / "wheels"
    for folder in (torch, wheels):
        folder.mkdir()
    with zipfile.ZipFile(wheels / "uv-1-any.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", "")
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    own = offline.Machine(Path(sys.executable), is_virtual=True, torch="2.11", cuda=None, folders=(str(torch),))
    for _ in range(2):
        offline.make_machine_venv(log, own, wheels)
        path = subprocess.check_output(
            [environment.interpreter(), "-I", "-c", "import sys; print(sys.path)"], text=True
        )
        assert str(torch) in path


# Making one


def test_flags_of_a_pack_have_defaults_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    flags = parse_flags(["--pack", "x"])
    assert (flags.for_python, flags.for_torch) == ("3.12", "2.11")
    for wrong in (["--for-torch", "2.10"], ["--for-python", "3.10"], ["--for-python", "new"], ["--offline", "y"]):
        with pytest.raises(SystemExit):
            parse_flags(["--pack", "x", *wrong])
        assert wrong[0] in capsys.readouterr().err


LOCK = """\
everywhere==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
older==1.0 ; python_full_version < '3.12' \\
    --hash=sha256:cc
newer==2.0 ; python_full_version >= '3.12' and sys_platform == 'linux' \\
    --hash=sha256:dd
elsewhere==1.0 ; platform_machine == 'abacus' or sys_platform == 'win32' \\
    --hash=sha256:ee
"""


@pytest.mark.parametrize(("python", "chosen"), [("3.11", "older==1.0"), ("3.12", "newer==2.0"), ("3.13", "newer==2.0")])
def test_a_pack_takes_what_is_locked_for_the_target_and_not_for_this_machine(
    python: str, chosen: str, tmp_path: Path
) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    pins = probe.pins(str(tmp_path / "lock.txt"), python, "x86_64")["pins"]
    digest = "cc" if chosen.startswith("older") else "dd"
    assert pins == [
        "everywhere==1.0 --hash=sha256:aa --hash=sha256:bb",
        f"{chosen} --hash=sha256:{digest}",
    ]


def test_a_folder_that_holds_something_else_is_no_place_for_a_pack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["base-01", "base-notes.txt", "manifest.json"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(SystemExit):
        pack.make_pack(tmp_path, Choice(), "3.12", "2.11")
    assert f"{tmp_path} holds base-notes.txt" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
