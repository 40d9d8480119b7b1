"""`python -m resist_hvd.doctor`: look at every rank's machine before a long run, and say what must be mended.

Start it as the run will be started: by the same mpirun, srun or horovodrun, on the same hosts. The status is 1 where
something must be mended.
"""

from __future__ import annotations

from resist_hvd.guard import starting

if __name__ == "__main__":
    starting.begin()  # before anything that takes its time is imported

import sys

from resist_hvd.guard import failure
from resist_hvd.settings import flags
from resist_hvd.settings.tools import DoctorSettings


def main() -> None:
    """Examine what the flags ask for, and end with the status that it deserves."""
    failure.run(run_from_flags)


def run_from_flags() -> None:
    """Examine all ranks and print the table."""
    with failure.printed_once():
        settings = flags.parse_settings("python -m resist_hvd.doctor", DoctorSettings, sys.argv[1:])
    with starting.importing():  # PyTorch, for which help and mistakes need not wait
        from resist_hvd.checkup import examination
    examination.run(settings)


if __name__ == "__main__":
    main()
