"""What the environment says of a launch: which are refused before MPI starts, and what MPI is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resist_hvd.comm import launch
from resist_hvd.errors import UserError

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "n1"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NODELIST": "n[1-4]"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A Python's folder with an Open MPI in it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "orted").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "facts"),
    [
        (TORCHRUN, ["torchrun", "4 processes", "launch/run -np 4", "mpirun -np 4"]),
        ({**BATCH, **TORCHRUN}, ["torchrun"]),
        (STEP, ["srun", "4 tasks", "--mpi=pmix", "--ntasks=4"]),
        ({"HOROVOD_CONTROLLER": "gloo", "HOROVOD_SIZE": "2"}, ["Gloo", "2 ranks"]),
    ],
)
def test_processes_that_would_be_worlds_of_their_own(
    environment: dict[str, str], facts: list[str], prefix: Path
) -> None:
    with pytest.raises(UserError) as caught:
        launch.refuse_separate_worlds(environment, prefix)
    assert all(fact in str(caught.value) for fact in facts)
    assert caught.value.everywhere  # so that the first alone says it


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "4", "MASTER_ADDR": "n1"},  # a batch script's own variables
        {**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "4"},
        BATCH,
        {**BATCH, "OMPI_COMM_WORLD_SIZE": "4"},
        {**STEP, "OMPI_COMM_WORLD_SIZE": "8"},  # ranks of mpirun, whose daemons srun has started
        {**STEP, "PMIX_RANK": "0"},
        {**STEP, "PMI_FD": "12"},
        {**STEP, "PALS_APID": "1"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "SLURM_PTY_PORT": "41234"},  # a person's shell
        {**STEP, "SLURM_STEP_ID": "interactive"},
        {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_SIZE": "1"},
    ],
)
def test_sound_launches_are_not_refused(environment: dict[str, str], prefix: Path) -> None:
    launch.refuse_separate_worlds(environment, prefix)


@pytest.mark.parametrize(
    "setting", ["PMIX_MCA_psec", "PMI_MMAP_SYNC_WAIT_TIME", "PMI_NO_PREINITIALIZE", "PALS_SPOOL_DIR"]
)
def test_a_setting_of_mpi_s_is_no_launch_by_it(setting: str, prefix: Path) -> None:
    for environment in (STEP, TORCHRUN):
        with pytest.raises(UserError):
            launch.refuse_separate_worlds({**environment, setting: "1"}, prefix)
    assert not launch.launched_by_mpi({setting: "1"})


def test_a_bare_srun_is_left_to_a_site_s_own_mpi(tmp_path: Path) -> None:
    launch.refuse_separate_worlds(STEP, tmp_path)


def test_one_process_of_torchrun_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name in launch.MPI_VARIABLES or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launch.launched_rank() == 1


def told(environment: dict[str, str], cores: int, around: int = 0, prefix: Path = Path("/none")) -> dict[str, str]:
    return launch.open_mpi_variables(environment, cores, around, prefix)


def ranks(size: int, local: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_SIZE": str(local)}


@pytest.mark.parametrize(
    ("local", "cores", "around", "yields"),
    [
        (1, 1, 0, True),  # two threads of one rank
        (1, 2, 0, False),
        (2, 2, 2, True),
        (4, 8, 8, False),
        (5, 8, 8, True),
        # Bound: each has cores of its own.
        (4, 4, 16, False),
        (2, 1, 16, True),
        (4, 8, 16, False),
    ],
)
def test_ranks_yield_where_their_waiting_threads_fill_the_cores(
    local: int, cores: int, around: int, yields: bool
) -> None:
    found = told(ranks(local, local), cores, around)
    assert found == ({"OMPI_MCA_mpi_yield_when_idle": "1"} if yields else {})


def test_what_the_user_has_set_stays(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(prefix))
    user = {"OMPI_MCA_mpi_yield_when_idle": "0", "OMPI_MCA_btl": "self,tcp"}
    assert told({**ranks(4, 4), **user}, 1, prefix=prefix) == {"OPAL_PREFIX": str(prefix)}
    (prefix / ".openmpi").mkdir()
    (prefix / ".openmpi" / "mca-params.conf").write_text("# mine\nbtl = tcp,self\nmpi_yield_when_idle=0\n")
    assert told(ranks(4, 4), 1, prefix=prefix) == {"OPAL_PREFIX": str(prefix)}


def test_on_one_host_mpi_keeps_off_the_network(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(prefix))
    own = {"OPAL_PREFIX": str(prefix)}
    assert told(ranks(4, 4), 64, prefix=prefix) == own | {"OMPI_MCA_btl": "^tcp"}
    alone = {"OMPI_MCA_btl": "^tcp", "OMPI_MCA_ess_singleton_isolated": "1"}
    assert told({}, 64, prefix=prefix) == own | alone
    assert told({"PMIX_RANK": "0", "SLURM_STEP_NUM_NODES": "1"}, 64, prefix=prefix) == own | {"OMPI_MCA_btl": "^tcp"}
    several = told(ranks(8, 4), 64, prefix=prefix)
    assert several == told({"PMIX_RANK": "0"}, 64, prefix=prefix)
    assert "OMPI_MCA_btl" not in several
    assert told(ranks(4, 4), 64) == {}  # a site's MPI is as its files have it


RING = {
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
    "OMPI_MCA_coll_tuned_dynamic_rules_filename": str(launch.RULES),
}


def test_between_hosts_any_mpi_averages_in_a_ring(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(prefix))
    assert told(ranks(8, 4), 64, prefix=prefix) == RING | {"OPAL_PREFIX": str(prefix)}
    assert told(ranks(8, 4), 64) == told({"PMIX_RANK": "0", "SLURM_STEP_NUM_NODES": "2"}, 64) == RING
    assert launch.RULES.is_file()
    assert launch.in_effect({**RING, "HOME": "/root"}) == tuple(f"{name}={value}" for name, value in RING.items())


def test_a_choice_of_collectives_by_the_user_or_the_site_stays(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen in ("OMPI_MCA_coll_tuned_allreduce_algorithm", "OMPI_MCA_coll", "OMPI_MCA_coll_hcoll_enable"):
        assert told({**ranks(8, 4), chosen: "3"}, 64) == {}
    # A site's Open MPI is the one whose programs are found.
    site = tmp_path / "site"
    (site / "bin").mkdir(parents=True)
    (site / "bin" / "ompi_info").touch(mode=0o755)
    (site / "etc").mkdir()
    (site / "etc" / "openmpi-mca-params.conf").write_text("coll_tuned_use_dynamic_rules = 0\n")
    monkeypatch.setenv("PATH", str(site / "bin"))
    assert told(ranks(8, 4), 64, prefix=tmp_path / "none") == {}
    assert told(ranks(8, 4), 64, prefix=prefix) == RING | {"OPAL_PREFIX": str(prefix)}


def test_another_open_mpi_s_folder_gives_way_to_the_one_that_is_loaded(prefix: Path) -> None:
    assert told({"OPAL_PREFIX": "/opt/hpcx/ompi"}, 64, prefix=prefix)["OPAL_PREFIX"] == str(prefix)
    launch.refuse_missing_open_mpi({"OPAL_PREFIX": "/opt/hpcx/ompi"}, prefix)


def test_a_folder_without_an_open_mpi_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OPAL_PREFIX") as caught:
        launch.refuse_missing_open_mpi({"OPAL_PREFIX": "/opt/none"}, tmp_path)
    assert "/opt/none" in str(caught.value)
    (tmp_path / "share" / "openmpi").mkdir(parents=True)
    launch.refuse_missing_open_mpi({"OPAL_PREFIX": str(tmp_path)}, tmp_path)


def test_a_process_alone_in_a_step_is_a_world_of_its_own(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**STEP, "SLURM_STEP_NUM_TASKS": "1"}
    monkeypatch.setattr(launch.os, "environ", environment)
    launch.prepare_environment()
    assert "SLURM_STEP_ID" not in environment


@pytest.mark.parametrize(("on_gpus", "cycle"), [(False, launch.CYCLE), (True, launch.GPU_CYCLE)])
def test_horovod_asks_less_often_on_gpus(on_gpus: bool, cycle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(launch.os, "environ", environment)
    launch.prepare_horovod(on_gpus=on_gpus)
    assert environment["HOROVOD_CYCLE_TIME"] == cycle
    environment["HOROVOD_CYCLE_TIME"] = "7"
    launch.prepare_horovod(on_gpus=on_gpus)
    assert environment["HOROVOD_CYCLE_TIME"] == "7"


def after_importing(modules: str, **variables: str) -> str:
    """Return what importing has loaded, and whether the environment is as it was."""
    tell = (
        f"import os, sys; before = dict(os.environ); import {modules}; "
        "print('mpi4py.MPI' in sys.modules, 'torch' in sys.modules, dict(os.environ) == before); "
        "sys.exit('mpi4py.MPI' in sys.modules and sys.modules['mpi4py.MPI'].Is_initialized())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRAY_")}
    done = subprocess.run(
        [sys.executable, "-c", tell], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_starts_and_changes_nothing() -> None:
    assert after_importing("resist_hvd.comm.transport, resist_hvd.guard.failure") == "False True True"


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({"RESIST_HVD_IMPORT_MPI_FIRST": "1"}, True),
        ({"CRAY_MPICH_VERSION": "8.1.30"}, True),
        ({"CRAY_MPICH_VERSION": "8.1.30", "RESIST_HVD_IMPORT_MPI_FIRST": "0"}, False),
    ],
)
def test_mpi_comes_before_pytorch_where_a_site_needs_that(variables: dict[str, str], loaded: bool) -> None:
    assert after_importing("resist_hvd", **variables) == f"{loaded} False True"
