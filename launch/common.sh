# Sourced by launch/quickstart and launch/test: the folders, the path, and the variables for ranks on one machine.
# shellcheck shell=bash
launch=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
root=${launch%/*}
export PATH="$root/.venv/bin:$PATH"

# Set what this many ranks on this machine need, where the caller has not set it.
prepare_ranks() {
    local ranks=$1 cores
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
    export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
    if ((ranks > cores)); then
        # A rank that waits must leave its core to those that work.
        export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
    fi
    if ((EUID == 0)); then
        # mpirun refuses root otherwise; in a container or on a test machine there may be no other user.
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
