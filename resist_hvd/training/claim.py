"""The claim by which one run at a time writes to a folder.

It is a file that is made exclusively, which every file system can do, and says who made it. It is removed at the end of
the run. One that was left behind is recognised: on the same machine its process is gone, or has it locked no longer;
its SLURM job was started again, or is no longer known; or the file, touched twice a minute, was not for minutes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from resist_hvd.comm.launch import host_name
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.guard import endings
from resist_hvd.training.disk import disk_errors

CLAIM = "claim.json"

HEARTBEAT = 30.0
"""Seconds between two touches of a claim."""

DEAD_AFTER = 300.0
"""Seconds without a touch after which a claim from another host counts as left behind."""

BEING_MADE = 2.0
"""Seconds after which a claim that is still empty is not being made any more: its maker died in that moment."""

PATIENCE = 10.0
"""Seconds to wait for a run on this host that may be about to end, as one whose launcher was killed."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that made a claim.

    Attributes:
        boot, namespace: tell hosts of one name apart, and containers whose processes do not see each other.
        started: when the process started, in clock ticks since the host's boot: numbers of processes come again.
        cluster, job, restarts: of the SLURM job, empty and 0 outside one; how often it was started again.
        since: the time of the claim.
        locked: whether the process holds a lock on the file, which its kernel takes from it when it ends.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int
    cluster: str = ""
    job: str = ""
    restarts: int = 0
    since: str = ""
    locked: bool = False

    @classmethod
    def here(cls) -> Holder:
        """Return what a claim of this process says."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=host_name(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespace=os.readlink("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=started_at(os.getpid()) or 0,
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    @classmethod
    def of(cls, text: str) -> Holder | None:
        """Return what a claim says, None where it cannot be understood."""
        try:
            said = json.loads(text)
            holder = cls(**said)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {field.name: str(field.type) for field in fields(cls)}
        return holder if all(type(value).__name__ == kinds[name] for name, value in said.items()) else None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def started_at(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the host's boot; None where it is gone, 0 where it is hidden.

    A process that has ended and was not yet waited for is gone.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(rest[18])
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    return 0


def in_queue(job: str) -> bool:
    """Return whether SLURM has a job that runs, or ends; also where SLURM cannot be asked."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--states=RUNNING,COMPLETING,SUSPENDED,STOPPED", "--format=%T"]
    try:
        asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return True
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


class Made(NamedTuple):
    """A claim's file that this process has made: open, so that its lock lasts, and what is in it."""

    descriptor: int
    text: str


class Claim:
    """This process's claim on a run's folder, kept alive by a thread until it is released.

    Args:
        path: the file.
        made: as it was made.
    """

    def __init__(self, path: Path, made: Made) -> None:
        self._path = path
        self._made = made
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="claim", daemon=True).start()

    @classmethod
    def take(cls, folder: Path) -> Claim:
        """Claim a folder that is there.

        Raises:
            UserError: another run holds it.
            OSError: the file cannot be written.
        """
        path, holder = folder / CLAIM, Holder.here()
        end = time.monotonic() + PATIENCE
        while (made := make(path, holder)) is None:
            if (text := read(path)) is None:
                continue
            other = Holder.of(text)
            if not text and untouched(path) < BEING_MADE:
                time.sleep(0.1)
            elif left_behind(other, holder, path):
                if (made := replace_claim(path, text, holder)) is not None:
                    break
                if time.monotonic() >= end + DEAD_AFTER:
                    raise held(other, holder, path)
                time.sleep(0.2)
            elif other is None or not same_place(other, holder) or time.monotonic() >= end:
                raise held(other, holder, path)
            else:
                time.sleep(0.2)
        return cls(path, made)

    def check(self) -> None:
        """See that the folder is still claimed by this process; claim it again where the file was removed.

        Raises:
            UserError: another run has taken it over.
        """
        if (found := read(self._path)) == self._made.text:
            return
        if found is None and (made := make(self._path, Holder.here())) is not None:
            os.close(self._made.descriptor)
            self._made = made
            return
        raise UserError(
            f"Another run has taken over the folder: {Holder.of(found or '') or 'it does not say which'}",
            where=str(self._path),
            mend="It took this one for dead, or somebody removed this one's claim. This one ends; let the other go on.",
        )

    def release(self) -> None:
        """Let the folder go, unless another run has taken it over."""
        if self._released.is_set():
            return
        self._released.set()
        with suppress(OSError):
            if read(self._path) == self._made.text:
                self._path.unlink()
            os.close(self._made.descriptor)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with suppress(OSError):
                if read(self._path) == self._made.text:
                    os.utime(self._path, follow_symlinks=False)


