"""Debian's packages that a lab needs: which are missing, and their installation, without their services."""

import os
import shutil
import subprocess
from pathlib import Path

from laboratory.errors import LabError, do

FOR_HOSTS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "mount": "mount",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}
FOR_SLURM = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    # SLURM's PMIx asks for the library by the name that only the package for developers has.
    "libpmix.so": "libpmix-dev",
}
FOR_ACCOUNTING = {
    "slurmdbd": "slurmdbd",
    "accounting_storage_mysql.so": "slurm-wlm-mysql-plugin",
    "mariadbd": "mariadb-server-core",
    # The script that makes an empty database asks this for its settings.
    "my_print_defaults": "mariadb-client-core",
    "mariadb-install-db": "mariadb-server-core",
}
LIBRARY_FOLDERS = (
    *(Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu*")),
    # SLURM's plugins
    *Path("/usr/lib").glob("*-linux-gnu*/slurm-wlm"),
)
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
POLICY = Path("/usr/sbin/policy-rc.d")


def system_path() -> str:
    """Return a PATH that has the folders of system programs, which a user's may lack."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*path, *(folder for folder in SYSTEM_FOLDERS if folder not in path)])


def missing(programs: dict[str, str]) -> list[str]:
    """Return the packages of those programs and libraries that are not there."""
    return sorted({package for program, package in programs.items() if not _is_there(program)})


def _is_there(program: str) -> bool:
    if program.endswith(".so"):
        return any(Path(folder, program).exists() for folder in LIBRARY_FOLDERS)
    return shutil.which(program, path=system_path()) is not None


def require(programs: dict[str, str], *, install: bool) -> None:
    """See that programs are there, or install their packages if asked.

    Raises:
        LabError: packages are missing.
    """
    packages = missing(programs)
    if packages and install:
        install_packages(packages)
        packages = missing(programs)
    if packages:
        raise LabError(
            f"these Debian packages are missing: {' '.join(packages)}",
            mend="Install them by apt-get, or give --install to have launch/lab do it.",
        )


def install_packages(packages: list[str]) -> None:
    """Install packages by apt-get, and keep what they bring from being this machine's services, now and when it boots.

    Raises:
        LabError: apt-get is missing, or it or systemctl fails.
    """
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", *packages]
    own_policy = not POLICY.exists()
    try:
        if own_policy:
            POLICY.write_text("#!/bin/sh\nexit 101\n")
            POLICY.chmod(0o755)
        for command in (["apt-get", "update", "--quiet=2"], install):
            subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"the packages cannot be installed: {error}", mend="Install them by hand.") from None
    finally:
        if own_policy:
            POLICY.unlink(missing_ok=True)
    files = map(Path, do("dpkg", "--listfiles", *packages).splitlines())
    units = [file.name for file in files if file.parent.name == "system" and file.suffix in (".service", ".socket")]
    if units and shutil.which("systemctl", path=system_path()):
        do("systemctl", "disable", *units)
