"""Record of an earlier installation, so that the next one knows in a moment whether anything is left to do."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Choice:
    """Choices of the user by flags; None is for "as last time", and at first for the default.

    Attributes:
        mpi: "registry" or "system".
        cuda: "auto", "yes" or "no".
        cuda_arch: compute capabilities, separated by commas; empty for those of the GPUs found.
        dali: whether NVIDIA DALI is installed.
        timm: whether timm is installed.
        dev: whether the tools for tests and linting are installed.
        offline: folder of the pack that is installed from, empty for the registry.
    """

    mpi: str | None = None
    cuda: str | None = None
    cuda_arch: str | None = None
    dali: bool = False
    timm: bool = False
    dev: bool = False
    offline: str = ""

    def over(self, last: "Choice") -> "Choice":
        """Return this choice where it says something, and otherwise the last one; extras are only ever added."""
        return Choice(
            mpi=self.mpi or last.mpi,
            cuda=self.cuda or last.cuda,
            cuda_arch=last.cuda_arch if self.cuda_arch is None else self.cuda_arch,
            dali=self.dali or last.dali,
            timm=self.timm or last.timm,
            dev=self.dev or last.dev,
            offline=self.offline or last.offline,
        )


DEFAULT = Choice(mpi="registry", cuda="auto", cuda_arch="")


@dataclass(frozen=True)
class Stamp:
    """A finished installation: the digest of the files it followed, its place and Python, and the user's choice."""

    files: str
    venv: str
    python: str
    choice: Choice

    def unfinished(self) -> "Stamp":
        """Return what stands in this stamp's place while an installation follows: its choice, for nothing to add to."""
        return replace(self, files="")

    def allows_adding(self, wanted: "Stamp") -> bool:
        """Return whether the new installation can be made by adding to this one, rather than anew."""
        return self._foundation() == wanted._foundation()

    def _foundation(self) -> tuple[str, str, str | None, bool]:
        return self.venv, self.python, self.choice.mpi, bool(self.choice.offline)

    def write(self, file: Path) -> None:
        """Write the stamp, as the last act of an installation."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_stamp(file: Path) -> Stamp | None:
    """Return the stamp in the file, or None where there is none that can be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return replace(Stamp(**values), choice=Choice(**values["choice"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def files_digest(files: Iterable[Path]) -> str:
    """Return one digest of the names and contents of files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
