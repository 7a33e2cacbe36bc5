"""A job whose rank 1 is stuck when it opens its log: ``stuck_job.py PATIENCE_S OPTIONS``."""

import os
import signal
import sys
from pathlib import Path

from drl_mpi.run import launch
from drl_mpi.systems import impala, system

system.SILENCE_S = float(sys.argv.pop(1))
open_log = launch._log_to


def stuck(path: Path) -> None:
    open_log(path)
    if path.name == "rank-1.log":
        os.kill(os.getpid(), signal.SIGSTOP)


launch._log_to = stuck
launch.main(impala.PRESETS)
