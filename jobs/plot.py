"""Plot the curves of one run or several.

    python jobs/plot.py runs/NAME [runs/OTHER ...] --output curves.png [--x frames|time]

Needs matplotlib: pip install -e '.[plot]'
"""

import sys

from drl_mpi.run.plot import main

if __name__ == "__main__":
    sys.exit(main())
