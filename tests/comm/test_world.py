"""Groups of ranks under a real mpirun; the scenarios are in programs/groups.py."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

PROGRAM = Path(__file__).parent / "programs" / "groups.py"
SCENARIOS = ["nobody", "share", "gather", "meet", "alone", "flag"]


@pytest.fixture(scope="module")
def played(mpirun):
    return mpirun(4, PROGRAM, timeout=60)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_no_rank_is_left_behind(played):
    assert played.rc == 0, played.text


def test_a_rank_that_does_not_leave_is_not_waited_for_for_ever(mpirun):
    done = mpirun(3, PROGRAM.with_name("leave.py"), timeout=50)
    assert done.rc not in (0, None), done.text
    assert "Timeout (0:00:01)!" in done.stderr, done.text
    assert "in leave" in done.stderr, done.text
    assert "left" not in done.stdout


def test_a_rank_that_has_left_is_not_ended(mpirun):
    done = mpirun(1, PROGRAM.with_name("leave.py"), "stay", timeout=50)
    assert (done.rc, done.stdout) == (0, "left\n"), done.text


def test_mpi_does_not_take_the_signal_of_a_lost_terminal():
    """UCX would, for its debugger."""
    words = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not so under nohup\n"
        "import drl_mpi.comm.mpi; os.kill(os.getpid(), signal.SIGHUP)"
    )
    done = subprocess.run([sys.executable, "-c", words], timeout=50, check=False)
    assert done.returncode == -signal.SIGHUP
