"""A run that was stopped and goes on from its checkpoint equals the run that never stopped, bit for bit."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Method
from resist_hvd.methods.outer import BlockMomentum
from resist_hvd.methods.resist import Resist
from resist_hvd.methods.state import FlatState
from resist_hvd.nets import subnet
from resist_hvd.protocol.rule import Rule
from resist_hvd.records import StartRecord
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.checkpoint import find_newest
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.folder import complete
from resist_hvd.training.loop import train
from resist_hvd.training.manifest import seal
from resist_hvd.training.run import Run
from resist_hvd.training.step import flat_state

from . import tiny
from .assembly import assemble


class StoppedError(Exception):
    """Stands for whatever ends a run in its midst."""


def run_of(settings: Settings, world: World, take: Callable[[int], None] = lambda batch: None) -> Run:
    """The run that these settings ask for, at its beginning or where its checkpoint left off.

    `take` is called with the number of each batch that it takes.
    """

    def alter(images: torch.Tensor, batch: int) -> torch.Tensor:
        take(batch)
        return images

    data = tiny.Altered(tiny.source(settings, rank=world.rank, size=world.size), alter)
    return tiny.make_stored_run(settings, world, data)


def finished(settings: Settings, world: World, take: Callable[[int], None] = lambda batch: None) -> Run:
    run = run_of(settings, world, take)
    train(run, tiny.Watching(run))
    return run


def stopped(settings: Settings, world: World, *, before_batch: int) -> None:
    def take(batch: int) -> None:
        if batch == before_batch:
            raise StoppedError

    with pytest.raises(StoppedError):
        finished(settings, world, take)


def finished_and_cut(settings: Settings, world: World, folder: Path, *, before_batch: int) -> tuple[Run, Settings]:
    """A run at its end, and the settings of one that has left the same folder when it was to take a batch."""
    whole, cut = (replace(settings, output=folder / name) for name in ("whole", "cut"))

    def take(batch: int) -> None:
        if batch == before_batch and world.is_first:  # who writes these files
            shutil.copytree(folder / "whole", folder / "cut")

    run = finished(whole, world, take)
    world.barrier()
    return run, cut


def assert_same_run(one: Run, other: Run, world: World) -> None:
    assert torch.equal(one.method.subnet.parameters_flat, other.method.subnet.parameters_flat)
    assert one.method.partition == other.method.partition
    for name in ("round", "samples", "accuracy", "best_accuracy", "bytes_sent"):
        assert getattr(one.progress, name) == getattr(other.progress, name)
    if world.is_first:
        for name in ("rounds.jsonl", "eval.jsonl"):
            assert tiny.timeless_lines(one.folder / name) == tiny.timeless_lines(other.folder / name)


def assert_same_state(one: Method, other: Method) -> None:
    """Compare what two optimizers keep, which is something, wherever their numbers lie."""
    mine, theirs = (cast(FlatState, method.optimizer_state).pieces() for method in (one, other))
    assert mine.keys() == theirs.keys()
    assert mine
    for name in mine:
        assert all(map(torch.equal, mine[name], theirs[name])), name


def loss_of(run: Run, world: World) -> float:
    return evaluate(run.method, run.source, run.task, world, run.autocast).loss


def contents(folder: Path) -> dict[str, str]:
    """What a run's folder holds, by the files' paths."""
    return {str(path.relative_to(folder)): path.read_bytes().hex() for path in folder.rglob("*") if path.is_file()}


ADAMW = OptimSettings(name="adamw", lr=0.01, weight_decay=0.1)
RANDOM_VIT = replace(tiny.VIT, options={**tiny.VIT.options, "drop_path_rate": 0.5, "proj_drop_rate": 0.2})
INT4, BOTH = ExchangeSettings(trunk="int4"), ExchangeSettings(trunk="int4", keep=0.25, blocks="int8")
CASES = [
    pytest.param({"min_blocks": 3, "momentum": "keep"}, id="resist-shared-and-kept"),
    pytest.param({"method": "local-sgd", "momentum": "keep", "outer_momentum": 0.4}, id="local-sgd"),
    pytest.param({"method": "ensemble", "min_blocks": 2}, id="ensemble"),
    pytest.param({"method": "federated-dropout"}, id="federated-dropout"),
    pytest.param(
        {"momentum": "keep", "warmup": 4, "outer_momentum": 0.4, "outer_momentum_blocks": 0.4}, id="as-the-warm-up-ends"
    ),
    pytest.param({"min_blocks": 4, "outer_momentum_blocks": 0.4}, id="outer-momentum-of-blocks"),
    pytest.param({"min_blocks": 3, "momentum": "keep", "precision": "bf16"}, id="in-bfloat16"),
    pytest.param({"momentum": "keep", "optim": ADAMW, "warmup": 2}, id="adamw-kept"),
    pytest.param({"method": "data-parallel", "optim": ADAMW}, id="adamw-data-parallel"),
    pytest.param({"model": RANDOM_VIT, "optim": ADAMW}, id="vit-with-stochastic-depth"),
    pytest.param({"model": tiny.POST_ACTIVATION, "momentum": "keep"}, id="post-activation"),
    pytest.param({"min_blocks": 3, "momentum": "keep", "overlap": 1}, id="resist-that-overlaps"),
    pytest.param({"method": "local-sgd", "momentum": "keep", "overlap": 1}, id="local-sgd-that-overlaps"),
    pytest.param({"min_blocks": 3, "overlap": 1, "warmup": 4}, id="as-the-warm-up-ends-and-then-overlaps"),
    pytest.param({"min_blocks": 3, "exchange": INT4, "outer_momentum": 0.4}, id="encoded-with-outer-momentum"),
    pytest.param({"method": "local-sgd", "exchange": INT4}, id="local-sgd-encoded"),
    pytest.param({"min_blocks": 3, "momentum": "keep", "exchange": BOTH, "outer_momentum_blocks": 0.4}, id="encoded"),
    pytest.param({"exchange": INT4, "warmup": 6, "outer_momentum": 0.4}, id="encoded-in-mid-warm-up"),
    pytest.param({"exchange": INT4, "warmup": 4}, id="encoded-as-the-warm-up-ends"),
    pytest.param({"min_blocks": 3, "exchange": INT4, "overlap": 1}, id="encoded-that-overlaps"),
    pytest.param({"method": "local-sgd", "exchange": INT4, "overlap": 1}, id="local-sgd-encoded-that-overlaps"),
]


def settings_of(changes: dict[str, Any], world: World, **more: Any) -> Settings:
    """Four rounds of two local iterations; a checkpoint after the second, an evaluation after the third."""
    changes = dict(changes)
    warmup = changes.pop("warmup", 0)
    settings = tiny.settings(world, iterations=8, checkpoint_every=2, evaluate_every=3, **changes)
    return replace(settings, warmup_epochs=settings.epochs * warmup / 8, **more)


@pytest.mark.parametrize("changes", CASES)
def test_resuming_is_exact(changes: dict[str, Any], world: World, folder: Path) -> None:
    whole, cut = finished_and_cut(settings_of(changes, world), world, folder, before_batch=7)
    if world.is_first:
        # The third round is on record, but not in a checkpoint.
        assert len(tiny.timeless_lines(folder / "cut" / "rounds.jsonl")) == 3
        assert [path.name for path in complete(folder / "cut" / "checkpoints")] == ["round-000002"]
    world.barrier()
    resumed = finished(replace(cut, resume=True), world)
    assert resumed.progress.round == 4
    assert_same_run(whole, resumed, world)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("method", ["resist", "local-sgd"])
def test_trunks_of_ones_own_are_averaged_where_steps_overlap_no_more(method: Any, world: World, folder: Path) -> None:
    settings = settings_of({"method": method, "overlap": 1}, world, output=folder, max_rounds=2)
    run = finished(settings, world)
    with run.method.averaged():
        average = run.method.subnet.trunk.clone()
    assert not torch.equal(average, run.method.subnet.trunk)
    resumed = run_of(replace(settings, resume=True, overlap=0), world)
    assert torch.equal(resumed.method.subnet.trunk, average)
    assert torch.equal(run_of(replace(settings, resume=True), world).method.subnet.trunk, run.method.subnet.trunk)


def test_two_runs_of_one_seed_are_the_same(world: World, folder: Path) -> None:
    settings = settings_of({"min_blocks": 3}, world)
    one = finished(replace(settings, output=folder / "one"), world)
    other = finished(replace(settings, output=folder / "other"), world)
    assert_same_run(one, other, world)
    another = finished(replace(settings, output=folder / "another", seed=2, max_rounds=1), world)
    assert not torch.equal(one.method.subnet.trunk, another.method.subnet.trunk)


def test_the_checkpoint_before_a_damaged_one(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(settings_of({}, world), checkpoint_every=1)
    whole = finished(replace(settings, output=folder / "whole"), world)
    stopped(replace(settings, output=folder / "cut"), world, before_batch=5)
    if world.is_first:
        newest, before = complete(folder / "cut" / "checkpoints")
        assert (newest.name, before.name) == ("round-000002", "round-000001")
        damaged = newest / "trunk.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    world.barrier()
    capsys.readouterr()
    resumed = finished(replace(settings, output=folder / "cut", resume=True), world)
    if world.is_first:
        said = capsys.readouterr()
        assert f"trunk.safetensors is not what was written (its SHA-256 differs) [{newest}]" in said.err
        assert "round-000001 after round 1" in said.out
    assert_same_run(whole, resumed, world)


def test_finishing_twice_changes_nothing(world: World, folder: Path) -> None:
    settings = replace(settings_of({}, world), output=folder)
    first = finished(settings, world)
    again = finished(replace(settings, resume=True), world)
    assert_same_run(first, again, world)


@pytest.fixture(scope="module")
def begun(world: World, folder_of_module: Path) -> Settings:
    """The settings of a run that has made its first round, for tests that leave its folder as it is."""
    settings = settings_of({}, world, output=folder_of_module / "begun", max_rounds=1)
    finished(settings, world)
    return settings


def test_a_folder_with_a_run_is_not_begun_anew(begun: Settings, world: World) -> None:
    folder = begun.output
    assert folder is not None
    before = contents(folder)
    with pytest.raises(UserError, match=r"already holds a run.*--resume") as caught:
        run_of(begun, world)
    assert caught.value.everywhere
    assert str(folder) in caught.value.where
    assert contents(folder) == before


def test_nothing_to_resume_from(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(replace(settings_of({}, world), output=folder / "new", resume=True), world)
    assert run.progress.round == 0
    assert ("starting anew" in capsys.readouterr().out) == world.is_first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "local-sgd"}, "another method .* method resist, not local-sgd"),
        ({"model": replace(tiny.MODEL, sections="1,1,7,1")}, "another model"),
        (
            {"model": replace(tiny.MODEL, block="bottleneck", width_factor=1 / 8)},
            "block basic, not bottleneck; width 4, not 8",
        ),
        ({"model": replace(tiny.MODEL, final_norm=False)}, "final_norm"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    changes: dict[str, Any], words: str, begun: Settings, world: World
) -> None:
    folder = begun.output
    assert folder is not None
    before = contents(folder)
    with pytest.raises(UserError, match=words) as caught:
        run_of(replace(begun, resume=True, **changes), world)
    assert caught.value.everywhere
    assert f"--resume --output {folder}" in str(caught.value)
    assert contents(folder) == before


def resume_on(world: World, settings: Settings, there: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Method, str]:
    """Resume a run; return the method as it then stands, and what was said."""
    capsys.readouterr()
    run = run_of(replace(settings, output=there, resume=True), world)
    assert run.progress.round == 1
    return run.method, capsys.readouterr().out


@pytest.mark.parametrize("method", ["resist", "ensemble"])
def test_a_version_that_deals_otherwise_goes_on_with_what_was_dealt(
    method: Any, world: World, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of({"method": method, "momentum": "keep", "min_blocks": 2}, world, max_rounds=1)
    before = finished(replace(settings, output=folder), world).method
    deal = Rule.deal
    monkeypatch.setattr(Rule, "deal", lambda rule, seed: deal(rule, seed + 1))
    after, said = resume_on(world, settings, folder, capsys)
    assert after.partition == before.partition
    assert torch.equal(after.subnet.parameters_flat, before.subnet.parameters_flat)
    assert_same_state(after, before)
    # An ensemble's blocks are dealt once and for all, and those of one worker are all of them.
    assert ("another version" in said) == (method == "resist" and world.is_first and world.size > 1)


@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "ensemble"])
@pytest.mark.parametrize("last_at", ["start", "resume"])
def test_from_a_cpu_to_a_gpu_or_back(
    method: Any, last_at: str, world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # There the same numbers lie in another order.
    settings = settings_of({"method": method, "momentum": "keep", "min_blocks": 2}, world, max_rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subnet, "trunk_lies_last", lambda _: last_at == "start")
        before = finished(replace(settings, output=folder), world).method
        patch.setattr(subnet, "trunk_lies_last", lambda _: last_at == "resume")
        after, _ = resume_on(world, settings, folder, capsys)
    (old_trunk, *old_slots), (trunk, *slots) = (
        method.subnet.pieces(method.subnet.parameters_flat) for method in (before, after)
    )
    assert torch.equal(trunk, old_trunk)
    assert all(map(torch.equal, slots, old_slots))
    assert_same_state(after, before)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("method", ["resist", "local-sgd"])
def test_outer_momentum_goes_on_with_another_number_of_workers(
    method: Any, world: World, alone: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of({"method": method, "outer_momentum": 0.4}, world, max_rounds=1)
    many = finished(replace(settings, output=folder / "many"), world).method
    assert many.outer is not None
    assert many.outer.step.abs().max() > 0
    if world.is_first:
        one, said = resume_on(alone, settings, folder / "many", capsys)
        assert one.outer is not None
        assert torch.equal(one.outer.step, many.outer.step)
        assert torch.equal(one.outer.pace.rate, many.outer.pace.rate)
        assert "outer momentum" not in said


@pytest.mark.world_size(2)
def test_outer_momentum_begins_where_a_checkpoint_has_none(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of({}, world, output=folder, max_rounds=1)
    finished(settings, world)
    both = replace(settings, outer_momentum=0.4, outer_momentum_blocks=0.4)
    resumed, said = resume_on(world, both, folder, capsys)
    assert ("outer momentum of what all workers share and blocks begins anew" in said) == world.is_first
    assert resumed.outer is not None
    assert resumed.outer.step.abs().max() == 0
    assert torch.equal(resumed.outer.before, resumed.subnet.trunk)
    of_blocks = outer_blocks(resumed)
    assert all(map(torch.equal, of_blocks.before, resumed.subnet.slots))
    assert not any(step.any() for step in of_blocks.step)


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        pytest.param({"min_blocks": 4}, "blocks", id="other-blocks"),
        pytest.param({"warmup": 4}, "what all workers share and blocks", id="a-warm-up-that-is-over-now"),
        pytest.param({"warmup": 4, "min_blocks": 4}, "what all workers share and blocks", id="and-scaled-otherwise"),
    ],
)
def test_outer_momentum_that_does_not_fit_begins_anew(
    changes: dict[str, Any], lacking: str, world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"min_blocks": 3, "outer_momentum": 0.4, "outer_momentum_blocks": 0.4}
    finished(settings_of({**options, **changes}, world, output=folder, max_rounds=1), world)
    capsys.readouterr()
    resumed = run_of(settings_of(options, world, output=folder, resume=True), world).method
    said = capsys.readouterr().out
    assert (f"outer momentum of {lacking} begins anew: the checkpoint has none that fits" in said) == world.is_first
    of_blocks = outer_blocks(resumed)
    assert all(map(torch.equal, of_blocks.before, resumed.subnet.slots))
    assert not any(step.any() for step in of_blocks.step)


def outer_blocks(method: Method) -> BlockMomentum:
    """Outer momentum on a method's dealt blocks."""
    assert isinstance(method, Resist)
    assert method.outer_blocks is not None
    return method.outer_blocks


