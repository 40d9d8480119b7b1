"""`bench link`: what the busiest link between hosts carries, and the time that this takes at least."""

import pytest

from resist_hvd import bench
from resist_hvd.benchmarks.link import Measurement, busiest, sent_by, sent_by_all, sent_in_a_ring
from resist_hvd.errors import UserError
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.rule import Rule


def test_only_what_goes_from_host_to_host_crosses_a_link_and_the_busier_direction_counts() -> None:
    sent = [(0, 1, 100), (0, 2, 10), (1, 3, 5), (2, 0, 7), (3, 1, 9)]
    assert busiest(sent, ["n1", "n1", "n2", "n2"]) == 16
    assert busiest(sent, ["n1"] * 4) == 0
    # Ranks of one host pass a ring on in turn, so that one of them sends to another host.
    assert busiest(sent_in_a_ring(1000, 4), ["n1", "n1", "n2", "n2"]) == 1500
    assert busiest(sent_by_all(1000, 4), ["n1", "n1", "n2", "n2"]) == 2000
    assert busiest(sent_by_all(1000, 4), ["n1", "n2", "n3", "n4"]) == 1500


def test_without_shared_hosts_the_bound_is_the_plan_s() -> None:
    rule = Rule((12,), 4, 6)
    plan = exchange(rule.deal(0), rule.deal(1))
    numbers = tuple(1000 + block for block in range(12))
    sizes = tuple(4 * each for each in numbers)
    assert busiest(sent_by(plan, numbers, "fp32"), ["n1", "n2", "n3", "n4"]) == plan.busiest(sizes)
    # Parts of blocks of 12 groups are whole groups, of 260 bytes each.
    codes = busiest(sent_by(plan, (12 * 256,) * 12, "int8"), ["n1", "n2", "n3", "n4"])
    assert codes == plan.busiest((12 * 260,) * 12, 260)


def test_a_link_carries_payload_beside_headers() -> None:
    assert Measurement(payload=2_350_000, seconds=2.0).bound(20) == pytest.approx(1.0)


def test_a_rate_that_cannot_be_is_refused() -> None:
    for rate in ("0", "-1", "fast"):
        with pytest.raises(UserError, match="rate"):
            bench.parse(["link", "--rate", rate])
