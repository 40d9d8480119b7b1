"""Resuming: a run put where its checkpoint left off, or refused with what the two do not have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

from resist_hvd.errors import UserError
from resist_hvd.methods.base import OWN
from resist_hvd.methods.state import NamedPieces
from resist_hvd.settings.reading import plain
from resist_hvd.training.checkpoint import Checkpoint, describe_kind
from resist_hvd.training.run import Run
from resist_hvd.training.step import flat_state
from resist_hvd.units import counted


def refuse_other(checkpoint: Checkpoint, run: Run) -> None:
    """Check that a checkpoint is of the run's model, method and data, and of as many networks where they stay apart.

    Raises:
        UserError: it is not.
    """
    was, now = checkpoint.manifest, describe_kind(run)
    model_was, model_now = was["network"], now["network"]
    differing = {name: (model_was.get(name), model_now.get(name)) for name in {**model_now, **model_was}}
    differing |= {name: (was[name], now[name]) for name in ("method", "data")}
    differing = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    if set(differing) <= {"classes"}:
        refuse_other_classes(was["classes"], now["classes"], checkpoint)
    if differences := [f"{name} {old}, not {new}" for name, (old, new) in differing.items()]:
        kind = "model" if model_was != model_now else "method" if was["method"] != now["method"] else "data set"
        raise UserError(
            f"The checkpoint is of another {kind} than the settings ask for: it has {'; '.join(differences)}",
            where=str(checkpoint.folder),
            mend=f"Leave out what differs: --resume --output {run.folder} goes on with the run's own settings. Or give "
            "another --output.",
        )
    members, workers = was["workers"], run.world.size
    if run.method.members_apart and members != workers:
        raise UserError(
            f"The checkpoint is of {counted(members, 'network')}, one a worker, and the world has "
            f"{counted(workers, 'worker')} now",
            where=str(checkpoint.folder),
            mend=f"Resume on {counted(members, 'worker')}, or give another --output.",
        )


def refuse_other_classes(was: Sequence[str], now: Sequence[str], checkpoint: Checkpoint) -> None:
    """Check that data have the classes, in their order, that a checkpoint's network tells apart.

    Raises:
        UserError: they have others, more or fewer.
    """
    for number, (old, new) in enumerate(zip_longest(was, now)):
        if old != new:
            there, here = ("not there" if name is None else repr(name) for name in (old, new))
            raise UserError(
                f"The checkpoint is of other classes than the data have: class {number} is {there}, and {here} in the "
                f"data; it has {len(was)}, the data have {len(now)}",
                where=str(checkpoint.folder),
                mend="Resume on the data it was trained on, or give another --output.",
            )


def load(checkpoint: Checkpoint, run: Run) -> str:
    """Put a run where a checkpoint left off; return a sentence that says how.

    On as many workers as wrote it, each with as many blocks, everything comes back exactly. On others, blocks have been
    dealt anew, and the optimizer's momentum and outer momentum of blocks begin anew. A warm-up's network, in which
    blocks are scaled by what the number of workers makes of them, computes what it did.

    Raises:
        UserError: the checkpoint is of another model, method or data.
    """
    refuse_other(checkpoint, run)
    world, manifest = run.world, checkpoint.manifest
    dealt = run.method.partition
    exact = run.method.hold(manifest["partition"])
    why = dealt_otherwise(checkpoint, run)
    if run.method.members_apart and not exact:
        raise UserError(
            f"The checkpoint's networks are deeper or shallower than these settings make them: {why}",
            where=str(checkpoint.folder),
            mend=f"Leave out what differs: --resume --output {run.folder} goes on with the run's own settings.",
        )
    there = {name for entry in manifest["files"].values() for name in entry["tensors"]}
    shared = run.method.shared_state()
    checkpoint.read(run.method.read_by_this_worker() | {name: shared[name] for name in shared if name in there})
    run.method.begin_here()
    sentence = f"Resuming from {checkpoint.folder} after round {run.progress.round}"
    own, outer_lacks = run.method.own_by_this_worker(), [] if set(shared) <= there else ["what all workers share"]
    copies: NamedPieces = {}
    scales = manifest.get("scales")
    if rescaled := scales is not None and run.method.rescale(scales):
        was, now = scales_in_words(scales), scales_in_words(run.method.scales)
        sentence += f"; the warm-up scaled blocks by {was}, where it is {now} now: their weights make up for it"
    if exact and rescaled:
        sentence += ", and momentum restarts"
    elif exact:
        worker = f"worker-{world.rank:04d}"
        state, tensors = flat_state(run), manifest["files"][f"{worker}.safetensors"]["tensors"]
        found = [name for name in tensors if not name.startswith(OWN)]
        state.fresh = not found
        if found and set(found) != set(state.pieces()):
            state.fresh = True
            sentence += f"; the optimizer restarts: {' and '.join(found)} are not what {run.settings.optim.name} keeps"
        copies = {name: pieces for name, pieces in own.items() if name in tensors}
        checkpoint.read(state.pieces() | copies, files=worker)
        if run.method.partition.hands != dealt.hands and not run.method.members_apart:
            sentence += f"; after this round blocks are dealt otherwise than they would have been then ({why})"
    else:
        sentence += f"; blocks are dealt anew to {counted(world.size, 'worker')} ({why}), momentum restarts"
    if any(name.startswith(f"{OWN}outer.") for name in own.keys() - copies.keys()):
        outer_lacks.append("blocks")
    if outer_lacks:
        sentence += f"; outer momentum of {' and '.join(outer_lacks)} begins anew: the checkpoint has none that fits"
    images = run.source.spec.train_size
    if (were := manifest.get("train_size", images)) != images:  # earlier versions did not note it here
        sentence += f"; the training set had {were} images and has {images} now, so they come in another order"
    return sentence


def scales_in_words(scales: Sequence[float]) -> str:
    """Return the scales of the decks."""
    return ", ".join(f"{scale:.3g}" for scale in scales)


def dealt_otherwise(checkpoint: Checkpoint, run: Run) -> str:
    """Return, in words, what differs of the circumstances that blocks are dealt by since a checkpoint was written."""
    was, now = checkpoint.manifest.get("settings"), plain(asdict(run.settings))
    workers = checkpoint.manifest["workers"]
    differing = [] if workers == run.world.size else [f"it had {workers}"]
    if isinstance(was, dict):
        differing += [
            f"{name} {was.get(name)} is now {now[name]}"
            for name in ("seed", "min_blocks", "warmup_epochs")
            if was.get(name) != now[name]
        ]
    return ", ".join(differing) or "another version of this program"
