"""Checkpoints: written by all workers together, each what it has; whole or not there at all.

A checkpoint is a folder `checkpoints/round-NNNNNN`:

* `trunk.safetensors`, `blocks-RANK.safetensors`: what is shared, and each block, written by its first holder;
* `worker-RANK.safetensors`: a worker's own state, its momentum;
* `manifest.json`, written last: where the run stands, where each tensor is, every file's checksum, and its own.

It is written under another name and renamed when it is complete; then `checkpoints/latest` names it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resist_hvd.comm import failure
from resist_hvd.errors import UserError
from resist_hvd.training.disk import digest, disk_errors, flush, write_whole
from resist_hvd.training.divergence import diverged
from resist_hvd.training.run import Progress, Run
from resist_hvd.units import counted

FORMAT = 1


def save(run: Run) -> None:
    """Write a checkpoint of the run as it stands between two rounds; all ranks must call it together.

    Raises:
        UserError: on every rank, where one could not write its part, or has numbers in it that are not finite. Earlier
            checkpoints are untouched.
    """
    world, number = run.world, run.progress.round
    folder = run.folder / "checkpoints"
    final = folder_of(run)
    partial = folder / f".round-{number:06d}.partial"
    what = f"writing the checkpoint of round {number}"
    try:
        with world.agree(what), disk_errors(partial):
            if not run.method.subnet.parameters_flat.isfinite().all():
                raise diverged("A parameter", where="")
            if world.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        written: dict[str, dict[str, Any]] = {}
        with world.agree(what), disk_errors(partial):
            files = run.method.written_by_this_worker()
            files[f"worker-{world.rank:04d}"] = run.method.state_of_this_worker()
            for stem, tensors in files.items():
                written[f"{stem}.safetensors"] = write_tensors(partial / f"{stem}.safetensors", tensors)
        parts = world.gather_objects((written, run.source.train().state()))
        with world.agree(what), disk_errors(partial):
            if world.is_first:
                manifest = describe(run, parts)
                sealed = {**manifest, "sha256": seal(manifest)}
                write_whole(partial / "manifest.json", json.dumps(sealed, indent=1) + "\n")
                flush(partial)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                write_whole(folder / "latest", f"{final.name}\n")
                flush(folder)
                for old in complete(folder)[run.settings.keep_checkpoints :]:
                    shutil.rmtree(old, ignore_errors=True)
    except UserError:
        if world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    failure.advise(f"Go on from {final} with --resume --output {run.folder}.")


def folder_of(run: Run) -> Path:
    """Return where a checkpoint of the run as it stands is written."""
    return run.folder / "checkpoints" / f"round-{run.progress.round:06d}"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write named flat tensors; return the file's size, checksum and names."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": digest(path), "tensors": list(tensors)}


def describe(run: Run, parts: list[tuple[dict[str, dict[str, Any]], dict[str, Any]]]) -> dict[str, Any]:
    """Return a checkpoint's manifest, of every rank's files and data position."""
    return {
        "format": FORMAT,
        **describe_kind(run),
        "workers": run.world.size,
        "partition": run.method.partition.held,
        "progress": asdict(run.progress),
        "data_states": [state for _, state in parts],
        "files": {name: entry for files, _ in parts for name, entry in files.items()},
    }


def describe_kind(run: Run) -> dict[str, Any]:
    """Return what a run must have in common with one that goes on from its checkpoint."""
    return {
        "method": run.settings.method,
        "architecture": run.method.subnet.architecture.to_json(),
        "data": run.source.spec.name,
        "classes": list(run.source.spec.classes),
    }


def seal(manifest: dict[str, Any]) -> str:
    """Return the checksum of what a manifest says, whatever its layout; its own entry does not count."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    numbers = {path: path.name.removeprefix("round-") for path in folder.glob("round-*")}
    found = [path for path, number in numbers.items() if number.isdecimal()]
    return sorted(found, key=lambda path: int(numbers[path]), reverse=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def progress(self) -> Progress:
        """Where the run stood."""
        return Progress(**self.manifest["progress"])

    def read(self, names: dict[str, Tensor], *, files: str = "") -> None:
        """Fill named flat tensors from the checkpoint's files.

        Args:
            names: what to fill, by the names they were written under.
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
        for name, tensor in names.items():
            if name not in where:
                raise self.damaged(f"it has no {name}")
            try:
                with safe_open(self.folder / where[name], framework="pt") as file:
                    found = file.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise self.damaged(f"{where[name]}: {error}") from None
            if found.shape != tensor.shape:
                raise self.damaged(f"{name} has {found.numel()} numbers where the network has {tensor.numel()}")
            tensor.copy_(found)

    def damaged(self, how: str) -> UserError:
        """Return the error that says this checkpoint cannot be read."""
        return UserError(
            f"The checkpoint is damaged: {how}", where=str(self.folder), mend="Start anew with another --output."
        )


def find_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint under a run's folder, and a sentence for each damaged one passed over.

    Raises:
        UserError: there are checkpoints, but none of them is good.
    """
    passed_over: list[UserError] = []
    candidates = complete(folder / "checkpoints")
    for candidate in candidates:
        try:
            return verify(candidate), [f"{error.seen} [{error.where}]" for error in passed_over]
        except UserError as error:
            passed_over.append(error)
    if passed_over:
        newest, others = passed_over[0], len(passed_over) - 1
        and_others = f", and so are the {others} before it" if others > 1 else ", and so is the one before it"
        raise UserError(f"{newest.seen}{and_others if others else ''}", where=newest.where, mend=newest.mend)
    return None, []


def verify(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder once every file of it has been checked.

    Raises:
        UserError: the manifest or a file is missing, cut short or changed.
    """
    damaged = Checkpoint(folder, {}).damaged
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise damaged(f"its format is {manifest['format']}, and this version reads {FORMAT}")
        if seal(manifest) != manifest["sha256"]:
            raise damaged("manifest.json is not what was written (its SHA-256 differs)")
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise damaged(f"{name} is missing or cut short")
            if digest(path) != entry["sha256"]:
                raise damaged(f"{name} is not what was written (its SHA-256 differs)")
    except OSError as error:
        raise damaged(f"{Path(error.filename or folder).name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged("manifest.json is cut short, or is no manifest") from None
    return Checkpoint(folder, manifest)


def refuse_other(checkpoint: Checkpoint, run: Run) -> None:
    """Check that a checkpoint is of the run's model, method and data, and of as many networks where they stay apart.

    Raises:
        UserError: it is not.
    """
    was, now = checkpoint.manifest, describe_kind(run)
    model_was, model_now = was["architecture"], now["architecture"]
    differing = {name: (model_was.get(name), model_now[name]) for name in model_now}
    differing |= {name: (was[name], now[name]) for name in ("method", "data")}
    differences = [f"{name} {old}, not {new}" for name, (old, new) in differing.items() if old != new]
    if differences:
        kind = "model" if model_was != model_now else "method" if was["method"] != now["method"] else "data set"
        raise UserError(
            f"The checkpoint is of another {kind} than the settings ask for: it has {'; '.join(differences)}",
            where=str(checkpoint.folder),
            mend=f"Resume with --config {run.folder / 'config.yaml'}, or give another --output.",
        )
    for number, (old, new) in enumerate(zip(was["classes"], now["classes"], strict=True)):
        if old != new:
            raise UserError(
                f"The checkpoint is of other classes than the data have: class {number} is {old!r}, not {new!r}",
                where=str(checkpoint.folder),
                mend="Resume on the data it was trained on, or give another --output.",
            )
    members, workers = was["workers"], run.world.size
    if run.method.members_apart and members != workers:
        raise UserError(
            f"The checkpoint is of {counted(members, 'network')}, one a worker, and the world has "
            f"{counted(workers, 'worker')} now",
            where=str(checkpoint.folder),
            mend=f"Resume on {counted(members, 'worker')}, or give another --output.",
        )


def load(checkpoint: Checkpoint, run: Run) -> str:
    """Put a run where a checkpoint left off; return a sentence that says how.

    On as many workers as wrote it, everything comes back exactly. On another number, blocks have been dealt anew and
    momentum restarts.

    Raises:
        UserError: the checkpoint is of another model, method or data.
    """
    refuse_other(checkpoint, run)
    world, manifest = run.world, checkpoint.manifest
    exact = manifest["workers"] == world.size and manifest["partition"] == [list(b) for b in run.method.partition.held]
    run.method.after_loading(same_workers=exact)
    checkpoint.read(run.method.read_by_this_worker())
    sentence = f"Resuming from {checkpoint.folder} after round {run.progress.round}"
    if exact:
        own = f"worker-{world.rank:04d}"
        run.method.velocity.fresh = not manifest["files"][f"{own}.safetensors"]["tensors"]
        checkpoint.read(run.method.state_of_this_worker(), files=own)
    else:
        why = "another seed" if manifest["workers"] == world.size else f"it had {manifest['workers']}"
        sentence += f"; blocks are dealt anew to {counted(world.size, 'worker')} ({why}), momentum restarts"
    states = manifest["data_states"]
    state = states[world.rank] if world.rank < len(states) else states[0]
    remark = run.source.train().load_state(state)
    return f"{sentence}; {remark}" if remark else sentence
