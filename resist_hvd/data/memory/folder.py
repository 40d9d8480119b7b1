"""Any folder of train/<class>/* and test/<class>/* or val/<class>/*, decoded into memory as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.decoding import fit_square
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.memory.images import LabelledImages, check_memory
from resist_hvd.data.memory.resident import ImageSet
from resist_hvd.data.tree import ImageTree, Share, make_here
from resist_hvd.data.validation import list_images
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

_CHANNELS = 3
_NAMED = 5
"""So many files that cannot be used are named in one message."""

_GIVE_A_SIZE = "Give a size that all images are scaled to with --data.image_size."
_GIVE_A_COPY = "Put a sound copy in its place, or pass over broken files with --data.broken_files skip."


@dataclass(frozen=True, kw_only=True)
class _Unusable:
    """A file that is broken, or not of the right size: its path, and what was seen."""

    path: str
    seen: str
    broken: bool

    @property
    def mend(self) -> str:
        """Sentence that says what to do about it."""
        return _GIVE_A_COPY if self.broken else _GIVE_A_SIZE


@dataclass
class _Decoder:
    """Decodes files into squares of one size.

    Attributes:
        settings: whether images are scaled, whether broken files are skipped, and the number of threads.
        size: height and width of all images.
        broken: what is wrong with each file that was passed over, by its path.
    """

    settings: DataSettings
    size: int
    broken: dict[str, str] = field(default_factory=dict)

    def decode(self, index: ImageIndex, *, padding: int) -> LabelledImages:
        """Decode all images of an index, without those that are broken where these are to be skipped.

        Raises:
            UserError: a file cannot be used.
        """
        store = LabelledImages.blank(len(index), image_size=self.size, channels=_CHANNELS, padding=padding)
        store.labels.copy_(torch.from_numpy(index.labels))
        unusable: dict[int, _Unusable] = {}

        def square(image: int) -> NDArray[np.uint8]:
            decoded = self._square(index, image)
            if isinstance(decoded, _Unusable):
                unusable[image] = decoded
                return np.zeros((), dtype=np.uint8)
            return decoded

        store.fill(square, threads=self.settings.threads)
        return self._without(dict(sorted(unusable.items())), store, index) if unusable else store

    def _square(self, index: ImageIndex, image: int) -> NDArray[np.uint8] | _Unusable:
        decoded = _decode_file(index, image)
        if isinstance(decoded, _Unusable) or decoded.shape[:2] == (self.size, self.size):
            return decoded
        if self.settings.image_size is not None:
            return fit_square(decoded, self.size)
        height, width = decoded.shape[:2]
        seen = f"is {width} x {height} pixels, where the first one is {self.size} x {self.size}"
        return _Unusable(path=str(index.path(image)), seen=seen, broken=False)

    def _without(self, unusable: dict[int, _Unusable], store: LabelledImages, index: ImageIndex) -> LabelledImages:
        skips = self.settings.broken_files == "skip"
        fatal = [file for file in unusable.values() if not (skips and file.broken)]
        if fatal:
            raise _error(fatal)
        if len(unusable) == len(index):
            raise UserError(
                f"All {len(index):,} image files are broken", where=str(index.folder), mend="Unpack the data again."
            )
        self.broken.update({file.path: file.seen for file in unusable.values()})
        sound = torch.ones(len(index), dtype=torch.bool)
        sound[list(unusable)] = False
        return LabelledImages(padded=store.padded[sound], labels=store.labels[sound], padding=store.padding)


def read(settings: DataSettings, share: Share[ImageTree] = make_here) -> ImageSet:
    """Decode all images below `settings.root` (see `tree`).

    Args:
        settings: what to read.
        share: lists files once for all workers of a host.

    Raises:
        UserError: a folder is missing or empty, a file is not an image, sizes differ and none is given, the test
            folder has a class of its own, or the images would not fit into `resident_limit_gib`.
    """
    assert settings.root is not None  # DataSettings sees to it
    root = settings.root
    images = share(lambda: list_images(settings), ImageTree.digest)
    size = settings.image_size or _size_of_first(images.train, settings)
    padding = size // 8 if settings.crop_padding is None else settings.crop_padding
    tests = len(images.test) + sum(map(len, images.extra.values()))
    folder = images.train.folder.parent
    check_memory(settings, train=len(images.train), test=tests, size=size, padding=padding, where=folder)
    decoder = _Decoder(settings, size)
    return ImageSet(
        name=root.expanduser().absolute().name,
        classes=images.train.classes,
        train=decoder.decode(images.train, padding=padding),
        test=decoder.decode(images.test, padding=0),
        mirrored=True,
        extra_tests={name: decoder.decode(index, padding=0) for name, index in images.extra.items()},
        remarks=images.remarks,
        broken=decoder.broken,
    )


def _size_of_first(index: ImageIndex, settings: DataSettings) -> int:
    """The size of all images, as the first sound one has it; the others are held to it when they are decoded."""
    image, decoded = 0, _decode_file(index, 0)
    while isinstance(decoded, _Unusable):
        image += 1
        if settings.broken_files == "stop" or image == len(index):
            raise _error([decoded])
        decoded = _decode_file(index, image)
    height, width = decoded.shape[:2]
    if height != width:
        raise UserError(
            f"The images are not square: the first one is {width} x {height} pixels",
            where=str(index.path(image)),
            mend=_GIVE_A_SIZE,
        )
    return int(height)


def _decode_file(index: ImageIndex, image: int) -> NDArray[np.uint8] | _Unusable:
    try:
        return read_trusted(index.encoded_path(image))
    except ValueError as fault:
        return _Unusable(path=str(index.path(image)), seen=str(fault), broken=True)


def _error(unusable: Sequence[_Unusable]) -> UserError:
    """One error for all files that cannot be used, which names the first few."""
    first, *others = unusable
    named = "; ".join(f"{file.path} {file.seen}" for file in others[: _NAMED - 1])
    more = "; ..." if len(others) >= _NAMED else ""
    and_others = f", and {len(others):,} more cannot be used either ({named}{more})" if others else ""
    return UserError(f"The image file {first.seen}{and_others}", where=first.path, mend=first.mend)
