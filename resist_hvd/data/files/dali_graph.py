"""Image pipelines as graphs of NVIDIA DALI's operators: what is done to a batch, from paths to normalised pixels.

A graph reads its inputs from Python once a batch; everything else happens in DALI's own threads or on the GPU. For
training there are two, one that reads files and tells their sizes, and one that decodes: between them Python works out
which window is cut out of each, while earlier batches are decoded. In a graph the same takes some thirty operators, and
while they work on a few numbers each, no image is decoded.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from nvidia.dali import Pipeline, fn, types

from resist_hvd.settings.data import DaliSettings, DataSettings

Node = Any
"""A value in a graph: DALI's `DataNode`, one array for each image of a batch."""

Source = Callable[[], tuple[Any, ...]]
"""What a graph gets a batch's inputs from, one by one; raises StopIteration after the last."""


# Where nvJPEG is older than 13.2, a GPU's JPEG hardware leaves most windows to other decoders, and each time says so on
# the terminal, thousands of times a second. 1 is errors alone, 2 warnings too. DALI reads it when it makes a decoder.
os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "1")

READERS_FOR_A_GPU = 16
"""Threads that read files for a GPU, whatever its cores: they wait for a file server, not for a core. Where opening a
file takes a millisecond, one of them reads some 800 files a second, 8 read 5,800 and 16 read 8,500."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """Resources and settings of a pipeline.

    Attributes:
        batch_size: the most images of a batch.
        threads: of DALI's own, that decode.
        readers: others that read files, where that is done apart.
        prefetch: batches that are made in advance.
        device_id: the GPU that decodes, None to decode on CPUs.
        tuning: how it decodes on a GPU.
    """

    batch_size: int
    threads: int
    readers: int = 1
    prefetch: int
    device_id: int | None
    tuning: DaliSettings

    @classmethod
    def of(cls, settings: DataSettings, batch_size: int, device: torch.device) -> Self:
        """Return the means of making batches of a size for a device."""
        return cls(
            batch_size=batch_size,
            threads=settings.threads,
            readers=READERS_FOR_A_GPU if device.type == "cuda" else settings.threads,
            prefetch=settings.prefetch,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            tuning=settings.dali,
        )

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """DALI's name of the device that holds decoded images."""
        return "cpu" if self.device_id is None else "gpu"

    def pipeline(self) -> Pipeline:
        """A pipeline without operators, to be entered by `with` to add them."""
        return Pipeline(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=self.prefetch,
            exec_dynamic=True,
        )

    def for_reading(self) -> "Means":
        """Return the means of reading files alone, without a GPU."""
        return replace(self, threads=self.readers, device_id=None)

    def decoding(self) -> dict[str, Any]:
        """Return the arguments of all of DALI's image decoders."""
        # Images lie as they are stored, as Pillow and torchvision have them: labels were given to those.
        common = {"output_type": types.RGB, "adjust_orientation": False}
        if self.device_id is None:
            return {"device": "cpu", **common}
        return {
            "device": "mixed",
            "hw_decoder_load": self.tuning.hardware_load,
            "preallocate_width_hint": self.tuning.width_hint,
            "preallocate_height_hint": self.tuning.height_hint,
            "device_memory_padding": self.tuning.device_buffer,
            "host_memory_padding": self.tuning.host_buffer,
            # The same pixels as on a CPU, as far as they can be had.
            "jpeg_fancy_upsampling": True,
            **common,
        }


def reading_pipeline(means: Means, source: Source) -> Pipeline:
    """Image files as they are stored.

    Args:
        means: what it works with.
        source: of paths.

    Returns:
        A pipeline that puts out files, their images' heights and widths (int64 [B, 2]), and their last two bytes
        (uint8 [B, 2]).
    """
    pipeline = means.for_reading().pipeline()
    with pipeline:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True)
        # Not mapped into memory: some file systems cannot do that, and DALI opens mapped files one at a time.
        encoded = fn.io.file.read(path, dont_use_mmap=True)
        # Height and width as the image is stored.
        sides = fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)[:2]
        pipeline.set_outputs(encoded, sides, encoded[-2:])
    return pipeline


def training_pipeline(means: Means, settings: DataSettings, normalisation: dict[str, Any], source: Source) -> Pipeline:
    """Random windows, scaled, mirrored and normalised.

    Args:
        means: what it works with.
        settings: what is done to the images.
        normalisation: `mean`, `std` and `dtype` as DALI takes them.
        source: of files and their last two bytes (as they are read), the corner and the shape of each one's window
            (rows first, int64 [B, 2] each), whether mirrored (int32 [B]) and, with colour jitter, factors (float32
            [B, 3]). It is not copied: it must stay as it is until the batch is put out.

    Returns:
        A pipeline that puts out images [B, size, size, 3] and the last two bytes of each file, uint8 [B, 2].
    """
    jitters = settings.color_jitter > 0
    pipeline = means.pipeline()
    with pipeline:
        encoded, ends, corner, shape, mirrored, *factors = fn.external_source(
            source=source, num_outputs=6 if jitters else 5, batch=True, no_copy=True
        )
        images = fn.decoders.image_slice(encoded, corner, shape, axis_names="HW", **means.decoding())
        images = fn.resize(images, size=[settings.size, settings.size], interp_type=types.INTERP_LINEAR, antialias=True)
        if jitters:
            (factor,) = factors
            images = fn.color_twist(images, brightness=factor[0], contrast=factor[1], saturation=factor[2])
        images = fn.crop_mirror_normalize(images, mirror=mirrored, output_layout="HWC", **normalisation)
        pipeline.set_outputs(images, ends)
    return pipeline


def evaluation_pipeline(
    means: Means, settings: DataSettings, normalisation: dict[str, Any], source: Source
) -> Pipeline:
    """The middle of images whose shorter side was scaled; arguments and outputs as above.

    `source` is of files, their last two bytes, the height and width that each image is scaled to (float32 [B, 2]), and
    the place of its middle, as a share of the pixels to spare at its top and left (float32 [B, 2]).
    """
    pipeline = means.pipeline()
    with pipeline:
        encoded, ends, scaled, place = fn.external_source(source=source, num_outputs=4, batch=True, no_copy=True)
        images = fn.decoders.image(encoded, **means.decoding())
        images = fn.resize(images, size=scaled, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images,
            crop=(settings.size, settings.size),
            crop_pos_y=place[0],
            crop_pos_x=place[1],
            output_layout="HWC",
            **normalisation,
        )
        pipeline.set_outputs(images, ends)
    return pipeline


def decoding_pipeline(means: Means, source: Source) -> Pipeline:
    """Images decoded and nothing else, from `source` of paths: to see whether DALI can."""
    pipeline = means.pipeline()
    with pipeline:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True)
        pipeline.set_outputs(fn.decoders.image(fn.io.file.read(path, dont_use_mmap=True), **means.decoding()))
    return pipeline
