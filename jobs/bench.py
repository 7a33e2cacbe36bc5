"""Measures this machine: each stage of IMPALA alone on every core, the whole job, and the ratio.

python jobs/bench.py                              as in the paper: batches of 32 x 20 steps
python jobs/bench.py --precision fp32 --net deep  every option of jobs/impala.py is allowed
python jobs/bench.py --preset small --seconds 3   a short look at the defaults of jobs/impala.py

Needs nothing but a quiet machine; for the picture matplotlib: pip install -e '.[plot]'
"""

import sys
from pathlib import Path

from drl_mpi.bench.main import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name("impala.py")))
