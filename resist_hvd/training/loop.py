"""The training loop: Algorithm 1 of the paper, for any method."""

from __future__ import annotations

import torch
from torch import Tensor

from resist_hvd.errors import Stopped
from resist_hvd.guard.signals import name_of
from resist_hvd.records import RoundRecord
from resist_hvd.seeds import derive
from resist_hvd.training.account import add_evaluation
from resist_hvd.training.checkpoint import folder_of, save
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.journal import Journal
from resist_hvd.training.optim import learning_rate
from resist_hvd.training.rounds import RoundCounter
from resist_hvd.training.run import Run
from resist_hvd.training.step import make_step, prepare


def train(run: Run, journal: Journal) -> None:
    """Train to the end: rounds of local training, each ended by a synchronisation.

    Raises:
        Stopped: on every rank, where any was told to stop; a checkpoint of the last round is written.
    """
    settings, world = run.settings, run.world
    local = LocalTraining(run)
    with world.stop.heeding():
        if evaluation_is_missing(run):
            evaluate_run(run, journal)
            if run.finished:
                save(run)
        while not run.finished:
            journal.round(train_round(local))
            if local.rounds.choice is not None:
                journal.remark(local.rounds.choice.sentence)
            if (heir := run.method.successor(run.progress.samples)) is not None:
                run.method = heir
                local = LocalTraining(run)
            # Told to stop, a run has little time; what it leaves out is made good when it is resumed.
            if is_due(settings.evaluate_every, run) and not run.stop_signal:
                evaluate_run(run, journal)
            if is_due(settings.checkpoint_every, run) or run.stop_signal:
                with world.stopwatch.measure("checkpoint"):
                    save(run)
            if run.stop_signal:
                raise Stopped(stop_sentence(run, run.stop_signal))


def train_round(local: LocalTraining) -> RoundRecord:
    """Make one round, local iterations and a synchronisation; return its record."""
    local.rounds.begin()
    while (record := local.rounds.step(*local.step())) is None:
        pass
    return record


def evaluate_run(run: Run, journal: Journal) -> None:
    """Evaluate the global network as it stands, and note it."""
    run.world.position = f"round {run.progress.round}, evaluating"
    with run.world.stopwatch.measure("evaluate"), run.memory.aside():
        journal.evaluation(add_evaluation(run, evaluate(run.method, run.source, run.task, run.world, run.autocast)))


def is_due(every: int, run: Run) -> bool:
    """Return whether what happens each `every` rounds (0: never), and always at the end, happens now."""
    return run.finished or (every > 0 and run.progress.round % every == 0)


def evaluation_is_missing(run: Run) -> bool:
    """Return whether a run that goes on from a checkpoint was stopped where it was to be evaluated."""
    progress = run.progress
    return (
        progress.round > 0 and progress.evaluated_round != progress.round and is_due(run.settings.evaluate_every, run)
    )


def stop_sentence(run: Run, number: int) -> str:
    """Return what to say when a run has stopped as it was told to: where it stands, and how to go on."""
    checkpoint = folder_of(run)
    return (
        f"Stopped by {name_of(number)} after round {run.progress.round}; checkpoint {checkpoint}; "
        f"go on with --resume --output {run.folder}"
    )


def seed_draws(seed: int, device: torch.device) -> None:
    """Have PyTorch draw random numbers from a seed, on the CPU and on a GPU that computes.

    `torch.manual_seed` seeds devices of every kind, and before a GPU is used it notes the stack for each: it would take
    longer than a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class LocalTraining:
    """One worker's local iterations on its own network and data; nothing is communicated but what the method does."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # A network that is new to the compiler, or to the caches of libraries, may take its time.
        run.world.activity.long_limit = True
        self._batches = run.source.train(run.progress.samples)
        self._step = make_step(run)
        seed, longest = run.settings.seed, run.settings.local_iterations
        self.rounds = RoundCounter(
            run, seed=seed, length=run.iterations_of_round, longest=longest, overlap=run.settings.overlap
        )

    def step(self) -> tuple[Tensor, float]:
        """Make one local iteration: a batch, forward, backward, an update. Return its loss and its learning rate."""
        run, optim, world = self.run, self.run.settings.optim, self.run.world
        world.activity.detail = "waiting for a batch"
        world.activity.progress()
        with world.stopwatch.measure("data"):
            images, labels = next(self._batches)
        world.activity.detail = ""
        if not self._step.is_prepared:
            prepare(self._step, images, labels, run)
        with world.stopwatch.measure("compute"):
            done, step = run.progress.samples / run.target, run.batch / run.target
            rate = learning_rate(optim, done, step=step, epochs=run.settings.epochs)
            # What a network draws at random within a step comes from the run's seed, whenever the run was resumed.
            seed_draws(derive(run.settings.seed, "step", world.rank, run.progress.samples), world.device)
            run.task.at(run.progress.samples)
            loss = self._step(images, labels, rate)
            run.progress.samples += run.batch
        return loss, rate
