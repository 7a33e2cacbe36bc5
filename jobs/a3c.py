"""Trains A3C (Mnih et al. 2016).

python jobs/a3c.py     all cores of this machine
mpirun -n 5 python jobs/a3c.py --env ALE/Breakout-v5     four workers, one server
python jobs/a3c.py --preset paper --help     the paper's settings, every option
"""

from drl_mpi.run.launch import main
from drl_mpi.systems.a3c import PRESETS

if __name__ == "__main__":
    main(PRESETS)
