"""The world: MPI and Horovod set up once, checked, and where this process stands in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.comm.activity import Activity, StopRequest
from resist_hvd.comm.devices import (
    Choice,
    averages_on_gpus,
    check_alike,
    choose_device,
    gpu_identity,
    nccl_may_share,
    record_event,
    shares_gpus,
)
from resist_hvd.comm.launch import (
    host_name,
    load_mpi,
    prepare_environment,
    prepare_horovod,
    refuse_separate_worlds,
)
from resist_hvd.comm.resources import own_resources, shared_cores, threads
from resist_hvd.errors import UserError
from resist_hvd.stopwatch import Stopwatch

T = TypeVar("T")

Report = tuple[str, str, str]
"""Content of a UserError: what was seen, where, and what to do."""


def report_of(error: UserError) -> Report:
    """Return what an error says, as values that travel."""
    return error.seen, error.where, error.mend


class AgreedError(UserError):
    """An error that every rank raises, and knows that all others do."""


@dataclass
class World:
    """Place of this process among all workers.

    Attributes:
        comm: the MPI communicator of all workers; only `comm/` uses it.
        rank, size: of all workers.
        local_rank, local_size: of the workers on this host.
        host: this host's name.
        device: what this worker computes on.
        cores: how many of its host's it has, where several ranks may run on one a part of that.
        shares_gpus: whether any GPU is used by several ranks.
        averages_on_gpus: whether Horovod averages GPU memory by NCCL; else averages pass through host memory.
        activity: what this worker is doing, and since when.
        stop: the request that its run stops.
        stopwatch: where this worker's seconds go.
    """

    comm: Any
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    device: torch.device
    cores: float = 1.0
    shares_gpus: bool = False
    averages_on_gpus: bool = False
    activity: Activity = field(default_factory=Activity)
    stop: StopRequest = field(default_factory=StopRequest)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _groups: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False)

    @property
    def is_first(self) -> bool:
        """True for the rank that prints and writes for all."""
        return self.rank == 0

    @property
    def position(self) -> str:
        """Present work of this worker, in words; messages of failures say it."""
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
        refuse_separate_worlds()
        prepare_environment()
        load_mpi()
        import horovod.torch  # noqa: F401  its MPI is to be seen by the check below
        from mpi4py import MPI

        check_one_mpi(Path("/proc/self/maps").read_text())
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        comm = MPI.COMM_WORLD
        check_launched_size(comm.Get_size())
        local = comm.Split_type(MPI.COMM_TYPE_SHARED)
        world = cls(
            comm=comm,
            rank=comm.Get_rank(),
            size=comm.Get_size(),
            local_rank=local.Get_rank(),
            local_size=local.Get_size(),
            host=host_name(),
            device=torch.device("cpu"),
        )
        world._choose_threads(local)
        local.Free()
        world._choose_devices(device)
        world._start_horovod()
        return world

    def _choose_threads(self, local: Any) -> None:
        """Give PyTorch as many threads as this rank has cores, among the ranks of its host; all call it together.

        Args:
            local: the communicator of this host's ranks.
        """
        own = own_resources()
        there = local.allgather(own)
        self.cores = shared_cores(there)[self.local_rank]
        if own.omp_bound:
            # Threads and processes that are started from here on are not to inherit the one core that OpenMP left.
            with suppress(OSError):
                os.sched_setaffinity(0, own.cores)
        torch.set_num_threads(threads(there)[self.local_rank])

    def _choose_devices(self, wanted: str) -> None:
        """Choose what each rank computes on, and how averages travel; all ranks call it together.

        Raises:
            UserError: a GPU cannot be used, or some ranks have none.
        """
        import horovod.torch as hvd

        with self.agree("choosing a device"):
            self.device = choose_device(wanted, self.local_rank)
            own = Choice(
                host=self.host,
                gpu=gpu_identity(self.device),
                nccl=bool(hvd.nccl_built()),
                may_share=self.device.type == "cuda" and nccl_may_share(os.environ),
            )
        choices = self.gather_objects(own)
        with self.agree("choosing a device"):
            check_alike(choices)
        if own.gpu:
            self.stopwatch = Stopwatch(record_event)
        self.shares_gpus, self.averages_on_gpus = shares_gpus(choices), averages_on_gpus(choices)

    def _start_horovod(self) -> None:
        """Start Horovod on all ranks, which call it together.

        Raises:
            UserError: it sees another number of ranks than MPI.
        """
        import horovod.torch as hvd

        prepare_horovod(on_gpus=self.device.type == "cuda")
        hvd.init(comm=self.comm)
        if hvd.size() != self.size:
            raise UserError(
                f"MPI sees {self.size} ranks and Horovod {hvd.size()}",
                mend="Launch with horovodrun (without --gloo), mpirun or srun --mpi=pmix, all of one MPI.",
            )

    def group(self, ranks: tuple[int, ...]) -> Any:
        """Return the communicator of some ranks, which all of them ask for together; only `comm/` uses it.

        It is made once, and stays: the more communicators of different ranks there have been, the longer their members
        take to agree on a number for the next.
        """
        if ranks not in self._groups:
            self._groups[ranks] = self.comm.Create_group(self.comm.Get_group().Incl(ranks), tag=len(ranks))
        return self._groups[ranks]

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

    def once_a_host(self, make: Callable[[], T], describe: Callable[[T], str]) -> T:
        """Make a plain value on one rank of each host, and return it on all ranks of that host.

        A rank that fails before it comes here, within the same `agree`, fails all that wait for it here.

        Args:
            make: makes the value, or raises a UserError.
            describe: what hosts must agree on, in words.

        Raises:
            UserError: on every rank, where `make` raised one anywhere, or hosts made values of different descriptions.
        """
        step = self.activity.phase
        self._meet(None, step)
        with self.activity.waiting():
            comm = host_comm(self.comm)
        value: T | None = None
        failure: Report | None = None
        seen: str | None = None
        if comm.Get_rank() == 0:
            try:
                value = make()
                seen = describe(value)
            except UserError as error:
                failure = report_of(error)
        with self.activity.waiting():
            value, failure = comm.bcast((value, failure), root=0)
            comm.Free()
        self._meet(failure, step)
        by_host: dict[str, str] = {}
        for host, words in self.gather_objects((self.host, seen)):
            if words is not None:
                by_host.setdefault(words, host)
        if len(by_host) > 1:
            raise UserError(
                f"Hosts do not see the same: {'; '.join(f'{host} {words}' for words, host in by_host.items())}",
                mend="Give all hosts the same files: on a shared file system, or by copies that are complete.",
            )
        return cast(T, value)

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
    def agree(self, what: str) -> Iterator[None]:
        """Run a step that may fail on some ranks only, and fail on all of them together if it does.

        Args:
            what: the step, in words, for `position`.

        Raises:
            UserError: on every rank, what the lowest failing rank saw, if any rank raised one.
        """
        before, self.position = self.position, what
        failure: Report | None = None
        try:
            yield
        except AgreedError:
            raise
        except UserError as error:
            failure = report_of(error)
        self._meet(failure, what)
        self.position = before

    def _meet(self, failure: Report | None, step: str) -> None:
        """Wait until every rank is in a call of this; fail on all of them if any has failed.

        The calls need not be the same: a rank whose step has failed meets those that wait for it within the step.

        Args:
            failure: what this rank saw, if it has failed.
            step: in words.

        Raises:
            AgreedError: what the lowest failing rank saw.
        """
        everyone = self.gather_objects((failure, self.host))
        failed = [(rank, report, host) for rank, (report, host) in enumerate(everyone) if report is not None]
        if failed:
            rank, (saw, where, mend), host = failed[0]
            everywhere = len(failed) == self.size > 1
            ranks = f"all {self.size} ranks" if everywhere else f"rank {rank} of {self.size} on {host}"
            place = ", ".join(filter(None, (where, ranks, step)))
            raise AgreedError(saw, where=place, mend=mend, everywhere=True)


def host_comm(comm: Any) -> Any:
    """Return a new communicator of the ranks on this host."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED)


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
