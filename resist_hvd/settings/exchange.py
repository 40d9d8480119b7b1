"""Settings of what goes over the wire."""

from __future__ import annotations

from typing import Literal

CodecName = Literal["fp32", "fp16", "int8", "int6", "int4"]
"""Codecs by name: float32; float16; whole multiples of a scale, one a group, in so many bits."""
