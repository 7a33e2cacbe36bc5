"""Checks that jobs can run here, and says what to mend: Python, MPI, hosts, messages, files.

python jobs/doctor.py                      this machine
mpirun -n 4 python jobs/doctor.py          and messages between ranks
srun --mpi=pmix python jobs/doctor.py      on a Slurm allocation
sbatch slurm/test.sh                       the same, submitted

Prints ok, warn or fail for each; the exit code is 1 if anything failed, 2 for a wrong command line.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (who has an older one should hear of it)
    sys.exit(f"fail  Python: 3.11 or newer is needed, this is {sys.version.split()[0]}")

try:
    from drl_mpi.run.doctor.main import main
except ModuleNotFoundError as error:
    if error.name != "drl_mpi":
        raise
    sys.exit(f"fail  drl_mpi is not installed in {sys.executable}: pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
