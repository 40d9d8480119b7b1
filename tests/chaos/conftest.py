"""The campaign's flags, its data, the runs that it compares with, and its summary."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ..launch import runs
from . import tally
from .dealing import deal
from .settings import LONGEST, Setting, make_data

RESULTS = "RESIST_HVD_TEST_RESULTS"
"""The variable that names the folder where launch/test wants results."""

OUTCOMES = pytest.StashKey[list[tally.Outcome]]()
SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kill campaign")
    group.addoption("--kills", type=int, default=10, metavar="N", help="how many kills (default: 10)")
    group.addoption("--seed", type=int, metavar="S", help="what they are drawn from (default: another one each time)")
    group.addoption("--only-kill", type=int, metavar="K", help="make only this one of the seed's kills")


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--seed")
    config.stash[SEED] = random.randrange(10**6) if seed is None else seed
    config.stash[OUTCOMES] = []


def pytest_report_header(config: pytest.Config) -> str:
    return f"kills are drawn from seed {config.stash[SEED]}: --seed {config.stash[SEED]} draws them again"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill" in metafunc.fixturenames:
        config = metafunc.config
        only = config.getoption("--only-kill")
        kills = deal(config.stash[SEED], only or config.getoption("--kills"))
        metafunc.parametrize("kill", kills[-1:] if only else kills, ids=str)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes, seed = config.stash[OUTCOMES], config.stash[SEED]
    if outcomes:
        terminalreporter.section("kill campaign")
        terminalreporter.write_line(tally.summary(outcomes, seed))
        if (folder := results()) is not None:
            tally.write(outcomes, seed, folder / "chaos.json")
            terminalreporter.write_line(f"written to {folder / 'chaos.json'}")


def results() -> Path | None:
    """Return the folder where launch/test wants results, None where it was not asked."""
    if RESULTS not in os.environ:
        return None
    folder = Path(os.environ[RESULTS])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images for all settings."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Setting], tuple[Path, float]]:
    """Returns the folder of a setting's run that nothing disturbed, and how long it took, in seconds."""
    made: dict[str, tuple[Path, float]] = {}
    root = tmp_path_factory.mktemp("references")

    def of(setting: Setting) -> tuple[Path, float]:
        if str(setting) not in made:
            folder = root / str(len(made))
            ended = runs.run(
                *setting.arguments(data),
                "--output",
                folder,
                ranks=setting.ranks,
                program=setting.program,
                limit=LONGEST,
                **setting.variables,
            )
            assert ended.status == 0, ended
            made[str(setting)] = folder, ended.seconds
        return made[str(setting)]

    return of


@pytest.fixture
def outcomes(pytestconfig: pytest.Config) -> list[tally.Outcome]:
    """What all kills of the campaign came to so far."""
    return pytestconfig.stash[OUTCOMES]


@pytest.fixture
def keep() -> Callable[[str, str], None]:
    """Keeps a text among the results, to be read while a long campaign goes on."""

    def write(name: str, text: str) -> None:
        if (folder := results()) is not None:
            (folder / name).write_text(text)

    return write
