"""Steps that train: the same on CPU and GPU, in both precisions, stopped and resumed, killed, compiled."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gpu_check.check import EXACT, Check, lines
from gpu_check.comparing import Difference, compare
from gpu_check.running import Running
from gpu_check.verdicts import FailedError, SkippedError

Runs = Mapping[tuple[str, str], Future[Path]]
"""Folders of a method's runs, by device and precision."""

METHODS = ("resist", "local-sgd", "data-parallel", "ensemble", "federated-dropout")
ROUNDS = 3
LOSS, MODEL, BF16, POINTS = 2e-5, 2e-5, 0.02, 1.0
"""Largest differences: of losses and of models (by norms) that only rounding tells apart; of a mean loss in bf16,
relative to fp32's; and of accuracy in percent between two precisions of one network."""

TINY_RUN = {**EXACT, "OMP_NUM_THREADS": "1"}
"""For several tiny runs at once: with threads for all cores each, they would be in one another's way."""

STOPPED = 75
AFTER_RESUMING = 4
SOON = 60.0
"""Seconds within which all ranks are gone once one is killed."""

IMAGES, BATCH, LOCAL_ITERATIONS = 1437, 64, 2
"""Digits' training images, and how tiny runs take them."""

TINY: dict[str, object] = {
    "data.name": "digits",
    "data.image_size": 8,
    "data.batch_size": BATCH,
    "data.calibration_images": 256,
    "model.sections": "1,1,6",
    "model.width_factor": 0.125,
    # Blocks that began as the identity would still be much alike: one that is taken for another might not be noticed.
    "model.zero_init_residual": "false",
    "min_blocks": 3,
    "precision": "fp32",
    # Few steps at a low rate: what rounding does grows with each, as it decides on which side of zero units fall. CPUs
    # with other instructions differ by 1e-6 and less after ten, at a rate of 0.002 by 2e-5 to 8e-5. A step that
    # is wrong differs from the first on: by 2e-4 without momentum, by 5e-4 without this much weight decay.
    "local_iterations": LOCAL_ITERATIONS,
    "epochs": 20,
    "optim.lr": 5e-4,
    "optim.weight_decay": 0.05,
    "optim.schedule": "constant",
    "optim.warmup": 0,
}


def flags(**changes: object) -> list[str]:
    """Return the flags of a tiny run; two underscores in a name stand for a dot."""
    values = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [f"--{name}={value}" for name, value in values.items()]


def with_nccl(check: Check) -> dict[str, str]:
    """Return the environment of a tiny run that averages by NCCL even where ranks share a GPU.

    Not all runs do: ranks that wait in NCCL keep the GPU busy, and it turns from one to the other.
    """
    return {**TINY_RUN, **check.machine.sharing(check.ranks)}


# -- the same training -------------------------------------------------------------------------------------------------


def same(check: Check) -> None:
    """Train each method on CPU and GPU and compare; evaluate one network in both precisions."""
    with check.at_once(check.ranks) as pool:
        evaluated = pool.submit(both_precisions, check)  # first: it takes longest
        runs = {method: begin(check, pool, method) for method in METHODS}
        for method in METHODS:
            note_faults(check, f"{method}: ", judge, check, method, runs[method])
        note_faults(check, "", lambda: judge_precisions(check, evaluated.result()))
    if not check.machine.gpus:
        check.finding.words.append("no GPU: trained on CPUs alone")


def begin(check: Check, pool: ThreadPoolExecutor, method: str) -> Runs:
    """Begin a method's runs: on the CPU, and where there is a GPU, on that in both precisions."""
    settings = [("cpu", "fp32"), *([("cuda", "fp32"), ("cuda", "bf16")] if check.machine.gpus else [])]
    return {
        (device, precision): pool.submit(train_one, check, method, device, precision) for device, precision in settings
    }


def train_one(check: Check, method: str, device: str, precision: str) -> Path:
    """Train one method for some rounds and return the run's folder."""
    own = flags(method=method, device=device, precision=precision, max_rounds=ROUNDS, evaluate_every=1)
    environment = with_nccl(check) if precision == "fp32" else TINY_RUN
    return check.train(f"{method}-{device}-{precision}", *own, ranks=check.ranks, variables=environment)


