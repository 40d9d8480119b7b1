# Sourced by the batch scripts: how ranks are started here, and what happens when the job is told to stop.
# shellcheck shell=bash
#
#   RESIST_HVD_LAUNCHER     srun:pmix, srun:pmi2, srun:cray_shasta, srun (as the site has set it) or mpirun: no trial of
#                           what fits
#   RESIST_HVD_SRUN_FLAGS   flags for srun, separated by blanks: binding, containers
#   RESIST_HVD_RUNS         where runs' folders are (default: runs/ where the job was submitted)
#   RESIST_HVD_RESTARTS     how often a job requeues itself without a new checkpoint in between (default: 10)
#
# slurm/site.sh, where it exists, is sourced first: a place for a site's `module load`, and for any of these.

project=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)

# What starts Python; slurm/apptainer.sbatch puts a container before it.
python=(python)

# More flags of srun; an array, so that they may hold blanks.
srun_flags=()

# What may start ranks: srun or mpirun; in slurm/pyxis.sbatch srun alone, since the container is its doing.
may_use_mpirun=1

# How many ranks; slurm/array.sbatch has jobs of several sizes.
workers=${SLURM_NTASKS:-1}

# The run's folder, where it is not named by the job; slurm/reproduce.sbatch has runs that are named by their settings.
run_folder=''

# Statuses that resist_hvd ends with: told to stop, a checkpoint is written; or a rank is lost.
stopped=75
rank_lost=69

if [[ -e $project/slurm/site.sh ]]; then
    # shellcheck source=/dev/null
    source "$project/slurm/site.sh" || exit
fi
export PATH="$project/.venv/bin:$PATH"

say() { printf 'slurm: %s\n' "$*" >&2; }

# Print a count that a file or the environment holds; in place of anything else the second argument, since the shell's
# arithmetic runs commands that stand in what it evaluates.
count_in() { if [[ $1 =~ ^[0-9]{1,6}$ ]]; then printf '%d' "$((10#$1))"; else printf '%s' "$2"; fi; }

# Train to the end, or until told to stop; the arguments are those of `python -m resist_hvd.train`. Started again, the
# same job goes on from its newest checkpoint: a requeued job keeps its number.
train() {
    local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    local folder=${run_folder:-${RESIST_HVD_RUNS:-$SLURM_SUBMIT_DIR/runs}/$SLURM_JOB_NAME-$job}
    local status
    if [[ -z $(count_in "${RESIST_HVD_RESTARTS:-10}" '') ]]; then
        say "RESIST_HVD_RESTARTS is '$RESIST_HVD_RESTARTS'; give how often a job may requeue itself, 0 to 999999"
        exit 2
    fi
    cd "$SLURM_SUBMIT_DIR" || exit
    mkdir -p "$folder" || exit
    # The ranks write there how the run has ended: a launcher's status does not tell.
    export RESIST_HVD_OUTCOME=$folder/outcome
    write_anew "$RESIST_HVD_OUTCOME" || exit
    trap on_warning USR2
    prepare_environment
    if choose_launcher && [[ -z $warned ]]; then
        say "start $(($(count_in "${SLURM_RESTART_COUNT:-0}" 0) + 1)) of job $job: $workers ranks by ${launcher[0]} on" \
            "$SLURM_JOB_NODELIST"
        run_step "${launcher[@]}" "${python[@]}" -m resist_hvd.train --resume --output "$folder" "$@"
        status=$?
    else
        status=$?
        [[ -z $warned ]] || status=$stopped
    fi
    conclude "$status" "$folder"
}

prepare_environment() {
    # Where jobs begin with an empty environment, srun would hand an empty one to the ranks, too.
    export SLURM_EXPORT_ENV=ALL
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # mpirun would tie each rank to one core, and with it all its threads.
    export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
    # A host that is cut off is noticed in some ten seconds, not after the kernel's two hours.
    export OMPI_MCA_oob_tcp_keepalive_time=4 OMPI_MCA_oob_tcp_keepalive_intvl=2 OMPI_MCA_oob_tcp_keepalive_probes=3
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    local words=()
    read -ra words <<<"${RESIST_HVD_SRUN_FLAGS:-}"
    srun_flags+=("${words[@]}")
}

