"""An evaluation's settings are the run's own, but for what another set, and flags, replace."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.errors import UserError
from resist_hvd.settings.reading import parse, to_yaml


def parsed(*arguments: object) -> Any:
    """The settings of an evaluation; its module is never imported, since its name is a function's."""
    _, settings = runpy.run_module("resist_hvd.evaluate", run_name="flags")["parse"](list(map(str, arguments)))
    return settings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    flags = "--recipe=cifar10-tiny --data.name=folder --data.root=ours --data.extra_tests=more --precision=bf16"
    (tmp_path / "config.yaml").write_text(to_yaml(parse([*flags.split(), "--data.test_batch_size=7"])))
    return tmp_path


def test_a_runs_own_test_sets_are_evaluated_in_its_precision(run: Path) -> None:
    settings = parsed(run)
    assert (settings.precision, settings.data.test_batch_size) == ("bf16", 7)
    assert (settings.data.name, settings.data.root, settings.data.extra_tests) == ("folder", Path("ours"), Path("more"))


def test_another_set_forgets_what_belongs_to_the_runs_own(run: Path) -> None:
    elsewhere = parsed(run, "--data.root=other", "--precision=fp32").data
    assert (elsewhere.name, elsewhere.root, elsewhere.extra_tests) == ("folder", Path("other"), None)
    assert parsed(run, "--data.root=other", "--precision=fp32").precision == "fp32"
    digits = parsed(run, "--data.name=digits").data
    assert (digits.name, digits.root, digits.extra_tests) == ("digits", None, None)


def test_without_a_runs_settings_the_set_is_named(tmp_path: Path) -> None:
    assert parsed(tmp_path, "--data.name=digits").precision == "fp32"
    for arguments, words in (
        ([tmp_path], "no config.yaml"),
        ([tmp_path / "gone"], "no such folder"),
        ([], "0 folders"),
        ([tmp_path, "--data.name=imagenet"], "--data.root"),
        ([tmp_path, "--data.flip=true"], "--data.flip"),
    ):
        with pytest.raises(UserError, match=words):
            parsed(*arguments)
