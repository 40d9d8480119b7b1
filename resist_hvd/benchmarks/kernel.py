"""The kernel's counts of this process and of its network, so that a program's own need not be believed."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CLEAR_REFERENCES, PEAK = Path("/proc/self/clear_refs"), "5"
"""Writing 5 there sets a process's peak memory to what it has now (proc(5))."""


class Sent(NamedTuple):
    """Bytes that interfaces of this host have sent: those to other hosts, and the loopback."""

    network: int
    loopback: int

    def since(self, before: Sent) -> Sent:
        """Return what was sent since an earlier count."""
        return Sent(self.network - before.network, self.loopback - before.loopback)


def sent_by_host() -> Sent:
    """Return the bytes that the interfaces of this network namespace have sent since they came up; headers included."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    sent = {interface: each.bytes_sent for interface, each in counters.items()}
    loopback = sent.pop("lo", 0)
    return Sent(sum(sent.values()), loopback)


class PeakMemory:
    """The most memory that this process has above what it has now: on a GPU PyTorch's, else the process's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        # What the last candidate gave back is to be the kernel's again, or this one would seem to need less.
        ctypes.CDLL(None).malloc_trim(0)
        self._before = _status("VmRSS")
        try:
            CLEAR_REFERENCES.write_text(PEAK)
            self._resets = True
        except OSError:
            self._resets = False

    def above(self) -> int | None:
        """Return the peak in bytes, None where the kernel does not tell it anew."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, _status("VmHWM") - self._before) if self._resets else None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"this kernel does not tell {name}")
