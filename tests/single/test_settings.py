"""A run's settings: what is refused, what overrides what, and that they come back from the file they are written to."""

import re
from dataclasses import replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataName, DataSettings
from resist_hvd.settings.exchange import CodecName, ExchangeSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.reading import parse, recipe_names, to_yaml
from resist_hvd.settings.run import Settings
from resist_hvd.training.folder import set_aside
from resist_hvd.training.starts import tell, write_settings

from .report_runs import summary

AVERAGED = (
    ("data-parallel", "gradients"),
    ("ensemble", "nothing"),
    ("federated-dropout", "other filters of each worker"),
)
"""What methods average that average nothing that all workers have."""

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"local_iterations": 0}, "--local_iterations is 0; give 1 or more"),
    ({"min_blocks": -1}, "--min_blocks is -1; give 0 or more"),
    ({"warmup_epochs": -0.5}, "--warmup_epochs is -0.5; give 0 or more"),
    ({"warmup_epochs": float("nan")}, "--warmup_epochs is nan"),
    ({"warmup_epochs": float("inf")}, "--warmup_epochs is inf"),
    ({"max_rounds": 0}, "--max_rounds is 0; give 1 or more"),
    ({"seed": -1}, "--seed is -1; give 0 or more"),
    ({"evaluate_every": -1}, "--evaluate_every is -1; give 0 or more"),
    ({"checkpoint_every": -1}, "--checkpoint_every is -1; give 0 or more"),
    ({"keep_checkpoints": 0}, "--keep_checkpoints is 0; give 1 or more"),
    ({"watchdog": -1.0}, "--watchdog is -1.0; give 0 or more"),
    ({"watchdog": float("nan")}, "--watchdog is nan; give 0 or more"),
    ({"epochs": 0.0}, "--epochs is 0.0; give a number above 0"),
    ({"epochs": float("nan")}, "--epochs is nan; give a number above 0"),
    ({"epochs": float("inf")}, "--epochs is inf; give a number above 0"),
    (
        {"warmup_epochs": 1.0, "method": "local-sgd"},
        "--warmup_epochs precedes ResIST only; leave it out with --method local-sgd",
    ),
    ({"resume": True}, "--resume needs the folder of the run to go on with; give it with --output DIR"),
    (
        {"data": DataSettings(name="imagenet", root=Path("x"), image_type="bf16")},
        "--data.image_type is bf16, but --precision is fp32; give --precision bf16, too",
    ),
    *(
        ({"data": DataSettings(name=name)}, f"--data.name is {name}, but there is no folder; give it with --data.root")
        for name in ("folder", "imagenet")
    ),
    ({"outer_momentum": 1.0}, "--outer_momentum is 1.0; give a number from 0 up to, but not, 1"),
    *(
        (
            {"outer_momentum": 0.4, "method": method},
            f"--outer_momentum steps from averages of what all workers have, and --method {method} averages {what}; "
            "leave it out",
        )
        for method, what in AVERAGED
    ),
    *(
        ({name: 0.4, "overlap": overlap}, f"--{name} steps from")
        for name in ("outer_momentum", "outer_momentum_blocks")
        for overlap in (1, "auto")
    ),
    *(
        (
            {"outer_momentum_blocks": 0.4, "method": method},
            "--outer_momentum_blocks needs blocks that are dealt, which only --method resist has; leave it out with "
            f"--method {method}",
        )
        for method in ("local-sgd", "data-parallel", "ensemble", "federated-dropout")
    ),
    (
        {"cuda_graphs": True, "method": "data-parallel"},
        "--cuda_graphs holds a whole step, and --method data-parallel communicates within each; leave one out",
    ),
    (
        {"overlap": 5, "local_iterations": 5},
        "--overlap is 5, but a round has --local_iterations 5; give fewer",
    ),
    ({"overlap": -1}, "--overlap is -1; give 0 or more, or auto"),
    *(
        (
            {"overlap": overlap, "method": method},
            f"--overlap hides averages of what all workers have, and --method {method} averages {what}; leave one out",
        )
        for method, what in AVERAGED
        for overlap in (1, "auto")
    ),
    *(
        ({"overlap": overlap, flag: True}, f"--overlap has blocks that are under way stand still, and --{flag} records")
        for flag in ("compile", "cuda_graphs")
        for overlap in (1, "auto")
    ),
    *(
        (
            {"exchange": ExchangeSettings(trunk="int8"), "method": method},
            f"--exchange.trunk is int8, which encodes averages of parameters, and --method {method} averages {what}; "
            "leave it out",
        )
        for method, what in AVERAGED
    ),
    *(
        (
            {"exchange": ExchangeSettings(keep=0.25), "method": method},
            f"--exchange.keep is 0.25, which sends a part of averages, and --method {method} averages {what}; leave it "
            "out",
        )
        for method, what in AVERAGED
    ),
    *(
        (
            {"exchange": ExchangeSettings(blocks="int8"), "method": method},
            "--exchange.blocks is int8, and blocks move with --method resist only; leave it out",
        )
        for method in ("local-sgd", "data-parallel", "ensemble", "federated-dropout")
    ),
    ({"keep_filters": 0.0}, "--keep_filters is 0.0; give a share above 0, at most 1"),
    (
        {"method": "federated-dropout", "momentum": "keep"},
        "--momentum keep is for what stays with a worker, and with --method federated-dropout each has other filters",
    ),
    (
        {"method": "federated-dropout", "model": ModelSettings(name="torchvision/resnet50")},
        "--method federated-dropout thins pre-activation networks only, and the network is torchvision/resnet50; give",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Settings(**changes)


def test_codecs_that_there_are_not_are_refused() -> None:
    for flag, codec in product(("--exchange.trunk", "--exchange.blocks"), ("int3", "8", "none")):
        with pytest.raises(UserError) as caught:
            parse([f"{flag}={codec}"])
        assert flag in caught.value.seen
        assert codec in caught.value.seen
        assert all(name in caught.value.mend for name in get_args(CodecName))
    assert parse(["--exchange.trunk=int4", "--method=local-sgd"]).exchange.trunk == "int4"


def test_a_number_or_a_word() -> None:
    assert parse(["--overlap=2"]).overlap == 2
    assert parse(["--overlap=auto"]).overlap == "auto"
    with pytest.raises(UserError, match=r"--overlap is 'never'.* a whole number, or auto"):
        parse(["--overlap=never"])


def test_shares_that_cannot_be_sent_are_refused() -> None:
    for share in ("0", "0.009", "1.01", "-0.5", "nan"):
        with pytest.raises(UserError) as caught:
            parse([f"--exchange.keep={share}"])
        assert "--exchange.keep" in caught.value.seen
        assert share in caught.value.seen
        assert "0.01 to 1" in caught.value.mend
    assert [parse([f"--exchange.keep={share}"]).exchange.keep for share in ("0.01", "0.25", "1")] == [0.01, 0.25, 1]


def test_the_lowest_that_is_right() -> None:
    least = Settings(
        local_iterations=1,
        overlap=0,
        min_blocks=0,
        warmup_epochs=0,
        max_rounds=1,
        seed=0,
        evaluate_every=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        watchdog=0,
        epochs=1e-3,
    )
    assert least.max_rounds == 1


def test_flags_override_the_file_which_overrides_the_recipe(tmp_path: Path) -> None:
    recipe = parse(["--recipe", "digits"])
    path = tmp_path / "settings.yaml"
    path.write_text("local_iterations: 7\nseed: 8\noptim:\n  lr: 0.25\ndata:\n  batch_size: 9\n")
    settings = parse(["--recipe", "digits", "--seed", "10", "--config", str(path), "--optim.momentum=0.5"])
    assert settings == replace(
        recipe,
        local_iterations=7,
        seed=10,
        optim=replace(recipe.optim, lr=0.25, momentum=0.5),
        data=replace(recipe.data, batch_size=9),
    )


def test_other_data_than_the_demonstration_have_none_of_its_settings(tmp_path: Path) -> None:
    flags = ["--data.name=folder", f"--data.root={tmp_path}", "--model.sections=1,1,6,1"]
    asked = Settings(data=DataSettings(name="folder", root=tmp_path), model=ModelSettings(sections="1,1,6,1"))
    assert parse(flags) == asked
    path = tmp_path / "settings.yaml"
    path.write_text(f"data: {{name: folder, root: {tmp_path}}}\nmodel: {{sections: [1, 1, 6, 1]}}\n")
    assert parse(["--config", str(path)]) == asked
    assert parse(["--seed=2"]) == replace(parse(["--recipe=digits"]), seed=2)


@pytest.mark.parametrize("name", [name for name in get_args(DataName) if name != "digits"])
def test_data_without_a_network_are_refused_with_recipes_that_take_them(name: str, tmp_path: Path) -> None:
    root = [f"--data.root={tmp_path}"] if name in ("folder", "imagenet") else []
    with pytest.raises(UserError) as caught:
        parse([f"--data.name={name}", *root])
    assert name in caught.value.seen
    offered = [recipe for recipe in recipe_names() if recipe in caught.value.mend]
    assert offered
    for recipe in offered:
        assert parse(["--recipe", recipe, f"--data.name={name}", *root]).data.name == name


@pytest.mark.parametrize("text", ["[1, 1, 6, 1]", "1,1,6,1", "'[1, 1, 6, 1]'"])
def test_sections_may_be_a_list_as_in_an_exported_model(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"model:\n  sections: {text}\n")
    assert parse(["--config", str(path)]).model.counts == (1, 1, 6, 1)
    assert parse(["--model.sections", "[1,1,6,1]"]).model.counts == (1, 1, 6, 1)


def begun(folder: Path, *flags: str, rounds: int = 0) -> Settings:
    """Leave the settings of a run in its folder, and a place for a checkpoint of so many rounds."""
    settings = parse([*flags, "--output", str(folder)])
    folder.mkdir(exist_ok=True)
    write_settings(folder, settings, 0)
    if rounds:
        (folder / "checkpoints" / f"round-{rounds:06d}").mkdir(parents=True)
    return settings


def test_a_run_is_resumed_with_its_own_settings(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [
        "--recipe=cifar10-tiny",
        "--optim.lr=0.02",
        "--momentum=keep",
        "--model.sections=1,1,6,1",
        "--max_rounds=9",
    ]
    first = begun(folder, *flags, rounds=4)
    resume = ["--resume", "--output", str(folder)]
    assert parse(resume) == replace(first, resume=True)
    # As a batch script does at each start.
    assert parse([*resume, *flags]) == replace(first, resume=True)
    assert parse([*resume, "--optim.lr=0.1"]) == replace(first, resume=True, optim=replace(first.optim, lr=0.1))
    path = tmp_path / "more.yaml"
    path.write_text("seed: 3\n")
    assert parse([*resume, "--config", str(path)]) == replace(first, resume=True, seed=3)
    assert parse([*resume, "--model.name=preact_resnet50"]).model.counts == (3, 4, 6, 3)
    # Without --resume they are of no concern.
    assert parse(["--output", str(folder)]).optim.lr == parse([]).optim.lr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_keeps_the_precision_that_auto_was_found_to_be(precision: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = begun(folder, "--precision=auto", rounds=4)
    assert settings.precision == "auto"
    resume = ["--resume", "--output", str(folder)]
    assert parse([*resume, "--precision=auto"]).precision == "auto"  # as it stands there, if nobody has resolved it
    write_settings(folder, replace(settings, precision=precision), 0)
    for flags in ([], ["--precision=auto"], ["--recipe=digits"]):
        assert parse([*resume, *flags]).precision == precision
    for asked in ("fp32", "bf16"):
        assert parse([*resume, f"--precision={asked}"]).precision == asked


def test_a_run_that_has_finished_its_rounds_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    resume = ["--resume", "--output", str(tmp_path)]
    begun(tmp_path, "--max_rounds=9", rounds=9)
    # Stopped or killed after its last round: the evaluation and the model are still to be made, and no round more.
    assert parse(resume).max_rounds == 9
    for other in ("[" * 100_000, "{}", '{"rounds": 9}', summary(rounds=8).as_line()):
        (tmp_path / "summary.json").write_text(other)
        assert parse(resume).max_rounds == 9
    (tmp_path / "summary.json").write_text(summary(rounds=9).as_line())
    assert parse(resume).max_rounds is None
    assert parse([*resume, "--max_rounds=9"]).max_rounds == 9
    assert parse([*resume, "--max_rounds=12"]).max_rounds == 12


def test_a_first_start_may_say_resume(tmp_path: Path) -> None:
    resume = ["--resume", "--output", str(tmp_path / "new")]
    assert parse([*resume, "--recipe=cifar10-tiny"]).local_iterations == 10
    assert parse(resume).data.name == "digits"


def test_settings_that_cannot_be_read_end_a_resume_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: [resist")
    with pytest.raises(UserError, match=r"config\.yaml, line 1"):
        parse(["--resume", "--output", str(tmp_path)])
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="No such file"):
        parse(["--resume", "--output", str(tmp_path)])


def test_a_file_of_settings_keeps_what_was_before_and_is_read_all_the_same(tmp_path: Path) -> None:
    first = begun(tmp_path, "--optim.lr=0.02", "--momentum=keep")
    assert not (tmp_path / "config.yaml").read_text().startswith("#")
    second = replace(first, resume=True, optim=replace(first.optim, lr=0.1), max_rounds=8)
    assert write_settings(tmp_path, second, 4) == {"optim.lr": (0.02, 0.1), "max_rounds": (None, 8)}
    assert write_settings(tmp_path, second, 6) == {}
    assert write_settings(tmp_path, replace(second, momentum="restart"), 7) == {"momentum": ("keep", "restart")}
    lines = [line for line in (tmp_path / "config.yaml").read_text().splitlines() if line.startswith("#")]
    assert len(lines) == 2
    assert "round 4" in lines[0]
    assert "optim.lr 0.02" in lines[0]
    assert "round 7" in lines[1]
    assert 'momentum "keep"' in lines[1]
    # Given to another run, it does not make it a resumed one.
    read = parse(["--config", str(tmp_path / "config.yaml")])
    assert read == replace(second, momentum="restart", resume=False)


def test_changes_are_told_by_name_with_both_values() -> None:
    sentence = tell({"optim.lr": (0.02, 0.1), "max_rounds": (4, None)})
    assert "optim.lr 0.02 is now 0.1" in sentence
    assert "max_rounds 4 is now null" in sentence


def test_results_without_a_checkpoint_are_set_aside_whole(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        for name in ("rounds.jsonl", "model.safetensors", "config.yaml", "console.log"):
            (tmp_path / name).write_text(f"{name} {number}")
        aside = set_aside(tmp_path)
        assert aside is not None
        kept = {path.name: path.read_text() for path in aside.iterdir()}
        assert kept == {name: f"{name} {number}" for name in ("rounds.jsonl", "model.safetensors", "config.yaml")}
    assert (tmp_path / "earlier-1" / "rounds.jsonl").read_text() == "rounds.jsonl 1"
    assert (tmp_path / "console.log").exists()


def test_without_flags_it_is_the_embedded_demonstration() -> None:
    assert parse([]) == parse(["--recipe=digits"])
    assert parse([]).data.name == "digits"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_says_what_it_is_taken_for(recipe: str, tmp_path: Path) -> None:
    text = resources.files("resist_hvd.recipes").joinpath(f"{recipe}.yaml").read_text()
    root = [] if recipe == "digits" else ["--data.root", str(tmp_path)]
    settings = parse(["--recipe", recipe, *root])
    resolved = yaml.safe_load(to_yaml(settings))
    for name, value in yaml.safe_load(text).items():
        there = resolved[name]
        if isinstance(value, dict):
            value = {key: wanted for key, wanted in value.items() if key != "root"}
            there = {key: there[key] for key in value}
        assert there == value


def test_the_recipes_of_the_issue_are_there() -> None:
    assert {
        "digits",
        "cifar10-tiny",
        "cifar10-resnet101",
        "cifar100-resnet101",
        "imagenet-resnet50",
        "imagenet-resnet101",
    } <= set(recipe_names())


@pytest.mark.parametrize("recipe", ["cifar10-resnet101", "cifar100-resnet101"])
def test_the_papers_settings(recipe: str) -> None:
    # Section 5.1 of the paper, and its supplement; S = 4.
    settings = parse(["--recipe", recipe])
    assert settings.model.counts == (3, 4, 23, 3)
    assert (settings.model.block, settings.model.width_factor, settings.model.final_norm) == ("basic", 1.0, False)
    assert (settings.local_iterations, settings.min_blocks, settings.momentum) == (50, 5, "restart")
    assert (settings.data.batch_size, settings.epochs) == (128, 160)
    optim = settings.optim
    assert (optim.momentum, optim.weight_decay, optim.schedule) == (0.9, 5e-4, "step")
    assert (optim.milestones, optim.divide_by) == ((0.5, 0.75), 10.0)


@pytest.mark.parametrize(
    ("recipe", "sections", "min_blocks"),
    [("imagenet-resnet101", (3, 4, 23, 3), 10), ("imagenet-resnet50", (3, 4, 6, 3), 3)],
)
def test_the_papers_settings_on_imagenet(recipe: str, sections: tuple[int, ...], min_blocks: int) -> None:
    # Section 5.1 of the paper; of ResNet-50 it has nothing.
    settings = parse(["--recipe", recipe, "--data.root", "somewhere"])
    assert settings.model.counts == sections
    assert (settings.model.block, settings.model.stem, settings.model.width_factor) == ("bottleneck", "imagenet", 1.0)
    assert (settings.local_iterations, settings.min_blocks, settings.momentum) == (15, min_blocks, "restart")
    assert (settings.data.name, settings.data.batch_size, settings.data.size) == ("imagenet", 256, 224)
    assert settings.data.resize_before_test == 256
    optim = settings.optim
    assert (optim.lr, optim.momentum, optim.schedule, optim.divide_by) == (0.1, 0.9, "step", 10.0)
    assert [settings.epochs * milestone for milestone in optim.milestones] == pytest.approx([30, 60])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for settings in (
        Settings(),
        Settings(
            method="local-sgd",
            local_iterations=3,
            min_blocks=0,
            momentum="keep",
            scale_activations=False,
            epochs=0.1,
            max_rounds=9,
            seed=2**40,
            precision="bf16",
            compile=True,
            device="cpu",
            evaluate_every=1,
            checkpoint_every=2,
            keep_checkpoints=3,
            output=tmp_path / "a run: with signs #1",
            resume=True,
            model=ModelSettings(sections="1,1,5", block="bottleneck", width_factor=1 / 3, partition="all"),
            data=DataSettings(name="folder", root=tmp_path, image_size=8, crop_padding=0, flip=False),
            optim=OptimSettings(lr=1e-5, schedule="step", milestones=(0.1, 0.2, 0.3), clip_norm=1.5),
        ),
        *(parse(["--recipe", recipe]) for recipe in recipe_names()),
    ):
        path.write_text(to_yaml(settings))
        assert parse(["--config", str(path)]) == settings


@pytest.mark.parametrize("text", ["[" * 100_000, "seed: 2024-13-45", "\xe9".encode("latin-1")])
def test_a_file_that_is_hardly_yaml_is_refused_with_its_name(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"odd\.yaml"):
        parse(["--config", str(path)])


@pytest.mark.parametrize("flags", [[], ["--recipe=digits"], ["--recipe=cifar10-tiny"], ["--recipe=imagenet-resnet50"]])
@pytest.mark.parametrize("name", ["torchvision/resnet50", "timm/vit_tiny_patch16_224"])
def test_who_names_a_network_of_another_family_means_it_whole(name: str, flags: list[str]) -> None:
    assert parse([*flags, "--model.name", name]).model == ModelSettings(
        name=name, zero_init_residual=parse(flags).model.zero_init_residual
    )


def test_a_network_of_ones_own_replaces_the_recipes() -> None:
    model = parse(["--recipe=cifar10-resnet101", "--model.parts=mine.py:parts", "--model.options.depth=3"]).model
    assert (model.family, model.title, model.options) == ("parts", "mine.py:parts", {"depth": 3})
    assert parse(["--recipe=digits", "--model.parts=mine.py:parts"]).model.sections is None


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--model.name=timm/x --model.block=bottleneck", ("--model.block", "bottleneck", "timm/x", "nothing")),
        ("--model.name=torchvision/x --model.sections=1,1,2", ("--model.sections", "1,1,2", "torchvision/x")),
        ("--model.name=timm/x --model.width_factor=2", ("--model.width_factor", "2.0", "timm/x")),
        ("--model.parts=a:b --model.stem=imagenet", ("--model.stem", "imagenet", "--model.parts a:b")),
        ("--model.parts=a:b --model.name=timm/x", ("--model.name", "timm/x", "--model.parts")),
        ("--model.options.depth=3", ("--model.options", "torchvision", "timm", "Leave")),
        ("--model.name=resnet50", ("--model.name", "'resnet50'", "torchvision/NAME", "timm/NAME")),
        ("--optim.name=adamw --optim.momentum=0.5", ("--optim.momentum", "0.5", "adamw")),
        ("--optim.name=adamw --optim.nesterov", ("--optim.nesterov", "adamw")),
        ("--optim.betas=[0.8,0.9]", ("--optim.betas", "sgd")),
        ("--optim.name=adamw --optim.betas=[0.8]", ("--optim.betas", "[0.8]", "brackets")),
        ("--optim.name=adamw --optim.betas=[0.8,1.5]", ("--optim.betas", "1.5", "two numbers")),
        ("--optim.warmup=0.1 --optim.warmup_epochs=3", ("--optim.warmup", "--optim.warmup_epochs", "one")),
        ("--optim.warmup_epochs=50", ("--optim.warmup_epochs", "50", "--epochs", "40")),
        ("--model.options=3", ("--model.options", "--model.options.NAME")),
        ("--model.options.depth", ("--model.options.depth", "no value")),
        ("--model.options.depth=[", ("--model.options.depth", "'['", "number")),
        ("--model.options.depth=2024-01-01", ("--model.options.depth", "2024-01-01", "number")),
    ],
)
def test_what_does_nothing_for_a_network_or_an_optimizer_is_refused(flags: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        parse(flags.split())
    assert all(fact in str(caught.value) for fact in facts), caught.value


def test_options_are_merged_by_name_and_forgotten_with_their_network(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model:\n  name: timm/vit\n  options: {patch_size: 4, drop_path_rate: 0.1, sizes: [3, 4]}\n")
    options = ["--model.options.patch_size", "8", "--model.options.class_token=false"]
    model = parse(["--config", str(path), *options]).model
    assert model.options == {"patch_size": 8, "drop_path_rate": 0.1, "sizes": [3, 4], "class_token": False}
    assert parse(["--config", str(path), "--model.name=timm/other"]).model.options == {}
    assert parse(["--config", str(path), "--model.name=timm/vit", *options]).model == model
    path.write_text("model: {name: timm/vit, options: 3}\n")
    with pytest.raises(UserError, match=r"options is 3.*settings\.yaml"):
        parse(["--config", str(path)])


def test_who_names_another_optimizer_means_its_own_rates(tmp_path: Path) -> None:
    recipes = [recipe for recipe in recipe_names() if parse(["--recipe", recipe]).optim.name == "sgd"]
    assert recipes
    for recipe in recipes:
        sgd, adamw = (parse(["--recipe", recipe, *flags]).optim for flags in ([], ["--optim.name=adamw"]))
        assert (adamw.lr, adamw.weight_decay) == (1e-3, 0.05)
        assert (adamw.schedule, adamw.warmup) == (sgd.schedule, sgd.warmup)
        assert parse(["--recipe", recipe, "--optim.name=sgd"]).optim == sgd
    given = ["--optim.name=adamw", "--optim.lr=0.01", "--optim.betas=[0.8,0.9]"]
    first = begun(tmp_path, *given)
    assert (first.optim.lr, first.optim.betas) == (0.01, (0.8, 0.9))
    assert parse(["--resume", "--output", str(tmp_path)]) == replace(first, resume=True)


def test_a_warm_up_may_be_in_epochs(tmp_path: Path) -> None:
    optim = parse(["--recipe=digits", "--optim.warmup_epochs", "5"]).optim
    assert (optim.warmup, optim.warmup_epochs) == (0.0, 5.0)
    begun(tmp_path, "--optim.warmup_epochs=5")
    resumed = parse(["--resume", "--output", str(tmp_path), "--optim.warmup=0.25"]).optim
    assert (resumed.warmup, resumed.warmup_epochs) == (0.25, 0.0)
