"""Inputs of a plan, in numbers, from its settings: the network, a round's work, the machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resist_hvd.planning.cost import Machine, Work
from resist_hvd.planning.loads import Network
from resist_hvd.settings.plan import PlanSettings

if TYPE_CHECKING:
    from resist_hvd import nets


def machine_of(settings: PlanSettings, flops: float) -> Machine:
    """Return what the plan's workers compute on, at so many FLOP/s, and what joins them."""
    return Machine(
        flops=flops,
        bandwidth=settings.link * settings.efficiency,
        latency=settings.seconds_latency,
        overhead=settings.seconds_overhead,
        ranks_per_host=settings.ranks_per_host,
    )


def network_of(settings: PlanSettings) -> Network:
    """Return the network in numbers.

    Raises:
        UserError: there is no such network, or it cannot be dealt out.
    """
    from resist_hvd.nets import sizes  # with PyTorch, for which help and mistakes need not wait

    network = _network(settings)
    return Network(sizes.part_sizes(network), sizes.deck_ranges(network))


def thinned_of(settings: PlanSettings, network: Network) -> Network:
    """Return what a worker of federated dropout has of the network, in numbers.

    Of families of which nothing is known to thin it is what a share of each layer's filters would come to.
    """
    from resist_hvd.nets import sizes, thinning

    if settings.model.family != "preact":
        return network.thinned(settings.keep_filters)
    thin = thinning.thin_network(_network(settings), settings.keep_filters)
    return Network(sizes.part_sizes(thin), ())


def _network(settings: PlanSettings) -> nets.Network:
    from resist_hvd.nets import families

    facts = settings.facts
    return families.chosen(
        settings.model,
        channels=facts.channels,
        image_size=facts.size,
        classes=facts.classes,
        anchors=settings.task.anchors_in_a_cell if settings.task_name == "detection" else None,
    )


def work_of(settings: PlanSettings, workers: int, **changes: int) -> Work:
    """Return a round's work on so many workers; with another l, m or T if given."""
    given: dict[str, Any] = {
        "local_iterations": settings.local_iterations,
        "min_blocks": settings.min_blocks,
        "overlap": settings.overlap,
        **changes,
    }
    return Work(
        workers=workers,
        batch=settings.data.batch_size,
        micro_batches=settings.micro_batches,
        trunk=settings.exchange.trunk,
        keep=settings.exchange.keep,
        blocks=settings.exchange.blocks,
        outer=settings.outer_momentum > 0,
        outer_blocks=settings.outer_momentum_blocks > 0,
        **given,
    )
