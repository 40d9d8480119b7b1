"""Checkpoints: written by all workers together, each what it has; whole or not there at all.

A checkpoint is a folder `checkpoints/round-NNNNNN`:

* `trunk.safetensors`, `blocks-RANK.safetensors`: what is shared, and each block, written by its first holder;
* `worker-RANK.safetensors`: a worker's own state: its momentum; what encoded averages depend on; and where steps are
  made beside synchronisations its own copy of what is shared, of which the average is in `trunk`;
* `manifest.json`, written last: where the run stands, its settings, where each tensor is, every file's checksum, and
  its own.

It is written under another name and renamed when it is complete; then `checkpoints/latest` names it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.methods.state import NamedPieces
from resist_hvd.settings.reading import plain
from resist_hvd.tensor_files import each_tensor
from resist_hvd.training.disk import digest, disk_errors, flush, write_whole
from resist_hvd.training.divergence import diverged
from resist_hvd.training.folder import complete, round_of
from resist_hvd.training.manifest import modern, read_manifest, seal, strange_in
from resist_hvd.training.run import Progress, Run
from resist_hvd.training.step import flat_state
from resist_hvd.training.tensors import write_tensors

FORMAT = 2
"""Format 1 knew one family of networks, and called its description the architecture; it is read as well."""

DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
"""Errors of a file that is missing or broken; all others may be mended, as permissions may."""


class DamagedError(UserError):
    """A checkpoint that an older one may stand in for."""


def save(run: Run) -> None:
    """Write a checkpoint of the run as it stands between two rounds; all ranks must call it together.

    Raises:
        UserError: on every rank, where one could not write its part, or has numbers in it that are not finite. Earlier
            checkpoints are untouched.
    """
    world, number = run.world, run.progress.round
    folder = run.folder / "checkpoints"
    partial = folder / f".round-{number:06d}.partial"
    what = f"writing the checkpoint of round {number}"
    try:
        with world.activity.long_limit_for(what):
            with world.agree(what), disk_errors(partial):
                if not run.method.subnet.parameters_flat.isfinite().all():
                    raise diverged("A parameter", where="")
                if run.claim is not None:
                    run.claim.check()
                if world.is_first:
                    folder.mkdir(parents=True, exist_ok=True)
                    clear(partial)
                    partial.mkdir()
            written: dict[str, dict[str, Any]] = {}
            with run.method.averaged(), world.agree(what), disk_errors(partial):
                files = run.method.written_by_this_worker()
                files[f"worker-{world.rank:04d}"] = flat_state(run).pieces() | run.method.own_by_this_worker()
                for stem, tensors in files.items():
                    path = partial / f"{stem}.safetensors"
                    write_tensors(path, tensors)
                    written[path.name] = describe_file(path, tensors)
            parts = world.gather_objects(written)
            with world.agree(what), disk_errors(partial):
                if world.is_first:
                    manifest = describe(run, parts)
                    sealed = {**manifest, "sha256": seal(manifest)}
                    write_whole(partial / "manifest.json", json.dumps(sealed, indent=1) + "\n")
                    flush(partial)
                    put_into_place(partial, folder_of(run))
                    for old in superseded(folder, run.progress.round, run.settings.keep_checkpoints):
                        clear(old)
    except UserError:
        if world.is_first:
            clear(partial)
        raise
    failure.advise(f"Go on from {folder_of(run)} with --resume --output {run.folder}.")


def superseded(folder: Path, number: int, keep: int) -> list[Path]:
    """Return the checkpoints that can go once the one of round `number` is written.

    Those of later rounds were passed over, or this round would not be trained again. They may be of another version:
    so they stay until the run comes to their rounds, and do not count among the `keep` newest.
    """
    return [path for path in complete(folder) if round_of(path) <= number][keep:]


def clear(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever else has its name; what cannot be removed stays."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def put_into_place(partial: Path, final: Path) -> None:
    """Give a checkpoint that is complete its name; an earlier one of the same round is there until then.

    A process that dies between the two renamings leaves the earlier one under its other name: `restore_replaced`.
    """
    replaced = final.with_name(f".{final.name}.replaced")
    clear(replaced)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    write_whole(final.with_name("latest"), f"{final.name}\n")
    flush(final.parent)
    for left in final.parent.glob(".round-*"):
        clear(left)


def restore_replaced(folder: Path) -> None:
    """Give checkpoints their names back that `put_into_place` was about to replace when its process died."""
    for replaced in folder.glob(".round-*.replaced"):
        final = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
        if not final.exists():
            replaced.rename(final)


def folder_of(run: Run) -> Path:
    """Return where a checkpoint of the run as it stands is written."""
    return run.folder / "checkpoints" / f"round-{run.progress.round:06d}"


def describe_file(path: Path, tensors: NamedPieces) -> dict[str, Any]:
    """Return what a manifest says of a file: its size, checksum and tensors' names."""
    return {"bytes": path.stat().st_size, "sha256": digest(path), "tensors": list(tensors)}