def judge(check: Check, method: str, runs: Runs) -> None:
    """Compare a method's runs, and note what was found.

    Raises:
        FailedError: they differ too much.
    """
    on_cpu = runs["cpu", "fp32"].result()
    figures = check.finding.figures
    figures[f"{method} cpu loss"] = lines(on_cpu / "rounds.jsonl")[-1]["loss"]
    if not check.machine.gpus:
        return
    exact = compare(on_cpu, runs["cuda", "fp32"].result())
    rounded = compare(on_cpu, runs["cuda", "bf16"].result())
    figures[f"{method} cpu to gpu"] = vars(exact)
    figures[f"{method} fp32 to bf16"] = vars(rounded)
    check.finding.lines.append(told(method, exact, rounded))
    wrong = too_far(exact)
    if not rounded.relative_loss <= BF16:
        wrong.append(f"bf16's loss is {100 * rounded.relative_loss:.1f} % off")
    if wrong:
        raise FailedError(", ".join(wrong))


def too_far(apart: Difference, loss: float = LOSS, model: float = MODEL) -> list[str]:
    """Return in words by what two runs differ more than is allowed."""
    found = {
        "losses": (apart.loss, loss),
        "evaluations' losses": (apart.evaluated, loss),
        "models": (apart.models, model),
    }
    return [f"{what} {far:.1e} apart, {limit:.0e} allowed" for what, (far, limit) in found.items() if not far <= limit]


def told(method: str, exact: Difference, rounded: Difference) -> str:
    """Return a method's differences in a line."""
    return (
        f"{method:<17} CPU to GPU: losses {exact.loss:.1e}, evaluated {exact.evaluated:.1e}, models "
        f"{exact.models:.1e}; bf16's loss {100 * rounded.relative_loss:.2f} % off"
    )


def both_precisions(check: Check) -> dict[str, dict[str, float]]:
    """Train a network until it tells most digits apart, and evaluate it in both precisions."""
    device = check.machine.device
    learning = {
        "data__batch_size": 32,
        "local_iterations": 8,
        "optim__lr": 0.1,
        "optim__weight_decay": 5e-4,
        "optim__schedule": "cosine",
    }
    own = flags(device=device, epochs=8 * check.ranks, **learning)
    run = check.train("to-evaluate", *own, ranks=check.ranks, variables=TINY_RUN)
    asked = ("--run", run, "--device", device)
    return check.ask("evaluate", "evaluate", *asked, ranks=check.ranks, variables=TINY_RUN)


def judge_precisions(check: Check, found: Mapping[str, Mapping[str, float]]) -> None:
    """Compare a network's evaluations.

    Raises:
        FailedError: they differ too much.
    """
    check.finding.figures["evaluated"] = found
    accuracy, rounded = (found[precision]["accuracy"] for precision in ("fp32", "bf16"))
    apart = abs(accuracy - rounded)
    check.finding.words.append(f"one network {accuracy:.2f} % in fp32, {rounded:.2f} % in bf16")
    if not apart <= POINTS:
        raise FailedError(f"evaluations in fp32 and bf16 are {apart:.2f} points apart, {POINTS:.0f} allowed")


def note_faults(check: Check, heading: str, action: Callable[..., None], *arguments: object) -> None:
    """Do something; where it fails, note that as a fault and go on."""
    try:
        action(*arguments)
    except FailedError as failure:
        check.finding.faults.append(f"{heading}{failure}")
        check.finding.tail = check.finding.tail or failure.tail


# -- stopped, resumed, killed ------------------------------------------------------------------------------------------


def stop(check: Check) -> None:
    """Stop a run by a signal and resume it; kill a rank of another. All ends as it should."""
    if check.ranks < 2:
        raise SkippedError("it needs two ranks")
    with check.at_once(check.ranks) as pool:
        both = [pool.submit(resume, check), pool.submit(kill, check)]
        for one in both:
            note_faults(check, "", one.result)


def resume(check: Check) -> None:
    """Stop a run after some rounds by USR2, resume it, and compare it with one that never stopped."""
    # Momentum is kept, so that its loss would show; the rate is lower yet, as a signal may come some rounds late.
    learning = {"momentum": "keep", "optim__lr": 1e-4}
    own = [*flags(device=check.machine.device, epochs=200, evaluate_every=0, **learning), "--checkpoint_every=0"]
    folder = check.folder / "stopped"
    running = check.start(
        "stopped", "resist_hvd.train", *own, "--output", folder, ranks=check.ranks, variables=TINY_RUN
    )
    await_rounds(check, running, folder, 3)
    running.process.send_signal(signal.SIGUSR2)
    check.await_end(running, "the stopped run", statuses=[STOPPED])
    rounds = len(lines(folder / "rounds.jsonl"))
    more = f"--max_rounds={rounds + AFTER_RESUMING}"
    check.train("stopped", *own, more, "--resume", ranks=check.ranks, variables=TINY_RUN)
    check.train("unstopped", *own, more, ranks=check.ranks, variables=TINY_RUN)
    numbers = [line["round"] for line in lines(folder / "rounds.jsonl")]
    if numbers != list(range(rounds + AFTER_RESUMING)):
        raise FailedError(f"the rounds of the resumed run are {numbers}")
    apart = compare(folder, check.folder / "unstopped")
    check.finding.figures["resumed"] = {"after": rounds, **vars(apart)}
    check.finding.words.append(
        f"resumed after {rounds} rounds, losses {apart.loss:.1e} off an unstopped run's, models {apart.models:.1e}"
    )
    # A GPU adds up in another order each time; a CPU does not.
    wrong = too_far(apart) if check.machine.gpus else too_far(apart, loss=0.0, model=0.0)
    if wrong:
        raise FailedError(f"the resumed run goes another way than one that never stopped: {', '.join(wrong)}")


