"""Batches decoded by NVIDIA DALI, on a GPU or on CPUs; each is ready before it is asked for.

DALI's pipelines read, decode and scale in threads of their own while a training step runs. All that Python does for a
batch is to name its files, and to work out its windows once their sizes are known.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, types

from resist_hvd.data.broken import USUAL_ENDS, BrokenFiles
from resist_hvd.data.decoding import LARGEST_IMAGE
from resist_hvd.data.files import dali_graph
from resist_hvd.data.files.dali_graph import Means, Source
from resist_hvd.data.files.dali_memory import as_tensor
from resist_hvd.data.files.dali_suspects import undecodable
from resist_hvd.data.files.gpu_faults import is_of_gpu, sentence, unexplained
from resist_hvd.data.files.loader import BATCH_TYPES, MEAN, STD, ImageLoader, TrainingPlan
from resist_hvd.data.files.stand_ins import PLACEHOLDER, ForeignFiles, StandIn, SuspectError
from resist_hvd.data.files.windows import Draws, middle_windows, random_windows
from resist_hvd.data.index import ImageIndex
from resist_hvd.data.side_stream import to_device
from resist_hvd.data.source import Batch
from resist_hvd.settings.data import DataSettings


@dataclass(frozen=True, kw_only=True)
class Work:
    """The images, draws and stand-ins of one batch.

    Attributes:
        images: their numbers [B].
        draws: in training, what was drawn at random for each.
        stand_ins: what DALI is given for images whose files it is not to decode, by their places in the batch.
    """

    images: NDArray[np.int64]
    draws: Draws | None = None
    stand_ins: Mapping[int, StandIn] = field(default_factory=dict)


Cut = Callable[[Work, NDArray[np.int64]], list[NDArray[Any]]]
"""Tells from images' heights and widths [B, 2] how a pipeline is to cut them out."""

Build = Callable[[Callable[[], Work]], Pipeline]
"""Makes a pipeline that works on what it is given, and puts out images and the last two bytes of each file."""


