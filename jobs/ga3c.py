"""Trains GA3C (Babaeizadeh et al. 2017).

python jobs/ga3c.py                                     all cores of this machine
mpirun -n 4 python jobs/ga3c.py --env ALE/Pong-v5       1 learner that acts for 3 actors
python jobs/ga3c.py --tune off --predictors 2           as many threads as you say
python jobs/ga3c.py --preset paper --help               the paper's settings, every option
"""

from drl_mpi.run.launch import main
from drl_mpi.systems.ga3c import PRESETS

if __name__ == "__main__":
    main(PRESETS)
