"""A pack: a folder of files cut into parts of bounded size, with a manifest that tells each part's SHA-256."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provision.steps import StepFailedError

PART_BYTES = 60 << 20
"""The size of a part: what still goes through where single files are limited to 64 MiB."""
MANIFEST = "manifest.json"
FORMAT = 1
COPY_MEND = "Copy the pack anew, or make it anew by launch/setup --pack DIR on a machine with a network."


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
    with (
        _Cutter(folder, name, part_bytes) as cutter,
        tarfile.open(fileobj=cutter, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in chosen:
            member = tarfile.TarInfo(file.name)
            member.size = file.stat().st_size
            with file.open("rb") as stream:
                archive.addfile(member, stream)
    return Group(tuple(file.name for file in chosen), tuple(cutter.parts))


def missing_parts(folder: Path, group: Group) -> list[str]:
    """Return the names of a group's parts that are not in the folder."""
    return [part.name for part in group.parts if not (folder / part.name).is_file()]


def join_group(folder: Path, group: Group, target: Path) -> None:
    """Take the files of a group out of its parts, each of which must have its size and digest.

    Raises:
        StepFailedError: a part is missing, or is another than the manifest tells.
    """
    if missing := missing_parts(folder, group):
        raise StepFailedError(f"of the pack in {folder} {', '.join(missing)} is missing", mend=COPY_MEND)
    for part in group.parts:
        file = folder / part.name
        with file.open("rb") as stream:
            seen = hashlib.file_digest(stream, "sha256").hexdigest()
        if seen != part.sha256:
            raise StepFailedError(
                f"{file} has {file.stat().st_size} bytes and SHA-256 {seen}, and by the manifest {part.size} bytes and "
                f"{part.sha256}",
                mend=COPY_MEND,
            )
    target.mkdir(parents=True, exist_ok=True)
    with (
        _Joined(folder / part.name for part in group.parts) as joined,
        tarfile.open(fileobj=joined, mode="r|") as archive,
    ):
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none.
        archive.extractall(target)


class _Cutter(io.RawIOBase):
    """A stream that goes into one part after another."""

    def __init__(self, folder: Path, name: str, part_bytes: int) -> None:
        self.parts: list[Part] = []
        self._folder = folder
        self._name = name
        self._part_bytes = part_bytes
        self._stream: io.BufferedWriter | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            if self._stream is None:
                self._stream = (self._folder / f"{self._name}-{len(self.parts) + 1:02d}").open("wb")
            piece = view[written : written + self._part_bytes - self._size]
            self._stream.write(piece)
            self._digest.update(piece)
            self._size += len(piece)
            written += len(piece)
            if self._size == self._part_bytes:
                self._finish()
        return written

    def close(self) -> None:
        self._finish()
        super().close()

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self.parts.append(Part(Path(self._stream.name).name, self._size, self._digest.hexdigest()))
            self._stream, self._digest, self._size = None, hashlib.sha256(), 0


class _Joined(io.RawIOBase):
    """One file after another as one stream."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: Iterator[Path] = iter(files)
        self._stream: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None:
                file = next(self._files, None)
                if file is None:
                    return 0
                self._stream = file.open("rb")
            if count := self._stream.readinto(buffer):
                return count
            self._stream.close()
            self._stream = None
