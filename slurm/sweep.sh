#!/usr/bin/env bash
# Trains one system on several games and seeds: an array of jobs, each with an allocation of its own.
#
#   sbatch slurm/sweep.sh --total-frames 2e8
#   GAMES="ALE/Qbert-v5 ALE/Alien-v5" SEEDS="1 2" SYSTEM=ga3c sbatch --array=0-3%2 slurm/sweep.sh
#
# Options after the script's name go to every job. Each keeps its own run folder, and goes back to
# the queue by itself.

##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --job-name=sweep
# One task for each game and seed, counted from 0; after the %: how many may run at a time.
#SBATCH --array=0-11%4
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
# GPUs of each node, for the learners; without this line everything runs on cores.
##SBATCH --gpus-per-node=1
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out

SYSTEM=${SYSTEM:-impala}
GAMES=${GAMES:-ALE/Pong-v5 ALE/Breakout-v5 ALE/SpaceInvaders-v5 ALE/Seaquest-v5}
SEEDS=${SEEDS:-1 2 3}

DRL_MPI_HOME=${DRL_MPI_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
[[ -f $DRL_MPI_HOME/slurm/common.sh ]] || {
    echo "no drl_mpi in $DRL_MPI_HOME: submit from its folder, or export DRL_MPI_HOME=/path/to/it" >&2
    exit 2
}
# shellcheck source=slurm/common.sh
source "$DRL_MPI_HOME/slurm/common.sh"

read -ra games <<<"$GAMES"
read -ra seeds <<<"$SEEDS"
count=$((${#games[@]} * ${#seeds[@]}))
index=${SLURM_ARRAY_TASK_ID:?submit this as an array: sbatch --array=0-11%4 slurm/sweep.sh}
((index < count)) ||
    fail "games (${#games[@]}) x seeds (${#seeds[@]}) are tasks 0 to $((count - 1)), and this is" \
        "task $index; submit it with: sbatch --array=0-$((count - 1))%4 slurm/sweep.sh"
((SLURM_ARRAY_TASK_MAX < count - 1)) && echo "tasks of this sweep: 0 to $((count - 1))"

play "$SYSTEM" --env "${games[index / ${#seeds[@]}]}" --seed "${seeds[index % ${#seeds[@]}]}" "$@"
