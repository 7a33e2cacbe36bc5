"""Trains IMPALA (Espeholt et al. 2018).

python jobs/impala.py                                     all cores of this machine
mpirun -n 4 python jobs/impala.py --env ALE/Breakout-v5   ranks as the launcher says
python jobs/impala.py --preset paper --help               the paper's settings, every option
"""

from drl_mpi.run.launch import main
from drl_mpi.systems.impala import PRESETS

if __name__ == "__main__":
    main(PRESETS)
