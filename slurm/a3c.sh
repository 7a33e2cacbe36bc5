#!/usr/bin/env bash
# Trains A3C (Mnih et al. 2016) on an allocation.
#
#   sbatch slurm/a3c.sh --env ALE/Breakout-v5
#   sbatch --nodes=8 slurm/a3c.sh --env ALE/Breakout-v5 --run-dir runs/breakout --servers 8
#
# Options after the script's name go to jobs/a3c.py (see its --help). Options before it are
# sbatch's, and win over the lines below. Submit it from the repository's folder, or export
# DRL_MPI_HOME=/path/to/it.

##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --job-name=a3c
#SBATCH --time=04:00:00
#SBATCH --nodes=1
# Ranks of each node, and cores of each rank. The job decides which rank does what: parameter
# servers, and workers (learners that act) on all others.
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
# A3C's workers learn on cores.
# Slurm's warning before the time limit or a preemption, in seconds: the job saves, and goes back to
# the queue. The output of all parts ends up in one file.
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

DRL_MPI_HOME=${DRL_MPI_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
[[ -f $DRL_MPI_HOME/slurm/common.sh ]] || {
    echo "no drl_mpi in $DRL_MPI_HOME: submit from its folder, or export DRL_MPI_HOME=/path/to/it" >&2
    exit 2
}
# shellcheck source=slurm/common.sh
source "$DRL_MPI_HOME/slurm/common.sh"

play a3c "$@"