def describe(run: Run, parts: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return a checkpoint's manifest, of every rank's files."""
    return {
        "format": FORMAT,
        **describe_kind(run),
        "settings": plain(asdict(run.settings)),
        "workers": run.world.size,
        "partition": run.method.partition.held,
        "scales": list(run.method.scales) if run.method.trains_scaled else None,
        "progress": asdict(run.progress),
        "train_size": run.source.spec.train_size,
        "files": {name: entry for files in parts for name, entry in files.items()},
    }


def describe_kind(run: Run) -> dict[str, Any]:
    """Return what a run must have in common with one that goes on from its checkpoint."""
    return {
        "method": run.settings.method,
        "network": dict(run.method.setup.network.description),
        "data": run.source.spec.name,
        "classes": list(run.source.spec.classes),
    }


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def progress(self) -> Progress:
        """The run's progress when it was written."""
        return Progress(**self.manifest["progress"])

    def setting(self, name: str) -> Any:
        """Return a setting of the run that wrote it, None where it does not say."""
        settings = self.manifest.get("settings")
        return settings.get(name) if isinstance(settings, dict) else None

    def read(self, names: NamedPieces, *, files: str = "") -> None:
        """Fill named flat tensors from the checkpoint's files.

        Args:
            names: what to fill, piece after piece, by the names they were written under.
            files: only those whose names begin so.

        Raises:
            UserError: one is missing or of another size.
        """
        where = {
            name: file
            for file, entry in self.manifest["files"].items()
            if file.startswith(files)
            for name in entry["tensors"]
        }
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in where:
                raise self.damaged(f"it has no {name}")
            by_file.setdefault(where[name], []).append(name)
        for file, wanted in by_file.items():
            for name, found in self._tensors(file, wanted):
                sizes = [len(piece) for piece in names[name]]
                if list(found.shape) != [sum(sizes)]:
                    raise self.damaged(f"{name} has {found.numel()} numbers where the network has {sum(sizes)}")
                for piece, numbers in zip(names[name], torch.split(found, sizes), strict=True):
                    piece.copy_(numbers)

    def _tensors(self, file: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        try:
            yield from each_tensor(self.folder / file, names)
        except OSError as error:
            raise self.cannot_be_read(error) from None
        except SafetensorError as error:
            raise self.damaged(f"{file}: {error}") from None

    def damaged(self, how: str) -> DamagedError:
        """Return the error that says what is wrong with this checkpoint."""
        return DamagedError(
            f"The checkpoint is damaged: {how}", where=str(self.folder), mend="Start anew with another --output."
        )

    def cannot_be_read(self, error: OSError) -> UserError:
        """Return the error that says why a file of this checkpoint cannot be read: damage, or what can be mended."""
        name = Path(error.filename or self.folder).name
        if error.errno in DAMAGE:
            return self.damaged(f"{name} cannot be read ({error.strerror})")
        return UserError(
            f"The checkpoint cannot be read: {error.strerror}",
            where=str(error.filename or self.folder),
            mend="Have its owner make it readable, or mend what the disk or its server lacks, then resume; nothing was "
            "changed.",
        )


def find_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint under a run's folder, and a sentence for each damaged one passed over.

    Raises:
        UserError: there are checkpoints, but none of them is good; or one may be good, and cannot be read.
    """
    passed_over: list[DamagedError] = []
    for candidate in complete(folder / "checkpoints"):
        try:
            return verify(candidate), [f"{error.seen} [{error.where}]" for error in passed_over]
        except DamagedError as error:
            passed_over.append(error)
    if passed_over:
        newest, others = passed_over[0], len(passed_over) - 1
        and_others = f", and so are the {others} before it" if others > 1 else ", and so is the one before it"
        raise UserError(f"{newest.seen}{and_others if others else ''}", where=newest.where, mend=newest.mend)
    return None, []


def verify(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder once every file of it has been checked.

    Raises:
        DamagedError: the manifest or a file is missing, cut short, changed, or of another version.
        UserError: a file may be good, and cannot be read.
    """
    found = Checkpoint(folder, {})
    damaged = found.damaged
    try:
        manifest = read_manifest(folder / "manifest.json")
        if manifest["format"] not in (1, FORMAT):
            raise damaged(f"its format is {manifest['format']}, and this version reads 1 and {FORMAT}")
        if seal(manifest) != manifest["sha256"]:
            raise damaged("manifest.json is not what was written (its SHA-256 differs)")
        manifest = modern(manifest)
        if strange := strange_in(manifest):
            raise damaged(f"manifest.json was written by another version ({strange})")
        for name, entry in manifest["files"].items():
            path = folder / name
            if not os.path.lexists(path) or path.stat().st_size != entry["bytes"]:
                raise damaged(f"{name} is missing or cut short")
            if digest(path) != entry["sha256"]:
                raise damaged(f"{name} is not what was written (its SHA-256 differs)")
    except OSError as error:
        raise found.cannot_be_read(error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged("manifest.json is cut short, or is no manifest") from None
    return Checkpoint(folder, manifest)
