"""Settings of what goes over the wire: the flags `--exchange.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from resist_hvd.settings.group import Bound, Group

CodecName = Literal["fp32", "fp16", "int8", "int6", "int5", "int4"]
"""Codecs by name: float32; float16; whole multiples of a scale, one a group, in so many bits."""


Kept = Annotated[float, Bound("a share from 0.01 to 1", lambda number: 0.01 <= number <= 1)]
"""Of fewer numbers, to say which they are would take more bytes than they do."""


@dataclass(frozen=True, kw_only=True)
class ExchangeSettings(Group):
    """The codecs of what workers send each other, and how much of it they send."""

    PREFIX: ClassVar = "exchange."

    trunk: CodecName = "fp32"
    """Codec of averages among all workers: of the trunk, for local-sgd of the whole network. All but fp32 send what has
    changed since the last average, and next time what encoding left out; they keep two more numbers for each that is
    averaged. The last average of a run, and of a warm-up, is exact."""

    keep: Kept = 1.0
    """The share of numbers that averages among all workers send: of each group those that have changed most, whatever
    their codec; the others' changes are sent later. Averages are of changes then with fp32, too."""

    blocks: CodecName = "fp32"
    """Codec of blocks: of copies that are averaged, and of blocks on their way to next holders. The last round of a run
    is exact."""
