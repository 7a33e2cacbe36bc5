"""A call that does not return, and holds Python's lock, ends its process with one line."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = Path(__file__).parent / "programs" / "late.py"


STUCK = "with guard.bounded(0.5, 'MPI_Init'):\n    ctypes.PyDLL(None).sleep(50)\n"
"""It holds Python's lock."""


def words(body, before=""):
    return (
        f"import ctypes, time\n{before}\nfrom drl_mpi.comm.guard import Guard\n"
        f"guard = Guard(3)\n{body}"
    )


def script(body, before=""):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", words(body, before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - began


def test_a_call_that_holds_pythons_lock():
    done, took = script(STUCK)
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


@pytest.mark.parametrize("end", ["2>&-", "<&- 2>&-", "2>/dev/full"])
def test_who_cannot_speak_ends_it_all_the_same(end):
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {end}', sys.executable, words(STUCK)], timeout=40, check=False
    )
    assert done.returncode == 137


def test_a_stderr_that_nobody_reads_ends_it_all_the_same():
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(ours, b"x" * 4096)
    os.set_blocking(ours, True)
    done = subprocess.run(
        [sys.executable, "-c", words(STUCK)], stderr=ours, timeout=40, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == -9


@pytest.mark.parametrize(
    "harm",
    [
        "import os, signal; os.kill(guard._child, signal.SIGKILL); time.sleep(0.3)\n",
        "import os, signal\nfor n in (1, 2, 10, 12, 14, 15, 20): os.kill(guard._child, n)\n",
    ],
    ids=["killed", "signals"],
)
def test_harm_to_the_child_does_none_to_the_process(harm):
    done, _ = script(
        f"{harm}with guard.bounded(9, 'one'):\n    pass\nguard.close()\nprint('went on')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_signals_do_not_end_the_watch():
    done, _ = script(
        "import os, signal\nfor n in (1, 2, 10, 12, 14, 15, 20): os.kill(guard._child, n)\n" + STUCK
    )
    assert done.returncode == -9
    assert "MPI_Init has not returned" in done.stderr


def test_a_process_whose_children_leave_by_themselves():
    done, _ = script(
        "guard.close()\nprint('went on')\n", "import signal; signal.signal(17, signal.SIG_IGN)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_without_a_child_it_goes_on():
    done, _ = script(
        "with guard.bounded(0.1, 'one'):\n    time.sleep(1)\nguard.close()\nprint('went on')\n",
        "import os; os.fork = lambda: os.open('/none/there', 0)",
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "rank 3: nobody watches over MPI_Init: [Errno 2]" in done.stderr


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
    assert re.match("rank [01] on ", done.stderr), done.text
    assert "MPI_Init has not returned for 1.5 s" in done.stderr.splitlines()[0], done.text
    assert "Traceback" not in done.text
