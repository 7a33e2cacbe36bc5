"""Measures this machine: each stage of a system alone on every core, the whole job, and the ratio.

python jobs/bench.py                              IMPALA as in the paper: batches of 32 x 20 steps
python jobs/bench.py --precision fp32 --net deep  every option of jobs/impala.py is allowed
python jobs/bench.py --preset small --seconds 3   a short look at the defaults of jobs/impala.py
python jobs/bench.py --acting central             IMPALA with central acting
python jobs/bench.py --system ga3c                GA3C, with the options of jobs/ga3c.py

Needs nothing but a quiet machine; for the picture matplotlib: pip install -e '.[plot]'
"""

import sys

from drl_mpi.bench.main import main

if __name__ == "__main__":
    sys.exit(main())
