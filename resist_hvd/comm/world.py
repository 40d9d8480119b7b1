"""The world: MPI and Horovod set up once, checked, and where this process stands in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.comm.activity import Activity
from resist_hvd.comm.launch import host_name
from resist_hvd.errors import UserError
from resist_hvd.stopwatch import Stopwatch

T = TypeVar("T")


@dataclass
class World:
    """Where this process stands among all workers.

    Attributes:
        comm: the MPI communicator of all workers; only `comm/` uses it.
        rank, size: of all workers.
        local_rank, local_size: of the workers on this host.
        host: this host's name.
        device: what this worker computes on.
        activity: what this worker is doing, and since when.
        can_stop: whether the run notices soon that it was told to stop, and stops by itself.
        resumable: whether a run that ends now can go on with --resume.
        stop_signal, stop_told_at: the signal by which this rank was told to stop, 0 if it was not; and when, on the
            monotonic clock.
        stopwatch: where this worker's seconds go.
        unheard: says which other ranks have not been heard of for a while, empty if none: whatever watches them sets
            it.
    """

    comm: Any
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    device: torch.device
    activity: Activity = field(default_factory=Activity)
    can_stop: bool = False
    resumable: bool = False
    stop_signal: int = 0
    stop_told_at: float = 0.0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    unheard: Callable[[], str] = str

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes for all."""
        return self.rank == 0

    @property
    def position(self) -> str:
        """What this worker is doing, in words; messages of failures say it."""
        return self.activity.words

    @position.setter
    def position(self, phase: str) -> None:
        self.activity.begin(phase)

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """Bring up MPI, then Horovod on its communicator, and check that the launch is sound.

        MPI starts at the thread level that Horovod's background thread and our own messages need.

        Args:
            device: cpu, cuda, or auto (cuda where there is one).

        Raises:
            UserError: the launch is unsound; the sentence says what to launch instead.
        """
        refuse_gloo_launch()
        import horovod.torch as hvd
        from mpi4py import MPI

        check_one_mpi(Path("/proc/self/maps").read_text())
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        comm = MPI.COMM_WORLD
        check_launched_size(comm.Get_size())
        hvd.init(comm=comm)
        if hvd.size() != comm.Get_size():
            raise UserError(
                f"MPI sees {comm.Get_size()} ranks and Horovod {hvd.size()}",
                mend="Launch with horovodrun (without --gloo), mpirun or srun --mpi=pmix, all of one MPI.",
            )
        world = cls(
            comm=comm,
            rank=comm.Get_rank(),
            size=comm.Get_size(),
            local_rank=hvd.local_rank(),
            local_size=hvd.local_size(),
            host=host_name(),
            device=torch.device("cpu"),
        )
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
        with world.agree("choosing a device"):
            world.device = choose_device(device, world.local_rank)
        return world

    # -- small words among all ranks; parameters travel by `transport` ---------------------------------------------

    def broadcast_seed(self, seed: int) -> int:
        """Return rank 0's seed, on every rank."""
        cell = np.array([seed], dtype=np.int64)
        with self.activity.waiting():
            self.comm.Bcast(cell, root=0)
        return int(cell[0])

    def broadcast_object(self, value: T) -> T:
        """Return rank 0's plain value, on every rank."""
        with self.activity.waiting():
            shared: T = self.comm.bcast(value, root=0)
        return shared

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's plain value, on every rank; for what is too irregular for `gather`."""
        with self.activity.waiting():
            everyone: list[T] = self.comm.allgather(value)
        return everyone

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return every rank's few numbers, [size, len(values)], on every rank."""
        mine = np.asarray(values, dtype=np.float64)
        everyone = np.empty((self.size, mine.size))
        with self.activity.waiting():
            self.comm.Allgather(mine, everyone)
        return everyone

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of small arrays over all ranks, element by element."""
        total = np.empty_like(values)
        with self.activity.waiting():
            self.comm.Allreduce(np.ascontiguousarray(values), total)
        return total

    def barrier(self) -> None:
        """Wait until every rank is here."""
        with self.activity.waiting():
            self.comm.Barrier()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While a run asks after each round whether any rank was told to stop: have signals leave the end to it."""
        self.can_stop = True
        try:
            yield
        finally:
            self.can_stop = False

    @contextmanager
    def agree(self, what: str) -> Iterator[None]:
        """Run a step that may fail on some ranks only, and fail on all of them together if it does.

        Args:
            what: the step, in words, for `position`.

        Raises:
            UserError: on every rank, what the lowest failing rank saw, if any rank raised one.
        """
        before, self.position = self.position, what
        error: UserError | None = None
        try:
            yield
        except UserError as caught:
            error = caught
        report = None if error is None else (error.seen, error.where, error.mend)
        everyone = self.gather_objects((report, self.host))
        failed = [(rank, report, host) for rank, (report, host) in enumerate(everyone) if report is not None]
        if failed:
            rank, (saw, where, mend), host = failed[0]
            everywhere = len(failed) == self.size > 1
            ranks = f"all {self.size} ranks" if everywhere else f"rank {rank} of {self.size} on {host}"
            place = ", ".join(filter(None, (where, ranks, what)))
            raise UserError(saw, where=place, mend=mend, everywhere=True)
        self.position = before


def refuse_gloo_launch() -> None:
    """Refuse a launch by Gloo, under which every rank would have an MPI world of its own."""
    launcher = os.environ.get("HOROVOD_CONTROLLER", "")
    size = os.environ.get("HOROVOD_SIZE", "1")
    if launcher == "gloo" and size != "1":
        raise UserError(
            f"Horovod was launched over Gloo with {size} ranks, each of which has an MPI world of its own",
            mend="Blocks travel by MPI: launch without --gloo (horovodrun --mpi, mpirun, or srun --mpi=pmix).",
        )


def check_launched_size(size: int) -> None:
    """Check that MPI sees as many ranks as the launcher started.

    Raises:
        UserError: as when the launcher and the MPI library are of different makes.
    """
    told = (os.environ.get(name) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE"))
    promised = next(filter(None, told), None)
    if promised is None and os.environ.get("SLURM_STEP_ID", "").isdecimal():
        promised = os.environ.get("SLURM_STEP_NUM_TASKS")
    if promised is not None and promised.isdecimal() and int(promised) != size:
        raise UserError(
            f"The launcher started {promised} ranks, but MPI sees {size}",
            mend="The launcher and the MPI library do not belong together: start with that MPI's own mpirun, or with "
            "an srun --mpi=TYPE that it was built for (srun --mpi=list shows them).",
        )


def check_one_mpi(memory_map: str) -> None:
    """Check that mpi4py and Horovod have loaded the same MPI library.

    Args:
        memory_map: the text of /proc/self/maps.

    Raises:
        UserError: two are loaded; ranks, communicators and handles of one mean nothing to the other.
    """
    libraries = sorted(set(re.findall(r"\S*/libmpi(?:_\w+)?\.so[.\d]*", memory_map)))
    libraries = [library for library in libraries if re.search(r"/libmpi\.so", library)]
    if len(libraries) > 1:
        raise UserError(
            f"mpi4py and Horovod use different MPI libraries: {' and '.join(libraries)}",
            mend="Build both against one MPI: run launch/setup again, with --mpi system for the site's own.",
        )


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return this worker's device: a GPU by its local rank, shared in turn where there are more ranks than GPUs.

    Raises:
        UserError: cuda is asked for, and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch sees no GPU", mend="Check nvidia-smi, or give --device cpu.")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
