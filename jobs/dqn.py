"""Trains DQN (Mnih et al. 2015).

python jobs/dqn.py     all cores of this machine
mpirun -n 3 python jobs/dqn.py --env ALE/Breakout-v5     one learner, two actors
python jobs/dqn.py --preset paper --help     the paper's settings, every option
"""

from drl_mpi.run.launch import main
from drl_mpi.systems.dqn import PRESETS

if __name__ == "__main__":
    main(PRESETS)
