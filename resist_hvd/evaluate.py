"""`python -m resist_hvd.evaluate RUN`: a trained model's accuracy and loss on any test set.

No module imports it: the package's own name `evaluate` is the function of docs/api.md.
"""

from __future__ import annotations

from resist_hvd.guard import starting

if __name__ == "__main__":
    starting.begin()  # before anything that takes its time is imported

import sys
from collections.abc import Sequence
from pathlib import Path

from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.settings import flags
from resist_hvd.settings.group import flags_of
from resist_hvd.settings.reading import read_run
from resist_hvd.settings.tools import EvaluateSettings


def main() -> None:
    """Evaluate the model that the arguments name, and end the process."""
    failure.run(run_from_flags)


def run_from_flags() -> None:
    """Evaluate the model that the arguments name."""
    with failure.printed_once():
        folder, settings = parse(sys.argv[1:])
    with starting.importing():
        from resist_hvd.trained import evaluation
    evaluation.run(folder, settings)


def parse(arguments: Sequence[str]) -> tuple[Path, EvaluateSettings]:
    """Return the run's folder, and the settings that flags ask for; where they do not, the run's own.

    Raises:
        UserError: there is not one folder, a flag is wrong, or no test set is named.
    """
    places, rest = flags.places(arguments)

    def of_run(given: flags.Layer) -> flags.Layer:
        path = Path(*places[:1]) / "config.yaml"
        own = read_run(path.parent) if places and path.is_file() else {}
        if given.get("data.name", own.get("data.name")) != own.get("data.name"):
            own = {name: value for name, value in own.items() if not name.startswith("data.")}
        elif "data.root" in given:
            own.pop("data.extra_tests", None)
        return {name: own[name] for name in flags_of(EvaluateSettings) if name in own}

    given = flags.read_flags("python -m resist_hvd.evaluate RUN", EvaluateSettings, rest, beneath=of_run)
    if len(places) != 1:
        raise UserError(
            f"{len(places)} folders are given", mend="Give the folder of one run, its --output, before any flag."
        )
    folder = Path(places[0])
    if not folder.is_dir():
        raise UserError("There is no such folder", where=str(folder), mend="Give the folder of a finished run.")
    values = {**of_run(given), **given}
    if "data.name" not in values:
        raise UserError(
            "Nothing says which images to evaluate on: the folder has no config.yaml",
            where=str(folder),
            mend="Give --data.name, and --data.root.",
        )
    return folder, flags.make(EvaluateSettings, values)


if __name__ == "__main__":
    main()
