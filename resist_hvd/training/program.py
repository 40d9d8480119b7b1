"""A run from its settings to its exported model."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from resist_hvd import console
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.errors import UserError
from resist_hvd.guard import failure, stacks
from resist_hvd.records import Evaluation, Summary
from resist_hvd.settings import flags
from resist_hvd.settings.run import Settings
from resist_hvd.training.account import extra_test, summary_of
from resist_hvd.training.arithmetic import choose_algorithms, with_precision
from resist_hvd.training.checkpoint import Checkpoint, find_newest, restore_replaced
from resist_hvd.training.checks import refuse_degenerate, refuse_graphs_without_gpu, remarks
from resist_hvd.training.claim import Claim, claimed
from resist_hvd.training.compiling import check_compiler
from resist_hvd.training.disk import disk_errors
from resist_hvd.training.evaluate import evaluate_on
from resist_hvd.training.export import export
from resist_hvd.training.folder import make_folder, set_aside
from resist_hvd.training.joining import joined
from resist_hvd.training.journal import Journal, keep_lines_before
from resist_hvd.training.loop import train
from resist_hvd.training.resuming import load
from resist_hvd.training.run import Progress, Run, begin, load_source
from resist_hvd.training.starts import tell, write_settings, write_start
from resist_hvd.units import counted


def run_training(settings: Settings) -> None:
    """Train a run from its settings to its exported model.

    Raises:
        UserError: something that the user can mend is in the way.
        Stopped: on every rank, where any was told to stop.
    """
    world, watchdog = joined(settings.device, settings.watchdog)
    with watchdog:
        # Each rank has read the files; a host may have seen an older state of a folder on a file server.
        settings = with_precision(world.broadcast_object(settings), world)
        refuse_graphs_without_gpu(settings, world.device)
        if settings.compile:
            with world.agree("looking for a compiler"):
                check_compiler(world.device)
        choose_algorithms(world.device, compiled=settings.compile)
        folder = make_folder(settings.output, f"{settings.data.name}-{settings.method}", world)
        with claimed(folder, world) as claim:
            stacks.go_to(folder)
            summary = train_in(folder, claim, settings, world)
        failure.complete()
        failure.advise(f"The run is done: {folder} has its model and its summary.")
        world.position = "ending"
        world.barrier()  # from here on, nobody is waited for but to end
    if world.is_first:
        console.out(farewell(summary, folder))
        if summary.broken_files:
            console.out(passed_over(summary.broken_files))


def train_in(folder: Path, claim: Claim | None, settings: Settings, world: World) -> Summary:
    """Train in a folder that is claimed; return the run's summary.

    Raises:
        UserError: something that the user can mend is in the way.
        Stopped: on every rank, where any was told to stop.
    """
    checkpoint = open_folder(folder, settings, world)
    with world.agree("loading the data"):
        source = load_source(settings, world)
    with source:
        run = make_run(settings, world, source, folder, checkpoint)
        run.claim = claim
        begin_files(run, resumed=checkpoint is not None)
        with Journal(run) as journal:
            if world.is_first:
                console.out(headline(run))
                for remark in (*remarks(run), *source.remarks):
                    console.out(remark)
            with journal.display:
                train(run, journal)
            further: dict[str, Evaluation] = {}
            if source.extra_tests:
                world.position = "evaluating on further test sets"
                with run.memory.aside():
                    further = evaluate_on(source.extra_tests, run.method, source, run.task, world, run.autocast)
                for name, found in further.items():
                    journal.extra_test(extra_test(run, name, found))
            world.position = "exporting the model"
            with run.memory.aside():
                export(folder, run.method, source, run.task, world, run.autocast)
            peaks = world.gather([run.memory.peak]).ravel()
            broken = every_broken_file(source, world)
            summary = summary_of(run, [int(peak) for peak in peaks], broken, further)
            journal.summary(summary)
    return summary


def open_folder(folder: Path, settings: Settings, world: World) -> Checkpoint | None:
    """Return the checkpoint to go on from, None to begin.

    Raises:
        UserError: the folder holds a run and --resume was not given; no checkpoint in it is good; or there may be some
            that cannot be seen.
    """
    checkpoint: Checkpoint | None = None
    with (
        world.agree("opening the run's folder"),
        disk_errors(folder),
        world.activity.long_limit_for("reading checkpoints"),
    ):
        if world.is_first:
            if settings.resume:
                restore_replaced(folder / "checkpoints")
                checkpoint, passed_over = find_newest(folder)
                for sentence in passed_over:
                    console.err(f"Passed over: {sentence}")
            elif any(os.path.lexists(folder / kept) for kept in ("rounds.jsonl", "checkpoints")):
                raise UserError(
                    "The folder already holds a run",
                    where=str(folder),
                    mend="Give --resume to go on with it, or another --output.",
                )
    checkpoint = world.broadcast_object(checkpoint)
    world.stop.resumable = True
    failure.advise(
        f"Go on from {checkpoint.folder} with --resume --output {folder}."
        if checkpoint
        else f"Nothing was saved yet in {folder}: begin again, with --resume or another --output."
    )
    return checkpoint


def make_run(settings: Settings, world: World, source: DataSource, folder: Path, checkpoint: Checkpoint | None) -> Run:
    """Return the run at its beginning, or where its checkpoint left off.

    Raises:
        UserError: on every rank, where the settings train nothing, or the checkpoint is of something else.
    """
    progress = checkpoint.progress if checkpoint else Progress()
    if checkpoint and checkpoint.setting("local_iterations") != settings.local_iterations:
        progress.overlap = None  # it was chosen for rounds of another length
    run = begin(settings, world, source, folder, progress)
    refuse_degenerate(settings, run.method.setup.network, source.spec)
    sentence = f"No checkpoint in {folder}: starting anew"
    if checkpoint is not None:
        with world.agree("reading the checkpoint"):
            sentence = load(checkpoint, run)
        run.method.rejoin()
    if settings.resume and world.is_first:
        console.out(sentence)
    return run


def begin_files(run: Run, *, resumed: bool) -> None:
    """Have the run's files say what its checkpoint knows, and its settings: not before it is sure that it can run.

    Raises:
        UserError: on every rank, where they cannot be written.
    """
    world, progress, folder = run.world, run.progress, run.folder
    hosts = world.gather_objects(world.host)
    with world.agree("opening the run's files"), disk_errors(folder), world.activity.long_limit_for("opening files"):
        if world.is_first:
            aside = None if resumed else set_aside(folder)
            console.open_log(folder / "console.log", log_heading(world))
            changed = write_settings(folder, run.settings, progress.round)
            write_start(folder, world, hosts, round_number=progress.round, changed=changed)
            keep_lines_before(folder / "rounds.jsonl", round_number=progress.round, inclusive=False)
            evaluated = resumed and progress.evaluated_round == progress.round
            keep_lines_before(folder / "eval.jsonl", round_number=progress.round, inclusive=evaluated)
            keep_lines_before(folder / "extra_tests.jsonl", round_number=progress.round, inclusive=False)
            if not run.finished:
                (folder / "summary.json").unlink(missing_ok=True)  # of an end that was not the last
            if aside is not None:
                console.out(f"Files of an earlier start, of which there is no checkpoint, are in {aside}")
            if changed:
                console.out(tell(changed))


def log_heading(world: World) -> str:
    """Return the line of console.log that tells one start of a run from the next: when, what, and how."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    command = shlex.join(sys.orig_argv)
    return f"# {now}, {flags.VERSION}, {counted(world.size, 'worker')}, on {world.host}: {command}"


