"""How learners sum: what is asked of torch.distributed, in which order, and when it is given up."""

import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.updating import collectives
from drl_mpi.updating.collectives import CollectiveError, MPISum, TorchSum, make_gradient_sum

GPU = torch.device("cuda", 1)


class Alone:
    """A learner that believes in another one on its host, to connect to at ``where``."""

    def __init__(self, rank=0, where=None):
        self.rank, self.size, self.where = rank, 2, where

    def gather(self, value):
        return [value, value]

    def share(self, value):
        if isinstance(value, list):
            return value
        self.where = self.where or value
        return self.where

    def meet(self, _poller, _what):
        pass

    def sum(self, values, _poller, _what):
        values += 1


class Work:
    """Of an all-reduce that completes at the third look."""

    def __init__(self, said, error=None, looks=3):
        self.said, self.error, self.looks = said, error, looks

    def is_completed(self):
        self.looks -= 1
        self.said.append("look")
        return self.looks <= 0

    def wait(self, timeout):
        self.said.append(f"wait {timeout.total_seconds():.0f}")
        if self.error:
            raise self.error


@pytest.fixture
def backend(monkeypatch):
    """A stand-in for torch.distributed that notes what it is asked for."""
    fake = SimpleNamespace(said=[], options={}, error=None, connecting=lambda: None, looks=3)

    def init(name, **options):
        fake.said.append(f"init {name}")
        fake.options = options
        fake.connecting()

    def store(*where, **options):
        fake.said.append("store")
        if options["master_listen_fd"] is not None:
            os.close(options["master_listen_fd"])
        return where

    def all_reduce(_bucket, async_op):
        assert async_op
        fake.said.append("sum")
        return Work(fake.said, fake.error, fake.looks)

    monkeypatch.setattr(
        collectives,
        "dist",
        SimpleNamespace(
            is_nccl_available=lambda: True,
            TCPStore=store,
            init_process_group=init,
            all_reduce=all_reduce,
            destroy_process_group=lambda: fake.said.append("destroy"),
        ),
    )
    monkeypatch.setattr(
        collectives.torch.cuda,
        "set_device",
        lambda device: fake.said.append(f"{device} in {threading.current_thread().name[:4]}"),
    )
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    yield fake
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


def test_nccl_has_the_learners_gpu_in_every_thread_that_calls_it(backend):
    sums = TorchSum("nccl", Alone(), GPU, Poller(5.0))
    assert backend.said == ["cuda:1 in Main", "cuda:1 in the ", "store", "init nccl"]
    assert sums.device == GPU, "buckets stay in its memory"
    options = backend.options
    assert options["device_id"] == GPU, "connects at once"
    assert (options["rank"], options["world_size"]) == (0, 2)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_completion_is_looked_for_and_then_the_stream_waits(backend):
    sums = TorchSum("nccl", Alone(), GPU, Poller(5.0))
    backend.said.clear()
    sums.sum(torch.zeros(1), Poller(5.0), "gradients")
    # With a time, since without one NCCL's wait raises nothing. The poller gives up before.
    assert backend.said == ["sum", "look", "look", "look", "wait 10"]
    assert backend.options["timeout"].total_seconds() == 10


def test_an_error_of_the_library_is_raised_with_its_text(backend):
    sums = TorchSum("nccl", Alone(), GPU, Poller(5.0))
    backend.error = RuntimeError("unhandled system error")
    with pytest.raises(CollectiveError, match=r"nccl failed .* for gradients: unhandled sys"):
        sums.sum(torch.zeros(1), Poller(5.0), "gradients")


@pytest.mark.usefixtures("backend")
def test_an_error_of_something_else_meanwhile_is_not_blamed_on_it():
    def fail():
        raise RuntimeError("MPI_ERR_TRUNCATE")

    sums, poller = TorchSum("nccl", Alone(), GPU, Poller(5.0)), Poller(5.0)
    poller.background = fail
    with pytest.raises(RuntimeError, match=r"^MPI_ERR_TRUNCATE"):
        sums.sum(torch.zeros(1), poller, "gradients")


def test_a_sum_that_does_not_come_is_given_up(backend):
    sums = TorchSum("nccl", Alone(), GPU, Poller(5.0))
    backend.looks = 10**9
    with pytest.raises(SilenceError, match="gradients"):
        sums.sum(torch.zeros(1), Poller(0.05), "gradients")


