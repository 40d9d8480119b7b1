"""Steps that measure: images a second, a synchronisation, and the demonstration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_check.check import Check, read
from gpu_check.training import note_faults
from gpu_check.verdicts import FailedError, SkippedError

OURS, BARE = "through method and loop", "bare PyTorch loop"
AIMS = {"H100": 4000.0, "H200": 4800.0}
"""Images a second of ResNet-50 in bf16 at 224 x 224 pixels, the faster of eager and compiled, by a GPU's name."""

LOADER_AIM, WAITING_AIM = 0.97, 1.0
"""The loader's images a second over bare DALI's, at least; percent of a training step that waits for it, at most."""

DEMONSTRATION_AIM = 95.0
LARGE = ("--image_size=224", "--data.batch_size=256", "--steps=8", "--repeats=4")
SMALL = ("--image_size=32", "--classes=10", "--steps=20", "--repeats=4")
PHOTOGRAPHS = 1024


@dataclass(frozen=True)
class Row:
    """A network whose training steps are timed.

    Attributes:
        title: for tables.
        flags: of `bench step`.
        needs_compiler: whether it needs a C compiler and Python's headers.
    """

    title: str
    flags: tuple[str, ...]
    needs_compiler: bool = False


def row(network: str, *, compiled: bool = False, graphs: bool = False) -> Row:
    """Return a network's row, compiled or not, launched kernel by kernel or as CUDA graphs."""
    recipe, images = {
        "ResNet-50, 224 px": ("imagenet-resnet50", LARGE),
        "ResNet-101, 32 px": ("cifar10-resnet101", SMALL),
    }[network]
    manner = (f"--compile={str(compiled).lower()}", f"--cuda_graphs={str(graphs).lower()}", "--precision=bf16")
    title = ", ".join([network, "bf16", *(["compiled"] if compiled else []), *(["CUDA graphs"] if graphs else [])])
    return Row(title, (f"--recipe={recipe}", *images, *manner), needs_compiler=compiled)


ROWS = (
    row("ResNet-50, 224 px"),
    row("ResNet-50, 224 px", compiled=True),
    row("ResNet-50, 224 px", compiled=True, graphs=True),
    row("ResNet-101, 32 px"),
    row("ResNet-101, 32 px", graphs=True),
)


def throughput(check: Check) -> None:
    """Time training steps on images in memory, then the loader, by itself and beside training."""
    machine, finding = check.machine, check.finding
    if not machine.gpus:
        raise SkippedError("no GPU")
    for number, timed in enumerate(ROWS):
        if timed.needs_compiler and not (machine.compiler and machine.headers):
            finding.lines.append(f"{timed.title}: skipped, no C compiler or no Python.h")
            continue
        note_faults(check, f"{timed.title}: ", time_steps, check, timed, f"step-{number}")
    if machine.dali:
        note_faults(check, "loader: ", time_loader, check)
    else:
        finding.lines.append("loader: skipped, DALI is not installed")
    note_faults(check, "", judge_aim, check)


def time_steps(check: Check, timed: Row, name: str) -> None:
    """Time a network's training steps, and note images a second."""
    file = check.folder / f"{name}.json"
    check.do(name, "resist_hvd.bench", "step", *timed.flags, f"--json={file}")
    found = read(file)
    rates = found["images_a_second"]
    check.finding.figures[timed.title] = {"images_a_second": rates, "ratio": found["ratio"]}
    check.finding.lines.append(
        f"{timed.title}: {rates[OURS]:,.0f} images/s, a bare loop {rates[BARE]:,.0f}; {found['ratio']:.3f} of its time"
    )


def judge_aim(check: Check) -> None:
    """Compare ResNet-50 with what is aimed at on this GPU.

    Raises:
        FailedError: it is slower.
    """
    reached = [
        check.finding.figures[timed.title]["images_a_second"][OURS]
        for timed in ROWS
        if timed.title.startswith("ResNet-50") and timed.title in check.finding.figures
    ]
    if not reached:
        return
    name = check.machine.gpus[0].name
    aim = next((aim for gpu, aim in AIMS.items() if gpu in name), 0.0)
    check.finding.words.append(f"ResNet-50 {max(reached):,.0f} images/s{f' of {aim:,.0f}' if aim else ''}")
    if not max(reached) >= aim:
        raise FailedError(f"ResNet-50 trains {max(reached):,.0f} images/s, {aim:,.0f} are aimed at on {name}")