def open_new(path: Path) -> int:
    """Make a file exclusively, and open it to write; return its descriptor.

    Raises:
        OSError: there is one, or it cannot be made.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_to_read(path: Path) -> int:
    """Open a file that may be anything, and wait for nobody; return its descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def make(path: Path, holder: Holder) -> Made | None:
    """Make a claim's file exclusively; return None where there is one."""
    try:
        descriptor = open_new(path)
    except FileExistsError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = replace(holder, locked=True)
    except OSError:  # its file system has no locks
        holder = replace(holder, locked=False)
    text = json.dumps(asdict(holder)) + "\n"
    try:
        os.write(descriptor, text.encode())
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return Made(descriptor, text)


def read(path: Path) -> str | None:
    """Return what a claim's file holds, None where there is none."""
    try:
        descriptor = open_to_read(path)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed on a file server since it was opened
            return None
        raise
    finally:
        os.close(descriptor)


def replace_claim(path: Path, old: str, holder: Holder) -> Made | None:
    """Put a claim in the place of one that was left behind; return None where another process is about to."""
    partial = path.with_name(f"{path.name}.partial")
    made = make(partial, holder)
    if made is None:
        other = Holder.of(read(partial) or "")
        if other is None or left_behind(other, holder, partial):
            time.sleep(0.5)
            partial.unlink(missing_ok=True)
        return None
    if read(path) != old:
        partial.unlink(missing_ok=True)
        os.close(made.descriptor)
        return None
    os.replace(partial, path)
    return made


def same_place(one: Holder, other: Holder) -> bool:
    """Return whether two processes are of one host and see each other."""
    return (one.host, one.boot, one.namespace) == (other.host, other.boot, other.namespace)


def left_behind(other: Holder | None, holder: Holder, path: Path) -> bool:
    """Return whether the run that made a claim is gone.

    Args:
        other: who made it, None where it does not say.
        holder: this process.
        path: the claim.
    """
    if other is None:
        age = untouched(path)
        return age > DEAD_AFTER or (age > BEING_MADE and read(path) == "" and is_locked(path) is False)
    if same_place(other, holder):
        started = started_at(other.pid)
        return started is None or (started != 0 and started != other.started)
    if other.locked and other.boot == holder.boot and (locked := is_locked(path)) is not None:
        return not locked  # of another container here: its processes cannot be seen, and its locks can
    if other.job and other.cluster == holder.cluster:
        if other.job == holder.job and other.restarts < holder.restarts:
            return True  # SLURM has ended all of a job's processes before it starts the job again
        if other.job != holder.job and other.cluster:
            # A site may hide other users' jobs from the queue: a claim that is still touched counts all the same.
            return untouched(path) > 2 * HEARTBEAT and not in_queue(other.job)
    return untouched(path) > DEAD_AFTER


def is_locked(path: Path) -> bool | None:
    """Return whether a process has a file locked, None where that cannot be found out."""
    try:
        descriptor = open_to_read(path)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def untouched(path: Path) -> float:
    """Return for how many seconds a file has not been touched, by the clock of its file system."""
    clock = path.with_name(f".clock-{secrets.token_hex(8)}")
    try:
        os.close(open_new(clock))
        return clock.lstat().st_mtime - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        clock.unlink(missing_ok=True)


def held(other: Holder | None, holder: Holder, path: Path) -> UserError:
    """Return the error that says who holds a folder, and how to go on."""
    if other is not None and same_place(other, holder):
        mend = f"Wait for its end, end it (kill {other.pid}), or give another --output."
    else:
        mend = (
            f"It gave its last sign of life {untouched(path):.0f} s ago, and counts as dead after {DEAD_AFTER:.0f} s "
            f"without one. Wait, or give another --output; if you know that it has ended, remove {path}."
        )
    return UserError(
        f"Another run writes to the folder: {other or 'it does not say which'}", where=str(path), mend=mend
    )


@contextmanager
def claimed(folder: Path, world: World) -> Iterator[Claim | None]:
    """Hold a run's folder for this world alone; all ranks must call it together. Rank 0 has the claim.

    Raises:
        UserError: on every rank, where another run holds it, or it cannot be written.
    """
    claim: Claim | None = None
    with world.agree("claiming the run's folder"), disk_errors(folder), world.activity.long_limit_for("opening files"):
        if world.is_first:
            claim = Claim.take(folder)
            endings.ending.release = claim.release
    try:
        yield claim
    finally:
        if claim is not None:
            claim.release()