def test_a_connection_that_blocks_is_given_up(backend):
    never = threading.Event()
    backend.connecting = lambda: never.wait(20.0)
    with pytest.raises(SilenceError, match=r"the learners' gloo to connect by way of 127.0.0.1"):
        TorchSum("gloo", Alone(), GPU, Poller(0.05))
    never.set()


def test_a_connection_that_fails_says_how_and_what_to_set(backend):
    def fail():
        raise RuntimeError("no route")

    backend.connecting = fail
    with pytest.raises(CollectiveError, match=r"DRL_MPI_ADDRESS.*GLOO_SOCKET_IFNAME.*: no route"):
        TorchSum("gloo", Alone(), GPU, Poller(5.0))


@pytest.mark.usefixtures("backend")
def test_an_address_of_another_host_is_refused(monkeypatch):
    monkeypatch.setenv("DRL_MPI_ADDRESS", "192.0.2.77")
    with pytest.raises(CollectiveError, match=r"cannot listen at 192\.0\.2\.77.*DRL_MPI_ADDRESS"):
        TorchSum("gloo", Alone(), GPU, Poller(5.0))


@pytest.mark.usefixtures("backend")
def test_a_host_that_others_cannot_reach_says_so(monkeypatch):
    def nowhere(hosts, _interface):
        raise OSError(f"no address for {len(hosts)} hosts")

    monkeypatch.setattr(collectives, "own_address", nowhere)
    with pytest.raises(CollectiveError, match="learners cannot meet: no address for 2 hosts"):
        TorchSum("gloo", Alone(), GPU, Poller(5.0))


def test_gloo_sums_on_the_cpu_and_by_the_interface_that_faces_the_first_learner(backend):
    sums = TorchSum("gloo", Alone(1, where=("127.0.0.1", 1)), GPU, Poller(5.0))
    assert sums.device.type == "cpu"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert backend.options["device_id"] is None


@pytest.mark.usefixtures("backend")
def test_the_interface_that_the_user_named_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    TorchSum("gloo", Alone(1, where=("127.0.0.1", 1)), GPU, Poller(5.0))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


def test_close_meets_the_others_before_it_cuts_the_line(backend):
    group = Alone()
    sums = TorchSum("gloo", group, GPU, Poller(5.0))
    group.meet = lambda *_: backend.said.append("meet")
    sums.close(Poller(5.0))
    assert backend.said[-2:] == ["meet", "destroy"]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("trouble", ["hangs", "fails"])
def test_a_library_that_does_not_end_holds_nobody_up(monkeypatch, caplog, trouble):
    sums = TorchSum("gloo", Alone(), GPU, Poller(5.0))
    never = threading.Event()

    def destroy():
        if trouble == "fails":
            raise RuntimeError("already gone")
        never.wait(20.0)

    monkeypatch.setattr(collectives.dist, "destroy_process_group", destroy)
    monkeypatch.setattr(collectives, "CLOSING_S", 0.05)
    began = time.monotonic()
    sums.close(Poller(60.0))
    assert time.monotonic() - began < 5.0
    assert "gloo did not end well" in caplog.text
    never.set()


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        ("auto", "cpu", "mpi"),
        ("auto", "cuda:1", "nccl"),
        ("mpi", "cuda:1", "mpi"),
        ("gloo", "cuda:1", "gloo"),
    ],
)
def test_what_auto_and_the_others_are(backend, choice, device, expected):
    sums = make_gradient_sum(choice, Alone(), torch.device(device), Poller(5.0))
    assert isinstance(sums, MPISum) == (expected == "mpi")
    assert backend.said[-1:] == ([] if expected == "mpi" else [f"init {expected}"])
    assert sums.device.type == ("cuda" if expected == "nccl" else "cpu")


@pytest.mark.usefixtures("backend")
def test_a_torch_without_nccl_says_so(monkeypatch):
    monkeypatch.setattr(collectives.dist, "is_nccl_available", lambda: False)
    with pytest.raises(CollectiveError, match="without NCCL; use --gradient-sum mpi"):
        TorchSum("nccl", Alone(), GPU, Poller(5.0))
    assert isinstance(make_gradient_sum("auto", Alone(), GPU, Poller(5.0)), MPISum)


def test_mpi_sums_the_bucket_where_it_lies():
    bucket = torch.arange(3.0)
    MPISum(Alone()).sum(bucket, Poller(5.0), "gradients")
    np.testing.assert_array_equal(bucket, [1, 2, 3])
