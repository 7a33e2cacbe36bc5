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

# Slurm's warning (--signal) would end this shell; the job listens for it from the moment it can.
trap '' USR2

fail() { # fail WHAT-TO-DO: one line, and the exit code for wrong usage
    echo "$(basename "${SLURM_JOB_NAME:-slurm}"): $*" >&2
    exit 2
}

play() { # play NAME OPTION...: hands this process over to the job, which hears Slurm's signals then
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "not inside a Slurm job; submit it: sbatch slurm/NAME.sh"
    if [[ -n $MODULES ]]; then
        command -v module >/dev/null || fail "there is no module command; empty MODULES"
        # shellcheck disable=SC2086 # several words
        module load $MODULES || fail "module load $MODULES failed; see: module avail"
    fi
    command -v "$PYTHON" >/dev/null ||
        fail "no Python at $PYTHON; make the environment first (make run), or" \
            "set PYTHON in slurm/common.sh"
    "$PYTHON" -c 'import drl_mpi, mpi4py' 2>/dev/null ||
        fail "$PYTHON cannot import drl_mpi and mpi4py; install them there: pip install -e ."
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: $*"
    export DRL_MPI_BATCH=$$ # this process, which becomes the job and may requeue it
    exec "$PYTHON" "$DRL_MPI_HOME/jobs/$1.py" "${@:2}"
}
