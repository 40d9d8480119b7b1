"""`python -m resist_hvd.predict RUN IMAGE...`: classes of images, or objects in them, by a trained model."""

from __future__ import annotations

import sys
from pathlib import Path

from resist_hvd.errors import UserError, run_alone
from resist_hvd.settings import flags
from resist_hvd.settings.tools import PredictSettings


def main() -> None:
    """Classify the images that the arguments name."""
    run_alone(run_from_flags)


def run_from_flags() -> None:
    """Classify the images that the arguments name.

    Raises:
        UserError: a flag is wrong, an image is not named, or the model cannot be read.
    """
    places, rest = flags.places(sys.argv[1:])
    settings = flags.parse_settings("python -m resist_hvd.predict RUN IMAGE...", PredictSettings, rest)
    if len(places) < 2:
        raise UserError(
            "There is no image to classify" if places else "There is no run",
            mend="Give the run's folder, then images or folders of images, then flags.",
        )
    from resist_hvd.trained import prediction  # PyTorch, for which help and mistakes need not wait

    folder, *images = map(Path, places)
    prediction.run(folder, images, settings)


if __name__ == "__main__":
    main()
