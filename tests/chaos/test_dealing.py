"""What a campaign draws: the same kills from the same seed, and all signals, moments and settings in turn."""

import signal
from collections import Counter

from .dealing import MOMENTS, SIGNALS, deal
from .settings import SETTINGS


def test_a_kill_is_the_same_in_a_campaign_of_any_length() -> None:
    assert deal(7, 40)[:10] == deal(7, 10)
    assert deal(7, 10) != deal(8, 10)


def test_thirteen_kills_try_all_signals_settings_and_moments() -> None:
    for seed in range(20):
        kills = deal(seed, 13)
        assert {kill.setting for kill in kills} == set(SETTINGS)
        assert {kill.moment for kill in kills} == set(MOMENTS)
        # One that a setting cannot have is kept for the next.
        assert Counter(kill.signal for kill in kills) >= Counter(set(SIGNALS))


def test_what_a_kill_cannot_be_is_not_dealt() -> None:
    kills = deal(1, 2000)
    assert all(kill.rank < kill.setting.ranks for kill in kills)
    assert all(kill.setting.ranks > 1 for kill in kills if kill.signal == signal.SIGSTOP)
    assert all(kill.rank == 0 for kill in kills if kill.moment.name == "manifest")
    assert {kill.rank for kill in kills} == {0, 1, 2, 3}
    assert any(kill.twice for kill in kills)
