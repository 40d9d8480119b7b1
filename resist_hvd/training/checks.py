"""Settings that fit a network or a data set badly, found before the first round: refused, or remarked on."""

from __future__ import annotations

import math

import torch

from resist_hvd.data.source import DataSpec
from resist_hvd.errors import UserError
from resist_hvd.nets.norms import norms_of
from resist_hvd.nets.parts import Network
from resist_hvd.settings.run import Settings
from resist_hvd.training.run import Run
from resist_hvd.units import counted


def refuse_degenerate(settings: Settings, network: Network, spec: DataSpec) -> None:
    """Refuse what cannot be trained, or would be trained to no purpose: all ranks call it together.

    Raises:
        UserError: there is nothing to tell apart; or a batch norm would see a single value a channel.
    """
    if len(spec.classes) < 2 and settings.task_name == "classification":
        raise UserError(
            f"{spec.name} has {counted(len(spec.classes), 'class', 'classes')}: there is nothing to tell apart",
            mend="Give data of two classes or more.",
            everywhere=True,
        )
    places = fewest_places(network)
    calibration = min(settings.data.calibration_images, spec.train_size)
    for flag, images in (("batch_size", settings.data.batch_size), ("calibration_images", calibration)):
        if images * places < 2:
            raise UserError(
                f"Batch norm needs more than one value a channel, and has one in the network's last blocks: the "
                f"{spec.image_size} x {spec.image_size} pixels of an image are 1 x 1 there, and --data.{flag} is "
                f"{images}",
                mend=f"Give a larger --data.{flag}, larger images or fewer --model.sections.",
                everywhere=True,
            )


def fewest_places(network: Network) -> int:
    """Return the fewest places of an image (1 where it is a vector) that a batch norm of the network sees."""
    places, before = [2], network.example
    for module, output in zip(network.modules, network.outputs, strict=True):
        if norms_of(module):
            seen = [x for x in (before, output) if x is not None and x.dim() > 2]
            places += [math.prod(x.shape[2:]) for x in seen]
        before = output
    return min(places)


def refuse_graphs_without_gpu(settings: Settings, device: torch.device) -> None:
    """Refuse CUDA graphs where the run computes on CPUs; it does on all ranks or on none.

    Raises:
        UserError: it does.
    """
    if settings.cuda_graphs and device.type != "cuda":
        raise UserError(
            f"--cuda_graphs needs a GPU, and this run computes on a {device.type}",
            mend="Leave out --cuda_graphs, or see by `python -m resist_hvd.doctor` why no GPU is used.",
            everywhere=True,
        )


LARGE_IMAGES = 96
"""Pixels a side from which a stem made for CIFAR's 32 is more likely an oversight than a choice."""


def remarks(run: Run) -> list[str]:
    """Return what a person should know of the run's settings before its first round, in sentences."""
    of_settings = (sentence for sentence in (why_not_resist(run), stem_for_other_images(run)) if sentence)
    return [*run.method.setup.network.remarks, *of_settings]


def stem_for_other_images(run: Run) -> str:
    """Return that the network's stem is made for small images and these are large; empty where that is not so."""
    side = run.source.spec.image_size
    if run.method.network.description.get("stem") != "cifar" or side < LARGE_IMAGES:
        return ""
    return (
        f"The network begins with CIFAR's stem, which keeps all {side} x {side} pixels: 16 times the arithmetic and "
        f"the activations of ImageNet's. If that is not meant, give --model.stem imagenet."
    )


def why_not_resist(run: Run) -> str:
    """Return what keeps a run by ResIST from training sub-networks, and what changes that; empty where nothing does."""
    settings, workers = run.settings, run.world.size
    if settings.method != "resist":
        return ""
    network, rule = run.method.network, run.method.rule
    blocks = rule.blocks
    if blocks < 2:
        deeper = {"preact": "a deeper one, as by --model.sections", "parts": "more parts a deck"}
        change = deeper.get(settings.model.family, "a deeper one, as by --model.name, or --model.partition all")
        return (
            f"There is nothing to deal out: {network.title} has {counted(blocks, 'block')} that can be left out, "
            f"so every worker trains the whole network. For ResIST give {change}."
        )
    if workers == 1:
        return (
            f"One worker holds all {blocks} blocks: it trains the whole network, as plain SGD does. "
            f"For ResIST start more workers: launch/run -np 4 ..."
        )
    if rule.depths == rule.decks:
        return (
            f"Each of {workers} workers holds all {blocks} blocks (--min_blocks {settings.min_blocks}): all of them "
            f"train the whole network, as local SGD does. For ResIST give a --min_blocks below "
            f"{max(rule.decks)}, or a deeper network."
        )
    warm_up = round(settings.warmup_epochs * run.source.spec.train_size)
    left = min(run.iterations_left, (run.rounds() - run.progress.round) * settings.local_iterations)
    end = run.progress.samples + left * run.batch
    if warm_up >= end:
        return (
            f"The warm-up lasts {warm_up:,} samples (--warmup_epochs {settings.warmup_epochs:g}), and the run "
            f"{end:,}: all of it is local SGD. For ResIST give fewer --warmup_epochs, or more --epochs or --max_rounds."
        )
    return ""
