"""The Dockerfile, built without a Docker engine on a bare Debian, and the demonstration run in the image.

Takes some ten minutes, 30 GB of disk, root, and the packages buildah and debootstrap: `launch/test --only container`.
RESIST_HVD_IMAGES names a folder that keeps what was built, so that the next time takes as long as what has changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/bare-debian"
SUITE = "bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
NEEDED_GIB = 30


@dataclass
class Builder:
    """Buildah, with a storage of its own.

    Attributes:
        folder: its storage, and files of the test.
    """

    folder: Path

    def run(self, *words: str | Path, limit: float = 3000) -> str:
        """Run a command of buildah and return both its outputs; it must succeed."""
        storage = ("--root", self.folder / "storage", "--runroot", self.folder / "run", "--storage-driver", "overlay")
        done = subprocess.run(
            ["buildah", *map(str, (*storage, *words))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout


def reason_to_skip(folder: Path) -> str:
    if os.geteuid() != 0:
        return "chroot isolation and debootstrap need root"
    if missing := [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]:
        return f"these Debian packages are missing: {' '.join(missing)}"
    free = shutil.disk_usage(folder).free / 2**30
    return f"{free:.0f} GiB are free, {NEEDED_GIB} needed" if free < NEEDED_GIB else ""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """Buildah with a bare Debian in its storage."""
    kept = os.environ.get("RESIST_HVD_IMAGES")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("image")
    if reason := reason_to_skip(folder):
        pytest.skip(reason)
    builder = Builder(folder)
    try:
        if BASE not in builder.run("images", "--format", "{{.Name}}").split():
            make_base(builder)
        yield builder
    finally:
        if not kept:
            builder.run("rm", "--all")
            subprocess.run(["umount", folder / "storage/overlay"], check=False, capture_output=True)
            shutil.rmtree(folder)


def make_base(builder: Builder) -> None:
    """Make an image of a bare Debian, which trusts whom this machine trusts."""
    context = builder.folder / "base"
    tree = context / "tree"
    debootstrap = ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, tree]
    context.mkdir()
    subprocess.run(debootstrap, check=True, capture_output=True, timeout=1200)
    lines = ["FROM scratch", "ADD tree /", 'CMD ["bash"]']
    if Path(CERTIFICATES).exists():
        # Behind a proxy with a certificate of its own, pip and uv must be told of it.
        shutil.copy(CERTIFICATES, tree / CERTIFICATES.lstrip("/"))
        lines.insert(2, f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}")
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    builder.run("bud", "--isolation", "chroot", "--tag", BASE, context)
    shutil.rmtree(context)


@pytest.fixture(scope="module")
def container(builder: Builder) -> str:
    """A container of the image that the Dockerfile describes."""
    flags = ("--layers", "--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE_IMAGE={BASE}")
    builder.run("bud", *flags, "--tag", "localhost/resist_hvd", ROOT)
    return builder.run("from", "--isolation", "chroot", "localhost/resist_hvd").split()[-1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_quickstart_runs_in_the_image_as_its_own_user(builder: Builder, container: str) -> None:
    def inside(*command: str) -> str:
        # It sees this machine's GPUs, without what a container needs to use them.
        plain = ("env", "CUDA_VISIBLE_DEVICES=", *command)
        return builder.run("run", "--isolation", "chroot", container, "--", *plain)

    assert inside("id", "-u").strip() == "1001"
    said = inside("launch/quickstart", "--output", "/tmp/run")
    assert "/opt/resist_hvd/.venv is complete: nothing to do" in said, said
    assert "resist on 4 workers (cpu, " in said, said
    accuracy = re.search(r"accuracy (\d+\.\d+) % after 90 rounds", said)
    assert accuracy is not None, said
    assert float(accuracy[1]) > 95
    launched = inside("horovodrun", "-np", "8", "python", "-m", "resist_hvd.train", "--max_rounds", "2")
    assert "resist on 8 workers (cpu, " in launched, launched
    assert inside("python", "-m", "resist_hvd.doctor", "--quick")
    # Built on a bare Debian, without a GPU or a toolkit; and with what --compile needs at hand.
    assert int(inside("python", "-c", "import horovod.torch as hvd; print(hvd.nccl_built())")) > 20000
    check = "import torch; from resist_hvd.training.compiling import check_compiler as c; "
    assert not inside("python", "-c", f"{check}c(torch.device('cpu')); c(torch.device('cuda'))")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_image_says_who_runs_and_how_it_starts(builder: Builder, container: str) -> None:
    image = json.loads(builder.run("inspect", "--type", "image", "localhost/resist_hvd"))
    configuration = image["Docker"]["config"]
    assert configuration["User"] == "1001"
    # A run watches its own ranks; a check from outside would start Python and MPI beside them.
    assert not configuration.get("Healthcheck")
    assert configuration["Cmd"] == ["launch/run", "-np", "4"]
    # Without `video`, a GPU's decoder of JPEG files stays outside.
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in configuration["Env"]
    # What is not named in .dockerignore stays outside.
    found = builder.run("run", "--isolation", "chroot", container, "--", "ls", "-A", "/opt/resist_hvd").split()
    allowed = {".venv", "LICENSE", "README.md", "launch", "pyproject.toml", "resist_hvd", "runs", "slurm"}
    assert set(found) <= allowed
