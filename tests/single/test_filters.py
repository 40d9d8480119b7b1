"""The deal of filters: sizes that hold, sets that differ, and no channel that is favoured."""

from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.filters import Channels, deal, kept_of

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 1.0)), min_size=1, max_size=5)


def channels(sizes: list[tuple[int, float]]) -> list[Channels]:
    return [Channels(f"layer {number}", whole, kept_of(whole, share)) for number, (whole, share) in enumerate(sizes)]


@given(SIZES, SEEDS, st.integers(0, 100))
def test_a_hand_has_as_many_channels_as_any_other(sizes: list[tuple[int, float]], seed: int, worker: int) -> None:
    dealt = channels(sizes)
    hand = deal(dealt, seed, worker)
    assert list(hand) == [name for name, *_ in dealt]
    for name, whole, kept in dealt:
        assert len(hand[name]) == kept == len(set(hand[name]))
        assert list(hand[name]) == sorted(hand[name])
        assert hand[name][0] >= 0
        assert hand[name][-1] < whole
    assert hand == deal(dealt, seed, worker)


@given(st.integers(1, 10_000), st.floats(0.001, 1.0))
def test_a_share_is_of_whole_channels(whole: int, share: float) -> None:
    kept = kept_of(whole, share)
    assert 1 <= kept <= whole
    assert kept == 1 or abs(kept - share * whole) <= 0.5


@given(SEEDS)
def test_workers_rounds_and_layers_have_channels_of_their_own(seed: int) -> None:
    one, other = (Channels(name, 64, 32) for name in ("one", "other"))
    hands = [deal([one, other], seed, 0), deal([one, other], seed, 1), deal([one, other], seed + 1, 0)]
    sets = {channels for hand in hands for channels in hand.values()}
    assert len(sets) == 6
    # A layer's channels do not depend on what else is dealt.
    assert deal([other], seed, 1)["other"] == hands[1]["other"]


def test_every_channel_is_dealt_as_often_as_any_other() -> None:
    counts = [0] * 8
    for seed in range(1000):
        for channel in deal([Channels("layer", 8, 6)], seed, seed % 4)["layer"]:
            counts[channel] += 1
    # 750 times of 1,000, with a standard deviation of 14.
    assert sum(counts) == 6000
    assert all(690 < count < 810 for count in counts)


def test_a_deal_is_the_same_in_every_version() -> None:
    dealt = deal([Channels("stem", 8, 4), Channels("sections.1.0", 4, 3)], 1, 2)
    assert dealt == {"stem": (0, 2, 4, 7), "sections.1.0": (1, 2, 3)}
