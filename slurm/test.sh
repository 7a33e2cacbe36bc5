#!/usr/bin/env bash
# Checks an allocation: Python, MPI, hosts, GPUs, messages between ranks, files. A minute or two.
#
#   sbatch slurm/test.sh
#   sbatch --nodes=8 --gpus-per-node=4 slurm/test.sh --run-dir /scratch/me/runs
#
# Options after the script's name go to jobs/doctor.py (see its --help). Options before it are
# sbatch's, and win over the lines below: ask for what your runs will ask for. Submit it from the
# repository's folder, or export DRL_MPI_HOME=/path/to/it.

##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --job-name=test
#SBATCH --time=00:10:00
#SBATCH --nodes=2
# Ranks of each node, and cores of each rank.
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
##SBATCH --gpus-per-node=1
#SBATCH --no-requeue
#SBATCH --output=%x-%j.out

DRL_MPI_HOME=${DRL_MPI_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
[[ -f $DRL_MPI_HOME/slurm/common.sh ]] || {
    echo "no drl_mpi in $DRL_MPI_HOME: submit from its folder, or export DRL_MPI_HOME=/path/to/it" >&2
    exit 2
}
# shellcheck source=slurm/common.sh
source "$DRL_MPI_HOME/slurm/common.sh"

play doctor "$@"
