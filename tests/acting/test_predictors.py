"""Predictors: which lanes are served together, by whom, with which parameters."""

import threading
import time
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drl_mpi import nets
from drl_mpi.acting.choosing import choose_by_softmax
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.predictors import Predictor, Predictors, Served
from drl_mpi.acting.versions import Versions
from drl_mpi.envs import EnvSpec
from drl_mpi.envs.base import Rows
from drl_mpi.experience import UnrollShape
from drl_mpi.experience.rng import make_rng

SOON_S = 60.0
"""For what happens at once in code that is right, on a machine that may be busy."""
MOMENT_S = 0.05
"""For what never happens in code that is right."""


class Clock:
    """Time that a test sets; tells when somebody has looked at it."""

    def __init__(self):
        self.now = 0.0
        self.looks = threading.Semaphore(0)

    def __call__(self):
        now = self.now
        self.looks.release()
        return now

    def seen(self):
        """Waits until somebody has looked at the time, at which nobody will again by himself."""
        assert self.looks.acquire(timeout=SOON_S)


class Counter:
    """Threads that note which lanes they serve; a gate may hold them up."""

    def __init__(self):
        self.rang = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.by = []
        """Threads that served, in order of their being done."""
        self.torch_threads = set()

    def make(self, number):
        def predict(lanes):
            self.torch_threads.add(torch.get_num_threads())
            self.entered.release()
            assert self.gate.wait(SOON_S)
            self.by.append(number)
            return Served(lanes, [np.array([lane.name]) for lane in lanes])

        return predict

    def ring(self):
        self.rang.release()


@pytest.fixture
def pool():
    """``pool(...)`` -> predictors with their counter; closed at the end."""
    started = []

    def make(most=1, cap=8, wait_s=0.0, threads=1, clock=time.perf_counter, make=None):
        counter = Counter()
        predictors = Predictors(
            make or counter.make, most, cap, wait_s, threads, counter.ring, clock
        )
        started.append((predictors, counter))
        return predictors, counter

    yield make
    for predictors, counter in started:
        counter.gate.set()
        predictors.close()


def lane(name, envs=4):
    return SimpleNamespace(name=name, envs=envs)


def taken(predictors, counter, batches):
    """Names of the lanes of so many batches."""
    names = []
    for _ in range(batches):
        assert counter.rang.acquire(timeout=SOON_S)
        served = predictors.take()
        assert served is not None, "the bell rings when a batch is there"
        assert [int(actions[0]) for actions in served.actions] == [
            each.name for each in served.lanes
        ]
        assert served.size == sum(each.envs for each in served.lanes)
        names.append([each.name for each in served.lanes])
    return names


def test_what_waits_is_served_together_up_to_the_cap_in_the_order_in_which_it_came(pool):
    predictors, counter = pool(cap=8)
    counter.gate.clear()
    predictors.put([lane(0)])
    assert counter.entered.acquire(timeout=SOON_S)
    for name in range(1, 6):
        predictors.put([lane(name)])
    counter.gate.set()
    assert taken(predictors, counter, 4) == [[0], [1, 2], [3, 4], [5]]
    assert predictors.take() is None


@pytest.mark.parametrize(
    ("cap", "envs", "expected"),
    [
        (10, [4, 4, 4, 2, 2], [[0, 1], [2, 3, 4]]),
        (8, [3, 3, 3, 1, 1], [[0, 1], [2, 3, 4]]),  # a small one does not overtake
        (4, [9, 1, 9, 2, 2], [[0], [1], [2], [3, 4]]),  # too large for any batch: alone
        (1, [1, 1, 1], [[0], [1], [2]]),
        (100, [9, 9, 9, 9], [[0, 1, 2, 3]]),
    ],
)
def test_batches_of_lanes_of_any_size(pool, cap, envs, expected):
    predictors, counter = pool(cap=cap)
    predictors.put([lane(name, size) for name, size in enumerate(envs)])
    assert taken(predictors, counter, len(expected)) == expected
    assert predictors.take() is None


def test_nothing_is_waited_for_unless_that_is_asked(pool):
    predictors, counter = pool(cap=100)
    for name in range(3):
        predictors.put([lane(name)])
        assert taken(predictors, counter, 1) == [[name]]