def headline(run: Run) -> str:
    """Return what is about to be trained, in two lines."""
    spec, subnet, world = run.source.spec, run.method.subnet, run.world
    network = run.method.setup.network
    loader = f", decoded by {run.source.loader_name}" if run.source.loader_name else ""
    return (
        f"{run.settings.method} on {counted(world.size, 'worker')} ({world.device.type}, {run.settings.precision}), "
        f"{spec.name}: {spec.train_size:,} training and {counted(spec.test_size, 'test image')}, "
        f"{counted(len(spec.classes), 'class', 'classes')}{loader}\n"
        f"{network.title}, {counted(len(network.blocks), 'block')} to deal out, "
        f"{len(run.method.blocks)} a worker: {subnet.parameters_flat.numel():,} parameters each; "
        f"{counted(run.rounds(), 'round')} of {counted(run.settings.local_iterations, 'local iteration')}; "
        f"into {run.folder}"
    )


def farewell(summary: Summary, folder: Path) -> str:
    """Return what has been reached, in a line."""
    members = folder / "members"  # an ensemble's
    return (
        f"{summary.result} after {counted(summary.rounds, 'round')}: "
        f"{summary.seconds:.1f} s of training, {summary.bytes_sent / 1e6:,.1f} MB sent; "
        f"model in {members if members.is_dir() else folder / 'model.safetensors'}"
    )


def every_broken_file(source: DataSource, world: World) -> dict[str, str]:
    """Return what is wrong with each image file that any rank passed over, by its path."""
    return {path: fault for found in world.gather_objects(source.broken_files()) for path, fault in found.items()}


def passed_over(broken: dict[str, str]) -> str:
    """Return which image files were not used, and why, in a line each."""
    files = [f"  {path}: {fault}" for path, fault in sorted(broken.items())]
    return "\n".join([f"{counted(len(broken), 'image file')} passed over, being broken:", *files])
