"""Joins the world for tests that run under mpirun, on all ranks alike.

    mpirun -np 4 python -m pytest tests/parallel

Rank 0 reports. After each test the ranks meet: a test that failed on any of them has failed, and rank 0 says where. If
the others do not come, since they wait for what the failed rank was to send, it says why and takes the world down; a
rank that hangs says where, and does the same. So a failure never looks like a test that takes long.

Every test passes with any number of ranks. Left out of some worlds (`world_sizes`) is only what a rank does by itself
and takes long, beside others who do the same: their number is nothing to it. And the watchdog, whose tests wait by the
clock, is tested alone and among four.
"""

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch

from resist_hvd.comm.world import World

PATIENCE = 60.0
"""Seconds that a rank whose test failed waits for the others to end theirs."""

LONGEST_TEST = 600.0
"""Seconds after which a test counts as hanging."""


class Ranks:
    """One rank's part in running the same tests on all ranks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._meeting = world.comm.Dup()
        self._stderr = os.dup(2)
        self._failures: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        elsewhere = [
            item
            for item in items
            if (sizes := item.get_closest_marker("world_sizes")) is not None and self.world.size not in sizes.args
        ]
        items[:] = [item for item in items if item not in elsewhere]
        for item in items:
            marker = item.get_closest_marker("world_size")
            if marker is not None and self.world.size < marker.args[0]:
                item.add_marker(pytest.mark.skip(reason=f"needs a world of {marker.args[0]} ranks"))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        found = (session.testsfailed, [item.nodeid for item in session.items])
        if any(theirs != found for theirs in self._meeting.allgather(found)):
            raise pytest.UsageError("ranks have found different tests, or some could not be imported on all of them")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(LONGEST_TEST, exit=True, file=self._stderr)
        self._failures.clear()
        self.world.position = item.name
        done = yield
        self._meet(item)
        faulthandler.cancel_dump_traceback_later()
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            sections = "".join(f"\n-- {title} --\n{text}" for title, text in report.sections)
            self._failures.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}{sections}")

    def _meet(self, item: pytest.Item) -> None:
        """Wait for all ranks to end this test, and have it fail here too where it failed on another."""
        arrival = self._meeting.Ibarrier()
        deadline = time.monotonic() + PATIENCE
        while self._failures and not arrival.Test():
            if time.monotonic() > deadline:
                self._take_down(item.session)
            time.sleep(0.01)
        arrival.Wait()
        everyone = self._meeting.allgather("\n".join(self._failures))
        elsewhere = [f"on rank {rank} of {self.world.size}: {text}" for rank, text in enumerate(everyone) if text]
        if elsewhere and not self._failures:
            report = pytest.TestReport(
                item.nodeid, item.location, {}, outcome="failed", longrepr="\n\n".join(elsewhere), when="teardown"
            )
            item.ihook.pytest_runtest_logreport(report=report)

    def _take_down(self, session: pytest.Session) -> None:
        for text in self._failures:
            self._say(f"[rank {self.world.rank} of {self.world.size} on {self.world.host}] {text}\n")
        self._say("The other ranks wait for this one: ending them.\n")
        # Reports in files are written when a session ends, which this one otherwise never would.
        session.config.hook.pytest_sessionfinish(session=session, exitstatus=pytest.ExitCode.TESTS_FAILED)
        self.world.comm.Abort(1)

    def _say(self, text: str) -> None:
        os.write(self._stderr, text.encode())

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        # A launcher ends all ranks when one ends with a failure: none before the last has written its report.
        self._meeting.Barrier()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # Training has a shorter cycle, for speed; with more ranks than cores, its threads would eat up what the tests need.
    os.environ["HOROVOD_CYCLE_TIME"] = "1"
    ranks = Ranks(World.join("cpu"))
    torch.set_num_threads(1)
    config.pluginmanager.register(ranks, "ranks")
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if not ranks.world.is_first and reporter is not None:
        config.pluginmanager.unregister(reporter)
        nowhere = open(os.devnull, "w")  # noqa: SIM115  It is written to until the process ends.
        config.pluginmanager.register(pytest.TerminalReporter(config, nowhere), "terminalreporter")


@pytest.fixture(scope="session")
def world(pytestconfig: pytest.Config) -> World:
    """All ranks, on the CPU."""
    ranks: Ranks = pytestconfig.pluginmanager.getplugin("ranks")
    return ranks.world


@pytest.fixture(scope="session")
def alone(world: World) -> World:
    """A world of this rank alone, whatever the others do."""
    from mpi4py import MPI

    return World(comm=MPI.COMM_SELF, rank=0, size=1, local_rank=0, local_size=1, host=world.host, device=world.device)


@pytest.fixture(scope="session", autouse=True)
def _without_tensorboard() -> Iterator[None]:
    """Leave out TensorBoard, whose import takes longer than all that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        yield


@pytest.fixture
def folder(world: World, request: pytest.FixtureRequest) -> Path:
    """An empty folder, the same one on all ranks."""
    return _of_first(world, lambda: request.getfixturevalue("tmp_path"))


@pytest.fixture(scope="module")
def folder_of_module(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for what a module's tests share, the same one on all ranks."""
    return _of_first(world, lambda: tmp_path_factory.mktemp("shared"))


def _of_first(world: World, make: Callable[[], Path]) -> Path:
    path = world.broadcast_object(make() if world.is_first else None)
    assert path is not None
    return path