def test_a_batch_is_waited_for_until_it_is_full(pool):
    clock = Clock()
    predictors, counter = pool(cap=12, wait_s=2 * SOON_S, clock=clock)
    for name in range(2):
        predictors.put([lane(name)])
        clock.seen()
    assert predictors.take() is None
    predictors.put([lane(2)])
    assert taken(predictors, counter, 1) == [[0, 1, 2]]
    predictors.put([lane(3)])
    clock.seen()
    predictors.put([lane(4, 9)])  # full enough: what does not fit would wait for ever
    assert taken(predictors, counter, 1) == [[3]]


def test_a_batch_is_waited_for_no_longer_than_allowed_from_its_first_lane_on(pool):
    clock = Clock()
    predictors, counter = pool(cap=100, wait_s=60.0, clock=clock)
    for name, clock.now in ((0, 1000.0), (1, 1040.0), (2, 1059.0)):
        predictors.put([lane(name)])
        clock.seen()
    clock.now = 1060.0
    predictors.put([lane(3)])
    assert taken(predictors, counter, 1) == [[0, 1, 2, 3]]
    clock.seen()
    predictors.put([lane(4)])  # a wait of its own
    clock.seen()
    clock.now = 1119.0
    predictors.put([lane(5)])
    clock.seen()
    assert predictors.take() is None
    clock.now = 1120.0
    predictors.put([lane(6)])
    assert taken(predictors, counter, 1) == [[4, 5, 6]]


def test_a_wait_ends_by_itself(pool):
    predictors, counter = pool(cap=100, wait_s=0.03)
    began = time.perf_counter()
    predictors.put([lane(0)])
    assert taken(predictors, counter, 1) == [[0]]
    assert time.perf_counter() - began >= 0.03


def test_so_many_threads_as_are_active_are_at_work(pool):
    predictors, counter = pool(most=3, cap=4)
    assert predictors.active == 1
    counter.gate.clear()
    predictors.put([lane(name) for name in range(4)])
    for active in (1, 2, 3):
        predictors.active = active
        assert counter.entered.acquire(timeout=SOON_S), f"thread {active} did not begin"
        assert not counter.entered.acquire(timeout=MOMENT_S), f"more than {active} threads"
    counter.gate.set()
    taken(predictors, counter, 4)
    assert set(counter.by) == {0, 1, 2}


def test_threads_that_are_not_active_rest_again(pool):
    predictors, counter = pool(most=3, cap=4)
    predictors.active = 3
    counter.gate.clear()
    predictors.put([lane(name) for name in range(3)])
    for _ in range(3):
        assert counter.entered.acquire(timeout=SOON_S)
    predictors.active = 1
    counter.gate.set()
    taken(predictors, counter, 3)
    counter.by.clear()
    predictors.put([lane(name) for name in range(20)])
    taken(predictors, counter, 20)
    assert counter.by == [0] * 20


def test_lanes_come_and_go_from_any_thread(pool):
    predictors, counter = pool(most=3, cap=8)
    predictors.active = 3
    began, found, lock = threading.Barrier(4), [], threading.Lock()

    def put(which):
        began.wait(SOON_S)
        for number in range(100):
            predictors.put([lane(1000 * which + number, 1 + number % 4)])

    def take():
        while True:
            counter.rang.acquire(timeout=SOON_S)
            served = predictors.take()
            with lock:
                if served is not None:
                    assert served.size <= 8
                    found.extend(each.name for each in served.lanes)
                if len(found) >= 400:
                    counter.rang.release()
                    return

    threads = [threading.Thread(target=put, args=(which,), daemon=True) for which in range(4)]
    threads += [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
        assert not thread.is_alive()
    assert sorted(found) == [1000 * which + number for which in range(4) for number in range(100)]
    assert predictors._envs == 0


def test_the_count_of_what_waits_is_right_after_every_batch(pool):
    """Else waiting for a fuller batch would end too early, or too late."""
    clock = Clock()
    predictors, counter = pool(cap=8, wait_s=60.0, clock=clock)
    predictors.put([lane(0, 3), lane(1, 5), lane(2, 3)])
    assert taken(predictors, counter, 1) == [[0, 1]]
    clock.seen()
    predictors.put([lane(3, 4)])  # 7 of 8
    clock.seen()
    assert predictors.take() is None
    predictors.put([lane(4, 1)])
    assert taken(predictors, counter, 1) == [[2, 3, 4]]


@pytest.mark.parametrize("waiting", [False, True])
def test_close_ends_all_threads(pool, waiting):
    before = set(threading.enumerate())
    predictors, _ = pool(most=3, wait_s=SOON_S if waiting else 0.0)
    threads = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in threads) == [f"predictor-{i}" for i in range(3)]
    if waiting:
        predictors.put([lane(0)])
    began = time.perf_counter()
    predictors.close()
    assert time.perf_counter() - began < SOON_S / 2
    assert not any(thread.is_alive() for thread in threads)


