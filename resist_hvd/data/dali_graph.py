"""Image pipelines as graphs of NVIDIA DALI's operators: what is done to a batch, from paths to normalised pixels.

A graph reads its inputs from Python once a batch: paths, and the random numbers of each image. Everything else happens
in DALI's own threads or on the GPU, without Python. So what `resist_hvd.data.windows` says in NumPy is said here once
more in DALI's arithmetic; a test holds the two to the same windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import math as dali_math

from resist_hvd.data.settings import DaliSettings, DataSettings
from resist_hvd.data.windows import GREATEST_RATIO, TRIES, Draws

Node = Any
"""A value in a graph: DALI's `DataNode`, one array for each image of a batch."""

Source = Callable[[], tuple[Any, ...]]
"""What a graph gets a batch's inputs from, one by one; raises StopIteration after the last."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a pipeline works with.

    Attributes:
        batch_size: the most images of a batch.
        threads: of DALI's own.
        prefetch: batches that are made in advance.
        device_id: the GPU that decodes, None to decode on CPUs.
        tuning: how it decodes on a GPU.
    """

    batch_size: int
    threads: int
    prefetch: int
    device_id: int | None
    tuning: DaliSettings

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """Where images are once they are decoded, in DALI's words."""
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

    def decoding(self) -> dict[str, Any]:
        """What all of DALI's image decoders are told."""
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


def training_pipeline(means: Means, settings: DataSettings, normalisation: dict[str, Any], source: Source) -> Pipeline:
    """Random windows, scaled, mirrored and normalised.

    Args:
        means: what it works with.
        settings: what is done to the images.
        normalisation: `mean`, `std` and `dtype` as DALI takes them.
        source: of paths, both `window_inputs`, whether mirrored (int32 [B]) and, with colour jitter, factors (float32
            [B, 3]).

    Returns:
        A pipeline that puts out images [B, size, size, 3] and the last two bytes of each file, uint8 [B, 2].
    """
    jitters = settings.color_jitter > 0
    pipeline = means.pipeline()
    with pipeline:
        path, tries, places, mirrored, *factors = fn.external_source(
            source=source, num_outputs=5 if jitters else 4, batch=True
        )
        encoded = fn.io.file.read(path)
        corner, shape = random_window(encoded, tries, places)
        images = fn.decoders.image_slice(encoded, corner, shape, axis_names="HW", **means.decoding())
        images = fn.resize(images, size=[settings.size, settings.size], interp_type=types.INTERP_LINEAR, antialias=True)
        if jitters:
            (factor,) = factors
            images = fn.color_twist(images, brightness=factor[0], contrast=factor[1], saturation=factor[2])
        images = fn.crop_mirror_normalize(images, mirror=mirrored, output_layout="HWC", **normalisation)
        pipeline.set_outputs(images, encoded[-2:])
    return pipeline


def evaluation_pipeline(
    means: Means, settings: DataSettings, normalisation: dict[str, Any], source: Source
) -> Pipeline:
    """The middle of images whose shorter side was scaled; arguments and outputs as above, of `source` paths alone."""
    size, shorter_side = settings.size, settings.resize_before_test
    pipeline = means.pipeline()
    with pipeline:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True)
        encoded = fn.io.file.read(path)
        sides = sides_of(encoded)
        scaled = sides * shorter_side // fn.reductions.min(sides)
        images = fn.decoders.image(encoded, **means.decoding())
        images = fn.resize(
            images, size=fn.cast(scaled, dtype=types.FLOAT), interp_type=types.INTERP_LINEAR, antialias=True
        )
        spare = scaled - size
        half = spare // 2
        corner = half + (half & spare & 1)
        # As a share of the spare pixels, which DALI multiplies by them and rounds. Without any, any share is right.
        place = fn.cast(corner, dtype=types.FLOAT) / dali_math.max(spare, 1)
        images = fn.crop_mirror_normalize(
            images, crop=(size, size), crop_pos_y=place[0], crop_pos_x=place[1], output_layout="HWC", **normalisation
        )
        pipeline.set_outputs(images, encoded[-2:])
    return pipeline


def sides_of(encoded: Node) -> Node:
    """Height and width of an image as it is stored, int64 [2]."""
    return fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)[:2]


def random_window(encoded: Node, tries: Node, places: Node) -> tuple[Node, Node]:
    """The corner and the shape (rows first, int64 [2] each) of the windows that `random_windows` gives.

    Each of DALI's operations takes a while however little it works on, so there are few, on heights and widths at once.

    Args:
        encoded: image files.
        tries: the first that `window_inputs` makes of draws.
        places: the second.
    """
    sides = fn.cast(sides_of(encoded), dtype=types.FLOAT64)
    area = sides[0] * sides[1]
    shapes = dali_math.floor(dali_math.sqrt(area * tries) + 0.5)
    fits = shapes == dali_math.clamp(shapes, 1.0, sides)
    # The first try that fits is the greatest of numbers that fall from TRIES to 1, 0 where a side does not fit.
    falling = types.Constant(np.arange(TRIES, 0, -1, dtype=np.int32)[:, None])
    chosen = TRIES - fn.reductions.max(fn.reductions.min(fits * falling, axes=[1]))
    # Height and width change places: the one is not to be greater than the other times the greatest ratio.
    last = dali_math.min(sides, dali_math.floor(area / sides * GREATEST_RATIO + 0.5))
    shape = fn.cat(shapes, fn.expand_dims(last, axes=[0]))[chosen]
    corner = dali_math.floor(places[chosen] * (sides - shape + 1))
    return fn.cast(corner, dtype=types.INT64), fn.cast(shape, dtype=types.INT64)


def window_inputs(draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `random_window` is given of B images' draws.

    Returns:
        Squared heights and widths of all tries [B, TRIES, 2]; and the places for each try, and for the window in the
        middle that is taken after them [B, TRIES + 1, 2].
    """
    tries = np.stack([draws.heights_squared, draws.widths_squared], axis=2)
    places = np.repeat(draws.places[:, None], TRIES + 1, axis=1)
    # Just below a half, so that of an odd number of spare pixels the smaller half comes first.
    places[:, TRIES] = 0.5 - 2.0**-30
    return tries, places
