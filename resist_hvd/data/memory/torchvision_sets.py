"""CIFAR-10, CIFAR-100 and SVHN, fetched and read by torchvision.

CIFAR's files are pickles, which may run any code when they are read. torchvision reads none before it has found its MD5
sum to be that of the published file; nobody knows how to make another file with the sum of a given one.
"""

import errno
import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from resist_hvd.data.decoding import fit_square
from resist_hvd.data.memory.images import LabelledImages, check_memory
from resist_hvd.data.memory.resident import ImageSet
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

_logger = logging.getLogger(__name__)

_SILENCE_LIMIT = 30.0
"""Seconds without a byte after which a download is given up."""

_IMAGE_SIZE = 32

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""


def read(settings: DataSettings) -> ImageSet:
    """The data set that `settings.name` names, from `root` or ./data.

    Raises:
        UserError: the files are missing or damaged and may not be fetched, or cannot be.
    """
    root = (settings.root or Path("data")).expanduser().absolute()
    train, test = (_half(settings, root, train=train) for train in (True, False))
    size = settings.image_size or _IMAGE_SIZE
    padding = size // 8 if settings.crop_padding is None else settings.crop_padding
    check_memory(settings, train=len(train), test=len(test), size=size, padding=padding, where=root)
    digits = settings.name == "svhn"
    return ImageSet(
        name=settings.name,
        classes=tuple(str(digit) for digit in range(10)) if digits else tuple(train.classes),
        train=_labelled(train, settings, padding=padding),
        test=_labelled(test, settings, padding=0),
        mirrored=not digits,
    )


def _torchvision_set(name: str, root: Path, *, train: bool, download: bool) -> Any:
    if name == "svhn":
        return datasets.SVHN(root, split="train" if train else "test", download=download)
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return cifar(root, train=train, download=download)


def _half(settings: DataSettings, root: Path, *, train: bool) -> Any:
    """The training or the test half as torchvision's object, fetched where it is missing and may be."""
    try:
        return _torchvision_set(settings.name, root, train=train, download=False)
    except RuntimeError as error:  # what torchvision raises where a file is missing or has another checksum
        if not settings.download:
            raise UserError(
                f"The files of {settings.name} are missing or damaged",
                where=str(root),
                mend="Fetch them with --data.download true, or name their folder with --data.root.",
            ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Workers whose folder this is, too, wait here for the one that fetches, and then find everything in place.
        with _alone(root / f".{settings.name}.lock") as locked, _impatient_network():
            if not locked:
                return _fetched_apart(settings.name, root, train=train)
            return _torchvision_set(settings.name, root, train=train, download=True)
    except (RuntimeError, OSError) as error:  # OSError: no network (URLError), no space, no permission
        raise UserError(
            f"{settings.name} cannot be fetched: {error}",
            where=str(root),
            mend="Check the network and the disk, or put the files there by other means.",
        ) from error


def _fetched_apart(name: str, root: Path, *, train: bool) -> Any:
    """The half, fetched into a folder of this worker's own and moved into `root`, where others may do the same."""
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as own:
        _torchvision_set(name, Path(own), train=train, download=True)
        for entry in os.listdir(own):
            try:
                os.rename(Path(own, entry), root / entry)
            except OSError as error:
                # Another worker was first.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    return _torchvision_set(name, root, train=train, download=False)


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Hold the lock of this file, which the system lets go of even where the process dies; yield whether there is one.

    Some file systems have no locks.
    """
    locked = True
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.warning("Waiting for another worker that fetches data [%s]", lock.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = False
        yield locked


@contextmanager
def _impatient_network() -> Iterator[None]:
    """A time limit for connections: torchvision sets none, so a dead one would hang. It can only be set globally."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_LIMIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _labelled(half: Any, settings: DataSettings, *, padding: int) -> LabelledImages:
    # SVHN calls its labels otherwise than CIFAR, and has channels before rows, not after columns.
    is_svhn = isinstance(half, datasets.SVHN)
    images = half.data.transpose(0, 2, 3, 1) if is_svhn else half.data
    labels = torch.as_tensor(np.asarray(half.labels if is_svhn else half.targets), dtype=torch.int64)
    size = settings.image_size or _IMAGE_SIZE
    if size == _IMAGE_SIZE:
        return LabelledImages.of(torch.from_numpy(np.ascontiguousarray(images)), labels, padding=padding)
    store = LabelledImages.blank(len(images), image_size=size, channels=3, padding=padding)
    store.labels.copy_(labels)
    store.fill(lambda image: fit_square(np.ascontiguousarray(images[image]), size), threads=settings.threads)
    return store
