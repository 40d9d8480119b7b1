"""launch/setup --pack: everything that --offline installs from, fetched for another machine and put into parts."""

import hashlib
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from provision import environment, horovod_wheel
from provision.environment import LAUNCH, LOG_FOLDER
from provision.parts import MANIFEST, PART_BYTES, Group, Manifest, write_group
from provision.stamp import Choice
from provision.steps import Log, StepFailedError, Steps, clean_environment

PYTHON = "3.12"
TORCH = "2.11"
LEAST_TORCH = (2, 11)
GROUPS: Mapping[str, Sequence[str]] = {
    "base": ("requirements-without-torch.txt", "requirements-mpi.txt", "requirements-uv.txt"),
    "nvcc": ("requirements-nvcc.txt",),
    "dali": ("requirements-dali.txt",),
    "timm": ("requirements-timm.txt",),
    "dev": ("requirements-dev.txt",),
}
"""The requirements files of each group of a pack; the first group is in every pack."""
NEWEST_LIBC = 28
"""Wheels are taken for glibc 2.28 and older, as PyTorch's are."""
SETUP_MEND = "Run launch/setup here first: its .venv fetches what goes into a pack."


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
    asked = {"base": True, "nvcc": choice.cuda == "yes", "dali": choice.dali, "timm": choice.timm, "dev": choice.dev}
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
                horovod_wheel.fetch_sdist(environment.interpreter(), fetched, log)
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
