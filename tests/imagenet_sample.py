"""Real photographs for tests, from ImageNet's sample, where there is its archive."""

import os
import tarfile
from pathlib import Path, PurePosixPath

import pytest

ARCHIVE = "imagenet-sample.tar"


def read(count: int) -> dict[str, bytes]:
    """Return some photographs as encoded files, each by its class's wnid; skip the test where there are none."""
    folder = os.environ.get("RESIST_HVD_TEST_DATA")
    if folder is None:
        pytest.skip(f"RESIST_HVD_TEST_DATA does not name a folder with {ARCHIVE}")
    found: dict[str, bytes] = {}
    with tarfile.open(Path(folder) / ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None and len(found) < count:
                found[PurePosixPath(member.name).parent.name] = content.read()
    return found