def kill(check: Check) -> None:
    """Kill a rank while others wait for it; all end soon, and one says who was lost."""
    own = [*flags(device=check.machine.device, epochs=100_000, evaluate_every=0), "--checkpoint_every=0"]
    folder = check.folder / "killed"
    running = check.start(
        "killed", "resist_hvd.train", *own, "--output", folder, ranks=check.ranks, variables=with_nccl(check)
    )
    await_rounds(check, running, folder, 3)
    time.sleep(2.5)  # what ranks say of themselves is up to a second old
    victim = running.rank(check.ranks - 1)
    if victim is None:
        running.end()
        raise FailedError("no process is the last rank", running.output())
    began = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    ended = check.await_end(running, "the run of which a rank was killed", statuses=range(1, 256))
    seconds = time.monotonic() - began
    check.finding.figures["killed"] = {"status": ended.status, "seconds": round(seconds, 1)}
    check.finding.words.append(f"a rank killed: all gone in {seconds:.1f} s")
    if seconds > SOON:
        raise FailedError(f"the ranks took {seconds:.0f} s to end, {SOON:.0f} allowed", ended.tail)
    if not re.search(rf"Rank {check.ranks - 1} of {check.ranks} on \S+ has died", ended.output):
        raise FailedError("nobody said which rank had died", ended.tail)


def await_rounds(check: Check, running: Running, folder: Path, count: int) -> None:
    """Wait until a run has made some rounds.

    Raises:
        FailedError: it ended before, or the step's limit came.
    """
    path = folder / "rounds.jsonl"
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        ended = running.wait(0.05)
        if ended is not None:
            running.end()
            raise FailedError(f"a run ended with status {ended.status} before round {count}", ended.tail)
        if check.left < 0:
            running.end(stacks=True)
            raise FailedError(f"a run made no {count} rounds within the step's limit", running.output()[-2000:])


# -- compiled ----------------------------------------------------------------------------------------------------------


def compiled(check: Check) -> None:
    """Train by --compile, with a warm-up that hands over to ResIST and evaluations, and compare with eager."""
    machine = check.machine
    if not machine.gpus:
        raise SkippedError("no GPU")
    if not machine.compiler or not machine.headers:
        raise SkippedError(f"--compile needs {'Python.h' if machine.compiler else 'a C compiler'}")
    per_round = LOCAL_ITERATIONS * BATCH * check.ranks
    own = flags(device="cuda", warmup_epochs=2 * per_round / IMAGES, max_rounds=6, evaluate_every=1)
    with check.at_once(check.ranks) as pool:
        eager = pool.submit(check.train, "eager", *own, ranks=check.ranks, variables=TINY_RUN)
        logging = {**TINY_RUN, "TORCH_LOGS": "recompiles"}
        run = check.train("compiled", *own, "--compile=true", ranks=check.ranks, variables=logging)
        apart = compare(eager.result(), run)
    said = (check.folder / "compiled.log").read_text(errors="replace")
    again = len(re.findall(r"Recompiling function ", said))
    seconds = [line["seconds_prepare"] for line in lines(run / "rounds.jsonl") if "seconds_prepare" in line]
    check.finding.figures.update(vars(apart), recompilations=again, seconds_to_compile=seconds)
    check.finding.words.append(
        f"losses {apart.loss:.1e} off eager's, models {apart.models:.1e}; compiled in "
        f"{' and '.join(f'{each:.0f}' for each in seconds)} s, for the warm-up and for ResIST"
    )
    # One function serves the warm-up's network and the sub-network that follows it. Each is compiled once, and PyTorch
    # calls the second one a recompilation.
    if again > check.ranks:
        tail = "\n".join(line for line in said.splitlines() if "ecompil" in line or "guard" in line)
        raise FailedError(
            f"{again} recompilations, {check.ranks} expected: each rank compiles the warm-up's network and its "
            "sub-network, the second of which PyTorch calls a recompilation",
            tail[-2000:],
        )
    if wrong := too_far(apart):
        raise FailedError(f"compiled and eager: {', '.join(wrong)}")
