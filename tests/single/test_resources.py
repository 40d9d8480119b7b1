"""Cores, threads and memory that ranks of a host have, however they are bound and limited."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.comm.resources import (
    Limit,
    Resources,
    control_groups,
    core_limit,
    memory,
    memory_limit,
    own_resources,
    shared_cores,
    threads,
)

masks = st.frozensets(st.integers(0, 15), min_size=1)
limits = st.lists(
    st.builds(Limit, group=st.sampled_from("abc"), amount=st.sampled_from([0.5, 1, 2.5, 4, 64])), max_size=3
).map(lambda found: tuple({limit.group: limit for limit in found}.values()))
hosts = st.lists(st.builds(Resources, cores=masks, core_limits=limits), min_size=1, max_size=8)


def unlimited(*cores: range, **others: object) -> list[Resources]:
    return [Resources(cores=frozenset(own), **others) for own in cores]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (unlimited(range(8)), [8]),
        (unlimited(*[range(8)] * 2), [4, 4]),
        (unlimited(*[range(2)] * 4), [1] * 4),
        # 64 cores, 8 ranks bound to 8 each; 4 on 2 sockets of 32.
        (unlimited(*(range(8 * rank, 8 * rank + 8) for rank in range(8))), [8] * 8),
        (unlimited(*[range(32)] * 2, *[range(32, 64)] * 2), [16] * 4),
        # One has a part of what the other may use.
        (unlimited(range(4), range(2)), [3, 1]),
        (unlimited(range(8), core_limits=(Limit("job", 0.5),)), [1]),
        (unlimited(*[range(8)] * 2, core_limits=(Limit("job", 4.0),)), [2, 2]),
        (unlimited(*[range(8)] * 2, core_limits=(Limit("job", 64.0),)), [4, 4]),
        # Set by the user: what else there is does not matter.
        (unlimited(*[range(8)] * 2, omp_threads=6), [6, 6]),
    ],
)
def test_threads(there: list[Resources], expected: list[int]) -> None:
    assert threads(there) == expected


def test_each_rank_may_have_a_limit_of_its_own() -> None:
    there = [Resources(cores=frozenset(range(16)), core_limits=(Limit(f"task{rank}", 3.0),)) for rank in range(2)]
    assert threads(there) == [3, 3]
    both = [replace(own, core_limits=(*own.core_limits, Limit("step", 4.0))) for own in there]
    assert threads(both) == [2, 2]


@given(hosts)
def test_threads_need_no_more_cores_than_there_are(there: list[Resources]) -> None:
    given_to = threads(there)
    assert all(1 <= count <= max(1, len(rank.cores)) for count, rank in zip(given_to, there, strict=True))
    assert sum(given_to) <= len(set().union(*(rank.cores for rank in there))) + len(there)
    assert sum(shared_cores(there)) <= len(set().union(*(rank.cores for rank in there))) + 1e-6
    for group in "abc":
        under = [rank for rank in there if any(limit.group == group for limit in rank.core_limits)]
        amounts = [limit.amount for rank in under for limit in rank.core_limits if limit.group == group]
        if len(under) == len(there):
            assert sum(shared_cores(there)) <= max(amounts) + 1e-6


@given(hosts, st.builds(Resources, cores=masks, core_limits=limits))
def test_one_more_rank_gives_no_other_one_more(there: list[Resources], other: Resources) -> None:
    assert all(now <= before for now, before in zip(threads([*there, other]), threads(there), strict=False))


@given(hosts, st.randoms())
def test_order_of_ranks_does_not_matter(there: list[Resources], random: object) -> None:
    order = list(range(len(there)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert threads([there[number] for number in order]) == [threads(there)[number] for number in order]


def test_memory_is_the_smaller_of_the_machine_s_and_the_control_group_s() -> None:
    assert memory(unlimited(range(1), memory=1000)) == [1000]
    assert memory(unlimited(*[range(1)] * 2, memory=1000)) == [500, 500]
    assert memory(unlimited(*[range(1)] * 2, memory=1000, memory_limits=(Limit("job", 300),))) == [150, 150]
    apart = [replace(own, memory_limits=(Limit(f"task{n}", 300),)) for n, own in enumerate(unlimited(range(1)) * 2)]
    assert memory(apart) == [300, 300]


# -- control groups, as the kernel shows them ----------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")
    return folder


def process(tmp_path: Path, cgroup: str, *mounts: str) -> Path:
    return write(tmp_path / "process", cgroup=cgroup, mountinfo="\n".join(mounts))


def test_version_2_is_read_up_to_its_top(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(top / "job", cpu__max="200000 100000", memory__max="1000", memory__current="300")
    write(top / "job" / "step", cpu__max="max 100000", memory__max="max", memory__current="200")
    write(top / "job" / "step", memory__stat="anon 1\ninactive_file 50")
    here = process(tmp_path, "0::/job/step", f"31 23 0:28 / {top} rw - cgroup2 cgroup2 rw,nsdelegate")
    folders = list(control_groups(here))
    assert folders == [top / "job" / "step", top / "job", top]
    assert [limit.amount for folder in folders for limit in core_limit(folder)] == [2.0]
    assert [limit.amount for folder in folders for limit in memory_limit(folder)] == [700]


def test_version_1_has_a_hierarchy_for_each(tmp_path: Path) -> None:
    cpu, mem, freezer = (tmp_path / name for name in ("cpu,cpuacct", "memory", "freezer"))
    write(cpu / "docker" / "1", **{"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"})
    write(cpu, **{"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"})
    write(mem, **{"memory__limit_in_bytes": str(2**63 - 4096), "memory__usage_in_bytes": "5"})
    write(mem / "docker" / "1", **{"memory__limit_in_bytes": "1500", "memory__usage_in_bytes": "1000"})
    write(mem / "docker" / "1", memory__stat="cache 400\ninactive_file 0\ntotal_inactive_file 400")
    freezer.mkdir()
    here = process(
        tmp_path,
        "3:freezer:/docker/1\n2:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/",
        f"32 31 0:29 / {cpu} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct",
        f"33 31 0:30 / {mem} rw,relatime - cgroup cgroup rw,memory",
        f"34 31 0:31 / {freezer} rw,relatime - cgroup cgroup rw,freezer",
    )
    folders = list(control_groups(here))
    assert folders == [cpu / "docker" / "1", cpu / "docker", cpu, mem / "docker" / "1", mem / "docker", mem]
    assert [limit.amount for folder in folders for limit in core_limit(folder)] == [0.5]
    assert [limit.amount for folder in folders for limit in memory_limit(folder)] == [900]


def test_a_container_may_see_its_own_group_alone(tmp_path: Path) -> None:
    top = write(tmp_path / "cgroup", cpu__max="150000 100000")
    here = process(tmp_path, "0::/docker/1", f"31 23 0:28 /docker/1 {top} rw - cgroup2 cgroup2 rw")
    assert list(control_groups(here)) == [top]
    assert [limit.amount for limit in core_limit(top)] == [1.5]


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert list(control_groups(tmp_path / "none")) == []
    assert list(core_limit(tmp_path)) == list(memory_limit(tmp_path)) == []


def test_this_process_is_known() -> None:
    found = own_resources()
    assert found.cores == os.sched_getaffinity(0)
    assert found.memory > 0


@pytest.mark.parametrize("variables", [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}])
def test_openmp_s_binding_hides_no_core(variables: dict[str, str]) -> None:
    tell = (
        "import resist_hvd, torch, os\n"
        "from resist_hvd.comm.resources import own_resources\n"
        "own = own_resources()\n"
        "print(sorted(own.cores), own.omp_bound)"
    )
    done = subprocess.run(
        [sys.executable, "-c", tell], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{sorted(os.sched_getaffinity(0))} True"
