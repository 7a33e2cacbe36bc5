"""Trains Gorilla DQN (Nair et al. 2015).

python jobs/gorilla.py     all cores of this machine
mpirun -n 6 python jobs/gorilla.py --learners 2 --servers 2   and two actors
python jobs/gorilla.py --preset paper --help     the paper's settings, every option
"""

from drl_mpi.run.launch import main
from drl_mpi.systems.gorilla import PRESETS

if __name__ == "__main__":
    main(PRESETS)
