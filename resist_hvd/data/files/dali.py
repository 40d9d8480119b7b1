"""Batches decoded by NVIDIA DALI, on a GPU or on CPUs; each is ready before it is asked for.

DALI's pipelines read, decode and scale in threads of their own while a training step runs. All that Python does for a
batch is to name its files, and to work out its windows once their sizes are known.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import types
from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from resist_hvd.data.broken import USUAL_ENDS, BrokenFiles
from resist_hvd.data.decoding import LARGEST_IMAGE
from resist_hvd.data.files import dali_graph
from resist_hvd.data.files.dali_graph import Means
from resist_hvd.data.files.gpu_faults import is_of_gpu, sentence, unexplained
from resist_hvd.data.files.loader import BATCH_TYPES, MEAN, STD, ImageLoader, TrainingPlan
from resist_hvd.data.files.stand_ins import PLACEHOLDER, ForeignFiles, StandIn, SuspectError, undecodable
from resist_hvd.data.files.windows import Draws, middle_windows, random_windows
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.side_stream import to_device
from resist_hvd.data.source import Batch
from resist_hvd.settings.data import DataSettings

_KEPT = 3
"""Batches whose inputs are kept once they are put out: a GPU may still read them."""


class Work(NamedTuple):
    """The numbers [B] of a batch's images, and in training what was drawn at random for each."""

    images: NDArray[np.int64]
    draws: Draws | None = None


class DaliLoader(ImageLoader):
    """Decodes image files by DALI, but for those of formats that it does not decode as Pillow does.

    It decodes on a GPU where batches are wanted on one.
    """

    name = "DALI"

    def __init__(self, settings: DataSettings, *, device: torch.device, broken: BrokenFiles) -> None:
        super().__init__(settings, device=device, broken=broken)
        self.foreign = ForeignFiles(settings.threads)

    def train(self, index: ImageIndex, plan: TrainingPlan, samples_drawn: int) -> Iterator[Batch]:
        """Endless training batches, from where all workers have drawn so many samples."""
        works = (Work(*plan.batch(drawn)) for drawn in count(samples_drawn, plan.after(0)))
        return self._batches(index, works, plan.batch_size, augmented=True)

    def test(self, index: ImageIndex, images: NDArray[np.int64]) -> Iterator[Batch]:
        """The images of these numbers in their order, without augmentation; the last batch may be smaller."""
        size = self.settings.test_batch_size
        works = (Work(images[start : start + size]) for start in range(0, len(images), size))
        return self._batches(index, works, size, augmented=False)

    def _batches(
        self, index: ImageIndex, works: Iterator[Work], batch_size: int, *, augmented: bool
    ) -> Iterator[Batch]:
        """Batches of `works`, one after the other.

        A pipeline in which a file broke off is of no use any more. Since none has a state that matters, another one
        takes up the work that was under way, without the broken files.
        """
        dtype = BATCH_TYPES[self.settings.image_type]
        waiting: deque[Work] = deque()
        while True:
            feed = Feed(self, index, waiting, works, batch_size)
            try:
                feed.start(augmented=augmented)
                while True:
                    images, ends = feed.outputs()
                    if self._any_broken_off(index, feed.begun[0], ends):
                        break
                    pixels = as_tensor(images, dtype, self.device)
                    feed.ask()
                    labels = torch.from_numpy(index.labels[feed.begun.popleft().images])
                    yield pixels.permute(0, 3, 1, 2), to_device(labels, self.device)
            except StopIteration:
                return
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, SuspectError) and is_of_gpu(error):
                    raise sentence(error, self.device) from error
                self._find_broken(index, [work.images for work in feed.begun], error)
            finally:
                feed.close()
            waiting.extendleft(reversed(feed.begun))

    def _any_broken_off(self, index: ImageIndex, work: Work, ends: NDArray[np.uint8]) -> bool:
        """Note the files of a batch that end unusually and are indeed broken; return whether there are any."""
        usual = [np.frombuffer(end, dtype=np.uint8) for end in USUAL_ENDS]
        unusual = ~np.any([(ends == end).all(axis=1) for end in usual], axis=0)
        return self._any_unusable(index, work.images[unusual])

    def _find_broken(self, index: ImageIndex, under_way: list[NDArray[np.int64]], error: Exception) -> None:
        """Note which files of the batches under way made a pipeline fail.

        Raises:
            UserError: memory or the GPU did, by what is said or most likely.
            RuntimeError: none of them did; it failed of something else.
        """
        if any(self._any_unusable(index, images) for images in under_way):
            return
        images = np.unique(np.concatenate([*under_way, np.arange(0)])).tolist()
        unknown = [image for image in images if not self.foreign.knows(index, image)]
        paths = [np.frombuffer(index.encoded_path(image), dtype=np.uint8) for image in unknown]
        try:
            foreign = [unknown[place] for place in undecodable(Means.of(self.settings, 1, self.device), paths)]
        except (RuntimeError, MemoryError) as failure:
            raise (sentence(failure, self.device) if is_of_gpu(failure) else error) from failure
        if not foreign:
            raise unexplained(error, self.device) from error.__cause__
        for image in foreign:
            # Pillow decodes it; from now on it does so for every batch.
            self.foreign.note(index, image)

    def _any_unusable(self, index: ImageIndex, images: NDArray[np.int64]) -> bool:
        """Return whether a file is broken or wrongly given to DALI; all of them are looked at, and noted if so."""
        unusable = [
            image
            for image in np.unique(images).tolist()
            if not self.broken.is_sound(index, image) or self.foreign.recognised(index, image)
        ]
        return bool(unusable)


