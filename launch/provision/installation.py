"""The steps of an installation, each a method that returns the few words printed beside its time."""

import shutil
from pathlib import Path
from typing import Any

from provision import cuda, environment, horovod_wheel, toolchain
from provision.cuda import Cuda, Gpus, PyTorch
from provision.environment import LAUNCH, ROOT, VENV
from provision.offline import OpenedPack, make_machine_venv, open_pack
from provision.record import Choice
from provision.steps import Log, StepFailedError
from provision.toolchain import SiteMpi

NVCC = LAUNCH / "requirements-nvcc.txt"
WHEELS = VENV / "setup-wheels"
PROJECT_MEND = (
    "The log says what is wrong with pyproject.toml or the package; compare with a fresh copy of the project."
)
CRAY_MEND = "mpi4py is built from its source there: run launch/setup --mpi system where there is a network."
AGAIN = "`launch/setup --cuda auto` tries again"


class Installation:
    """One run through the steps; later steps use what earlier ones have found.

    Args:
        choice: what to install, with nothing left open.
        keep_venv: whether to add to the virtual environment that is there, rather than to begin anew.
        python: the interpreter to make the virtual environment from.
    """

    def __init__(self, choice: Choice, *, keep_venv: bool, python: Path) -> None:
        self._choice = choice
        self._keep_venv = keep_venv
        self._python = python
        self._no_compiler: StepFailedError | None = None
        self._site_mpi: SiteMpi | None = None
        self._pack: OpenedPack | None = None
        self._wheels: Path | None = None
        self._gpus = Gpus(present=False)
        self._nccl = False

    def tools(self, log: Log) -> str:
        """Look at the machine, and at the pack if one is given, before anything large is fetched."""
        python = environment.interpreter() if self._keep_venv else self._python
        question: list[str | Path] = [
            python,
            "-c",
            "import sys, sysconfig; print(sys.version.split()[0], sysconfig.get_path('include'))",
        ]
        version, include = log.read(question, mend="Choose another Python by --python PATH.").split(maxsplit=1)
        words = [f"Python {version}"]
        if self._choice.offline:
            self._pack = open_pack(log, Path(self._choice.offline), self._python, self._choice)
            words.append(f"its own PyTorch {self._pack.machine.torch}")
        try:
            words.append(toolchain.find_compiler(log, Path(include.strip())))
        except StepFailedError as failure:
            if not horovod_wheel.any_cached_wheel():
                raise
            self._no_compiler = failure
            words.append("no C++ compiler, but a wheel of Horovod from an earlier build")
        if self._choice.mpi == "system":
            self._site_mpi = toolchain.find_site_mpi(log)
            if self._site_mpi.is_cray and self._pack is not None:
                raise StepFailedError("a pack cannot be installed with a Cray's MPI", mend=CRAY_MEND)
            words.append(f"{self._site_mpi.name} at {self._site_mpi.library}")
        self._gpus = cuda.find_gpus(log)
        torch_cuda = self._pack.machine.cuda if self._pack else cuda.locked_version(NVCC)
        if torch_cuda and (remark := cuda.driver_remark(self._gpus, torch_cuda)):
            words.append(remark)
        return ", ".join(words)

    def environment(self, log: Log) -> str:
        """Make the virtual environment, or keep the one that is there."""
        if not self._keep_venv:
            environment.clear_venv()
        if self._pack is None:
            environment.make_venv(log)
        else:
            shutil.rmtree(WHEELS, ignore_errors=True)
            count = self._pack.unpack(WHEELS)
            log.note(f"{count} files of the pack are in {WHEELS}")
            self._wheels = WHEELS
            make_machine_venv(log, self._pack.machine, WHEELS)
        return f"{'kept' if self._keep_venv else 'made'} {environment.VENV}"

    def packages(self, log: Log) -> str:
        """Install the locked packages."""
        names = ["requirements.txt"] if self._pack is None else ["requirements-without-torch.txt"]
        names += ["requirements-mpi.txt"] if self._site_mpi is None else []
        names += ["requirements-dali.txt"] if self._choice.dali else []
        names += ["requirements-timm.txt"] if self._choice.timm else []
        names += ["requirements-tests.txt"] if self._choice.tests else []
        names += ["requirements-dev.txt"] if self._choice.dev else []
        environment.install_packages(log, names, self._wheels)
        if self._site_mpi is not None:
            environment.bind_site_mpi(self._site_mpi)
            if self._site_mpi.is_cray:
                environment.build_mpi4py(log, self._site_mpi)
        return f"as locked in {', '.join(names)}"

    def horovod(self, log: Log) -> str:
        """Install Horovod's wheel, from the cache or built now, with NCCL operations where there is a GPU."""
        facts = environment.probe(log, "facts")
        has_nvcc = self._pack is None or "nvcc" in self._pack.groups
        chosen, lack = cuda.decide(
            log,
            self._choice.cuda,
            tuple(filter(None, self._choice.cuda_arch.split(","))),
            self._gpus,
            PyTorch(facts["torch_cuda"], facts["nccl"], facts["nccl_headers"], facts["cuda_headers"]),
            cuda.locked_version(NVCC) if has_nvcc else None,
        )
        try:
            words = self._horovod_for(log, facts, chosen)
        except StepFailedError as failure:
            if chosen is None or self._choice.cuda == "yes":
                raise
            log.note(f"{failure}\nonce more, without NCCL operations")
            chosen, lack = None, f"with them, {failure.seen}; {log.path} tells why, and {AGAIN}"
            words = self._horovod_for(log, facts, None)
        self._nccl = chosen is not None
        if self._nccl:
            return f"{words}, with NCCL operations"
        return f"{words}, without NCCL operations: {lack}" if self._gpus.present else words

    def _horovod_for(self, log: Log, facts: dict[str, Any], chosen: Cuda | None) -> str:
        """Install the wheel for a CUDA toolkit, or for none, and return where it is from."""
        site = self._site_mpi
        key = horovod_wheel.key(facts, site, chosen)
        wheel = horovod_wheel.cached_wheel(key)
        mpi = site.name if site else f"openmpi-{facts['openmpi']}"
        words = f"from {wheel.parent}" if wheel else f"built for {mpi} and {horovod_wheel.cuda_tag(chosen)}"
        if wheel is None:
            if self._no_compiler is not None:
                raise self._no_compiler
            wheel = horovod_wheel.build_wheel(key, site, chosen, self._wheels, log)
        mend = f"Remove the folder {wheel.parent} and run launch/setup again: it builds Horovod anew."
        flags = ("--no-deps", "--reinstall-package", "horovod")
        environment.uv_install(log, *flags, wheel, wheels=self._wheels, mend=mend)
        if chosen is not None and not environment.probe(log, "nccl", mend=mend)["horovod_nccl"]:
            raise StepFailedError("the wheel of Horovod has no NCCL operations", mend=mend)
        return words

    def project(self, log: Log) -> str:
        """Install this project, editable: the files in its folder are what runs."""
        flags = ("--no-deps", "--no-build-isolation")
        environment.uv_install(log, *flags, "--editable", ROOT, wheels=self._wheels, mend=PROJECT_MEND)
        shutil.rmtree(WHEELS, ignore_errors=True)
        return "editable"

    def check(self, log: Log) -> str:
        """Import everything once."""
        return environment.check(log, nccl=self._nccl)