def test_close_waits_for_what_is_being_served(pool):
    predictors, counter = pool()
    counter.gate.clear()
    predictors.put([lane(0), lane(1), lane(2, 8)])
    assert counter.entered.acquire(timeout=SOON_S)
    ended = threading.Thread(target=predictors.close, daemon=True)
    ended.start()
    ended.join(MOMENT_S)
    assert ended.is_alive()
    counter.gate.set()
    ended.join(SOON_S)
    assert not ended.is_alive()
    assert taken(predictors, counter, 1) == [[0, 1]]
    assert predictors.take() is None, "what waits is not begun any more"


@pytest.mark.parametrize("where", ["make", "predict"])
def test_an_error_comes_out_where_the_job_is_ended_with_its_traceback(pool, where):
    def broken_inside(_):
        raise ValueError("the network is broken")

    make = broken_inside if where == "make" else lambda _: broken_inside
    predictors, counter = pool(make=make)
    predictors.put([lane(0)])
    assert counter.rang.acquire(timeout=SOON_S), "the bell rings"
    for _ in range(2):  # it does not go away
        with pytest.raises(ValueError, match="the network is broken") as caught:
            predictors.take()
    text = "".join(traceback.format_exception(caught.value))
    assert "broken_inside" in text
    assert "_run" in text
    predictors.close()


def test_an_error_comes_before_what_was_served(pool):
    over = threading.Event()

    def make(number):
        def predict(lanes):
            if number == 1:
                raise ValueError("one of two")
            if lanes[0].name:
                over.wait(SOON_S)
            return Served(lanes, [])

        return predict

    predictors, counter = pool(most=2, cap=4, make=make)
    predictors.put([lane(0)])
    assert counter.rang.acquire(timeout=SOON_S)
    predictors.active = 2
    predictors.put([lane(1), lane(2)])
    assert counter.rang.acquire(timeout=SOON_S)
    with pytest.raises(ValueError, match="one of two"):
        predictors.take()
    over.set()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_has_so_many_of_torchs(pool, threads):
    before = torch.get_num_threads()
    predictors, counter = pool(most=2, cap=4, threads=threads)
    predictors.active = 2
    predictors.put([lane(name) for name in range(10)])
    taken(predictors, counter, 10)
    assert counter.torch_threads == {threads}
    assert torch.get_num_threads() == before, "the thread that talks MPI keeps its own"


# What a predictor computes.


def rows_of(frame):
    n = len(frame)
    return Rows(
        frame=frame,
        reward=np.zeros(n, np.float32),
        terminated=np.zeros(n, bool),
        reset=np.zeros(n, bool),
        first=np.zeros(n, bool),
        episode_return=np.full(n, np.nan),
        episode_length=np.zeros(n, np.int64),
    )


def lane_with(frame, stack=1, source=1):
    spec = EnvSpec("any", frame.shape[1:], frame.dtype.name, stack, 3, 1)
    made = Lane(
        source, 0, UnrollShape(spec, 4, len(frame)), len(frame), 2, gamma=0.9, reward_clip=0.0
    )
    made.restart()
    made.arrive(rows_of(frame))
    return made


def vector_of(net, factor=1.0):
    return np.float32(factor) * np.concatenate(
        [p.detach().numpy().ravel() for p in net.parameters()]
    )


