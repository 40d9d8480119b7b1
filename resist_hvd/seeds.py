"""Seeds of their own for everything random, derived from the run's one seed."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Return the seed of the thing that `names` identify: 63 bits, the same on every machine and Python version."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
