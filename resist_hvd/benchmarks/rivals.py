"""PyTorch's own ways of training on several workers, written as its documentation writes them.

They know nothing of our methods, transport or flat storage; only the network, its first weights and images are ours,
and its optimizer the bare loop's.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from resist_hvd.benchmarks.bare import optimizer_of
from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch
from resist_hvd.errors import UserError
from resist_hvd.protocol.exchange import ring_bytes
from resist_hvd.settings.optim import OptimSettings


class Rival(ABC):
    """A PyTorch training loop.

    Attributes:
        network: the whole network, this worker's.
        sent: payload in bytes that this rank has handed over to be sent, a collective as a ring all-reduce.
    """

    def __init__(self, network: nn.Module, world: World, optim: OptimSettings, local_iterations: int) -> None:
        self.network = network
        self.world = world
        self.optim = optim
        self.local_iterations = local_iterations
        self.sent = 0
        devices = [world.device] if world.device.type == "cuda" else None
        self.model = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        self.optimizer = self.make_optimizer(optimizer_of(network, optim))

    @abstractmethod
    def make_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer to step, made of a plain one; and set the model up for it."""

    def step(self, batches: Iterator[Batch], rate: float) -> None:
        """Make one training step."""
        train_step(self.model, self.optimizer, batches, rate, self.optim)


class DataParallelRival(Rival):
    """DistributedDataParallel: gradients are averaged in buckets beside the backward pass."""

    def make_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the plain optimizer; the model averages gradients itself, and counts them."""
        # PyTorch compares a hook's annotations with its own classes, so this one has none.
        self.model.register_comm_hook(None, lambda _, bucket: self._average(bucket))
        return optimizer

    def _average(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        self.sent += ring_bytes(bucket.buffer().nbytes, self.world.size)
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]


class PostLocalSGDRival(Rival):
    """PostLocalSGDOptimizer, with no warm-up and no gradients averaged: parameters are, after each l steps.

    Its averager leaves parameters in row-major order, and in memory of its own. Where they were channels_last,
    convolutions would be slower from then on, and each gradient would be copied into a bucket of other strides, which
    DistributedDataParallel warns of. So averages are put back to where parameters were.
    """

    def __init__(self, network: nn.Module, world: World, optim: OptimSettings, local_iterations: int) -> None:
        self._storage = [parameter.data for parameter in network.parameters()]
        super().__init__(network, world, optim, local_iterations)

    def make_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer that averages parameters each l steps."""
        state = post_localSGD_hook.PostLocalSGDState(  # type: ignore[no-untyped-call]
            process_group=None, subgroup=None, start_localSGD_iter=0, post_local_gradient_allreduce=False
        )
        self.model.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
        averager = PeriodicModelAverager(period=self.local_iterations, warmup_steps=0)
        # It averages where its count of steps divides: counted from 1, that is at each round's end.
        averager.step = 1
        return PostLocalSGDOptimizer(optim=optimizer, averager=averager)

    def step(self, batches: Iterator[Batch], rate: float) -> None:
        """Make one training step; where it ended a round, count what was averaged."""
        super().step(batches, rate)
        averager = self.optimizer.averager  # type: ignore[attr-defined]
        if (averager.step - 1) % self.local_iterations == 0:
            for parameter, storage in zip(self.network.parameters(), self._storage, strict=True):
                parameter.data = storage.copy_(parameter.data)
            self.sent += ring_bytes(sum(storage.nbytes for storage in self._storage), self.world.size)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Batch], rate: float, optim: OptimSettings
) -> None:
    """Make one training step at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    images, labels = next(batches)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(images), labels, label_smoothing=optim.label_smoothing)
    torch.autograd.backward(loss)
    if optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
    optimizer.step()


@contextmanager
def process_group(world: World, interface: str | None, *, pairs: bool = False) -> Iterator[str]:
    """Have PyTorch's processes know one another, over NCCL where each rank has a GPU of its own, else over Gloo.

    Args:
        world: all ranks, which enter this together.
        interface: the network interface to use; None for the loopback where all ranks are on one host, else for that
            by which other hosts are reached.
        pairs: whether ranks send to single others: NCCL then has a way of its own for each pair of them, where PyTorch
            knows how, so that no message waits for one to another rank.

    Yields:
        the backend's name.

    Raises:
        UserError: there is no such interface here, it has no address, or no host's name leads to another host.
    """
    if world.local_size == world.size:
        interface = interface or "lo"
    names = world.gather_objects(socket.gethostname())
    with world.agree("finding the network interface"):
        if interface:
            chosen, address = interface, address_of(interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        else:  # NCCL may take several at once
            chosen, address = way_to([name for name in names if name != names[world.rank]])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", chosen)
    with world.agree("opening PyTorch's store"):
        store = open_store(address) if world.is_first else None
    address, port = world.broadcast_object((address, store.port if store else 0))
    store = store or dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    nccl = "nccl-lazy" if pairs and "nccl-lazy" in dist.Backend.backend_list else "nccl"
    backend = nccl if world.device.type == "cuda" and not world.shares_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    try:
        yield backend
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def open_store(address: str) -> Any:
    """Return the store by which PyTorch's processes find one another, at an address and a free port of it.

    The port is held from the moment at which it is chosen, so that no other program can get it in between.

    Raises:
        UserError: this host has no such address.
    """
    with socket.socket() as held:
        try:
            held.bind((address, 0))
        except OSError as error:
            raise UserError(
                f"PyTorch's store cannot listen at {address}: {error.strerror}",
                mend="Give --interface the network interface that joins the hosts.",
            ) from None
        held.listen()
        port = held.getsockname()[1]
        return dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=held.detach()
        )


def way_to(hosts: Sequence[str]) -> tuple[str, str]:
    """Return the interface by which this host reaches others, and its IPv4 address.

    A host's own name may not tell: on Debian it is 127.0.1.1.

    Args:
        hosts: the others' names; the first that leads to another host decides.

    Raises:
        UserError: none does.
    """
    for host in hosts:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.connect((host, 9))  # sends nothing: the kernel says which way it would
            address = unused.getsockname()[0]
            for interface, entries in psutil.net_if_addrs().items():
                if not address.startswith("127.") and any(entry.address == address for entry in entries):
                    return interface, address
    raise UserError(
        f"The names of the other hosts ({', '.join(dict.fromkeys(hosts))}) lead to no network that joins them",
        mend="Give --interface the network interface that joins the hosts.",
    )


def address_of(interface: str) -> str:
    """Return an interface's IPv4 address.

    Raises:
        UserError: there is no such interface, or it has no address.
    """
    interfaces = psutil.net_if_addrs()
    for entry in interfaces.get(interface, []):
        if entry.family == socket.AF_INET:
            return str(entry.address)
    raise UserError(
        f"--interface is {interface!r}, which is not here or has no IPv4 address",
        mend=f"Give one of {', '.join(interfaces)}.",
    )
