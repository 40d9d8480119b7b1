"""Batches that processes of their own make, by PyTorch's DataLoader, and files that these found broken."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resist_hvd.data.broken import BrokenFiles, ImageFiles
from resist_hvd.data.files.gpu_faults import is_of_gpu, sentence
from resist_hvd.data.files.loader import BATCH_TYPES, MEAN, STD
from resist_hvd.data.files.loader_processes import Tether, starting_processes
from resist_hvd.data.preprocess import scale_and_offset
from resist_hvd.data.source import Batch
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

Made = tuple[Tensor, Tensor, dict[int, str]]
"""A batch from a process: images, targets, and what is wrong with each file that it found broken."""


def made_by_processes(
    batches: Dataset[Made],
    numbers: Iterable[int],
    *,
    processes: ForkServerContext,
    settings: DataSettings,
    device: torch.device,
) -> Generator[Made]:
    """Yield the batches of some numbers in their order, on a device; some are made in advance.

    Args:
        batches: makes each of them, in a process.
        numbers: of batches, perhaps without an end.
        processes: starts processes.
        settings: how many, and how many batches are ready.
        device: where batches are wanted.

    Raises:
        UserError: a process died.
    """
    count = settings.threads
    try:
        with Tether(processes) as tether:
            loader = DataLoader(
                batches,
                batch_size=None,
                sampler=numbers,
                num_workers=count,
                multiprocessing_context=processes,
                prefetch_factor=-(-settings.prefetch // count),
                collate_fn=unchanged,
                pin_memory=device.type == "cuda",
                # Otherwise it would draw from PyTorch's own generator, and change what others draw from it.
                generator=torch.Generator(),
                worker_init_fn=tether.end,
            )
            with starting_processes():
                made = iter(loader)
            try:
                for images, targets, faults in made:
                    yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True), faults
            finally:
                del made  # which lets the processes end by themselves
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        # The latter three are met where a process has announced a batch, but died before that was fetched.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            if is_of_gpu(error):
                raise sentence(error, device) from error
            raise
        raise UserError(
            f"A process that decodes images died ({' '.join(str(error).split()) or type(error).__name__})",
            mend="Check this machine's memory and the size of /dev/shm, or give fewer --data.decode_threads.",
        ) from error


def sound_batches(made: Generator[Made], files: ImageFiles, broken: BrokenFiles) -> Iterator[Batch]:
    """Yield batches that have an image, and note the files that were found broken.

    Raises:
        UserError: one was, and broken files end the run.
    """
    with closing(made):  # at once, also where an error that is kept holds on to it
        for images, targets, faults in made:
            for image, fault in faults.items():
                broken.note(files, image, fault)
            if len(targets):
                yield images, targets


def normalised(images: list[Tensor], image_type: str) -> Tensor:
    """A batch of images, uint8 [3, size, size] each, in the type asked for and channels_last in memory."""
    batch = torch.stack(images).to(memory_format=torch.channels_last).float()
    scale, offset = (values.view(3, 1, 1) for values in scale_and_offset(MEAN, STD))
    return batch.mul_(scale).add_(offset).to(BATCH_TYPES[image_type])


def unchanged(made: Any) -> Any:
    """Return a batch as it is: DataLoader has nothing to collate."""
    return made