def time_loader(check: Check) -> None:
    """Time the loader against bare DALI, and how long a training step waits for it.

    Raises:
        FailedError: it is slower, or steps wait longer, than is aimed at.
    """
    root = check.images
    if root is None:
        root = check.folder / "photographs"
        check.ask("photographs", "photographs", "--root", root, "--count", str(PHOTOGRAPHS))
    own = ("--batches=16", "--passes=2", "--steps=40", "--data.batch_size=256", "--precision=bf16")
    ways = "--hardware_load=[0.65,0.95]"
    ended = check.do("loader", "resist_hvd.bench", "loader", *own, ways, "--data.root", root)
    found = read_loader(ended.output)
    check.finding.figures["loader"] = found
    check.finding.lines.append(
        f"loader: {found['images_a_second']:,.0f} images/s, {found['ratio']:.3f} of bare DALI's; beside training "
        f"{found['beside_training']:,.0f} images/s, {found['waiting']:.2f} % of a step waits"
    )
    if not (found["ratio"] >= LOADER_AIM and found["waiting"] <= WAITING_AIM):
        raise FailedError(
            f"{found['ratio']:.3f} of bare DALI's images/s ({LOADER_AIM} aimed at), {found['waiting']:.2f} % of a step "
            f"waits ({WAITING_AIM:.0f} % at most)"
        )


def read_loader(said: str) -> dict[str, float]:
    """Return the figures that `bench loader` has printed, of several ways of loading the best.

    Raises:
        FailedError: some are missing.
    """
    words = " ".join(said.split())
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"this loader[^│]*│ +([\d,]+)", words)]
    patterns = {
        "ratio": r"ratio ([\d.]+): images a second by this loader",
        "beside_training": r"Beside training [^:]+: ([\d.,]+) images/s",
        "waiting": r"of which ([\d.]+) % wait for data",
    }
    found = {name: re.search(pattern, words) for name, pattern in patterns.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing or not rates:
        raise FailedError(f"bench loader did not print {', '.join(missing) or 'images/s'}", said[-2000:])
    others = {name: float(match[1].replace(",", "")) for name, match in found.items() if match is not None}
    return {"images_a_second": max(rates), **others}


def synchronise(check: Check) -> None:
    """Time ResIST's synchronisation among all ranks."""
    if check.ranks < 2:
        raise SkippedError("it needs two ranks")
    # Without a GPU it only shows that it runs.
    network: Sequence[str] = () if check.machine.gpus else ("--model.sections=1,1,6", "--model.width_factor=0.25")
    ended = check.do("sync", "resist_hvd.bench", "sync", "--repeats=10", *network, ranks=check.ranks)
    words = " ".join(ended.output.split())
    median = re.search(r"ResIST's synchronisation │ +([\d.,]+)", words)
    ratio = re.search(r"ratio ([\d.]+): seconds of ResIST's", words)
    if median is None or ratio is None:
        raise FailedError("bench sync did not print its figures", ended.tail)
    found = {"milliseconds": float(median[1].replace(",", "")), "ratio": float(ratio[1])}
    check.finding.figures.update(found)
    check.finding.words.append(
        f"{found['milliseconds']:.1f} ms on {check.ranks} ranks, {found['ratio']:.2f} of MPI_Allreduce's of the trunk"
    )


def demonstration(check: Check) -> None:
    """Train the embedded demonstration on all ranks.

    Raises:
        FailedError: it is less accurate than it should be.
    """
    run = check.train("demonstration", "--device", check.machine.device, ranks=check.ranks)
    accuracy = float(read(run / "summary.json")["accuracy"])
    check.finding.figures["accuracy"] = accuracy
    check.finding.words.append(f"{accuracy:.2f} % on {check.ranks} ranks ({check.machine.device})")
    if not accuracy >= DEMONSTRATION_AIM:
        raise FailedError(f"the demonstration ends at {accuracy:.2f} %, {DEMONSTRATION_AIM:.0f} % are expected")
