"""The error that says that training has diverged: its numbers are not finite any more."""

from __future__ import annotations

from resist_hvd.errors import UserError
from resist_hvd.guard import failure


def diverged(what: str, *, where: str) -> UserError:
    """Return the error that ends a run which has diverged, raised by every rank.

    Args:
        what: what is not finite, with its article.
        where: the rank, host and round it was seen at.
    """
    return UserError(
        f"{what} is not finite any more: training has diverged",
        where=where,
        mend=f"Lower the learning rate, have it rise more slowly, or clip gradients (--optim.lr, --optim.warmup, "
        f"--optim.clip_norm). {failure.advice()}",
        everywhere=True,
    )
