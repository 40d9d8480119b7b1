"""Networks that a user's own function makes, and their mistakes."""

from pathlib import Path
from textwrap import dedent

import pytest

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network
from resist_hvd.nets.users import network

RESIDUAL = """
from torch import nn
from resist_hvd.nets import Network, Part

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)

class Plain(Block):
    def forward(self, x):
        return self.conv(x)

def parts(channels, image_size, classes, width=4, block=Block):
    return [
        Part("stem", lambda: nn.Conv2d(channels, width, 1)),
        *(Part(f"blocks.{n}", lambda: block(width), deck="blocks") for n in range(3)),
        Part("head", lambda: nn.Sequential(nn.Flatten(), nn.Linear(width * image_size**2, classes))),
    ]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path


def made(spec: str, code: str, **options: object) -> Network:
    """The network of a function in a file of this code, which is called as the spec says."""
    source = spec.rpartition(":")[0]
    Path(source if source.endswith(".py") else f"{source}.py").write_text(RESIDUAL + dedent(code))
    return network(spec, channels=3, image_size=8, classes=5, options=options)


def test_a_list_of_parts(folder: Path) -> None:
    found = made("mine_listed:parts", "", width=6)
    assert found.deck_sizes == (3,)
    assert found.modules[1].get_parameter("conv.weight").shape[0] == 6
    assert found.title == "mine_listed:parts"
    assert found.description == {
        "family": "parts",
        "parts": "mine_listed:parts",
        "channels": 3,
        "image_size": 8,
        "classes": 5,
        "options": {"width": 6},
    }
    assert list(found.outputs[-1].shape) == [2, 5]


def test_a_network_in_a_file(folder: Path) -> None:
    (folder / "apart").mkdir()
    (folder / "apart" / "beside.py").write_text("WIDTH = 7")
    found = made(
        "apart/own.py:whole",
        """
        from dataclasses import dataclass
        from beside import WIDTH

        @dataclass
        class Settings:
            width: int

        def whole(**sizes):
            return Network(tuple(parts(**sizes, width=Settings(WIDTH).width)), title="never mind")
        """,
    )
    assert found.title == "apart/own.py:whole"
    assert found.description["parts"] == "apart/own.py:whole"
    assert found.modules[1].get_parameter("conv.weight").shape[0] == 7


def mistake(words: str, spec: str, code: str = "", **options: object) -> None:
    with pytest.raises(UserError, match=words):
        made(spec, code, **options)


def test_there_is_no_such_thing(folder: Path) -> None:
    for spec in ("nothing", "nothing:", ":parts", "mine:parts()", "mine:"):
        with pytest.raises(UserError, match=r"names no function.*module:function"):
            network(spec, channels=3, image_size=8, classes=5)
    with pytest.raises(UserError, match=rf"no module 'not_there'.*{folder}"):
        network("not_there:parts", channels=3, image_size=8, classes=5)
    with pytest.raises(UserError, match=r"no module 'not_there\.at_all'"):
        network("not_there.at_all:parts", channels=3, image_size=8, classes=5)
    with pytest.raises(UserError, match=r"no file not_there\.py"):
        network("not_there.py:parts", channels=3, image_size=8, classes=5)
    mistake("mine_without has no function 'network'", "mine_without:network")
    mistake("mine_variable has no function 'WIDTH'", "mine_variable:WIDTH", "WIDTH = 3")


@pytest.mark.parametrize(
    ("value", "words"),
    [("None", "returns a NoneType"), ("[]", "returns an empty list"), ("[Block(3)]", "Item 0 of .* is a Block")],
)
def test_something_else_than_parts(value: str, words: str) -> None:
    mistake(words, "other.py:other", f"def other(**sizes): return {value}")


def test_errors_of_their_code_say_where() -> None:
    lines = RESIDUAL.count("\n")
    mistake(
        rf"raises ZeroDivisionError: division by zero \[.*wrong\.py, line {lines + 3}\]",
        "wrong.py:wrong",
        """
        def wrong(**sizes):
            return sizes["classes"] / 0
        """,
    )
    mistake(
        rf"raises ModuleNotFoundError.*'tensorflaw' \[.*importing\.py, line {lines + 1}\]",
        "importing:parts",
        "import tensorflaw",
    )
    mistake(rf"raises SyntaxError.*\[.*syntax\.py, line {lines + 1}\]", "syntax.py:parts", "def wrong(:")
    mistake(r"raises SystemExit: 3 \[.*leaving\.py, line", "leaving.py:parts", "raise SystemExit(3)")
    mistake(r"raises TypeError: .*'depth'", "argument.py:parts", "", depth=3)
    mistake(
        rf"raises TypeError: .*\[.*making\.py, line {lines + 2}\]",
        "making.py:wrong",
        """
        def wrong(**sizes): return [Part("stem", lambda: nn.Conv2d(3))]
        """,
    )


def test_parts_that_cannot_be_dealt_are_refused() -> None:
    mistake(r"'blocks\.0' is not residual", "plain.py:plain", "def plain(**sizes): return parts(**sizes, block=Plain)")
    mistake(
        "Two parts of the network have one name, 'stem'",
        "twice.py:twice",
        "def twice(**sizes): return parts(**sizes)[:1] * 2",
    )
