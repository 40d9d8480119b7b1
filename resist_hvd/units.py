"""Quantities as people write them: 10gbit, 50us, 6tflop; and as they read them."""

from __future__ import annotations

import math
import re

PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
RATES = {f"{prefix}bit": factor / 8 for prefix, factor in PREFIXES.items()} | {
    f"{prefix}byte": factor for prefix, factor in PREFIXES.items()
}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
PAYLOAD = 0.94
"""Payload's share of what a link carries: that of TCP in Ethernet frames of 1,500 bytes."""

FLOPS = {f"{prefix}flop": factor for prefix, factor in PREFIXES.items()}


def quantity(text: str, units: dict[str, float], *, setting: str, example: str, may_be_zero: bool = False) -> float:
    """Return a quantity in the unit that counts as 1.

    Args:
        text: a number and a unit, 10gbit; "/s" after it is allowed.
        units: what each unit is worth.
        setting: the setting's name, for what is said of a wrong one.
        example: what a right one looks like.
        may_be_zero: whether there may be none of it, as of latency.

    Raises:
        ValueError: it is not a finite number above 0 (or 0, where that may be) with one of the units.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]+)(?:/s)?\s*", text.lower())
    try:
        value = float(found[1]) * units[found[2]] if found else math.nan
    except (ValueError, KeyError):
        value = math.nan
    if not 0 <= value < math.inf or (value == 0 and not may_be_zero):
        raise ValueError(f"--{setting} is {text!r}; give a number and a unit, like {example}")
    return value


def scaled(value: float, unit: str) -> str:
    """Return a quantity in three figures with the prefix that suits it: 1.29 GB."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1e3
        prefixes.pop(0)
    return f"{three_figures(value)} {prefixes[0]}{unit}".rstrip()


def three_figures(value: float) -> str:
    """Return a number below a thousand in three figures, without an exponent."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])
    decimals = max(0, 2 - exponent)
    return f"{value:.{min(decimals, 6)}f}"


def counted(count: float, name: str, plural: str = "") -> str:
    """Return so many of something, in its singular or its plural: 1 round, 1,200 rounds.

    Args:
        count: how many.
        name: of one.
        plural: of several; the name with an s by default.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {name if count == 1 else plural or f'{name}s'}"


def remaining(seconds: float) -> str:
    """Return a time that is estimated, no more exactly than it is known: 41 s, 12 min, 4 h 10 min, 3 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 3.2 ms, 41.0 s, 12.5 min, 4.2 h, 3.1 d."""
    for limit, unit, worth in ((1.0, "ms", 1e-3), (120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{three_figures(seconds / worth)} {unit}"
    return f"{three_figures(seconds / 86400)} d"
