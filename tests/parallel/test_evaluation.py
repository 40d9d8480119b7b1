"""Evaluation and export, for which blocks go round, do what one process would that had the whole network."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch, DataSource, ExtraTest, Shard
from resist_hvd.errors import UserError
from resist_hvd.nets import Network, Norm, families, load
from resist_hvd.nets.norms import set_statistics
from resist_hvd.nets.saved import Whole
from resist_hvd.nets.subnet import scale_outputs
from resist_hvd.settings.model import ModelSettings
from resist_hvd.training import evaluate as evaluation_module
from resist_hvd.training.evaluate import Evaluation, evaluate, evaluate_on, inputs_at_once
from resist_hvd.training.export import export
from resist_hvd.training.run import Run

from . import tiny
from .assembly import assemble

EVERYTHING = Shard(rank=0, size=1)
CASES = [
    pytest.param({}, id="no-shared-blocks"),
    pytest.param({"min_blocks": 3}, id="shared-blocks"),
    pytest.param({"scale_activations": False}, id="not-scaled"),
    pytest.param({"model": replace(tiny.MODEL, sections="2,2,4", partition="all")}, id="all-sections"),
    pytest.param({"model": replace(tiny.MODEL, final_norm=False, block="bottleneck")}, id="bottleneck-no-final-norm"),
    pytest.param({"method": "local-sgd"}, id="local-sgd"),
    pytest.param({"method": "federated-dropout"}, id="federated-dropout"),
    pytest.param({"method": "federated-dropout", "scale_activations": False}, id="federated-dropout-not-scaled"),
]


def trained(changes: dict[str, Any], world: World, folder: Path) -> Run:
    """A run after its first round."""
    run = tiny.make_run(tiny.settings(world, **changes), world, folder)
    tiny.train_on(run, rounds=1)
    return run


def whole_network(run: Run) -> Whole:
    """The global network with its scales, gathered from all workers, in one piece."""
    parameters = assemble(run.method, run.world)
    network = run.method.setup.network
    whole = Whole(network)
    for name, tensor in whole.tensors().items():
        tensor.copy_(parameters.pop(name))
    assert not parameters
    if run.settings.method == "resist" and run.settings.scale_activations:
        for deck in network.decks:
            depth = max(-(-deck.blocks // run.world.size), min(run.settings.min_blocks, deck.blocks))
            for place in range(deck.first, deck.first + deck.blocks):
                scale_outputs(network.parts[place], whole.parts[place], depth / deck.blocks)
    if run.settings.method == "federated-dropout" and run.settings.scale_activations:
        for place, part in enumerate(whole.parts):
            for parameter in part.parameters():
                if place > 0 and parameter.dim() > 1:
                    parameter.data.mul_(3 / 4)
    return whole


def joined(batches: Any) -> Batch:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@torch.no_grad()
def plain_scores(network: Whole, source: DataSource) -> tuple[Tensor, Tensor]:
    """Scores and labels of the test set, each norm using the statistics of all calibration images in one batch."""
    calibration, _ = joined(source.calibration(EVERYTHING))
    images, labels = joined(source.test(EVERYTHING))
    found: dict[Norm, tuple[Tensor, Tensor]] = {}

    def note(norm: Norm, arguments: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3), correction=0)
        found[norm] = mean, variance

    norms = [module for module in network.modules() if isinstance(module, Norm)]
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    network.train()
    network(calibration)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        set_statistics(norm, *found[norm])
    return network.eval()(images), labels


def evaluation_of(scores: Tensor, labels: Tensor) -> Evaluation:
    accuracy = 100 * (scores.argmax(dim=1) == labels).double().mean().item()
    return Evaluation(accuracy=accuracy, loss=functional.cross_entropy(scores, labels).item(), images=len(labels))


def assert_close(ours: Evaluation, theirs: Evaluation) -> None:
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1e-9)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert ours.images == theirs.images


@pytest.mark.parametrize("changes", CASES)
def test_both_are_those_of_the_whole_network(changes: dict[str, Any], world: World, folder: Path) -> None:
    run = trained(changes, world, folder)
    expected, labels = plain_scores(whole_network(run), run.source)
    assert_close(evaluate(run.method, run.source, run.task, world, run.autocast), evaluation_of(expected, labels))
    assert export(folder, run.method, run.source, run.task, world, run.autocast) == ([folder] if world.is_first else [])
    images, _ = joined(run.source.test(EVERYTHING))
    model = load(folder)
    assert not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    world.barrier()
    assert not list(folder.glob("*.partial"))


def test_the_exported_model_is_described(world: World, folder: Path) -> None:
    run = trained({}, world, folder)
    export(folder, run.method, run.source, run.task, world, run.autocast)
    description = json.loads((folder / "model.json").read_text())
    spec = run.source.spec
    assert families.make(description["network"]).description == run.method.network.description
    assert description.pop("network") == run.method.network.description
    assert description == {
        "classes": list(spec.classes),
        "data": "noise",
        "image_size": 8,
        "channels": 3,
        "test_resize": None,
        "stretched": False,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def test_any_number_of_ranks_finds_the_same(world: World, alone: World, folder: Path) -> None:
    run = trained({"scale_activations": False}, world, folder)
    ours = evaluate(run.method, run.source, run.task, world, run.autocast)
    parameters = assemble(run.method, world)
    solo = tiny.make_run(replace(run.settings, method="local-sgd"), alone, folder)
    for part, module in solo.method.subnet.held(solo.method.blocks):
        for name, parameter in module.named_parameters():
            parameter.data.copy_(parameters[part.prefixed(name)])
    assert_close(ours, evaluate(solo.method, solo.source, solo.task, alone, solo.autocast))


def test_evaluation_leaves_training_as_it_was(world: World, folder: Path) -> None:
    run = trained({}, world, folder)
    subnet = run.method.subnet
    before = subnet.parameters_flat.clone(), replace(run.progress), run.method.partition
    first = evaluate(run.method, run.source, run.task, world, run.autocast)
    assert torch.equal(subnet.parameters_flat, before[0])
    assert (run.progress, run.method.partition) == before[1:]
    assert all(module.training for module in subnet.modules())
    assert all(norm.running_mean is None for norm in subnet.modules() if isinstance(norm, Norm))
    assert evaluate(run.method, run.source, run.task, world, run.autocast) == first


def test_more_test_images_than_are_carried_at_once(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained({"data": replace(tiny.settings(world).data, test_batch_size=2)}, world, folder)
    at_once = evaluate(run.method, run.source, run.task, world, run.autocast)
    assert inputs_at_once(run.method.network) >= tiny.TEST_IMAGES
    # The first section puts out four channels, of 8 x 8 numbers.
    monkeypatch.setattr(evaluation_module, "ACTIVATIONS_AT_ONCE", 2 * 4 * 4 * 8 * 8)
    assert inputs_at_once(run.method.network) == 2
    assert_close(evaluate(run.method, run.source, run.task, world, run.autocast), at_once)


@pytest.mark.parametrize("method", ["resist", "ensemble"])
def test_statistics_do_not_depend_on_what_is_carried_at_once(
    method: str, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained({"method": method, "data": replace(tiny.settings(world).data, test_batch_size=2)}, world, folder)
    export(folder / "at-once", run.method, run.source, run.task, world, run.autocast)
    monkeypatch.setattr(evaluation_module, "ACTIVATIONS_AT_ONCE", 1)
    (written,) = export(folder / "apart", run.method, run.source, run.task, world, run.autocast) or [None]
    if written is not None:
        name = written.relative_to(folder / "apart") / "model.safetensors"
        assert (folder / "apart" / name).read_bytes() == (folder / "at-once" / name).read_bytes()


def test_a_test_set_of_which_nothing_is_left_is_refused(world: World, folder: Path) -> None:
    run = trained({}, world, folder)
    nothing = ExtraTest(name="broken", size=5, batches=lambda _: iter(()))
    with pytest.raises(UserError, match="No image of broken") as caught:
        evaluate_on([nothing], run.method, run.source, run.task, world, run.autocast)
    assert caught.value.everywhere


def test_as_many_images_are_carried_as_their_activations_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(image_size: int, **model: Any) -> int:
        return inputs_at_once(families.chosen(ModelSettings(**model), channels=3, image_size=image_size, classes=10))

    assert at_once(32) == 8192
    # ImageNet's bottlenecks put out 256 channels of 56 x 56: 3.2 MB an image.
    assert at_once(224, name="preact_resnet50", block="bottleneck", stem="imagenet") == 2**31 // (4 * 256 * 56**2)
    monkeypatch.setattr(evaluation_module, "ACTIVATIONS_AT_ONCE", 1000)
    assert at_once(32) == 1
    # Of a user's own network nothing may be known: few batches at a time would have its blocks lent many times.
    assert inputs_at_once(Network(())) > 1


@pytest.mark.world_size(3)
def test_a_rank_without_images_still_lends_its_blocks(world: World, folder: Path) -> None:
    few = replace(tiny.settings(world).data, calibration_images=2)
    # Without the fourth section, which leaves one pixel of an image: the variance of two numbers may be almost nothing.
    run = trained({"data": few, "model": replace(tiny.MODEL, sections="1,1,6")}, world, folder)
    scores, labels = plain_scores(whole_network(run), run.source)
    assert_close(evaluate(run.method, run.source, run.task, world, run.autocast), evaluation_of(scores, labels))


def test_an_ensembles_predictions_are_averaged(world: World, folder: Path) -> None:
    run = trained({"method": "ensemble", "min_blocks": 2}, world, folder)
    ours = evaluate(run.method, run.source, run.task, world, run.autocast)
    target = folder / "members" / str(world.rank)
    assert export(folder, run.method, run.source, run.task, world, run.autocast) == [target]
    images, labels = joined(run.source.test(EVERYTHING))
    members = [load(folder / "members" / str(rank)) for rank in range(world.size)]
    stems = {member.tensors()["stem.0.weight"].numpy().tobytes() for member in members}
    assert len(stems) == world.size
    with torch.no_grad():
        probabilities = torch.stack([functional.softmax(member(images), dim=1) for member in members])
    theirs = evaluation_of(probabilities.mean(dim=0).log(), labels)
    # All members see all of the test set.
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1e-9)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


@pytest.mark.parametrize("method", ["resist", "ensemble"])
def test_several_test_sets_are_each_evaluated_by_themselves(method: str, world: World, folder: Path) -> None:
    run = trained({"method": method}, world, folder)
    # Six calibration images are fewer than a batch; in a world of four, the last rank's share has one.
    images, labels = (part[:6] for part in joined(run.source.calibration(EVERYTHING)))

    def share(shard: Shard) -> Iterator[Batch]:
        yield images[shard.rank :: shard.size], labels[shard.rank :: shard.size]

    test = ExtraTest(name="whole", size=run.source.spec.test_size, batches=run.source.test)
    found = evaluate_on(
        [test, ExtraTest(name="few", size=6, batches=share)], run.method, run.source, run.task, world, run.autocast
    )
    assert list(found) == ["whole", "few"]
    assert found["whole"] == evaluate(run.method, run.source, run.task, world, run.autocast)
    if method == "resist":
        export(folder, run.method, run.source, run.task, world, run.autocast)
        with torch.no_grad():
            assert_close(found["few"], evaluation_of(load(folder)(images), labels))
    assert 0 <= found["few"].accuracy <= 100
    assert (found["whole"].images, found["few"].images) == (tiny.TEST_IMAGES, 6)


def test_scales_are_folded_into_the_exported_weights(world: World, folder: Path) -> None:
    run = trained({}, world, folder)
    export(folder, run.method, run.source, run.task, world, run.autocast)
    parameters = assemble(run.method, world)
    exported = load_file(folder / "model.safetensors")
    blocks = run.method.network.blocks
    scale = -(-len(blocks) // world.size) / len(blocks)
    folded = {f"{part.name}.units.1.conv.weight" for part in blocks}
    assert folded < parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(exported[name], parameter * (scale if name in folded else 1.0))
