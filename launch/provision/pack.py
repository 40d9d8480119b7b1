"""launch/setup --pack: everything that --offline installs from, fetched for another machine.

A pack is a folder of files cut into parts of bounded size, with a manifest that tells each part's SHA-256.
"""

import hashlib
import json
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from provision import environment, horovod_wheel
from provision.environment import LAUNCH, LOG_FOLDER
from provision.record import Choice
from provision.steps import Log, StepFailedError, Steps, clean_environment

PYTHON = "3.12"
TORCH = "2.11"
GROUPS: Mapping[str, Sequence[str]] = {
    "base": ("requirements-without-torch.txt", "requirements-mpi.txt", "requirements-uv.txt"),
    "nvcc": ("requirements-nvcc.txt",),
    "dali": ("requirements-dali.txt",),
    "timm": ("requirements-timm.txt",),
    "tests": ("requirements-tests.txt",),
    "dev": ("requirements-dev.txt",),
}
"""The requirements files of each group of a pack; the first group is in every pack."""
NEWEST_LIBC = 28
"""Wheels are taken for glibc 2.28 and older, as PyTorch's are."""
PART_BYTES = 60 << 20
"""The size of a part: what still goes through where single files are limited to 64 MiB."""
MANIFEST = "manifest.json"
FORMAT = 1
COPY_MEND = "Copy the pack anew, or make it anew by launch/setup --pack DIR on a machine with a network."
SETUP_MEND = "Run launch/setup here first: its .venv fetches what goes into a pack."


@dataclass(frozen=True)
class Part:
    """A file of a pack: its name, its size in bytes and its digest."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Group:
    """Files of a pack that are needed together, and may be left out together.

    Attributes:
        files: names of the wheels and source archives.
        parts: the pieces of one tar archive of them, in order.
    """

    files: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Manifest:
    """Purpose and contents of a pack.

    Attributes:
        python: the version of Python that it is for, such as "3.12".
        machine: the processor that it is for, such as "x86_64".
        torch: the oldest PyTorch that it is for, such as "2.11".
        locks: digest of each requirements file that it was made from.
        groups: what it holds, by name.
    """

    python: str
    machine: str
    torch: str
    locks: Mapping[str, str]
    groups: Mapping[str, Group]

    def write(self, folder: Path) -> None:
        """Write the manifest, the last file of a pack."""
        text = json.dumps({"format": FORMAT} | asdict(self), indent=2, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a pack.

    Raises:
        StepFailedError: the folder holds none, or one that cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise StepFailedError(f"the pack in {folder} has format {content['format']}, not {FORMAT}", mend=COPY_MEND)
        groups = {
            name: Group(tuple(group["files"]), tuple(Part(**part) for part in group["parts"]))
            for name, group in content["groups"].items()
        }
        return Manifest(content["python"], content["machine"], content["torch"], content["locks"], groups)
    except OSError as error:
        raise StepFailedError(f"{folder} holds no pack: {MANIFEST}: {error.strerror}", mend=COPY_MEND) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StepFailedError(f"{folder / MANIFEST} is damaged", mend=COPY_MEND) from None


def write_group(folder: Path, name: str, files: Iterable[Path], part_bytes: int = PART_BYTES) -> Group:
    """Write files into parts `NAME-01`, `NAME-02` and so on, and return what they hold.

    The same files make the same parts, whoever owns them and whenever they were made.
    """
    chosen = sorted(files, key=lambda file: file.name)
    parts: list[Part] = []
    with tempfile.TemporaryFile(dir=folder) as whole:
        with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for file in chosen:
                member = tarfile.TarInfo(file.name)
                member.size = file.stat().st_size
                with file.open("rb") as stream:
                    archive.addfile(member, stream)
        whole.seek(0)
        while piece := whole.read(part_bytes):
            part = folder / f"{name}-{len(parts) + 1:02d}"
            part.write_bytes(piece)
            parts.append(Part(part.name, len(piece), hashlib.sha256(piece).hexdigest()))
    return Group(tuple(file.name for file in chosen), tuple(parts))


def missing_parts(folder: Path, group: Group) -> list[str]:
    """Return the names of a group's parts that are not in the folder."""
    return [part.name for part in group.parts if not (folder / part.name).is_file()]


