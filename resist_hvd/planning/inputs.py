"""Inputs of a plan, in numbers, from its settings: the network, a round's work, the machines."""

from __future__ import annotations

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.size import deck_ranges, part_sizes
from resist_hvd.planning.cost import Machine, Network, Work
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.plan import PlanSettings


def machine_of(settings: PlanSettings, flops: float) -> Machine:
    """Return what the plan's workers compute on, at so many FLOP/s, and what joins them."""
    return Machine(
        flops=flops,
        bandwidth=settings.link * settings.efficiency,
        latency=settings.seconds_latency,
        overhead=settings.seconds_overhead,
        ranks_per_host=settings.ranks_per_host,
    )


def network_of(settings: PlanSettings, *, kept_filters: float = 1.0) -> Network:
    """Return the network in numbers, with a share of its filters."""
    model = ModelSettings(**{**settings.model.__dict__, "width_factor": settings.model.width_factor * kept_filters})
    architecture = Architecture.of(model, channels=settings.facts.channels, classes=settings.facts.classes)
    return Network(part_sizes(architecture, settings.facts.size), deck_ranges(architecture))


def work_of(settings: PlanSettings, workers: int, **changes: int) -> Work:
    """Return a round's work on so many workers; with another l or m if given."""
    given = {"local_iterations": settings.local_iterations, "min_blocks": settings.min_blocks, **changes}
    return Work(workers=workers, batch=settings.data.batch_size, micro_batches=settings.micro_batches, **given)
