"""A network is cut into stages as evenly as can be."""

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resist_hvd.benchmarks.stages import Load, best_cut
from resist_hvd.errors import UserError

LOADS = st.lists(
    st.builds(Load, seconds=st.integers(0, 9).map(float), output=st.integers(1, 5), parameters=st.integers(0, 1)),
    min_size=1,
    max_size=8,
)


def slowest_and_passed_on(loads: list[Load], edges: tuple[int, ...]) -> tuple[float, int]:
    """The seconds of a cut's slowest stage, and the numbers that pass from stage to stage."""
    slowest = max(sum(load.seconds for load in loads[first:end]) for first, end in pairwise(edges))
    return slowest, sum(loads[end - 1].output for end in edges[1:-1])


def all_cuts(loads: list[Load], stages: int) -> list[tuple[int, ...]]:
    """The edges of every cut into so many stages that all have something to train."""
    cuts = [(0, *inner, len(loads)) for inner in combinations(range(1, len(loads)), stages - 1)]
    return [edges for edges in cuts if all(any(load.parameters for load in loads[a:b]) for a, b in pairwise(edges))]


@given(loads=LOADS, stages=st.integers(1, 5))
@example(loads=[Load(1.0, 5, 1), Load(1.0, 1, 1), Load(3.0, 2, 1)], stages=2)
def test_a_cut_is_the_best_of_all(loads: list[Load], stages: int) -> None:
    cuts = all_cuts(loads, stages)
    if not cuts:
        with pytest.raises(UserError, match=f"{stages} ranks") as caught:
            best_cut(loads, stages)
        assert "--rows" in caught.value.mend
        return
    found = best_cut(loads, stages)
    edges = tuple(accumulate(found, initial=0))
    assert edges in cuts
    assert slowest_and_passed_on(loads, edges) == min(slowest_and_passed_on(loads, other) for other in cuts)


def test_even_parts_make_even_stages() -> None:
    assert best_cut([Load(1.0, 1, 1)] * 12, 4) == (3, 3, 3, 3)
    assert best_cut([Load(9.0, 1, 1), *[Load(1.0, 1, 1)] * 8], 3) == (1, 1, 7)
