"""What ranks see of their machine and of each other, as `doctor` asks them."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from resist_hvd.checkup import examination
from resist_hvd.checkup.findings import judge
from resist_hvd.checkup.view import look
from resist_hvd.comm.probe import clock_offsets, probe
from resist_hvd.comm.world import World
from resist_hvd.settings.tools import DoctorSettings


def apart(world: World) -> World:
    """This world, as if each rank had a host of its own."""
    return replace(world, host=f"n{world.rank}")


def test_views_are_true(world: World, folder: Path) -> None:
    seen = world.gather_objects(look(world, folder / "new" / "run", None))
    assert [view.rank for view in seen] == list(range(world.size))
    assert {view.host for view in seen} == {world.host}
    for view in seen:
        assert view.libraries.with_mpi
        assert view.libraries.threads == "multiple"
        assert view.libraries.mpi
        assert (view.output_error, view.config) == ("", "")
        assert min(view.resources.memory, view.shared_memory, view.output_free, view.threads) > 0
        assert len(view.code) == 64
        assert view.resources.cores
    levels = {finding.check: finding.level for finding in judge(seen, [], {})}
    assert levels["MPI"] == levels["Horovod"] == levels["code"] == levels["ranks"] == "ok"
    # What was made to look is gone.
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(world: World, folder: Path) -> None:
    if world.is_first:
        (folder / "file").write_text("")
    world.barrier()
    seen = world.gather_objects(look(world, folder / "file" / "run", None))
    assert {view.output_error for view in seen} == {"Not a directory"}


@pytest.mark.world_size(2)
def test_a_folder_that_not_all_ranks_see(world: World, folder: Path, tmp_path: Path) -> None:
    own = folder / "shared" if world.rank < world.size - 1 else tmp_path / "own"
    seen = world.gather_objects(look(world, own, None))
    assert [view.output_error for view in seen] == [""] * (world.size - 1) + ["another folder than rank 0's"]


def test_every_pair_of_hosts_is_measured_once(world: World) -> None:
    links = probe(apart(world), seconds=0.2)
    pairs = [(f"n{a}", f"n{b}") for a in range(world.size) for b in range(a + 1, world.size)]
    assert sorted((link.one, link.other) for link in links) == pairs
    assert all(0 < link.latency < 10 and link.bandwidth > 1e5 for link in links)
    assert probe(world, seconds=0.2) == []


def test_clocks_of_one_machine_agree(world: World) -> None:
    offsets = clock_offsets(world, time.time)
    assert len(offsets) == world.size
    assert offsets[0] == 0.0
    assert all(abs(offset) < 1 for offset in offsets)


def test_the_table(world: World, folder: Path) -> None:
    settings = DoctorSettings(output=folder, seconds=0.2)
    findings = examination.examine(settings, apart(world))
    screen = io.StringIO()
    examination.show(findings, Console(file=screen, width=examination.WIDTH))
    text = screen.getvalue()
    assert len(text.splitlines()) >= len(findings) + 2
    for finding in findings:
        assert finding.check in text
    assert ("bandwidth" in text) == (world.size > 1)
    assert "must be mended" in text
