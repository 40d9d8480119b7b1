"""Steps on the ground of all others: the machine's facts, Horovod with NCCL, and tensors that travel between ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from provision.cuda import LEAST_DRIVER

from gpu_check.check import Check
from gpu_check.machine import Machine
from gpu_check.verdicts import FailedError, SkippedError

EXACT_ENOUGH = 1e-6
"""Largest difference, relative to the largest number, of averages of float32: ranks' numbers are added in any order."""

WAYS = ("nccl", "host", "bound", "uneven")
"""Those of `programs.transport`."""


def facts(check: Check) -> None:
    """Tell what the machine has, and what of it stands in the way of training on its GPUs."""
    machine, finding = check.machine, check.finding
    finding.figures.update(machine.to_json())
    finding.words.append(machine.headline)
    for gpu in machine.gpus:
        memory = f"{gpu.memory / 2**30:.0f} GiB"
        finding.lines.append(f"{gpu.name}, {memory}, compute capability {gpu.capability}, {gpu.uuid}")
    engines = f"{machine.jpeg_engines} x {machine.jpeg_cores} cores" if machine.jpeg_engines > 0 else "none"
    if machine.gpus and machine.jpeg_engines < 0:
        engines = "unknown, without nvJPEG"
    finding.lines.append(
        f"Python {machine.python}, DALI {machine.dali or 'not installed'}, pytest {machine.pytest or 'not installed'}, "
        f"NCCL in Horovod: {'yes' if machine.horovod_nccl else 'no'}, JPEG engines: {engines}, C compiler: "
        f"{machine.compiler or 'none'}{'' if machine.headers else ', but no Python.h'}, driver's library: "
        f"{', '.join(machine.libcuda) or 'none'}, /dev/shm: {machine.shared_memory / 2**30:.1f} GiB free"
    )
    finding.faults += faults(machine)
    if check.needs_gpu and not machine.gpus:
        finding.faults.append(f"PyTorch {machine.torch} sees no GPU, and --need-gpu asks for one")


def faults(machine: Machine) -> list[str]:
    """Return what must be mended before a machine's GPUs are used well."""
    found = [machine.unusable] if machine.unusable else []
    if not machine.gpus:
        return found
    for gpu in machine.gpus:
        if machine.architectures and not is_built_for(gpu.capability, machine.architectures):
            built = ", ".join(machine.architectures)
            found.append(f"PyTorch is built for {built}, not for compute capability {gpu.capability} ({gpu.name})")
    oldest = LEAST_DRIVER.get(int(machine.cuda.partition(".")[0] or 0), 0)
    major = machine.driver.partition(".")[0]
    if major.isdecimal() and int(major) < oldest:
        found.append(f"the driver is {machine.driver}; CUDA {machine.cuda} wants {oldest} or newer")
    if not machine.horovod_nccl:
        found.append("Horovod was built without NCCL operations: launch/setup --cuda yes")
    if "libcuda.so.1" not in machine.libcuda:
        found.append("libcuda.so.1 cannot be loaded")
    return found


def is_built_for(capability: str, architectures: Sequence[str]) -> bool:
    """Return whether programs of these architectures run on a GPU.

    Machine code (sm_80) runs on later GPUs of its major version, intermediate code (compute_80) on all later ones.
    """
    own = int(capability.replace(".", ""))
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures)):
        if int(digits) <= own and (kind == "compute" or int(digits) // 10 == own // 10):
            return True
    return False


def horovod(check: Check) -> None:
    """Average GPU memory by Horovod on one rank, while the GPU is still to write it."""
    if not check.machine.gpus:
        raise SkippedError("no GPU")
    if not check.machine.horovod_nccl:
        raise SkippedError("Horovod was built without NCCL operations")
    found = check.ask("allreduce", "allreduce")
    check.finding.figures.update(found)
    times = ", ".join(f"{int(count):,}: {ms} ms" for count, ms in found["milliseconds"].items())
    check.finding.words.append(f"{found['calls']} calls; {times}")
    if found["wrong"]:
        where = "; ".join(f"{count} numbers of {what}" for what, count in found["wrong"].items())
        raise FailedError(f"averages are wrong: {where}")


def ranks(check: Check) -> None:
    """Move tensors between two ranks, and as many as wanted, on every way there is."""
    machine, finding = check.machine, check.finding
    if check.ranks < 2:
        raise SkippedError("it needs two ranks")
    worlds = [(2, "nccl"), (2, "host"), *((check.ranks, way) for way in WAYS)] if machine.gpus else [(2, "host")]
    # Ranks that wait in NCCL keep a GPU busy, for which those of other worlds would have to wait.
    with check.at_once(machine.cores if machine.shares_gpus(check.ranks) else check.ranks) as pool:
        gone = {world: pool.submit(travel, check, *world) for world in dict.fromkeys(worlds)}
        for (count, way), future in gone.items():
            try:
                finding.lines.append(f"{count} ranks, {way}: {future.result()}")
            except SkippedError as skipped:
                finding.lines.append(f"{count} ranks, {way}: skipped, {skipped}")
            except FailedError as failure:
                finding.faults.append(f"{count} ranks, {way}: {failure}")
                finding.tail = finding.tail or failure.tail
    measured = [found for found in finding.figures.values() if "worst" in found]
    if measured:
        worst = max(found["worst"] for found in measured)
        finding.words.append(
            f"{len(measured)} world{'' if len(measured) == 1 else 's'}, averages at most {worst:.1e} off"
        )
    if not machine.gpus:
        finding.words.append("no GPU: on CPUs alone")


def travel(check: Check, count: int, way: str) -> str:
    """Move tensors between some ranks on one way, note what was found, and return it in words.

    Raises:
        SkippedError: NCCL cannot do it here.
        FailedError: they arrived otherwise than they must, or went another way.
    """
    machine, name = check.machine, f"{count}-{way}"
    if way == "nccl" and (lack := machine.why_no_nccl(count)):
        raise SkippedError(lack)
    own = ("--way", way, "--device", machine.device, "--gpus", str(len(machine.gpus) or 1))
    found = check.ask(name, "transport", *own, ranks=count, variables=machine.sharing(count))
    check.finding.figures[name] = found
    by = "NCCL" if found["by_nccl"] else "host memory" if machine.gpus else "MPI"
    if found["by_nccl"] != (way in ("nccl", "bound") and not machine.why_no_nccl(count)):
        raise FailedError(f"averages went by {by}")
    if not found["worst"] <= EXACT_ENOUGH:
        raise FailedError(f"what arrived is {found['worst']:.1e} off, {EXACT_ENOUGH:.0e} allowed")
    times = ", ".join(f"{int(numbers):,}: {ms} ms" for numbers, ms in found["milliseconds"].items())
    on = f", {len(found['gpus'])} GPUs" if machine.gpus else ""
    return f"by {by}{on}, {found['worst']:.1e} off; {times}"
