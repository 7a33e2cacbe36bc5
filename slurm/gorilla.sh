#!/usr/bin/env bash
# Trains Gorilla DQN (Nair et al. 2015) on an allocation.
#
#   sbatch slurm/gorilla.sh --env ALE/Breakout-v5
#   sbatch --nodes=8 --gpus-per-node=4 slurm/gorilla.sh --env ALE/Breakout-v5 --run-dir runs/breakout
#
# Options after the script's name go to jobs/gorilla.py (see its --help). Options before it are
# sbatch's, and win over the lines below. Submit it from the repository's folder, or export
# DRL_MPI_HOME=/path/to/it.

##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --job-name=gorilla
#SBATCH --time=04:00:00
#SBATCH --nodes=1
# Ranks of each node, and cores of each rank. The job decides which rank does what: one learner
# per GPU (or one), the parameter servers, and actors on all others.
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
# GPUs of each node, for the learners; without this line everything runs on cores.
##SBATCH --gpus-per-node=1
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

play gorilla "$@"
