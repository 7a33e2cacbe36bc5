"""GPUs are counted as torch would count them, without loading torch."""

import ctypes
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from drl_mpi.run import gpus
from drl_mpi.run.gpus import visible_gpus


class Cuda:
    """A driver: what its two calls return, and how many GPUs it tells of."""

    def __init__(self, count, init=0, counting=0):
        self.calls = []
        self._count, self._init, self._counting = count, init, counting

    def cuInit(self, flags):  # noqa: N802 (the driver's name)
        self.calls.append(("cuInit", flags))
        return self._init

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        self.calls.append("cuDeviceGetCount")
        pointer._obj.value = self._count
        return self._counting


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(cuda, torch) sets up a driver and a torch built with CUDA or without."""

    def make(cuda, *, built=True, installed=True):
        (tmp_path / "torch" / "lib").mkdir(parents=True)
        if built:
            (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
        spec = SimpleNamespace(origin=str(tmp_path / "torch" / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec if installed else None)

        def load(name):
            assert name == "libcuda.so.1"
            if cuda is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return cuda

        monkeypatch.setattr(gpus.ctypes, "CDLL", load)
        return cuda

    return make


@pytest.mark.parametrize("count", [0, 1, 8])
def test_the_driver_counts(machine, count):
    cuda = machine(Cuda(count))
    assert visible_gpus() == count
    assert cuda.calls == [("cuInit", 0), "cuDeviceGetCount"]


def test_without_a_driver_there_are_none(machine):
    machine(None)
    assert visible_gpus() == 0


@pytest.mark.parametrize("failing", ["init", "counting"])
def test_a_driver_that_fails_has_none(machine, failing):
    """CUDA_ERROR_NO_DEVICE is 100: a driver is installed, and no GPU is given to this job."""
    machine(Cuda(2, **{failing: 100}))
    assert visible_gpus() == 0


@pytest.mark.parametrize("without", ["built", "installed"])
def test_a_torch_without_cuda_can_use_none(machine, without):
    cuda = machine(Cuda(2), **{without: False})
    assert visible_gpus() == 0
    assert cuda.calls == [], "the driver is not even asked"


def test_it_agrees_with_torch_on_this_machine():
    assert ctypes.CDLL is gpus.ctypes.CDLL
    assert visible_gpus() == torch.cuda.device_count()


def test_counting_loads_no_torch():
    code = (
        "import sys; from drl_mpi.run.gpus import visible_gpus; visible_gpus(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
