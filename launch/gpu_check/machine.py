"""This machine, as its own installation sees it: `programs.facts` looks, and this is what the steps ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHARED_GPU_NCCL = (2, 30)
"""The first NCCL that lets several ranks use one GPU, where NCCL_MULTI_RANK_GPU_ENABLE is 1."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes:
        uuid: its own number in all the world.
        memory: in bytes.
        capability: its compute capability, such as "9.0".
    """

    name: str
    uuid: str
    memory: int
    capability: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Equipment of a machine; what it lacks is empty.

    Attributes:
        gpus: those that PyTorch can use.
        unusable: why PyTorch cannot use a GPU that is there.
        driver: version of NVIDIA's.
        torch, cuda: versions of PyTorch, and of the CUDA that it was built for.
        architectures: that PyTorch was built for, such as "sm_90".
        nccl: version of the NCCL that is loaded.
        horovod_nccl: whether Horovod averages GPU memory by it.
        dali: version of DALI.
        libcuda: the names under which the driver's library can be loaded.
        jpeg_engines, jpeg_cores: of a GPU's own JPEG decoder; -1 where nvJPEG does not tell.
        compiler: what --compile finds, such as /usr/bin/gcc.
        headers: whether Python's C headers are there, which Triton compiles against.
        cores: that this process may run on.
        shared_memory: bytes that are free in /dev/shm.
        pytest: its version.
    """

    gpus: tuple[Gpu, ...] = ()
    unusable: str = ""
    driver: str = ""
    python: str = ""
    torch: str = ""
    cuda: str = ""
    architectures: tuple[str, ...] = ()
    nccl: tuple[int, ...] = ()
    horovod_nccl: bool = False
    dali: str = ""
    libcuda: tuple[str, ...] = ()
    jpeg_engines: int = -1
    jpeg_cores: int = -1
    compiler: str = ""
    headers: bool = False
    cores: int = 1
    shared_memory: int = 0
    pytest: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Machine:
        """Return the machine that `programs.facts` has seen."""
        lists = {name: tuple(facts[name]) for name in ("architectures", "nccl", "libcuda")}
        return cls(**{**facts, **lists, "gpus": tuple(Gpu(**gpu) for gpu in facts["gpus"])})

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's own types."""
        return asdict(self)

    @property
    def device(self) -> str:
        """The device for `--device`: cuda where there is a GPU, else cpu."""
        return "cuda" if self.gpus else "cpu"

    @property
    def headline(self) -> str:
        """The machine in a line."""
        names = sorted({gpu.name for gpu in self.gpus})
        gpus = f"{len(self.gpus)} x {', '.join(names)}, driver {self.driver}" if self.gpus else "no GPU"
        nccl = f"NCCL {'.'.join(map(str, self.nccl))}" if self.nccl else "no NCCL"
        return f"{gpus}; PyTorch {self.torch} for CUDA {self.cuda or 'none'}, {nccl}; {self.cores} cores"

    def shares_gpus(self, ranks: int) -> bool:
        """Return whether so many ranks have to share GPUs."""
        return 0 < len(self.gpus) < ranks

    def why_no_nccl(self, ranks: int) -> str:
        """Return why NCCL cannot average among so many ranks; empty where it can."""
        if not self.gpus:
            return "no GPU"
        if not self.horovod_nccl:
            return "Horovod was built without NCCL operations"
        if self.shares_gpus(ranks) and self.nccl[:2] < SHARED_GPU_NCCL:
            version = ".".join(map(str, self.nccl))
            return f"{ranks} ranks share {len(self.gpus)} GPU, which NCCL {version} refuses (2.30 and later can)"
        return ""

    def sharing(self, ranks: int) -> dict[str, str]:
        """Return the variables with which NCCL averages among so many ranks on this machine's GPUs, if it can."""
        shares = self.shares_gpus(ranks) and not self.why_no_nccl(ranks)
        return {"NCCL_MULTI_RANK_GPU_ENABLE": "1"} if shares else {}
