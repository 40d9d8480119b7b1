# Sourced by the batch scripts: how ranks are started here, and what happens when the job is told to stop.
# shellcheck shell=bash
#
#   RESIST_HVD_LAUNCHER   srun:pmix, srun:pmi2 or mpirun: no trial of what fits
#   RESIST_HVD_RUNS       where runs' folders are (default: runs/ where the job was submitted)
#   RESIST_HVD_RESTARTS   how often a job that has lost a rank requeues itself (default: 10)

project=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
export PATH="$project/.venv/bin:$PATH"

# What starts Python; slurm/apptainer.sbatch puts a container before it.
python=(python)

# How many ranks; slurm/array.sbatch has jobs of several sizes.
workers=${SLURM_NTASKS:-1}

# Statuses that resist_hvd ends with: told to stop, a checkpoint is written; or a rank is lost.
stopped=75
rank_lost=69

say() { printf 'slurm: %s\n' "$*" >&2; }

# Train to the end, or until told to stop; the arguments are those of `python -m resist_hvd.train`. Started again, the
# same job goes on from its newest checkpoint: a requeued job keeps its number.
train() {
    local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    local runs=${RESIST_HVD_RUNS:-$SLURM_SUBMIT_DIR/runs}
    local status
    cd "$SLURM_SUBMIT_DIR" || exit
    prepare_environment
    choose_launcher || exit
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $job: $workers ranks by ${launcher[0]} on $SLURM_JOB_NODELIST"
    run_step "${launcher[@]}" "${python[@]}" -m resist_hvd.train --resume --output "$runs/$SLURM_JOB_NAME-$job" "$@"
    status=$?
    requeue_if_unfinished "$status"
    exit "$status"
}

prepare_environment() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # mpirun would tie each rank to one core, and with it all its threads.
    export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
    # A host that is cut off is noticed in some ten seconds, not after the kernel's two hours.
    export OMPI_MCA_oob_tcp_keepalive_time=4 OMPI_MCA_oob_tcp_keepalive_intvl=2 OMPI_MCA_oob_tcp_keepalive_probes=3
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

# Set `launcher`. Where the PMI of the site's SLURM fits this MPI, srun starts ranks: it passes signals on, and ends all
# ranks on all nodes with the first that fails. A start of MPI alone tells whether they fit; elsewhere mpirun does.
choose_launcher() {
    local choice=${RESIST_HVD_LAUNCHER:-} offered kind
    if [[ -z $choice ]]; then
        offered=$(srun --mpi=list 2>&1)
        for kind in pmix pmi2; do
            if [[ $offered == *"$kind"* ]] && fits "$kind"; then
                choice=srun:$kind
                break
            fi
        done
    fi
    if [[ $choice == srun:* ]]; then
        use_srun "${choice#srun:}"
    elif type -P mpirun >/dev/null; then
        launcher=(mpirun -np "$workers")
    else
        say "srun starts no MPI here (it offers: ${offered//$'\n'/ }), and there is no mpirun: load the module of the" \
            "site's MPI that launch/setup was run with"
        return 1
    fi
}

use_srun() {
    # srun does not take the cores of a task from the job by itself.
    launcher=(srun "--mpi=$1" "--ntasks=$workers" "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1)
    launcher+=(--input=none)
}

# Without a PMI that fits, every rank would be a world of its own.
fits() {
    local program='from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != int(__import__("sys").argv[1]))'
    use_srun "$1"
    timeout 120 "${launcher[@]}" "${python[@]}" -c "$program" "$workers" >/dev/null 2>&1
}

# Run the ranks in the background, since the shell answers no signal while it waits for a program in the foreground.
run_step() {
    local status=127 latest
    warned='' ended=''
    trap on_warning USR2
    trap on_end TERM
    "$@" &
    step=$!
    while :; do
        interrupted=''
        wait "$step"
        latest=$?
        # 127: the step's status was told already, by a wait that a signal came too late to interrupt.
        ((latest == 127)) || status=$latest
        [[ -n $interrupted ]] || break
    done
    trap - USR2 TERM
    return "$status"
}

# The warning before the time limit comes to this shell alone (the B of --signal=B:USR2@120).
on_warning() {
    interrupted=1 warned=1
    say "the time limit is near: the ranks are told to write a checkpoint"
    kill -USR2 "$step"
}

# Cancelled, requeued or preempted: SLURM sends TERM to all ranks itself, and knows what is to become of the job.
on_end() {
    interrupted=1 ended=1
}

requeue_if_unfinished() {
    local status=$1 why
    if ((status == 0)) || [[ -n $ended ]]; then
        return
    elif ((status == stopped)) || [[ -n $warned ]]; then
        why="it was told to stop"
    elif ((status == rank_lost && ${SLURM_RESTART_COUNT:-0} < ${RESIST_HVD_RESTARTS:-10})); then
        why="a rank was lost"
    else
        return
    fi
    say "status $status: $why; the job goes on from its newest checkpoint when it starts again"
    scontrol requeue "$SLURM_JOB_ID" || say "it cannot requeue itself: submit it again with --output as above"
}
