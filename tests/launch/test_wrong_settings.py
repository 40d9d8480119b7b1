"""Flags and files of settings that are wrong: each is told in a sentence that names it and says what it may be."""

import re
from pathlib import Path

import pytest

from resist_hvd.errors import UserError
from resist_hvd.settings.group import flags_of
from resist_hvd.settings.reading import parse
from resist_hvd.settings.run import Settings

from . import runs

WRONG_FLAGS = {
    "--frobnicate 3": ("--frobnicate", "--help"),
    "--local_iteration 3": ("--local_iteration.", "--local_iterations;"),
    "--lr 0.1": ("--lr.", "--optim.lr;"),
    "fast": ("'fast'", "flag"),
    "--method sgd": ("--method", "'sgd'", "resist, local-sgd, data-parallel, ensemble, federated-dropout"),
    "--optim.schedule=linear": ("--optim.schedule", "'linear'", "step, cosine, constant"),
    "--local_iterations many": ("--local_iterations", "'many'", "whole number"),
    "--local_iterations 2.5": ("--local_iterations", "'2.5'", "whole number"),
    "--local_iterations 0": ("--local_iterations", "0", "1 or more"),
    "--max_rounds none": ("--max_rounds", "'none'", "whole number"),
    "--optim.lr fast": ("--optim.lr", "'fast'", "number"),
    "--optim.lr -1": ("--optim.lr", "-1.0", "above 0"),
    "--optim.milestones 0.5,0.7": ("--optim.milestones", "'0.5,0.7'", "[0.5,0.75]"),
    "--data.flip maybe": ("--data.flip", "'maybe'", "true or false"),
    "--output": ("--output", "no value", "a path"),
    "--data": ("--data ", "--data.name", "--data.root", "--data.dali.width_hint"),
    "--resume": ("--resume", "folder", "--output DIR"),
    "--recipe cifar10-tiny --data.name folder": ("--data.name", "folder", "--data.root DIR"),
    "--data.name imagenet --data.root here": (
        "--data.name",
        "imagenet",
        *("imagenet-resnet101", "imagenet-resnet50", "--config", "--model.name", "--model.sections", "--model.parts"),
    ),
    "--model.sections [1,x,6,1]": ("--model.sections", "'[1,x,6,1]'", "1,1,12,1"),
}
"""For each what is to be in the message: the flag, its value, and what to give."""

WRONG_FILES = {
    "method: [resist": (", line 1]", "YAML", "',' or ']'"),
    "- resist\n": ("]", "no settings", "config.yaml"),
    "": ("]", "no settings", "config.yaml"),
    "methods: resist\n": ("]", "methods", "method;"),
    "optim:\n  learning_rate: 1\n": ("]", "optim.learning_rate", "--help"),
    "optim: sgd\n": ("]", "optim", "'sgd'", "group", "below"),
    "method: sgd\n": ("]", "method", "'sgd'", "resist, local-sgd, data-parallel, ensemble, federated-dropout"),
    "seed: -3\n": ("]", "seed", "-3", "0 or more"),
    "recipe: digits\n": ("]", "recipe", "--recipe NAME"),
}
"""For each what follows the file's name, and what else is to be in the message."""


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(arguments)
    return str(caught.value)


@pytest.mark.parametrize("flags", WRONG_FLAGS)
def test_wrong_flag_is_told_with_what_it_may_be(flags: str) -> None:
    message = refusal(*flags.split())
    assert all(fact in message for fact in WRONG_FLAGS[flags]), message


@pytest.mark.parametrize("text", WRONG_FILES)
def test_wrong_file_of_settings_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    after, *facts = WRONG_FILES[text]
    message = refusal("--config", str(path))
    assert all(fact in message for fact in (f"[{path}{after}", *facts)), message


@pytest.mark.parametrize(
    "flags", ["--output=/tmp/caf\udce9", "--data.root /tmp/caf\udce9", "--config /tmp/caf\udce9.yaml"]
)
def test_a_path_that_is_no_utf_8_is_told_and_can_be_printed(flags: str) -> None:
    message = refusal(*flags.split())
    assert "/tmp/caf\\xe9" in message
    assert "UTF-8" in message
    assert message.isascii()


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert refusal("--config", str(missing)).startswith(
        f"Cannot read the settings: No such file or directory [{missing}]"
    )
    assert refusal("--config", str(tmp_path)).startswith(f"Cannot read the settings: Is a directory [{tmp_path}]")


def test_unknown_recipe_is_told_with_those_there_are() -> None:
    message = refusal("--recipe", "imagenet-in-a-minute")
    assert message.startswith("There is no recipe 'imagenet-in-a-minute'. Give --recipe one of ")
    assert "digits" in message


def test_no_message_speaks_of_python() -> None:
    for name, setting in flags_of(Settings).items():
        if setting.kind in (Path, str):  # anything is a path
            continue
        message = refusal(f"--{name}={{nonsense: [1]}}")
        assert f"{name} is" in message, message
        assert not re.search(r"typing|class '|Literal|Union|NoneType|Errno", message), message


def test_flag_overrides_file_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 5\nlocal_iterations: 7\n")
    for arguments in (["--seed=6", "--config", str(path)], ["--config", str(path), "--seed=6"]):
        settings = parse(arguments)
        assert (settings.seed, settings.local_iterations) == (6, 7)


def test_named_network_has_its_own_depth_whatever_the_recipe() -> None:
    assert parse(["--model.name=preact_resnet50"]).model.counts == (3, 4, 6, 3)
    assert parse([]).model.counts == (1, 1, 9, 1)


def test_switch_is_on_when_given_alone(tmp_path: Path) -> None:
    assert parse(["--resume", "--output", str(tmp_path)]).resume
    assert parse(["--output", str(tmp_path), "--resume"]).resume
    assert not parse(["--resume", "false"]).resume


def test_help_documents_every_flag_in_lines_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"typing|Literal|NoneType|<class '|null|Annotated", text)
    assert max(map(len, text.splitlines())) <= 80
    for name in flags_of(Settings):
        shown = re.search(rf"^  --{re.escape(name)}(.NAME)? \S+\s+\w", text, re.MULTILINE)
        assert shown, f"--{name} has no text"


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, expected in ((["--help"], "default: 50"), (["--recipe=imagenet-resnet50", "--help"], "default: 15")):
        with pytest.raises(SystemExit):
            parse(flags)
        text = " ".join(capsys.readouterr().out.split())
        assert re.search(r"--local_iterations N [^()]*\(" + expected, text)


# Under launchers: once, on all ranks, with a status


def test_wrong_flag_ends_all_ranks_with_one_message() -> None:
    ended = runs.run("--frobnicate", "3")
    assert "--frobnicate" in ended.mistake
    assert ended.status == 2


def test_wrong_file_ends_the_program_with_one_message(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("optim: {lr: fast}\n")
    ended = runs.run("--config", path, launcher="none")
    assert all(fact in ended.mistake for fact in ("optim.lr", "'fast'", f"[{path}]", "number"))
    assert ended.status == 2


def test_help_is_printed_once() -> None:
    ended = runs.run("--help")
    assert ended.status == 0, ended
    assert ended.stdout.count("usage: python -m resist_hvd.train [--FLAG VALUE ...]") == 1
    assert "l, the local iterations of a round: training" in ended.stdout