class Feed:
    """Two pipelines of DALI, one that reads files and one that decodes them, and the batches that are in them.

    Args:
        loader: what they work for.
        index: where the images are.
        waiting: batches to be made first.
        works: those that follow.
        batch_size: the most images of a batch.
    """

    def __init__(
        self, loader: DaliLoader, index: ImageIndex, waiting: deque[Work], works: Iterator[Work], batch_size: int
    ) -> None:
        self._loader, self._index, self._waiting, self._works = loader, index, waiting, works
        self._means = Means.of(loader.settings, batch_size, loader.device)
        self._files: Any = None
        self._decoding: Any = None
        self.begun: deque[Work] = deque()
        """Batches that were given to the pipelines, and not put out yet."""
        self._reading: deque[tuple[Work, Mapping[int, StandIn]]] = deque()
        # What a pipeline was given is not copied: it is kept until the batch is surely done.
        self._kept: deque[tuple[Any, ...]] = deque(maxlen=self._means.prefetch + _KEPT)

    def start(self, *, augmented: bool) -> None:
        """Build the pipelines, and have them begin: with training's augmentation or without."""
        self._files = dali_graph.reading_pipeline(self._means, self._paths)
        self._files.build()
        self._files.schedule_run()
        settings = self._loader.settings
        # DALI's normalisation knows no bfloat16.
        dtype = types.FLOAT16 if settings.image_type == "fp16" else types.FLOAT
        normalisation = {"mean": list(MEAN), "std": list(STD), "dtype": dtype}
        make = dali_graph.training_pipeline if augmented else dali_graph.evaluation_pipeline
        self._decoding = make(self._means, settings, normalisation, self._inputs)
        self._decoding.build()
        self.ask()

    def close(self) -> None:
        """Let go of the pipelines, which would stay as long as this feed and they refer to one another."""
        self._decoding = self._files = None

    def ask(self) -> None:
        """Have another batch made."""
        self._decoding.schedule_run()

    def outputs(self) -> tuple[Any, NDArray[np.uint8]]:
        """Return the next batch's images as DALI has them, and the last two bytes of each file [B, 2].

        On a GPU this thread's current stream waits for the images, so that nobody else need.
        """
        device = self._loader.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        images, ends = self._decoding.outputs(cuda_stream=stream)
        return images, np.asarray(ends.as_array())

    def _next_work(self) -> Work:
        """The next batch that has an image, without broken files."""
        while True:
            images, draws = self._waiting.popleft() if self._waiting else next(self._works)
            without = self._loader.broken.left if draws is None else self._loader.broken.replaced
            work = Work(without(self._index, images), draws)
            if len(work.images):
                self.begun.append(work)
                return work

    def _paths(self) -> tuple[Any, ...]:
        """Paths of the next batch's files, for the pipeline that reads them."""
        work = self._next_work()
        stand_ins = self._loader.foreign.stand_ins(self._index, work.images)
        self._reading.append((work, stand_ins))
        rows = self._index.encoded_paths(work.images)
        if not stand_ins:
            return (rows,)
        return ([PLACEHOLDER.path if place in stand_ins else row for place, row in enumerate(rows)],)

    def _inputs(self) -> tuple[Any, ...]:
        """The next batch that was read, and how each image is cut out, for the pipeline that decodes."""
        encoded, peeked, ends = self._files.outputs()
        work, stand_ins = self._reading.popleft()
        sides = np.asarray(peeked.as_array())
        contents: Any = encoded
        if stand_ins:
            sides = sides.copy()
            contents = [np.asarray(encoded.at(place)) for place in range(len(sides))]
            for place, stand_in in stand_ins.items():
                contents[place], sides[place] = stand_in.encoded, stand_in.sides
        if (sides.prod(axis=1) > LARGEST_IMAGE).any():
            raise SuspectError("an image is too large")  # `_find_broken` tells which
        cut = self._middles(sides) if work.draws is None else self._windows(work.draws, sides)
        given = (contents, ends, *map(np.ascontiguousarray, cut))
        self._files.schedule_run()
        self._kept.append((*given, encoded))
        return given

    def _windows(self, draws: Draws, sides: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Training's windows in images of these sides [B, 2], as `training_pipeline` takes them."""
        windows = random_windows(draws, *sides.T)
        given: list[NDArray[Any]] = [windows[:, :2], windows[:, 2:], draws.mirrored.astype(np.int32)]
        if jitter := self._loader.settings.color_jitter:
            given.append((1 + jitter * draws.colours).astype(np.float32))
        return given

    def _middles(self, sides: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Testing's windows likewise, as `evaluation_pipeline` takes them."""
        settings = self._loader.settings
        scaled, corner = middle_windows(settings.size, settings.resize_before_test, sides)
        # DALI multiplies the share by the spare pixels and rounds. Without any, any share is right.
        place = corner.astype(np.float32) / np.maximum(scaled - settings.size, 1).astype(np.float32)
        return [scaled.astype(np.float32), place]


def as_tensor(images: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a batch that a dynamic pipeline put out for the current stream, as a tensor of another type.

    On a CPU it is DALI's own memory where the type is DALI's. On a GPU it is copied within the current stream, and
    nobody waits but streams: this one for the batch, and DALI's for the copy before its memory serves another batch.
    (A view of DALI's memory would save the copy. But when it is let go, a thread of DALI waits until the whole GPU is
    idle: that takes a core of its own beside training, and spoils the recording of CUDA graphs.)

    Args:
        images: a `TensorListCPU` or `TensorListGPU`, of one shape.
        dtype: of the tensor.
        device: where the batch is.
    """
    dense = images.as_tensor()
    if device.type == "cpu":
        view: Tensor = from_dlpack(dense)
        return view.to(dtype)
    copy = torch.empty(tuple(dense.shape()), dtype=to_torch_type[dense.dtype], device=device)
    feed_ndarray(dense, copy, cuda_stream=torch.cuda.current_stream(device))
    return copy.to(dtype)
