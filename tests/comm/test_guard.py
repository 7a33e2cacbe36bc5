"""A call that does not return, and holds Python's lock, ends its process with one line."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = Path(__file__).parent / "programs" / "late.py"


def script(body):
    words = f"import ctypes, time\nfrom drl_mpi.comm.guard import Guard\nguard = Guard(3)\n{body}"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, timeout=60, check=False
    )
    return done, time.monotonic() - began


def test_a_call_that_holds_pythons_lock():
    done, took = script("with guard.bounded(0.5, 'MPI_Init'):\n    ctypes.PyDLL(None).sleep(50)\n")
    assert done.returncode == -9
    assert took < 40
    assert done.stderr.startswith("rank 3 on ")
    assert "MPI_Init has not returned for 0.5 s: another rank did not start" in done.stderr
    assert done.stderr.count("\n") == 1


def test_calls_that_return_are_not_ended():
    done, took = script(
        "with guard.bounded(0.1, 'one'):\n    pass\n"
        "with guard.bounded(9e9, 'two'):\n    pass\n"
        "try:\n    with guard.bounded(0.1, 'three'):\n        raise KeyError\n"
        "except KeyError:\n    time.sleep(4)\n"
        "guard.close()\nprint('went on')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
    assert took >= 4


@pytest.mark.parametrize("how", ["guard.close()\n", "", "import os; os._exit(0)\n"])
def test_nothing_is_left(how):
    done, _ = script(f"print(guard._child, flush=True)\n{how}")
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize("words", [[], ["doctor"]], ids=["job", "doctor"])
def test_a_rank_that_never_comes(words, mpirun):
    done = mpirun(3, PROGRAM, *words, timeout=50)
    assert done.rc not in (0, None), done.text
    assert done.stderr.startswith("rank 0 on "), done.text
    assert "MPI_Init has not returned for 1.5 s" in done.stderr.splitlines()[0], done.text
    assert "Traceback" not in done.text
