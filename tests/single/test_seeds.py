"""Seeds of their own: different for different things, and the same everywhere and for ever."""

import itertools

from resist_hvd.seeds import derive


def test_they_are_the_same_on_every_machine_and_version() -> None:
    # The first 63 bits of the SHA-256 of 1/round/0 and of 1/trunk.
    # Had these changed, no run could be repeated and no checkpoint resumed exactly.
    assert derive(1, "round", 0) == 5100513341189118122
    assert derive(1, "trunk") == 1516006559459840758


def test_they_fit_in_a_signed_word() -> None:
    seeds = [derive(seed, "block", block) for seed in range(20) for block in range(50)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)
    # None of 63 bits is always 0 or always 1.
    assert all(0 < sum(seed >> bit & 1 for seed in seeds) < len(seeds) for bit in range(63))


def test_each_part_of_a_name_counts() -> None:
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("a", 1), ("a", 11), ("a", 1, 1), ("a", 0)]
    seeds = [derive(seed, *name) for seed, name in itertools.product((0, 1, 11), names)]
    assert len(set(seeds)) == len(seeds)
