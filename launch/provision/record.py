"""Record of an earlier installation, so that the next one knows in a moment whether anything is left to do."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Choice:
    """Choices of the user by flags.

    Attributes:
        mpi: "registry" or "system".
        cuda: "auto", "yes" or "no".
        cuda_arch: compute capabilities, separated by commas; empty for those of the GPUs found.
        dali: whether NVIDIA DALI is installed.
        timm: whether timm is installed.
        tests: whether what tests need is installed.
        dev: whether the linters are installed.
        offline: folder of the pack that is installed from, empty for the registry.
    """

    mpi: str = "registry"
    cuda: str = "auto"
    cuda_arch: str = ""
    dali: bool = False
    timm: bool = False
    tests: bool = False
    dev: bool = False
    offline: str = ""


@dataclass(frozen=True)
class Record:
    """An installation: the digest of the files it followed, its place, its Python, and the user's choice.

    The digest is empty where nothing is finished. The choice is that of the last installation that was.
    """

    files: str = ""
    venv: str = ""
    python: str = ""
    choice: Choice = Choice()

    def foundation(self) -> tuple[str, str, str, bool]:
        """Return what an installation cannot change without beginning anew."""
        return self.venv, self.python, self.choice.mpi, bool(self.choice.offline)

    def write(self, file: Path) -> None:
        """Write the record."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_record(file: Path) -> Record:
    """Return the record in the file, or an empty one where there is none that can be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return replace(Record(**values), choice=Choice(**values["choice"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Record()


def files_digest(files: Iterable[Path]) -> str:
    """Return one digest of the names and contents of files."""
    digests = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in sorted(files)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
