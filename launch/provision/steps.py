"""A step: one printed line, one log file, and on failure what was seen, where the log is and what to do."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TAIL_LINES = 20
DISK_MEND = "Check that the folder may be written and its disk has space (`df -h`), then run launch/setup again."


class StepFailedError(Exception):
    """A step cannot be done.

    Args:
        seen: what was seen, a sentence without a full stop at its end.
        mend: what to do about it, sentences.
    """

    def __init__(self, seen: str, *, mend: str) -> None:
        super().__init__(f"{seen}. {mend}")
        self.seen = seen
        self.mend = mend


@dataclass
class Log:
    """Where the commands of one step write, and how they are run: without a terminal, never asking for input."""

    path: Path

    def note(self, text: str) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def run(self, command: Sequence[str | Path], *, mend: str, env: Mapping[str, str] | None = None) -> None:
        """Run a command with both its outputs in the log.

        Raises:
            StepFailedError: the program is missing, or ends with a status that is not 0; `mend` says what to do then.
        """
        self._run(command, mend, env, reads=False)

    def read(self, command: Sequence[str | Path], *, mend: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return what it prints on its standard output; all of it is in the log, too.

        Raises:
            StepFailedError: as in `run`.
        """
        return self._run(command, mend, env, reads=True).decode(errors="replace")

    def _run(self, command: Sequence[str | Path], mend: str, env: Mapping[str, str] | None, *, reads: bool) -> bytes:
        self.note("$ " + shlex.join(map(str, command)))
        with self.path.open("ab") as stream:
            output = subprocess.PIPE if reads else stream
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=stream, env=env, check=False
                )
            except OSError as error:
                raise StepFailedError(f"{command[0]} cannot be run: {error.strerror}", mend=mend) from None
            stream.write(done.stdout or b"")
        if done.returncode != 0:
            words = " ".join(Path(word).name for word in map(str, command[:3]))
            raise StepFailedError(f"`{words} ...` ended with status {done.returncode}", mend=mend)
        return done.stdout or b""

    def tail(self) -> list[str]:
        """Return the last lines."""
        if not self.path.is_file():
            return []
        return self.path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-TAIL_LINES:]


@dataclass
class Steps:
    """The steps of one run, counted and timed.

    Attributes:
        total: how many there will be.
        log_folder: where their logs go.
        prefix: what the names of the logs begin with.
    """

    total: int
    log_folder: Path
    prefix: str = ""
    done: int = field(default=0, init=False)

    def do(self, name: str, action: Callable[[Log], str]) -> None:
        """Do one step: print its name, then how long it took and the few words `action` returns.

        Raises:
            SystemExit: the step failed, and a message has said how.
        """
        self.done += 1
        log = Log(self.log_folder / f"{self.prefix}{self.done}-{name.split()[0].lower()}.log")
        print(f"[{self.done}/{self.total}] {name} ... ", end="", flush=True)
        started = time.monotonic()
        try:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            log.path.unlink(missing_ok=True)
            words = action(log)
        except StepFailedError as failure:
            self._explain(name, failure, log)
            raise SystemExit(1) from None
        except OSError as error:
            self._explain(name, StepFailedError(str(error), mend=DISK_MEND), log)
            raise SystemExit(1) from None
        print(f"{_duration(time.monotonic() - started)}{', ' if words else ''}{words}", flush=True)

    def _explain(self, name: str, failure: StepFailedError, log: Log) -> None:
        print("failed", flush=True)
        message = [f"\nlaunch/setup: step {self.done} of {self.total} ({name}) failed: {failure.seen}."]
        tail = log.tail()
        if tail:
            message += [f"The end of {log.path}:", *(f"  | {line}" for line in tail)]
        message += [f"What to do: {failure.mend}"]
        print("\n".join(message), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clean_environment() -> dict[str, str]:
    """Return the environment without what would lead Python, or a build, past the virtual environment."""
    strays = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "MAKEFLAGS")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in strays and not name.startswith(("HOROVOD_", "OMPI_"))
    }


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold off a second run on the same folder until this one has ended."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another launch/setup is at work here: waiting for it ...", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # A file system without locks on folders; two runs at once are then the user's to avoid.
        yield
    finally:
        os.close(descriptor)