@pytest.mark.world_size(2)
@pytest.mark.parametrize("method", ["resist", "local-sgd", "data-parallel", "federated-dropout"])
def test_another_number_of_workers(
    method: Any, world: World, alone: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    momentum = "restart" if method == "federated-dropout" else "keep"
    settings = settings_of({"method": method, "momentum": momentum}, world, max_rounds=1)
    many = finished(replace(settings, output=folder / "many"), world)
    whole = assemble(many.method, world)
    # From many workers to one ...
    if world.is_first:
        one, said = resume_on(alone, settings, folder / "many", capsys)
        assert f"dealt anew to 1 worker (it had {world.size})" in said
        assert one.optimizer_state.fresh
        now = assemble(one, alone)
        assert now.keys() == whole.keys()
        assert all(torch.equal(now[name], whole[name]) for name in whole)
        newest, _ = find_newest(folder / "many")
        assert newest is not None
        assert newest.progress.samples == many.progress.samples
        # ... and from one to many.
        finished(replace(settings, output=folder / "one", max_rounds=1), alone)
        shutil.rmtree(folder / "many")
    world.barrier()
    again, said = resume_on(world, settings, folder / "one", capsys)
    assert (f"dealt anew to {world.size} workers (it had 1)" in said) == world.is_first
    if world.is_first:
        one, _ = resume_on(alone, settings, folder / "one", capsys)
        whole = assemble(one, alone)
    whole = world.broadcast_object(whole)
    now = assemble(again, world)
    assert now.keys() == whole.keys()
    assert all(torch.equal(now[name], whole[name]) for name in whole)


@pytest.mark.world_size(2)
def test_a_warm_up_under_another_scale_computes_what_it_did(
    world: World, alone: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of({"momentum": "keep", "warmup": 6}, world, output=folder, max_rounds=1, evaluate_every=1)
    before = finished(settings, world)
    (scale,) = before.method.scales
    said_of = f"the warm-up scaled blocks by {scale:.3g}, where it is "
    loss = loss_of(before, world)
    # With as many workers, which are to hold more blocks each ...
    capsys.readouterr()
    resumed = run_of(replace(settings, resume=True, min_blocks=4), world)
    assert list(resumed.method.scales) == [0.8]
    assert flat_state(resumed).fresh
    assert loss_of(resumed, world) == pytest.approx(loss, rel=1e-5)
    said = capsys.readouterr().out
    assert (f"{said_of}0.8 now" in said and "momentum restarts" in said) == world.is_first
    # ... and on one worker, which has all of them.
    if world.is_first:
        resumed = run_of(replace(settings, resume=True), alone)
        assert list(resumed.method.scales) == [1.0]
        assert loss_of(resumed, alone) == pytest.approx(loss, rel=1e-5)
        assert f"{said_of}1 now" in capsys.readouterr().out


def test_a_checkpoint_of_the_first_format_is_gone_on_from(world: World, folder: Path) -> None:
    # In mid-warm-up: that has scales, which the first format had for each section.
    settings = settings_of({"momentum": "keep", "warmup": 6}, world)
    whole, cut = finished_and_cut(settings, world, folder, before_batch=7)
    if world.is_first:
        path = folder / "cut" / "checkpoints" / "round-000002" / "manifest.json"
        manifest = json.loads(path.read_text())
        architecture = manifest.pop("network")
        assert architecture.pop("family") == "preact_resnet"
        (scale,) = manifest.pop("scales")
        manifest |= {"format": 1, "architecture": architecture, "scales": [1.0, 1.0, scale, 1.0]}
        path.write_text(json.dumps({**manifest, "sha256": seal(manifest)}))
    world.barrier()
    resumed = finished(replace(cut, resume=True), world)
    assert resumed.progress.round == 4
    assert_same_run(whole, resumed, world)


@pytest.mark.world_size(2)
def test_an_ensemble_keeps_its_members(world: World, alone: World, folder: Path) -> None:
    settings = settings_of({"method": "ensemble", "min_blocks": 5}, world, output=folder, max_rounds=1)
    if world.is_first:
        finished(settings, alone)
    world.barrier()
    with pytest.raises(UserError, match=r"one a worker.*Resume on 1 worker,") as caught:
        run_of(replace(settings, resume=True), world)
    assert caught.value.everywhere


@pytest.mark.parametrize("how", ["another disk", "a link that leads nowhere"])
def test_checkpoints_that_cannot_be_seen_leave_the_run_as_it_is(how: str, world: World, folder: Path) -> None:
    settings = replace(settings_of({}, world), output=folder / "run", max_rounds=3)
    finished(settings, world)
    link = folder / "run" / "checkpoints"
    if world.is_first:
        link.rename(folder / "disk")
        link.symlink_to(folder / ("disk" if how == "another disk" else "away"))
        before = contents(folder / "run")
    world.barrier()
    settings = replace(settings, resume=True, max_rounds=4)
    if how == "another disk":
        assert finished(settings, world).progress.round == 4
        return
    with pytest.raises(UserError, match="checkpoints") as caught:
        run_of(settings, world)
    assert caught.value.everywhere
    if world.is_first:
        assert contents(folder / "run") == before


def test_a_run_without_a_checkpoint_is_begun_anew_beside_what_it_left(world: World, folder: Path) -> None:
    settings = replace(settings_of({}, world), output=folder / "run")
    stopped(settings, world, before_batch=3)
    if world.is_first:
        rounds = (folder / "run" / "rounds.jsonl").read_text()
        assert len(rounds.splitlines()) == 1
    world.barrier()
    whole = finished(replace(settings, output=folder / "whole"), world)
    again = finished(replace(settings, resume=True), world)
    assert_same_run(whole, again, world)
    if world.is_first:
        assert (folder / "run" / "earlier-1" / "rounds.jsonl").read_text() == rounds
        assert not (folder / "whole" / "earlier-1").exists()


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, f"seed {tiny.SEED} is now 2"),
        ({"min_blocks": 4}, "min_blocks 2 is now 4"),
        ({"warmup_epochs": 9.0}, "warmup_epochs 0.0 is now 9.0"),
    ],
)
def test_what_deals_blocks_otherwise_is_named(
    changes: dict[str, Any], words: str, world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings_of({"min_blocks": 2}, world), output=folder, max_rounds=1)
    finished(settings, world)
    capsys.readouterr()
    run_of(replace(settings, resume=True, **changes), world)
    if world.is_first:
        resumed, changed = capsys.readouterr().out.splitlines()[:2]
        assert f"({words})" in resumed
        assert words in changed
        assert "# until round 1 (" in (folder / "config.yaml").read_text()