def join_group(folder: Path, group: Group, target: Path) -> None:
    """Take the files of a group out of its parts, each of which must have its size and digest.

    Raises:
        StepFailedError: a part is another than the manifest tells.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target) as whole:
        for part in group.parts:
            file = folder / part.name
            content = file.read_bytes()
            seen = hashlib.sha256(content).hexdigest()
            if seen != part.sha256:
                raise StepFailedError(
                    f"{file} has {len(content)} bytes and SHA-256 {seen}, and by the manifest {part.size} bytes and "
                    f"{part.sha256}",
                    mend=COPY_MEND,
                )
            whole.write(content)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none.
            archive.extractall(target)


def release(version: str) -> tuple[int, ...]:
    """Return major and minor version as numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def lock_digest(name: str) -> str:
    """Return the digest of a requirements file of this project."""
    return hashlib.sha256((LAUNCH / name).read_bytes()).hexdigest()


def make_pack(folder: Path, choice: Choice, python: str, torch: str) -> None:
    """Make a pack, with a line for each group.

    Args:
        folder: where to; it is made, and must not hold anything but an older pack.
        choice: what the target shall have, as in the flags of launch/setup.
        python: the target's version of Python.
        torch: the oldest PyTorch that the target may have.

    Raises:
        SystemExit: something cannot be fetched or written, and a message has said how.
    """
    packer = _Packer(folder, python, torch)
    # A machine's own compiler for CUDA is used where none is asked for.
    asked = {"base": True, "nvcc": choice.cuda == "yes"} | vars(choice)
    names = [name for name in GROUPS if asked[name]]
    steps = Steps(total=len(names) + 1, log_folder=LOG_FOLDER, prefix="pack-")
    for name in names:
        steps.do(name, partial(packer.pack, name))
    steps.do("manifest", packer.finish)


class _Packer:
    """A pack while it is made."""

    def __init__(self, folder: Path, python: str, torch: str) -> None:
        self._folder = folder
        self._python = python
        self._torch = torch
        self._machine = platform.machine()
        self._groups: dict[str, Group] = {}

    def pack(self, name: str, log: Log) -> str:
        """Fetch a group's files and put them into parts."""
        if not self._groups:
            _clear(self._folder)
        if not environment.interpreter().is_file():
            raise StepFailedError(f"there is no {environment.VENV}", mend=SETUP_MEND)
        held = self._groups["base"].files if self._groups else ()  # Other groups may be left out.
        with tempfile.TemporaryDirectory(prefix="pack-", dir=self._folder) as work:
            fetched = Path(work, "files")
            fetched.mkdir()
            for lock in GROUPS[name]:
                self._fetch(LAUNCH / lock, fetched, log)
            if name == "base":
                horovod_wheel.fetch_sdist(fetched, log)
            files = [file for file in fetched.iterdir() if file.name not in held]
            group = write_group(self._folder, name, files)
        self._groups[name] = group
        size = sum(part.size for part in group.parts)
        parts = f"{len(group.parts)} part{'s' if len(group.parts) > 1 else ''}"
        return f"{len(group.files)} files of {size / 2**20:.0f} MiB in {parts} of at most {PART_BYTES >> 20} MiB"

    def finish(self, log: Log) -> str:
        """Write the manifest."""
        locks = {lock: lock_digest(lock) for name in self._groups for lock in GROUPS[name]}
        Manifest(self._python, self._machine, self._torch, locks, self._groups).write(self._folder)
        return f"{self._folder}, for Python {self._python} on {self._machine} with PyTorch {self._torch} or newer"

    def _fetch(self, lock: Path, target: Path, log: Log) -> None:
        """Download what a requirements file locks for the target, by pip, which knows of other Pythons than its own."""
        python = environment.interpreter()
        pins = environment.probe(log, "pins", str(lock), self._python, self._machine, mend=SETUP_MEND)["pins"]
        chosen = target.with_name(lock.name)
        chosen.write_text("".join(f"{pin}\n" for pin in pins if isinstance(pins, list)))
        tags = [f"manylinux_2_{minor}_{self._machine}" for minor in range(NEWEST_LIBC, 4, -1)]
        tags += [f"manylinux2014_{self._machine}", f"manylinux2010_{self._machine}", f"manylinux1_{self._machine}"]
        command: list[str | Path] = [python, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "--python-version", self._python]
        command += [word for tag in tags for word in ("--platform", tag)]
        command += ["--dest", target, "--requirement", chosen]
        log.run(command, mend=environment.REGISTRY_MEND, env=clean_environment())


def _clear(folder: Path) -> None:
    """Make the folder of a pack, or empty it of an older one.

    Raises:
        StepFailedError: it holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = sorted(folder.iterdir())
    ours = re.compile(rf"{re.escape(MANIFEST)}|({'|'.join(GROUPS)})-\d+|pack-\w+")
    for entry in entries:
        if not ours.fullmatch(entry.name):
            raise StepFailedError(f"{folder} holds {entry.name}, which is no part of a pack", mend="Name a new folder.")
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
