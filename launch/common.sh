# Sourced by launch/quickstart, launch/run, launch/test and others: the folders, the path, and what ranks on one machine need.
# shellcheck shell=bash
launch=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
root=${launch%/*}
export PATH="$root/.venv/bin:$PATH"

# Open MPI refuses root otherwise; in a container or on a test machine there may be no other user.
allow_root() {
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
