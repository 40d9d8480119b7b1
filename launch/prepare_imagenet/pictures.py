"""The images of a download, wherever they lie: nested archives, one archive, class folders, or one flat folder.

Nothing of an archive is ever written where the archive says. Its names are checked by tarfile's data filter, and all
that is kept of them is the file's own name and its class; what is written where is decided in `placing`.
"""

import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resist_hvd.errors import UserError
from resist_hvd.image_names import is_image_name

WNID = re.compile(r"n\d{8}")
"""A class's name: its number in WordNet."""

ARCHIVE_ERRORS = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""Errors of reading an archive that was cut short or changed, packed or not."""

_CLASS_AT_END = re.compile(r"_(n\d{8})")
_ANYWHERE = "/unpacked"
"""Folder that the data filter takes an archive to be unpacked into; nothing is."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image file of a download.

    Attributes:
        name: the file's own name.
        wnid: its class, None where it lies flat.
        size: in bytes.
        source: what to name in messages.
        file: the file itself; None in an archive.
        read: returns its content; of an archive's picture only until the next one is asked for.
    """

    name: str
    wnid: str | None
    size: int
    source: str
    file: Path | None
    read: Callable[[], bytes]


def find(place: Path) -> Iterator[Picture]:
    """Yield the images of an archive or a folder, class by class where it has classes, in an order of their names.

    A folder may hold class folders (n01440764/*), class archives (n01440764.tar), images that lie flat, or several of
    these; what has other names is passed over. An archive may hold the same. Where images lie flat with their class at
    the end of their names, that is their class.

    Raises:
        UserError: there is no such file or folder, an archive is damaged, or a name in it leads out of it.
    """
    if place.is_dir():
        yield from _in_folder(place)
    elif place.exists():
        with _opened(place) as archive:
            yield from _in_archive(archive, str(place), wnid=None)
    else:
        raise UserError("There is no such file or folder", where=str(place), mend="Give the download's own place.")


def _in_folder(folder: Path) -> Iterator[Picture]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and WNID.fullmatch(entry.name):
            for file in sorted(entry.iterdir()):
                if is_image_name(file.name) and file.is_file():
                    yield _of_file(file, wnid=entry.name)
        elif entry.suffix == ".tar" and WNID.fullmatch(entry.stem) and entry.is_file():
            with _opened(entry) as archive:
                yield from _in_archive(archive, str(entry), wnid=entry.stem)
        elif is_image_name(entry.name) and entry.is_file():
            yield _of_file(entry, wnid=None)


def _class_in_name(name: str) -> str | None:
    """Return the class that some downloads write at the end of a name, as in ILSVRC2012_val_00000001_n01751748.JPEG."""
    found = _CLASS_AT_END.search(os.path.splitext(name)[0][-10:])
    return found[1] if found else None


def _of_file(file: Path, *, wnid: str | None) -> Picture:
    size = file.stat().st_size
    return Picture(
        name=file.name,
        wnid=wnid or _class_in_name(file.name),
        size=size,
        source=str(file),
        file=file,
        read=file.read_bytes,
    )


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except ARCHIVE_ERRORS as error:
        raise _damaged(str(path), error) from error


def _damaged(source: str, error: Exception) -> UserError:
    # A file that is no archive at all has a line for each kind of archive that it is not.
    reason = str(error).partition("\n")[0].rstrip(":")
    return UserError(
        f"The archive is damaged or incomplete ({reason})",
        where=source,
        mend="Fetch it again, and run this again: what has been unpacked so far stays.",
    )


def _in_archive(archive: tarfile.TarFile, source: str, *, wnid: str | None) -> Iterator[Picture]:
    """Yield an archive's images; `wnid` is the class of those that lie flat in it."""
    for member in archive:
        _check_name(member, source)
        if not member.isreg():
            continue
        path = PurePosixPath(member.name)
        if path.suffix == ".tar" and WNID.fullmatch(path.stem):
            yield from _in_nested(archive, member, f"{source}, {path.name}", wnid=path.stem)
        elif is_image_name(path.name):
            folder = path.parent.name
            yield Picture(
                name=path.name,
                wnid=folder if WNID.fullmatch(folder) else wnid or _class_in_name(path.name),
                size=member.size,
                source=f"{source}, {member.name}",
                file=None,
                read=_reader(archive, member, source),
            )


def _check_name(member: tarfile.TarInfo, source: str) -> None:
    """Refuse an archive that would write outside of its own folder: whoever made it means harm, whatever we do."""
    reason = "leads out of the folder" if ".." in PurePosixPath(member.name).parts else ""
    # Python 3.11 has the filter since its fourth release.
    if not reason and hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(member, _ANYWHERE)
        except tarfile.FilterError as error:
            reason = str(error)
    if reason:
        raise UserError(
            f"The archive has an entry that is not safe to unpack: {member.name!r} ({reason})",
            where=source,
            mend="This is not the archive that ImageNet publishes: fetch it again.",
        )


def _in_nested(outer: tarfile.TarFile, member: tarfile.TarInfo, source: str, *, wnid: str) -> Iterator[Picture]:
    try:
        with outer.extractfile(member) as file, tarfile.open(fileobj=file) as archive:  # type: ignore[union-attr]
            yield from _in_archive(archive, source, wnid=wnid)
    except ARCHIVE_ERRORS as error:
        raise _damaged(source, error) from error


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo, source: str) -> Callable[[], bytes]:
    def read() -> bytes:
        file = archive.extractfile(member)
        assert file is not None  # it is a regular file
        content = file.read()
        if len(content) != member.size:
            raise _damaged(source, EOFError(f"{member.name} has {len(content)} of {member.size} bytes"))
        return content

    return read
