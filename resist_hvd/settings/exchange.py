"""Settings of what goes over the wire: the flags `--exchange.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resist_hvd.settings.group import Group

CodecName = Literal["fp32", "fp16", "int8", "int6", "int5", "int4"]
"""Codecs by name: float32; float16; whole multiples of a scale, one a group, in so many bits."""


@dataclass(frozen=True, kw_only=True)
class ExchangeSettings(Group):
    """The codecs of what workers send each other."""

    PREFIX: ClassVar = "exchange."

    trunk: CodecName = "fp32"
    """Codec of averages among all workers: of the trunk, for local-sgd of the whole network. All but fp32 send what has
    changed since the last average, and next time what encoding left out; they keep two more numbers for each that is
    averaged. The last average of a run, and of a warm-up, is exact."""

    blocks: CodecName = "fp32"
    """Codec of blocks: of copies that are averaged, and of blocks on their way to next holders. The last round of a run
    is exact."""
