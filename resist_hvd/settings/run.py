"""Settings of a run: typed, documented, refused when wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.group import Amount, Count, Fraction, Group, Natural, Positive, Share
from resist_hvd.settings.model import SECTIONS, ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.task import TaskName, TaskSettings

MethodName = Literal["resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout"]
AVERAGING: tuple[MethodName, ...] = ("resist", "local-sgd")
"""Methods that average parameters that all workers have at the end of a round."""

AVERAGED: dict[MethodName, str] = {"data-parallel": "gradients", "federated-dropout": "other filters of each worker"}
"""What the others average, if anything."""

Momentum = Literal["restart", "keep"]
Overlap = Natural | Literal["auto"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Settings(Group):
    """A run's settings.

    Without any flag, the embedded demonstration (recipe digits) is trained. Flags override --config, which overrides
    --recipe.
    """

    method: MethodName = "resist"
    """resist; local-sgd (the paper's baseline); data-parallel (gradients averaged in each step); ensemble (S shallow
    networks, never aggregated, predictions averaged); or federated-dropout (each worker has other filters of every
    layer in each round: Caldas et al. 2018)."""

    local_iterations: Count = 50
    """l, the local iterations of a round: training steps between two synchronisations."""

    overlap: Overlap = 0
    """T, the local iterations that are made while a synchronisation is under way: it departs T before a round's end,
    and what was trained since is added to the average. Blocks that move or are shared stand still meanwhile. Hides the
    network's time, at some accuracy where rounds are short; 0 waits for it. auto measures the first rounds, and takes
    the least T that hides what they waited, of those that are known to cost less than 0.3 points."""

    min_blocks: Natural = 5
    """m, the fewest partitionable blocks a sub-network has; blocks are shared among workers where that needs it."""

    momentum: Momentum = "restart"
    """When a round ends: restart momentum at zero, or keep it for the trunk and for blocks that stay with a worker."""

    outer_momentum: Fraction = 0.0
    """beta of outer momentum (SlowMo) on what all workers share: each round goes on in the direction of those before.
    It sends nothing, and takes the memory of two more trunks, with local-sgd of two more networks. 0 is the paper's."""

    outer_momentum_blocks: Fraction = 0.0
    """beta of outer momentum on the blocks that are dealt, beside --outer_momentum or without it. A block has it
    while some worker keeps it from round to round: always where more than half of the workers hold each block. It sends
    nothing, and takes the memory of a worker's blocks twice more. 0 is the paper's."""

    keep_filters: Share = 0.75
    """The share of filters that a worker of federated-dropout has: of each convolution, of each residual stream."""

    warmup_epochs: Amount = 0.0
    """Epochs of local SGD on the whole, scaled network that precede ResIST."""

    scale_activations: bool = True
    """Scale the output of partitioned blocks in the global network by k / N (1 / S where no block is shared); with
    federated-dropout, each weight by the share of its inputs that workers have."""

    epochs: Positive = 10.0
    """Passes over the training set, summed over workers."""

    max_rounds: Count | None = None
    """Stop after this many rounds, if that is earlier; the learning rate's schedule is not changed by it. A run that
    has reached it and is resumed without it goes on to the end of its epochs."""

    seed: Natural = 1
    """The run's seed: initial weights, partitions, the order of images and their augmentation."""

    precision: Precision = "fp32"
    """bf16 computes convolutions in bfloat16 (autocast); parameters and averages stay float32. auto is bf16
    where all ranks are faster by it (CPUs with AMX, AMD's with AVX512-BF16, GPUs from Ampere on), else fp32, and a run
    stays with what it began with. On GPUs from Ampere on fp32's convolutions are
    in TF32, of 10 bits, as PyTorch has it; NVIDIA_TF32_OVERRIDE=0 in the environment forbids that."""

    compile: bool = False
    """Compile network and loss with torch.compile: some minutes at the start, faster steps afterwards. On CPUs it gains
    little."""

    cuda_graphs: bool = False
    """Launch a whole training step on a GPU at once, as a CUDA graph: faster where layers are so small that the CPU
    cannot launch one after another fast enough. Not for data-parallel, which communicates within a step."""

    device: DeviceName = "auto"
    """Device to compute on; auto is cuda where there is a GPU."""

    evaluate_every: Natural = 0
    """Rounds between evaluations of the global model; 0 evaluates at the end only."""

    checkpoint_every: Natural = 0
    """Rounds between checkpoints; 0 writes one at the end only."""

    keep_checkpoints: Count = 2
    """Number of the newest checkpoints that stay."""

    trace: bool = False
    """Write what every rank did in the first five rounds into trace.json, for Perfetto or chrome://tracing."""

    output: Path | None = None
    """The run's folder. Default: a new one under runs/."""

    watchdog: Amount | None = None
    """Seconds without progress after which a rank counts as lost: all others say which and end, with status 69.
    Default: ten times the median round, at least 60; half an hour until the first round is done. While files are read
    or written it is half an hour, too, and for MPI's start never less than 60. 0 switches it off."""

    resume: bool = False
    """Go on from the newest good checkpoint in --output, with the run's own settings but for those that are given;
    where there is none, start anew."""

    task: TaskSettings = field(default_factory=TaskSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)

    @property
    def reads_images(self) -> bool:
        """True where it reads the data set's images."""
        return True

    @property
    def task_name(self) -> TaskName:
        """The task, as the data have it."""
        return "detection" if self.data.name == "voc" else "classification"

    def check(self) -> None:
        """Refuse settings that do not go together."""
        if self.reads_images and self.data.lacks_root:
            raise ValueError(f"--data.name is {self.data.name}, but there is no folder; give it with --data.root DIR")
        self._check_task()
        if self.warmup_epochs and self.method != "resist":
            raise ValueError(f"--warmup_epochs precedes ResIST only; leave it out with --method {self.method}")
        if not 0 <= self.optim.warmup_epochs < self.epochs:
            raise ValueError(
                f"--optim.warmup_epochs is {self.optim.warmup_epochs}, but --epochs is {self.epochs}; give fewer"
            )
        if self.data.image_type != "fp32" and self.precision == "fp32":
            raise ValueError(
                f"--data.image_type is {self.data.image_type}, but --precision is fp32; give --precision bf16, too"
            )
        if self.cuda_graphs and self.method == "data-parallel":
            raise ValueError(
                "--cuda_graphs holds a whole step, and --method data-parallel communicates within each; leave one out"
            )
        self._check_overlap()
        if self.method == "federated-dropout":
            self._check_dropout()
        for name, what in (("trunk", "encodes averages of parameters"), ("keep", "sends a part of averages")):
            if self.exchange.changed(name) and self.method not in AVERAGING:
                raise ValueError(
                    f"--exchange.{name} is {getattr(self.exchange, name)}, which {what}, and --method "
                    f"{self.method} averages {AVERAGED.get(self.method, 'nothing')}; leave it out"
                )
        if self.outer_momentum and self.method not in AVERAGING:
            raise ValueError(
                f"--outer_momentum steps from averages of what all workers have, and --method {self.method} averages "
                f"{AVERAGED.get(self.method, 'nothing')}; leave it out"
            )
        if self.outer_momentum_blocks and self.method != "resist":
            whole = ": there --outer_momentum is of the whole network" if self.method == "local-sgd" else ""
            raise ValueError(
                "--outer_momentum_blocks needs blocks that are dealt, which only --method resist has; leave it out "
                f"with --method {self.method}{whole}"
            )
        for name in ("outer_momentum", "outer_momentum_blocks"):
            if getattr(self, name) and self.overlap:
                raise ValueError(
                    f"--{name} steps from numbers that all their holders have alike, and with --overlap each has "
                    "trained on by then; leave one out"
                )
        if self.exchange.blocks != "fp32" and self.method != "resist":
            raise ValueError(
                f"--exchange.blocks is {self.exchange.blocks}, and blocks move with --method resist only; leave it out"
            )
        if self.resume and self.output is None:
            raise ValueError("--resume needs the folder of the run to go on with; give it with --output DIR")

    def _check_task(self) -> None:
        """Refuse data that have nothing of what the task learns, and settings of another task."""
        self.task.check_of(self.task_name)
        if self.task_name == "detection":
            if self.optim.label_smoothing:
                raise ValueError("--optim.label_smoothing is for classification; leave it out with --task detection")
            if self.method == "federated-dropout":
                raise ValueError("--method federated-dropout thins classifiers; give another with --task detection")

    def _check_dropout(self) -> None:
        """Refuse networks whose filters cannot be left out, and an optimizer's state that outlives them."""
        if self.model.family != "preact":
            raise ValueError(
                f"--method federated-dropout thins pre-activation networks only, and the network is "
                f"{self.model.title}; give one of {', '.join(SECTIONS)}, or --model.sections"
            )
        if self.momentum == "keep":
            raise ValueError(
                "--momentum keep is for what stays with a worker, and with --method federated-dropout each has other "
                "filters in every round; leave it out"
            )

    def _check_overlap(self) -> None:
        """Refuse steps beside a synchronisation where there can be none."""
        if not self.overlap:
            return
        if self.overlap != "auto" and self.overlap >= self.local_iterations:
            raise ValueError(
                f"--overlap is {self.overlap}, but a round has --local_iterations {self.local_iterations}; give fewer"
            )
        if self.method not in AVERAGING:
            raise ValueError(
                f"--overlap hides averages of what all workers have, and --method {self.method} averages "
                f"{AVERAGED.get(self.method, 'nothing')}; leave one out"
            )
        for flag in ("compile", "cuda_graphs"):
            if getattr(self, flag):
                raise ValueError(
                    f"--overlap has blocks that are under way stand still, and --{flag} records steps that train all "
                    "of them; leave one out"
                )
