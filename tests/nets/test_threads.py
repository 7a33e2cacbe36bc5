"""Threads of torch: the same weights with any number, and no hang where OpenMP has a limit."""

import subprocess
import sys

import pytest
import torch

from drl_mpi import nets
from drl_mpi.nets.threads import one_thread, use_threads

pytestmark = pytest.mark.alone  # torch's waiting threads take minutes where others want the cores

SHAPE = (4, 84, 84)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


LIMITED = """
import torch
from drl_mpi import nets
from drl_mpi.nets.threads import use_threads
for name in ("shallow", "nature"):
    net = nets.make(name, (4, 84, 84), 6)
use_threads(2)
print(torch.get_num_threads(), flush=True)
torch.linalg.qr(torch.randn(256, 32))
torch.randn(700, 700) @ torch.randn(700, 700)
print("went on")
"""


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), ("2", 2), ("64", 2), ("", 2), ("x", 2)])
def test_openmps_limit_is_kept(limit, threads, monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == f"{threads}\nwent on\n", done.stderr


@pytest.mark.parametrize("name", nets.factory.NAMES)
def test_weights_do_not_depend_on_the_number_of_threads(name):
    shape = (6,) if name == "mlp" else SHAPE
    made = []
    for threads in (1, 2, 3):
        use_threads(threads)
        made.append(nets.make(name, shape, 6, core="lstm", seed=3).state_dict())
        assert torch.get_num_threads() == threads
    for other in made[1:]:
        assert all(torch.equal(made[0][key], other[key]) for key in made[0])


def test_one_thread_gives_the_others_back():
    use_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