# Set `launcher`. Where the PMI of the site's SLURM fits this MPI, srun starts ranks: it passes signals on, and ends all
# ranks on all nodes with the first that fails. A start of MPI alone tells whether they fit; elsewhere mpirun does.
choose_launcher() {
    local choice=${RESIST_HVD_LAUNCHER:-} offered='' kind trial
    if [[ -z $choice ]]; then
        offered=$(srun --mpi=list 2>&1)
        for kind in pmix pmi2 cray_shasta ''; do
            if [[ $offered == *"$kind"* ]]; then
                trial=0
                fits "$kind" || trial=$?
                if ((trial == 0)); then
                    choice=srun${kind:+:$kind}
                    break
                elif ((trial == 143 || trial == 137)); then
                    say "the trial of srun${kind:+ --mpi=$kind} was ended from outside"
                    return "$trial"
                fi
            fi
        done
    fi
    if [[ $choice == srun* ]]; then
        kind=${choice#srun}
        use_srun "${kind#:}"
    elif [[ -z $may_use_mpirun ]]; then
        say "srun starts no MPI here (it offers: ${offered//$'\n'/ }), and nothing else can: see docs/sites.md"
        return 1
    elif type -P mpirun >/dev/null; then
        launcher=(mpirun -np "$workers")
        # Its daemon on each other node counts as one task there.
        [[ -z ${SLURM_GPUS_PER_TASK:-} ]] || say "under mpirun, --gpus-per-task gives all ranks of a node the GPUs of" \
            "one: ask for --gpus-per-node"
    else
        say "srun starts no MPI here (it offers: ${offered//$'\n'/ }), and there is no mpirun: load the module of the" \
            "site's MPI that launch/setup was run with"
        return 1
    fi
}

# Set `launcher` to srun with one of its kinds of PMI, or as the site has set it where none is given.
use_srun() {
    # Without it PMIx looks for munge in the MPI's own copy of itself, and each rank prints that there is none.
    [[ $1 != pmix* ]] || export PMIX_MCA_psec=${PMIX_MCA_psec:-native}
    # srun does not take the cores of a task from the job by itself.
    launcher=(srun ${1:+"--mpi=$1"} "--ntasks=$workers" "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}")
    launcher+=(--kill-on-bad-exit=1 --input=none "${srun_flags[@]}")
}

# Without a PMI that fits, every rank is a world of its own, and ends with 1, or crashes in MPI. None is ended for the
# others: so 143 and 137 (TERM and KILL) tell of a job that is ended from outside.
fits() {
    local program='from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != int(__import__("sys").argv[1]))'
    use_srun "$1"
    timeout 120 "${launcher[@]}" --kill-on-bad-exit=0 "${python[@]}" -c "$program" "$workers" >/dev/null 2>&1
}

# What has come from outside, and the process that starts the ranks.
warned='' ended='' interrupted='' step=''

# Run the ranks in the background, since the shell answers no signal while it waits for a program in the foreground.
run_step() {
    local status=127 latest
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
    trap - TERM
    # A warning that comes now would end this script before the job is requeued.
    trap '' USR2
    return "$status"
}

# SLURM's warning ahead of the time limit (--signal=B:USR2@120), or a user's: it comes to this shell alone, by the B.
on_warning() {
    interrupted=1 warned=1
    say "told to stop by USR2: the ranks write a checkpoint when their round is done"
    [[ -z $step ]] || kill -USR2 "$step" 2>/dev/null
}

# Cancelled, requeued or preempted: SLURM sends TERM to all ranks itself, and knows what is to become of the job.
on_end() {
    interrupted=1 ended=1
}

# End this script as the run has ended, or have the job come back. The ranks' record decides; where it says nothing, the
# run was ended from outside once it had begun, and before that only if a signal has ended its launcher; never if that
# ended well, as with --help, or where there was no room to record it.
conclude() {
    local status=$1 folder=$2 began='' verdict='' word why
    while read -r word _; do
        began=1
        if [[ $word =~ ^(0|[1-9][0-9]{0,2})$ ]]; then verdict=$word && break; fi
    done <"$RESIST_HVD_OUTCOME"
    if [[ -z $verdict ]] && ((status == 0)); then
        exit 0
    elif [[ -n $verdict ]] && ((verdict != stopped && verdict != rank_lost && verdict < 128)); then
        exit "$verdict"
    elif [[ -n $ended ]] || { [[ -z $verdict$began$warned ]] && ((status < 128)); }; then
        exit "$status"
    elif [[ $verdict == "$stopped" || -n $warned ]]; then
        why="it was told to stop"
    elif [[ -n $verdict ]]; then
        why="a rank was lost"
    else
        why="it was ended from outside"
    fi
    say "status $status: $why"
    if ! worth_another_start "$folder"; then
        exit "$status"
    fi
    say "the job goes on from its newest checkpoint when it starts again"
    scontrol requeue "$SLURM_JOB_ID" || say "it cannot requeue itself: submit it again with --output $folder"
    exit "$status"
}

# Count the starts that have ended with the same newest checkpoint, so that a job which gets nowhere does not come back
# for ever.
worth_another_start() {
    local latest=none before='' count=0 most
    most=$(count_in "${RESIST_HVD_RESTARTS:-10}" 10)
    if [[ -e $1/checkpoints/latest ]]; then read -r latest <"$1/checkpoints/latest"; fi
    if [[ -e $1/restarts ]]; then read -r count before <"$1/restarts"; fi
    if [[ $before == "$latest" ]]; then count=$(count_in "$count" 0); else count=0; fi
    if ((count >= most)); then
        say "it was started $((count + 1)) times since its newest checkpoint ($latest), and does not come back"
        return 1
    fi
    write_anew "$1/restarts" "$((count + 1)) $latest"
}

# Write a file, in place of one that was there: never through a link. An empty one is there from the beginning, since a
# file server may not show another node's new file for a while.
write_anew() {
    rm -f "$1"
    (set -o noclobber && printf '%s' "${2:+$2$'\n'}" >"$1")
}