def small_net():
    net = nets.make("mlp", (4,), 3, seed=1)
    with torch.no_grad():
        net.head.policy.weight.mul_(100)
    return net


def test_it_computes_with_the_newest_version_and_leaves_the_learners_network_alone():
    net, versions, told = small_net(), Versions(), []

    def choose(output, version, steps, rng):
        told.append((version, steps, output.logits[0].numpy().copy()))
        return choose_by_softmax(output, version, steps, rng)

    predictor = Predictor(net, versions, choose, make_rng(1))
    before = vector_of(net)
    frame = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    for number, factor in ((0, 1.0), (7, 1.5), (9, 0.5)):
        versions.publish(vector_of(net, factor), number, 10 * number)
        for _ in range(2):
            predictor([lane_with(frame)])
    assert [(version, steps) for version, steps, _ in told] == [
        (0, 0), (0, 0), (7, 70), (7, 70), (9, 90), (9, 90),
    ]  # fmt: skip
    assert (vector_of(net) == before).all()
    for (_, _, logits), factor in zip(told[::2], (1.0, 1.5, 0.5)):
        nets.load_flat(net, before * np.float32(factor))
        with torch.no_grad():
            output, _ = net(torch.from_numpy(frame)[None], torch.zeros(1, 5, dtype=torch.bool))
        np.testing.assert_allclose(logits, output.logits[0], rtol=1e-5, atol=1e-6)


def test_parameters_are_loaded_once_per_version(monkeypatch):
    net, versions, loads = small_net(), Versions(), []
    monkeypatch.setattr("drl_mpi.acting.predictors.load_flat", lambda _, v: loads.append(v))
    predictor = Predictor(net, versions, choose_by_softmax, make_rng(1))
    for number in (0, 3, 4):
        versions.publish(vector_of(net), number, 0)
        for _ in range(3):
            predictor([lane_with(np.ones((2, 4), np.float32))])
        assert loads[-1] is versions.newest.vector
    assert len(loads) == 3


def test_a_version_that_comes_while_it_serves_is_for_the_next_batch():
    """All that a batch is made with is of one version."""
    net, versions, told = small_net(), Versions(), []

    def choose(output, version, steps, rng):
        versions.publish(vector_of(net), version + 1, steps + 100)
        told.append((version, steps))
        return choose_by_softmax(output, version, steps, rng)

    predictor = Predictor(net, versions, choose, make_rng(1))
    versions.publish(vector_of(net), 5, 500)
    lanes = [lane_with(np.ones((2, 4), np.float32), source=i) for i in range(2)]
    predictor(lanes)
    assert told == [(5, 500)]
    assert [lane._versions[0] for lane in lanes] == [5, 5]


def test_it_does_not_guess_parameters():
    predictor = Predictor(small_net(), Versions(), choose_by_softmax, make_rng(1))
    with pytest.raises(AssertionError, match="publish a version"):
        predictor([lane_with(np.ones((2, 4), np.float32))])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_batch_has_all_observations_in_the_order_of_the_lanes(dtype):
    """Whatever the sizes of the batches before were, whose room it uses again."""
    seen, rng = [], np.random.default_rng(1)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.precision = "fp32"

        def forward(self, observations, _firsts, state):
            seen.append(observations[0].numpy().copy())
            n = observations.shape[1]
            return nets.PolicyValue(torch.zeros(1, n, 3), torch.zeros(1, n)), state

    versions = Versions()
    versions.publish(np.zeros(1, np.float32), 0, 0)
    predictor = Predictor(Net(), versions, choose_by_softmax, make_rng(1))
    for sizes in ((2, 1), (5, 3, 4), (1,), (2, 2), (6, 6), (3,), (1, 1)):
        frames = [rng.integers(1, 200, (n, 2, 3)).astype(dtype) for n in sizes]
        served = predictor([lane_with(frame, stack=2) for frame in frames])
        expected = np.concatenate(frames)
        assert seen[-1].dtype == dtype
        np.testing.assert_array_equal(seen[-1][:, 1], expected)
        assert not seen[-1][:, 0].any()
        assert [len(actions) for actions in served.actions] == list(sizes)