class DaliLoader(ImageLoader):
    """Decodes image files by DALI, but for those of formats that it does not decode as Pillow does.

    Args:
        settings: sizes, augmentation, threads, prefetching.
        device: where batches are wanted; decoding is on a GPU where that is one.
        broken: what is done about broken files.
    """

    name = "DALI"

    def __init__(
        self,
        settings: DataSettings,
        *,
        device: torch.device,
        broken: BrokenFiles,
    ) -> None:
        self._settings = settings
        self._device = device
        self._broken = broken
        self._foreign = ForeignFiles(settings.threads)
        self._type = BATCH_TYPES[settings.image_type]
        # DALI's normalisation knows no bfloat16.
        dali_type = types.FLOAT16 if settings.image_type == "fp16" else types.FLOAT
        self._normalisation = {"mean": list(MEAN), "std": list(STD), "dtype": dali_type}

    def train(self, index: ImageIndex, plan: TrainingPlan, samples_drawn: int) -> Iterator[Batch]:
        """Endless training batches, from where all workers have drawn so many samples."""
        means = self._means(plan.batch_size)

        def works() -> Iterator[Work]:
            drawn = samples_drawn
            while True:
                images, draws = plan.batch(drawn)
                yield Work(images=images, draws=draws)
                drawn = plan.after(drawn)

        def build(next_work: Callable[[], Work]) -> Pipeline:
            source = self._inputs(index, means, next_work, self._windows)
            return dali_graph.training_pipeline(means, self._settings, self._normalisation, source)

        return self._batches(index, works(), build)

    def test(self, index: ImageIndex, images: NDArray[np.int64]) -> Iterator[Batch]:
        """The images of these numbers in their order, without augmentation; the last batch may be smaller."""
        size = self._settings.test_batch_size
        means = self._means(size)

        def build(next_work: Callable[[], Work]) -> Pipeline:
            source = self._inputs(index, means, next_work, self._middles)
            return dali_graph.evaluation_pipeline(means, self._settings, self._normalisation, source)

        works = (Work(images=images[start : start + size]) for start in range(0, len(images), size))
        return self._batches(index, works, build)

    def _means(self, batch_size: int) -> Means:
        return Means.of(self._settings, batch_size, self._device)

    def _batches(self, index: ImageIndex, works: Iterator[Work], build: Build) -> Iterator[Batch]:
        """Batches of `works`, one after the other.

        A pipeline in which a file broke off is of no use any more. Since none has a state that matters, another one
        takes up the work that was under way, without the broken files.
        """
        waiting: deque[Work] = deque()
        while True:
            begun: deque[Work] = deque()
            try:
                pipeline = build(self._taking_up(index, waiting, works, begun))
                pipeline.build()
                pipeline.schedule_run()
                while True:
                    images, ends = pipeline.outputs(cuda_stream=self._stream())
                    if self._any_broken_off(index, begun[0], np.asarray(ends.as_array())):
                        break
                    pixels = as_tensor(images, self._type, self._device)
                    pipeline.schedule_run()
                    labels = torch.from_numpy(index.labels[begun.popleft().images])
                    yield pixels.permute(0, 3, 1, 2), to_device(labels, self._device)
            except StopIteration:
                return
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, SuspectError) and is_of_gpu(error):
                    raise sentence(error, self._device) from error
                self._find_broken(index, begun, error)
            waiting.extendleft(reversed(begun))

    def _taking_up(
        self, index: ImageIndex, waiting: deque[Work], works: Iterator[Work], begun: deque[Work]
    ) -> Callable[[], Work]:
        """Gives work to a pipeline: first what is `waiting`, then `works`; it goes over to `begun`."""

        def next_work() -> Work:
            while True:
                work = self._usable(index, waiting.popleft() if waiting else next(works))
                if len(work.images):
                    begun.append(work)
                    return work

        return next_work

    def _usable(self, index: ImageIndex, work: Work) -> Work:
        if work.draws is None:
            return Work(images=self._broken.left(index, work.images))
        return Work(images=self._broken.replaced(index, work.images), draws=work.draws)

    def _inputs(self, index: ImageIndex, means: Means, next_work: Callable[[], Work], cut: Cut) -> Source:
        """Gives a decoding pipeline files that are read ahead, and how each image is cut out."""
        reading: deque[Work] = deque()
        # What a pipeline was given is not copied: it is kept until the batch is surely done.
        kept: deque[tuple[Any, ...]] = deque(maxlen=means.prefetch + 3)

        def paths() -> tuple[Any, ...]:
            work = next_work()
            work = replace(work, stand_ins=self._foreign.stand_ins(index, work.images))
            reading.append(work)
            rows = index.encoded_paths(work.images)
            if not work.stand_ins:
                return (rows,)
            return ([PLACEHOLDER.path if place in work.stand_ins else row for place, row in enumerate(rows)],)

        files = dali_graph.reading_pipeline(means, paths)
        files.build()
        files.schedule_run()

        def inputs() -> tuple[Any, ...]:
            """Return the inputs of the next batch that was read."""
            encoded, peeked, ends = files.outputs()
            work = reading.popleft()
            sides = np.asarray(peeked.as_array())
            contents: Any = encoded
            if work.stand_ins:
                sides = sides.copy()
                contents = [np.asarray(encoded.at(place)) for place in range(len(sides))]
                for place, stand_in in work.stand_ins.items():
                    contents[place], sides[place] = stand_in.encoded, stand_in.sides
            if (sides.prod(axis=1) > LARGEST_IMAGE).any():
                raise SuspectError("an image is too large")  # `_find_broken` tells which
            given = [np.ascontiguousarray(array) for array in cut(work, sides)]
            files.schedule_run()
            kept.append((contents, ends, *given, encoded))
            return kept[-1][:-1]

        return inputs

    def _windows(self, work: Work, sides: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return training's windows in images of these sides [B, 2], as `training_pipeline` takes it."""
        assert work.draws is not None
        windows = random_windows(work.draws, *sides.T)
        given: list[NDArray[Any]] = [windows[:, :2], windows[:, 2:], work.draws.mirrored.astype(np.int32)]
        if self._settings.color_jitter:
            given.append((1 + self._settings.color_jitter * work.draws.colours).astype(np.float32))
        return given

    def _middles(self, work: Work, sides: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return testing's windows likewise, as `evaluation_pipeline` takes it."""
        size = self._settings.size
        scaled, corner = middle_windows(size, self._settings.resize_before_test, sides)
        # DALI multiplies the share by the spare pixels and rounds. Without any, any share is right.
        place = corner.astype(np.float32) / np.maximum(scaled - size, 1).astype(np.float32)
        return [scaled.astype(np.float32), place]

    def _stream(self) -> Any:
        """The stream that waits for the images, so that nobody else need; this thread's current one."""
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _any_broken_off(self, index: ImageIndex, work: Work, ends: NDArray[np.uint8]) -> bool:
        """Note the files of a batch that end unusually and are indeed broken; return whether there are any."""
        usual = [np.frombuffer(end, dtype=np.uint8) for end in USUAL_ENDS]
        unusual = ~np.any([(ends == end).all(axis=1) for end in usual], axis=0)
        return self._any(index, work.images[unusual], self._is_usable)

    def _find_broken(self, index: ImageIndex, begun: Iterable[Work], error: Exception) -> None:
        """Note which files of the batches under way made a pipeline fail.

        Raises:
            UserError: memory or the GPU did, by what is said or most likely.
            RuntimeError: none of them did; it failed of something else.
        """
        under_way = [work.images for work in begun]
        if any(self._any(index, images, self._is_usable) for images in under_way):
            return
        images = np.unique(np.concatenate([*under_way, np.arange(0)])).tolist()
        unknown = [image for image in images if not self._foreign.knows(index, image)]
        paths = [np.frombuffer(index.encoded_path(image), dtype=np.uint8) for image in unknown]
        try:
            foreign = [unknown[place] for place in undecodable(self._means(1), paths)]
        except (RuntimeError, MemoryError) as failure:
            raise (sentence(failure, self._device) if is_of_gpu(failure) else error) from failure
        if not foreign:
            raise unexplained(error, self._device) from error.__cause__
        for image in foreign:
            # Pillow decodes it; from now on it does so for every batch.
            self._foreign.note(index, image)

    @staticmethod
    def _any(index: ImageIndex, images: NDArray[np.int64], is_sound: Callable[[ImageIndex, int], bool]) -> bool:
        """Return whether an image is not sound; all of them are looked at."""
        judged = [is_sound(index, image) for image in np.unique(images).tolist()]
        return not all(judged)

    def _is_usable(self, index: ImageIndex, image: int) -> bool:
        """Return whether a file is sound and rightly given to DALI; where it is not, that is noted."""
        return self._broken.is_sound(index, image) and not self._foreign.recognised(index, image)