@pytest.mark.world_size(2)
def test_a_training_set_of_another_size_is_told(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of({}, world, output=folder, max_rounds=1)
    finished(settings, world)
    capsys.readouterr()
    images = tiny.TRAIN_IMAGES
    monkeypatch.setattr(tiny, "TRAIN_IMAGES", images + 1)
    run_of(replace(settings, resume=True), world)
    if world.is_first:
        assert f"had {images} images and has {images + 1} now" in capsys.readouterr().out


@pytest.mark.world_size(2)
def test_an_ensemble_keeps_its_depth_and_may_have_another_seed(world: World, folder: Path) -> None:
    settings = settings_of({"method": "ensemble", "min_blocks": 4}, world, output=folder, max_rounds=1)
    weights = finished(settings, world).method.subnet.parameters_flat
    again = run_of(replace(settings, resume=True, seed=2), world)
    assert torch.equal(again.method.subnet.parameters_flat, weights)
    with pytest.raises(UserError, match="min_blocks 4 is now 2") as caught:
        run_of(replace(settings, resume=True, min_blocks=2), world)
    assert "seed" not in caught.value.seen
    assert f"{world.size} workers" not in caught.value.seen


def test_settings_that_deal_nothing_are_listed_and_change_nothing_else(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings_of({}, world), output=folder, max_rounds=2)
    finished(settings, world)
    capsys.readouterr()
    optim = replace(settings.optim, lr=0.025)
    run = run_of(replace(settings, resume=True, max_rounds=4, optim=optim), world)
    if world.is_first:
        _, changed = capsys.readouterr().out.splitlines()[:2]
        assert "optim.lr 0.1 is now 0.025" in changed
        assert "max_rounds 2 is now 4" in changed
        assert "seed" not in changed
    assert not flat_state(run).fresh or settings.momentum == "restart"
    train(run, tiny.Watching(run))
    assert run.progress.round == 4
    if world.is_first:
        starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
        assert StartRecord.read_lines(folder / "starts.jsonl").faults == []
        assert [start["round"] for start in starts] == [0, 2]
        assert [sorted(start["changed"]) for start in starts] == [[], ["max_rounds", "optim.lr"]]
        assert starts[1]["workers"] == world.size
        assert starts[1]["hosts"] == [world.host] * world.size
        assert starts[1]["command"] == sys.orig_argv
        assert {"resist_hvd", "python", "torch", "horovod", "mpi", "mpi4py"} <= set(starts[1]["versions"])
        assert not (folder / "summary.json").exists()
