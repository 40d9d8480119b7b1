"""`python -m resist_hvd.train`: train a residual network on as many workers as the launcher started."""

from __future__ import annotations

from resist_hvd.guard import starting

if __name__ == "__main__":
    starting.begin()  # before anything that takes its time is imported

from resist_hvd.guard import failure
from resist_hvd.settings.reading import parse


def main() -> None:
    """Train the run that the flags ask for, and end the process."""
    failure.run(run_from_flags)


def run_from_flags() -> None:
    """Train the run that the flags ask for."""
    with failure.printed_once():
        settings = parse()
    with starting.importing():  # PyTorch, for which help and mistakes need not wait
        from resist_hvd.training.program import run_training
    run_training(settings)


if __name__ == "__main__":
    main()
