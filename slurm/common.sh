#!/usr/bin/env bash
# What the batch scripts share; each sources it. Edit the first part for your site, once.

# -- your site ------------------------------------------------------------------------------------

# Modules that a job needs, such as your site's MPI. The MPI of the Python package index needs none.
MODULES=${MODULES:-}

# The Python of the environment that drl_mpi is installed in.
PYTHON=${PYTHON:-$DRL_MPI_HOME/.venv/bin/python}

# What starts the ranks: mpirun, or srun (Slurm's PMIx plugin is needed).
export LAUNCHER=${LAUNCHER:-mpirun}

# A job that was interrupted goes back to the queue by itself, if it has made a new checkpoint, at
# most so often; 0: never.
export MAX_REQUEUES=${MAX_REQUEUES:-100}

# Words in front of every rank's command, such as a container's:
#   export RANK_WRAPPER="apptainer exec --nv /path/to/drl_mpi.sif"

# -- from here on nothing needs to be edited -------------------------------------------------------

# Slurm's warning (--signal) would end this shell; the job is told if it came that early.
export DRL_MPI_WARNED=
trap 'DRL_MPI_WARNED=yes' USR2

# What sbatch copied from where it was called, say a shell of srun's: this is none of its ranks.
unset "${!PMI_@}" "${!OMPI_COMM_@}" "${!SLURM_STEP_@}" PMIX_RANK PMIX_NAMESPACE DRL_MPI_RELAUNCHED
# Ranks get these variables, even after sbatch --export=NONE.
export SLURM_EXPORT_ENV=ALL

fail() { # fail WHAT-TO-DO: one line, and the exit code for wrong usage
    echo "$(basename "${SLURM_JOB_NAME:-slurm}"): $*" >&2
    exit 2
}

play() { # play NAME OPTION...: hands this process over to the job, which hears Slurm's signals then
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "not inside a Slurm job; submit it: sbatch slurm/NAME.sh"
    if [[ -n $MODULES ]]; then
        for file in /etc/profile.d/{lmod,modules,z00_lmod}.sh; do
            # shellcheck source=/dev/null
            command -v module >/dev/null || [[ ! -r $file ]] || source "$file"
        done
        command -v module >/dev/null ||
            fail "MODULES='$MODULES', but there is no module command; source its script in" \
                "slurm/common.sh, or empty MODULES"
        # shellcheck disable=SC2086 # several words
        module load $MODULES || fail "module load $MODULES failed; see: module avail"
    fi
    command -v "$PYTHON" >/dev/null ||
        fail "no Python at $PYTHON; make the environment first (make run), or" \
            "set PYTHON in slurm/common.sh"
    "$PYTHON" -c 'import drl_mpi, mpi4py' 2>/dev/null ||
        fail "$PYTHON cannot import drl_mpi and mpi4py; install them there: pip install -e ."
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: $*"
    export DRL_MPI_BATCH=$SLURM_JOB_ID:$$ # this process, which becomes the job and may requeue it
    trap '' USR2
    local hold=(env --default-signal=USR2 --block-signal=USR2) # a warning waits until the job listens
    "${hold[@]}" true 2>/dev/null || hold=()                  # coreutils before 8.31: it is lost
    exec "${hold[@]}" "$PYTHON" "$DRL_MPI_HOME/jobs/$1.py" "${@:2}"
}
