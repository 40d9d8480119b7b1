"""The record of how a run ended: what it says after each kind of end, and that a run ends well without one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from resist_hvd.errors import Stopped, UserError
from resist_hvd.guard import endings, failure, outcome


class CollectiveFailed(Exception):
    """Stands for an error of a library among all ranks."""


CollectiveFailed.__module__ = "horovod.common.exceptions"


def raises(error: BaseException) -> Callable[[], NoReturn]:
    def program() -> NoReturn:
        raise error

    return program


@pytest.fixture(autouse=True)
def nothing_decided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not ended yet."""
    monkeypatch.setattr(endings, "ending", endings.Ending())
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(program: Callable[[], object], record: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv(outcome.VARIABLE, str(record))
    status = 0
    try:
        failure.run(lambda: program() and None)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return status


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (lambda: None, 0),
        (raises(UserError("Seen", mend="Mend")), 2),
        (raises(UserError("Seen", mend="Mend", everywhere=True)), 2),
        (raises(Stopped("Stopped")), 75),
        (lambda: signal.raise_signal(signal.SIGUSR2), 75),
        (raises(ValueError()), 70),
        (raises(CollectiveFailed()), 69),
        (lambda: signal.raise_signal(signal.SIGINT), 130),
        (lambda: sys.exit(), 0),  # as after --help and --version
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit("A sentence"), 1),
    ],
)
def test_record_says_how_a_program_ended(
    program: Callable[[], object], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "outcome"
    assert run(program, record, monkeypatch) == status
    assert [line.split()[0] for line in record.read_text().splitlines()] == ["started", str(status)]


def test_record_is_begun_before_anything_can_end_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "outcome"
    seen: list[str] = []
    run(lambda: seen.append(record.read_text()), record, monkeypatch)
    assert seen == ["started\n"]


def test_rank_that_is_not_the_first_neither_begins_nor_finishes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMIX_RANK", "3")
    assert run(lambda: None, tmp_path / "outcome", monkeypatch) == 0
    assert not (tmp_path / "outcome").exists()


def test_first_verdict_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "outcome"
    monkeypatch.setenv(outcome.VARIABLE, str(record))
    outcome.begin()
    outcome.end(2)
    outcome.end(143)
    assert [line.split()[0] for line in record.read_text().splitlines()] == ["started", "2"]


@pytest.mark.parametrize("where", ["no-such-folder/outcome", "."])
def test_program_ends_as_it_would_where_no_record_can_be_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(raises(UserError("Seen", mend="Mend")), tmp_path / where, monkeypatch) == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_none_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(outcome.VARIABLE, raising=False)
    outcome.begin()
    outcome.end(2)
    assert list(tmp_path.iterdir()) == []


def test_record_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "outcome").symlink_to(target)
    monkeypatch.setenv(outcome.VARIABLE, str(tmp_path / "outcome"))
    outcome.end(2)
    assert target.read_text() == ""


def test_a_program_that_exits_by_itself_does_not_wait_for_other_ranks_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(endings.ending, "world", SimpleNamespace(size=2))
    monkeypatch.setattr(failure.starting, "limit_end", limits.append)
    for status in (0, 3):
        with pytest.raises(SystemExit):
            failure.run(lambda status=status: sys.exit(status))
    assert limits == [0, 3]


def test_a_file_server_that_hangs_keeps_nobody_from_hearing_that_this_rank_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = threading.Event()
    monkeypatch.setattr(outcome, "end", lambda _: server.wait(60))
    heard: list[int] = []
    monkeypatch.setattr(endings.ending, "watchdog", SimpleNamespace(leave=heard.append))
    began = time.monotonic()
    assert endings.ending.begin(69)
    server.set()
    assert heard == [69]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("error", [RuntimeError("CUDA busy"), UserError("Seen", mend="Mend")])
def test_ranks_that_wait_in_mpi_are_ended_where_one_fails_before_there_is_a_world(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[int] = []

    def mpi(size: int, *, initialized: bool) -> SimpleNamespace:
        world = SimpleNamespace(Get_size=lambda: size, Abort=aborted.append)
        return SimpleNamespace(Is_initialized=lambda: initialized, Is_finalized=lambda: False, COMM_WORLD=world)

    status = 2 if isinstance(error, UserError) else 70
    for fake in (mpi(2, initialized=True), mpi(1, initialized=True), mpi(2, initialized=False)):
        monkeypatch.setitem(sys.modules, "mpi4py.MPI", fake)
        monkeypatch.setattr(endings, "ending", endings.Ending())
        with pytest.raises(SystemExit) as ended:
            failure.run(raises(error))
        assert ended.value.code == status
    assert aborted == [status]
