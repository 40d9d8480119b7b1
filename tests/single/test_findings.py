"""What `doctor` makes of views: each thing that can be wrong is found, named by its host, and has its advice."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.checkup.findings import Finding, judge
from resist_hvd.checkup.view import View
from resist_hvd.comm.probe import Libraries, Link, first_ranks, turns
from resist_hvd.comm.resources import Limit, Resources

GIB, MIB = 2**30, 2**20
LIBRARIES = Libraries(
    mpi="Open MPI v4.1.8",
    threads="multiple",
    horovod="0.28.1",
    with_mpi=True,
    with_nccl=False,
)


def view(rank: int, **others: Any) -> View:
    """A sound view: two ranks a host, each bound to 4 cores of its own."""
    sound = View(
        rank=rank,
        host=f"n{rank // 2}",
        resources=Resources(cores=frozenset(range(4 * (rank % 2), 4 * (rank % 2) + 4)), memory=64 * GIB),
        threads=4,
        python="3.11.9",
        torch="2.15.0",
        cuda="13.2",
        gpus=(),
        gpu="",
        driver="",
        gpus_seen=False,
        bf16=True,
        dali="",
        libraries=LIBRARIES,
        told=("HOROVOD_CYCLE_TIME=0.1",),
        code="c0de" * 16,
        config="",
        shared_memory=8 * GIB,
        locked_memory=-1,
        infiniband=False,
        output_error="",
        output_free=500 * GIB,
    )
    return replace(sound, **others)


def views(odd: dict[str, Any] | None = None, every: dict[str, Any] | None = None, size: int = 4) -> list[View]:
    """Sound views, but for what every rank sees, and what the last one sees."""
    made = [view(rank, **(every or {})) for rank in range(size)]
    return [*made[:-1], replace(made[-1], **(odd or {}))]


def finding(check: str, seen: list[View], links: Any = (), clocks: Any = None) -> Finding:
    (found,) = (each for each in judge(seen, list(links), clocks or {}) if each.check == check)
    return found


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_sound_views_need_nothing(size: int) -> None:
    found = judge(views(size=size), [], {})
    assert {each.level for each in found} == {"ok"}
    assert not any(each.mend for each in found)
    assert len({each.check for each in found}) == len(found) == 14
    assert any("HOROVOD_CYCLE_TIME=0.1" in each.seen for each in found)


WITH_NCCL = replace(LIBRARIES, with_nccl=True)
GPU = {"gpus": ("H200",), "gpus_seen": True, "libraries": WITH_NCCL}

MEND: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("MPI", {"libraries": replace(LIBRARIES, threads="serialized")}, {}, "thread level multiple and serialized"),
    ("MPI", {"libraries": replace(LIBRARIES, mpi="Open MPI v5.0.3")}, {}, "v4.1.8 on n0, n1; Open MPI v5.0.3 on n1"),
    ("Horovod", {"libraries": replace(LIBRARIES, with_mpi=False)}, {}, "built without MPI on n1"),
    ("Horovod", {"libraries": WITH_NCCL}, {}, "0.28.1, with MPI and NCCL on n1"),
    ("Python, PyTorch", {"torch": "2.14.0"}, {}, "3.11.9, 2.14.0 for CUDA 13.2 on n1"),
    ("GPUs", {"gpus_seen": True, "driver": "550.54.15"}, {}, "none on n1, where there is one (driver 550.54.15)"),
    ("DALI", {"dali": "2.4"}, {}, "not installed on n0, n1; 2.4 on n1"),
    ("code", {"code": "0ther" * 12}, {}, "c0dec0dec0de on n0, n1; 0ther0ther0t on n1"),
    ("settings", {"config": "b" * 64}, {"config": "a" * 64}, "bbbbbbbbbbbb on n1"),
    ("settings", {"config": "missing"}, {"config": "a" * 64}, "--config cannot be read on n1"),
    ("/dev/shm", {"shared_memory": 40 * MIB}, {}, "20 MiB for each rank on n1"),
    ("locked memory", {"locked_memory": 8 * MIB, "infiniband": True}, {}, "at most 8 MiB on n1, too little"),
    ("run's folder", {"output_error": "another folder than rank 0's"}, {}, "another folder than rank 0's on n1"),
    ("run's folder", {"output_free": 100 * MIB}, {}, "0.1 GiB free"),
]


@pytest.mark.parametrize(("check", "odd", "every", "seen"), MEND)
def test_what_must_be_mended(check: str, odd: dict[str, Any], every: dict[str, Any], seen: str) -> None:
    found = finding(check, views(odd, every))
    assert found.level == "mend"
    assert seen in found.seen
    assert found.mend.endswith(".")
    assert finding(check, views(every=every)).level == "ok"


@pytest.mark.parametrize(("able", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_that_auto_stands_for(able: bool, precision: str) -> None:
    found = finding("precision", views(every={"bf16": able}))
    assert found.level == "ok"
    assert found.seen.endswith(f"--precision auto is {precision}")


SMALL = Resources(cores=frozenset({4, 5, 6, 7}), memory=2 * GIB)

NOTES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("ranks", {"host": "n2"}, {}, "4 ranks on n0, n1, n2: between 1 and 2 a host"),
    ("cores", {"threads": 5}, {}, "9 threads on 8 cores on n1"),
    ("memory", {"resources": SMALL}, {}, "1.0 GiB available to each rank on n1"),
    ("GPUs", {"gpus": ("A100",)}, GPU, "1 x H200 on n0, n1; 1 x A100 on n1"),
    ("precision", {"bf16": False}, {}, "bfloat16 is slower on n1: --precision auto is fp32"),
    ("run's folder", {"output_free": 5 * GIB}, {}, "5.0 GiB free"),
]


@pytest.mark.parametrize(("check", "odd", "every", "seen"), NOTES)
def test_what_could_be_better(check: str, odd: dict[str, Any], every: dict[str, Any], seen: str) -> None:
    found = finding(check, views(odd, every))
    assert found.level == "note"
    assert seen in found.seen
    assert found.mend.endswith(".")


def on(*cores: int, threads: int = 1, rank: int = 0, **others: Any) -> View:
    """A view of a rank on some cores."""
    return view(rank, resources=Resources(cores=frozenset(cores), memory=64 * GIB, **others), threads=threads)


def test_cores_are_counted_as_ranks_are_bound() -> None:
    assert finding("cores", [on(0, 1), on(0, 1, rank=1)]).level == "ok"
    assert finding("cores", [on(0, 1, threads=2), on(0, 1, threads=2)]).seen == "4 threads on 2 cores on n0"
    assert finding("cores", [on(0, threads=2), on(1, 2, 3)]).seen == "2 threads on 1 core on n0"
    assert finding("cores", [on(0, 1, 2, 3, threads=3), on(0)]).level == "ok"
    assert finding("cores", [on(0, 1, 2, threads=1, rank=rank % 2) for rank in range(2)]).level == "ok"


def test_a_limit_of_a_control_group_is_told() -> None:
    half = on(0, 1, core_limits=(Limit("one", 0.5),), memory_limits=(Limit("one", 1.5 * GIB),))
    assert finding("cores", [half]).seen == "1 thread on 0.5 cores (a control group's limit: 0.5) on n0"
    assert finding("memory", [half]).seen == "1.5 GiB available to each rank on n0, as its control group limits it"
    assert "--mem" in finding("memory", [half]).mend


def test_openmp_that_ties_all_ranks_to_the_same_cores() -> None:
    assert "OMP_PROC_BIND" in finding("cores", [on(0, 1, omp_bound=True)] * 2).seen
    assert finding("cores", [on(0, 1, omp_bound=True)]).level == "ok"
    assert finding("cores", [on(0, omp_bound=True), on(1, omp_bound=True)]).level == "ok"


def test_cores_that_mpirun_leaves_out() -> None:
    found = finding("cores", [on(0, launcher_cores=16), on(1, launcher_cores=16)])
    assert found.seen == "mpirun ties the ranks on n0 to 2 of 16 cores"
    assert "--bind-to none" in found.mend


def test_ranks_that_share_gpus_and_averages_without_nccl() -> None:
    shared = [view(rank, **GPU, gpu="GPU-1") for rank in range(2)]
    assert finding("GPUs", shared).mend.startswith("Start one rank for each GPU")
    # Each rank sees one GPU, and another one: nothing is shared.
    apart = [view(rank, **GPU, gpu=f"GPU-{rank}") for rank in range(4)]
    assert finding("GPUs", apart).level == "ok"
    without = [replace(each, libraries=LIBRARIES) for each in apart]
    assert "averages pass through host memory" in finding("GPUs", without).seen


def test_a_rank_alone_needs_little_shared_memory() -> None:
    assert finding("/dev/shm", [view(0, shared_memory=4 * MIB)]).level == "ok"


def link(one: int, other: int, gbits: float = 1.0) -> Link:
    return Link(one=f"n{one}", other=f"n{other}", latency=2e-4, bandwidth=gbits * 1.25e8)


def test_a_link_that_is_out_of_line_is_named() -> None:
    links = [link(0, 1), link(0, 2), link(1, 2, 0.1), link(0, 3, 0.9), link(1, 3, 0.05), link(2, 3)]
    found = finding("bandwidth", views(), links)
    assert found.level == "note"
    assert found.seen == "n1 to n3 0.05 Gbit/s, where the median is 0.95"
    assert "and 1 more" in found.mend
    alike = finding("bandwidth", views(), links[:2])
    assert (alike.level, alike.seen) == ("ok", "1 Gbit/s between hosts")
    assert finding("latency", views(), links).seen == "0.2 ms between hosts"


@pytest.mark.parametrize(("apart", "level"), [(0.4, "ok"), (-2.0, "note"), (40.0, "mend")])
def test_clocks(apart: float, level: str) -> None:
    found = finding("clocks", views(), clocks={"n0": 0.0, "n1": apart})
    assert found.level == level
    assert ("n1 is" in found.seen) == (level != "ok")
    assert bool(found.mend) == (level != "ok")


def test_names_of_many_hosts_are_counted() -> None:
    many = [view(rank, output_error="Permission denied") for rank in range(16)]
    assert finding("run's folder", many).seen == "Permission denied on n0, n1, n2 and 5 more"


@given(st.integers(1, 40))
def test_each_host_meets_each_once_and_never_two_at_a_time(count: int) -> None:
    met = []
    for pairs in turns(range(count)):
        players = [player for pair in pairs for player in pair]
        assert len(set(players)) == len(players)
        met += pairs
    assert sorted(met) == [(a, b) for a in range(count) for b in range(a + 1, count)]


def test_the_first_rank_of_each_host() -> None:
    assert first_ranks(["a", "b", "a", "c", "b"]) == [0, 1, 3]
