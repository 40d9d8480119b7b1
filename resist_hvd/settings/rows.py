"""Rows of `bench compare`: ways of training by their names, and what may follow a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

from resist_hvd.settings.exchange import CodecName, ExchangeSettings
from resist_hvd.settings.run import MethodName

OURS: tuple[MethodName, ...] = ("resist", "local-sgd", "data-parallel", "federated-dropout")
GPIPE = "gpipe"
THEIRS = ("pytorch-ddp", "pytorch-post-local-sgd", GPIPE)
"""Ways of training: our methods, and PyTorch's own."""

OVERLAP, KEEP = "overlap", "keep"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way of training that is compared with others.

    Attributes:
        name: as it was given: resist, resist+overlap2, local-sgd+int8+overlap2, resist+int4/int8.
        method: ours; None where it is PyTorch's.
        overlap: T, the local iterations beside a synchronisation.
        exchange: the codecs of what workers send.
    """

    name: str
    method: MethodName | None = None
    overlap: int = 0
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)

    @classmethod
    def read(cls, name: str) -> Row:
        """Return the row of a name.

        Raises:
            ValueError: there is none; the text has, after a semicolon, what to give.
        """
        way, *words = name.split("+")
        if way in THEIRS:
            if words:
                raise ValueError(f"what follows {way} is for our methods; leave +{'+'.join(words)} out")
            return cls(name=name)
        row = next((cls(name=name, method=ours) for ours in OURS if ours == way), None)
        if row is None:
            raise ValueError(f"there is no {way!r}; give some of {', '.join((*OURS, *THEIRS))}")
        for word in words:
            row = row._with(word)
        return row

    def _with(self, word: str) -> Row:
        """Return this row with what a word after its name says."""
        number = word.removeprefix(OVERLAP)
        if number != word and number.isdecimal():
            return replace(self, overlap=int(number))
        share = word.removeprefix(KEEP)
        if share != word and share.replace(".", "", 1).isdecimal():
            return replace(self, exchange=replace(self.exchange, keep=float(share)))
        trunk, slash, blocks = word.partition("/")
        if trunk in CODECS and (blocks if slash else trunk) in CODECS:
            blocks = blocks or (trunk if self.method == "resist" else "fp32")
            codecs = {"trunk": trunk, "blocks": blocks}
            return replace(self, exchange=replace(self.exchange, **codecs))  # type: ignore[arg-type]
        raise ValueError(
            f"nothing is called {word!r}; after a name give +overlapT, T a number of local iterations, or a codec as "
            f"+int8 ({', '.join(CODECS)}), or the trunk's and the blocks' as +int4/int8, or the share of the trunk "
            f"that is sent as +{KEEP}0.25"
        )


CODECS: tuple[str, ...] = get_args(CodecName)


def usual_rows(local_iterations: int) -> list[str]:
    """Return the names of rows that are compared where none are given; a fifth of a round overlaps.

    The first is what a slow network has without this toolkit, with which the others are compared. GPipe is not among
    them: one rank has no pipeline.
    """
    overlap = f"+{OVERLAP}{max(1, local_iterations // 5)}"
    variants = ["", "+int8", *((overlap, f"+int8{overlap}") if local_iterations > 1 else ())]
    return [
        *("pytorch-post-local-sgd", "pytorch-ddp", "data-parallel"),
        *(f"local-sgd{variant}" for variant in variants),
        *(f"resist{variant}" for variant in (*variants, "+int4/int8")),
    ]
