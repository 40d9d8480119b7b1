"""Experiments on CIFAR: Tables 2 and 4, Figure 4, and the supplement's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from resist_hvd.reporting import paper
from resist_hvd.reproduction.budgets import cifar, data_sets, network_sections, watched
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.measures import (
    ACCURACY,
    BYTES_TO_GOAL,
    ROUNDS_TO_GOAL,
    SECONDS,
    SENT,
)
from resist_hvd.settings.reproduce import ReproduceSettings

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
WORKERS = (2, 4, 8)


def row(
    settings: ReproduceSettings,
    method: str,
    workers: int,
    *,
    data: str = "cifar10",
    network: str = "preact_resnet101",
) -> Case:
    """Return a method's row on so many workers, with the paper's accuracy and seconds beside it."""
    told = paper.result(method, data, workers, network_sections(network))
    numbers = {} if told is None else {ACCURACY.name: told.accuracy}
    if told is not None and told.seconds is not None:
        numbers[SECONDS.name] = told.seconds
    # Rows of four workers are those of other experiments, which look at accuracy on the way.
    on_the_way = watched(settings) if workers == settings.ranks and method != "ensemble" else {}
    deeper = (
        "" if network == "preact_resnet101" else f", {network.removeprefix('preact_').replace('resnet', 'ResNet-')}"
    )
    long = {"local_iterations": 100} if deeper and settings.budget == "paper" else {}
    where = f"{TITLES[data]}{deeper}, S = {workers}"
    return Case(
        name=f"{method}, {where}",
        workers=workers,
        group=where,
        settings=cifar(settings, method, data=data, network=network, **on_the_way, **long),
        paper=numbers,
    )


def of_methods(settings: ReproduceSettings, *methods: str, workers: tuple[int, ...] = WORKERS) -> list[Case]:
    """Return a row of each method for each number of workers and each data set."""
    return [
        row(settings, method, count, data=data)
        for data in data_sets(settings, "cifar10", "cifar100")
        for count in workers
        for method in methods
    ]


def in_order(settings: ReproduceSettings, places: Mapping[str, int], *, data: str = "cifar10") -> list[Case]:
    """Return a row of each method, with its place in an order that the paper shows without numbers."""
    return [
        replace(row(settings, method, settings.ranks, data=data), name=method, group="all", paper={}, place=place)
        for method, place in places.items()
    ]


TABLE2 = Experiment(
    name="table2",
    title="Test accuracy on CIFAR",
    source="Table 2",
    about="ResIST beside local SGD on 2, 4 and 8 workers, each with the same samples.",
    cases=lambda settings: of_methods(settings, "local-sgd", "resist"),
    measures=(ACCURACY, SENT),
    lasts={"minutes": "17 min", "hours": "3 h"},
    curves=True,
)

TABLE4 = Experiment(
    name="table4",
    title="Seconds of training on CIFAR",
    source="Table 4",
    about="The runs of table2, by what they took. Workers that share a machine's cores take what all of them compute: "
    "the gain that is seen there is of arithmetic alone.",
    cases=lambda settings: of_methods(settings, "local-sgd", "resist", workers=(4, 8)),
    measures=(SECONDS, ACCURACY),
    lasts={"minutes": "10 min", "hours": "2 h"},
)

A2 = Experiment(
    name="a2",
    title="Ensembles of shallow networks",
    source="supplement A.2",
    about="ResIST and local SGD beside S shallow networks, never aggregated, whose predictions are averaged.",
    cases=lambda settings: of_methods(settings, "ensemble", "resist", "local-sgd"),
    measures=(ACCURACY,),
    lasts={"minutes": "20 min", "hours": "5 h"},
)

DEEPER = ("preact_resnet152", "preact_resnet200")


def _deeper(settings: ReproduceSettings) -> list[Case]:
    workers = (settings.ranks,) if settings.budget == "minutes" else (2, 4)
    return [
        row(settings, method, count, data=data, network=network)
        for data in data_sets(settings, "cifar10", "cifar100")
        for network in DEEPER
        for count in workers
        for method in ("local-sgd", "resist")
    ]


A4 = Experiment(
    name="a4",
    title="Deeper networks",
    source="supplement A.4",
    about="ResNet-152 and ResNet-200, which have more blocks to deal out: accuracy and seconds.",
    cases=_deeper,
    measures=(SECONDS, ACCURACY),
    lasts={"minutes": "16 min", "hours": "5 h"},
)

# Rounds of other lengths. A run in minutes has fewer iterations than the paper's: its rows stand beside those of the
# paper that have about as many rounds.
ONE_SHOT = 10**6
LENGTHS_MINUTES = {5: 250, 10: 500, 50: 2000, ONE_SHOT: None}
LENGTHS_HOURS = {5: 50, 10: 100, 50: 500, 100: 1000, 200: 2000, 600: 6000, ONE_SHOT: None}


def _lengths(settings: ReproduceSettings) -> list[Case]:
    by_paper = {length or ONE_SHOT: length for length in paper.LOCAL_ITERATIONS}
    lengths = {"minutes": LENGTHS_MINUTES, "hours": LENGTHS_HOURS, "paper": by_paper}[settings.budget]
    data = "cifar100" if settings.budget == "paper" and settings.data.name is None else "cifar10"
    cases = []
    for workers in (settings.ranks,) if settings.budget == "minutes" else (2, 4):
        for method in ("local-sgd", "resist"):
            numbers = paper.BY_LOCAL_ITERATIONS.get((method, workers))
            for length, papers in lengths.items():
                named = "one shot" if length == ONE_SHOT else f"l = {length}"
                told = {ACCURACY.name: numbers[paper.LOCAL_ITERATIONS.index(papers)]} if numbers else {}
                base = row(settings, method, workers, data=data)
                layer = {**base.settings, "local_iterations": length}
                if settings.budget != "paper" and length == 10:
                    layer = dict(base.settings)  # the recipe's: a run of other experiments, too
                elif "evaluate_every" in layer:
                    layer["evaluate_every"] = 0
                alike = papers in (length, None)
                beside = "" if alike else f"Beside the paper's l = {papers}, of about as many rounds."
                cases.append(
                    replace(
                        base,
                        name=f"{method}, S = {workers}, {named}",
                        group=f"{method}, S = {workers}",
                        settings=layer,
                        paper=told,
                        note=beside,
                    )
                )
    return cases


A3 = Experiment(
    name="a3",
    title="Local iterations, from many rounds to one shot",
    source="supplement A.3",
    about="The same samples in fewer and fewer rounds. The paper's accuracies are on CIFAR-100.",
    cases=_lengths,
    measures=(ACCURACY, SENT),
    compare="before",
    lasts={"minutes": "20 min", "hours": "8 h"},
)

BITS = (8, 7, 6, 5, 4)


def _few_bits(settings: ReproduceSettings) -> list[Case]:
    cases = []
    for data in data_sets(settings, "cifar10", "cifar100"):
        full = row(settings, "resist", settings.ranks, data=data)
        group = TITLES[data]
        cases.append(replace(full, name=f"32 bits, {group}", group=group))
        plain = {name: value for name, value in full.settings.items() if name != "evaluate_every"}
        plain["evaluate_every"] = 0
        for bits in BITS:
            codec = f"int{bits}"
            cases.append(
                replace(
                    full,
                    name=f"{bits} bits, {group}",
                    group=group,
                    settings={**plain, "exchange.trunk": codec, "exchange.blocks": codec},
                    paper={ACCURACY.name: paper.BY_BITS[data][bits]},
                    lacking="There is no codec of 7 bits." if bits == 7 else "",
                )
            )
        told = paper.QUARTER_SENT.get(data)
        cases.append(
            replace(
                full,
                name=f"a quarter of the trunk sent, {group}",
                group=group,
                settings={**plain, "exchange.keep": 0.25},
                paper={} if told is None else {ACCURACY.name: told},
                note="Of what all workers share; blocks are sent whole. The paper sends a quarter of all weights, and "
                "tells it of CIFAR-100 alone.",
            )
        )
    return cases


A5 = Experiment(
    name="a5",
    title="Few bits, and few numbers",
    source="supplement A.5",
    about="ResIST whose trunk and blocks are sent in 8 to 4 bits, or whose trunk is sent in part.",
    cases=_few_bits,
    measures=(ACCURACY, SENT),
    lasts={"minutes": "14 min", "hours": "4 h"},
    notes=(
        "Codes here are of changes since the last average, and what encoding leaves out is sent later (error "
        "feedback); how the paper quantized it does not say.",
    ),
)

A6 = Experiment(
    name="a6",
    title="Convergence against rounds and bytes",
    source="supplement A.6",
    about="Accuracy on the way of ResIST and local SGD; the paper shows curves, without numbers.",
    cases=lambda settings: in_order(settings, {"resist": 0, "local-sgd": 1}),
    measures=(BYTES_TO_GOAL, ROUNDS_TO_GOAL, ACCURACY),
    lasts={"minutes": "5 min", "hours": "1 h"},
    curves=True,
)
