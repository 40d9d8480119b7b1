"""The toolkit in a user's own loop: workers joined, a network dealt out, rounds, evaluation; see docs/api.md."""

from resist_hvd.api.dealing import deal
from resist_hvd.api.evaluation import evaluate
from resist_hvd.api.joining import join
from resist_hvd.api.net import Net
from resist_hvd.api.rounds import Rounds

__all__ = ["Net", "Rounds", "deal", "evaluate", "join"]
