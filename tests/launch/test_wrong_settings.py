"""Flags and files of settings that are wrong: each is told in a sentence that names it and says what it may be."""

import re
from pathlib import Path

import pytest

from resist_hvd.errors import UserError
from resist_hvd.settings.group import flags_of
from resist_hvd.settings.reading import parse
from resist_hvd.settings.run import Settings

from . import runs

SEE_HELP = "See --help for every setting."

WRONG_FLAGS = {
    "--frobnicate 3": f"There is no flag --frobnicate. {SEE_HELP}",
    "--local_iteration 3": "There is no flag --local_iteration. Perhaps you mean --local_iterations; see --help.",
    "--lr 0.1": "There is no flag --lr. Perhaps you mean --optim.lr; see --help.",
    "fast": f"'fast' belongs to no flag. {SEE_HELP}",
    "--method sgd": "--method is 'sgd'. Give one of resist, local-sgd, data-parallel, ensemble.",
    "--optim.schedule=linear": "--optim.schedule is 'linear'. Give one of step, cosine, constant.",
    "--local_iterations many": "--local_iterations is 'many'. Give a whole number.",
    "--local_iterations 2.5": "--local_iterations is '2.5'. Give a whole number.",
    "--local_iterations 0": "--local_iterations is 0. Give 1 or more.",
    "--max_rounds none": "--max_rounds is 'none'. Give a whole number.",
    "--optim.lr fast": "--optim.lr is 'fast'. Give a number.",
    "--optim.lr -1": "--optim.lr is -1.0. Give a number above 0.",
    "--optim.milestones 0.5,0.7": "--optim.milestones is '0.5,0.7'. Give numbers in brackets, like [0.5,0.75].",
    "--data.flip maybe": "--data.flip is 'maybe'. Give true or false.",
    "--output": "--output has no value. Give a path after it.",
    "--resume": "--resume needs the folder of the run to go on with. Give it with --output DIR.",
    "--recipe cifar10-tiny --data.name folder": (
        "--data.name is folder, but there is no folder. Give it with --data.root DIR."
    ),
    "--data.name imagenet --data.root here": (
        "--data.name is imagenet, but nothing says which network to train on it, or how. Give --recipe "
        "imagenet-resnet101 or imagenet-resnet50, settings of your own by --config FILE, or a network by --model.name, "
        "--model.sections or --model.parts."
    ),
    "--model.sections [1,x,6,1]": (
        "--model.sections is '[1,x,6,1]'. Give numbers of blocks with commas between them, like 1,1,12,1."
    ),
}

WRONG_FILES = {
    "method: [resist": (
        "This is not YAML: expected ',' or ']', but got '<stream end>'",
        ", line 1",
        "Give a YAML file",
    ),
    "- resist\n": ("The file holds no settings", "", "Give a YAML file of settings, like the config.yaml of a run."),
    "": ("The file holds no settings", "", "Give a YAML file of settings, like the config.yaml of a run."),
    "methods: resist\n": ("There is no setting methods", "", "Perhaps you mean method; see --help."),
    "optim:\n  learning_rate: 1\n": ("There is no setting optim.learning_rate", "", SEE_HELP),
    "optim: sgd\n": ("optim is 'sgd', but it is a group of settings", "", "Give them below optim, one a line."),
    "method: sgd\n": ("method is 'sgd'", "", "Give one of resist, local-sgd, data-parallel, ensemble."),
    "recipe: digits\n": ("A file of settings has no recipe", "", "Give it as a flag: --recipe NAME."),
}


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(arguments)
    return str(caught.value)


@pytest.mark.parametrize("flags", WRONG_FLAGS)
def test_wrong_flag_is_told_with_what_it_may_be(flags: str) -> None:
    assert refusal(*flags.split()) == WRONG_FLAGS[flags]


@pytest.mark.parametrize("text", WRONG_FILES)
def test_wrong_file_of_settings_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    seen, line, mend = WRONG_FILES[text]
    assert refusal("--config", str(path)).startswith(f"{seen} [{path}{line}]. {mend}")


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
    assert ended.mistake == WRONG_FLAGS["--frobnicate 3"]
    assert ended.status == 2


def test_wrong_file_ends_the_program_with_one_message(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("optim: {lr: fast}\n")
    ended = runs.run("--config", path, launcher="none")
    assert ended.mistake == f"optim.lr is 'fast' [{path}]. Give a number."
    assert ended.status == 2


def test_help_is_printed_once() -> None:
    ended = runs.run("--help")
    assert ended.status == 0, ended
    assert ended.stdout.count("usage: python -m resist_hvd.train [--FLAG VALUE ...]") == 1
    assert "l, the local iterations of a round: training" in ended.stdout
