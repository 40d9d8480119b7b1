"""Apply a unified diff, exactly or not at all: every hunk at its own line, every context line equal, no fuzz.

A fresh machine may lack both `patch` and `git`; it has Python, since nothing here works without.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_HUNK_HEADER = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(Exception):
    """The diff is malformed, or does not fit the files it is applied to."""


@dataclass(frozen=True)
class Hunk:
    """One run of changed lines.

    Attributes:
        start: the line, counted from 1, at which `old` begins in the unchanged file.
        old: the lines expected there, each with its line end.
        new: the lines that replace them.
    """

    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]


def parse_patch(text: str) -> dict[str, list[Hunk]]:
    """Return the hunks of each file that a unified diff changes, by the file's path without its `a/` or `b/`.

    Lines before a file's `---` are comments.

    Raises:
        PatchError: a header is malformed, a hunk is shorter than its header says, or nothing is changed at all.
    """
    hunks: dict[str, list[Hunk]] = {}
    lines = _split_lines(text)
    path = None
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ "):
            path = _changed_path(line, lines[at + 1])
            at += 2
        elif line.startswith("@@"):
            if path is None:
                raise PatchError(f"line {at + 1} of the patch begins a hunk before any file is named")
            hunk, at = _parse_hunk(lines, at)
            hunks.setdefault(path, []).append(hunk)
        elif path is not None and line[0] in "+- ":
            raise PatchError(f"line {at + 1} of the patch lies outside of any hunk")
        else:
            at += 1
    if not hunks:
        raise PatchError("the patch holds no hunk")
    return hunks


def apply_patch(text: str, root: Path) -> list[str]:
    """Apply a unified diff to the files under `root` and return the paths it changed.

    Either all hunks fit, or no file changes.

    Raises:
        PatchError: the diff is malformed, names a file outside of `root` or one that is missing, or does not fit.
    """
    patched: dict[Path, str] = {}
    hunks = parse_patch(text)
    for name, file_hunks in hunks.items():
        file = root / name
        if not file.resolve().is_relative_to(root.resolve()):
            raise PatchError(f"the patch names {name}, which is outside of the folder to be patched")
        if not file.is_file():
            raise PatchError(f"the patch names {name}, which is not there")
        patched[file] = _apply_hunks(name, file.read_bytes().decode(), file_hunks)
    for file, content in patched.items():
        file.write_bytes(content.encode())
    return list(hunks)


def _split_lines(text: str) -> list[str]:
    """Return the lines with their ends. str.splitlines would also split at form feeds, which C++ sources may hold."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _changed_path(old: str, new: str) -> str:
    old_path, new_path = (line[4:].split("\t")[0].strip() for line in (old, new))
    if not (old_path.startswith("a/") and new_path.startswith("b/") and old_path[2:] == new_path[2:]):
        raise PatchError(f"a patch may only change files, not make, move or remove them: {old_path} to {new_path}")
    return new_path[2:]


def _parse_hunk(lines: list[str], at: int) -> tuple[Hunk, int]:
    """Return the hunk whose header is `lines[at]`, and the position after it."""
    header = _HUNK_HEADER.match(lines[at])
    if header is None:
        raise PatchError(f"line {at + 1} of the patch is not a hunk's header")
    old_count, new_count = (int(count) if count else 1 for count in (header[2], header[4]))
    old: list[str] = []
    new: list[str] = []
    first = at + 1
    at = first
    while len(old) < old_count or len(new) < new_count:
        if at == len(lines) or lines[at][0] not in "+- ":
            raise PatchError(f"the hunk at line {first} of the patch is shorter than its header says")
        sign, content = lines[at][0], lines[at][1:]
        if sign in "- ":
            old.append(content)
        if sign in "+ ":
            new.append(content)
        at += 1
    if (len(old), len(new)) != (old_count, new_count):
        raise PatchError(f"the hunk at line {first} of the patch does not have the length its header says")
    return Hunk(int(header[1]), tuple(old), tuple(new)), at


def _apply_hunks(name: str, content: str, hunks: list[Hunk]) -> str:
    lines = _split_lines(content)
    # From the end, so that a hunk does not move the lines of those before it.
    for hunk in sorted(hunks, key=lambda each: each.start, reverse=True):
        span = slice(hunk.start - 1, hunk.start - 1 + len(hunk.old))
        if tuple(lines[span]) != hunk.old:
            raise PatchError(f"the patch does not fit {name} at line {hunk.start}: another version, or already patched")
        lines[span] = hunk.new
    return "".join(lines)
