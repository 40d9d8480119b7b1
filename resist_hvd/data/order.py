"""In which order training images come, and the random numbers that augment them: pure functions of seed and position.

Samples are numbered from the run's start, over all workers: sample g is the (g mod N)-th image of epoch g div N's
permutation. Everything random is a function of the seed and of g, so a position is one number, no generator's state
is ever saved, and neither the number of workers nor the batch size changes what happens to an image.

The random numbers are Philox's: a counter-based generator, which gives the numbers of any position without those
before it. (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.) NumPy keeps the output of its bit
generators the same for ever, unlike that of `permutation` or of `torch.randperm`, so runs repeat across versions.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORDS_PER_SAMPLE = 4
"""64-bit random words that Philox makes of one counter: what a sample has for its augmentation, or a multiple."""


class _Purpose(IntEnum):
    """The second half of the generator's key, so that what is drawn for one purpose is independent of the others."""

    EPOCH = 0
    SAMPLE = 1
    CALIBRATION = 2
    VALIDATION = 3


def _random_words(seed: int, purpose: _Purpose, counter: int, count: int) -> NDArray[np.uint64]:
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _permutation(seed: int, purpose: _Purpose, number: int, size: int) -> NDArray[np.int64]:
    # The counter's upper half tells permutations apart, its lower half counts within one.
    words = _random_words(seed, purpose, number << 128, size)
    return np.argsort(words, kind="stable")


def sample_words(seed: int, first: int, count: int, *, each: int = WORDS_PER_SAMPLE) -> NDArray[np.uint64]:
    """The random words of samples `first` to `first + count - 1`: uint64 [count, each].

    A source takes as many of them as it needs, a multiple of WORDS_PER_SAMPLE, and always as many: those of another
    `each` are not independent of them.

    Raises:
        ValueError: `each` is no multiple of WORDS_PER_SAMPLE.
    """
    counters, rest = divmod(each, WORDS_PER_SAMPLE)
    if rest:
        raise ValueError(f"a sample's words come in multiples of {WORDS_PER_SAMPLE}, not {each}")
    return _random_words(seed, _Purpose.SAMPLE, first * counters, count * each).reshape(count, each)


def fixed_choice(size: int, count: int) -> NDArray[np.int64]:
    """`count` different numbers below `size`, or all of them if there are fewer: the same ones at every call."""
    return _permutation(0, _Purpose.CALIBRATION, 0, size)[:count]


def fixed_order(size: int) -> NDArray[np.int64]:
    """The numbers below `size` in a random order, the same one at every call: int64 [size]."""
    return _permutation(0, _Purpose.VALIDATION, 0, size)


class EpochOrder:
    """Order of the samples among `size` images: one random permutation for each epoch, laid end to end."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("an order needs at least one image")
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def images(self, first: int, count: int) -> NDArray[np.int64]:
        """The images of samples `first` to `first + count - 1`, across as many epochs as they touch: int64 [count]."""
        pieces = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, position = divmod(first, self.size)
            piece = self._epoch_permutation(epoch)[position : position + count]
            pieces.append(piece)
            first += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def _epoch_permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._permutation = _permutation(self.seed, _Purpose.EPOCH, epoch, self.size)
            self._epoch = epoch
        return self._permutation
