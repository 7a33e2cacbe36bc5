"""Versions: whoever has one has all of it, for as long as he likes."""

import threading

import numpy as np
import pytest
import torch

from drl_mpi.acting.predictors import Predictor, Predictors
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.poller import Bell, Poller
from drl_mpi.nets import FlatParameters, PolicyValue
from drl_mpi.roles.training import TrainerThreads

SIZE = 300_000
"""Parameters: enough that a copy takes longer than a thread may hold Python's lock."""


def test_there_is_none_before_the_first():
    assert Versions().newest is None


def test_the_newest_is_a_copy_with_its_number_and_steps():
    versions, vector = Versions(), np.arange(5, dtype=np.float32)
    for number in (3, 4, 9):
        vector += 1
        versions.publish(vector, number, 100 * number)
        newest = versions.newest
        assert (newest.number, newest.steps) == (number, 100 * number)
        assert newest.vector.dtype == torch.float32
        assert newest.vector.numpy().tolist() == vector.tolist()
        kept = newest.vector.clone()
        vector *= 2  # by the optimiser, in place
        assert torch.equal(newest.vector, kept)


def test_who_holds_a_version_keeps_it():
    versions, vector = Versions(), np.zeros(1000, np.float32)
    held = []
    for number in range(20):
        vector[:] = number
        versions.publish(vector, number, 0)
        held.append(versions.newest)
    for number, version in enumerate(held):
        assert version.number == number
        assert (version.vector == number).all()
    assert len({version.vector.data_ptr() for version in held}) == 20


def test_a_version_cannot_be_changed_in_parts():
    versions = Versions()
    versions.publish(np.zeros(3, np.float32), 1, 0)
    with pytest.raises(AttributeError):
        versions.newest.number = 2


class Uniform(torch.nn.Module):
    """A network whose parameters are all equal to the number of their version."""

    precision = "fp32"

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(SIZE // 3))
        self.second = torch.nn.Parameter(torch.zeros(SIZE - SIZE // 3))
        self.torn = []
        """What was seen that must not be."""
        self.seen = set()

    def check(self):
        """The one number that all parameters are, now and a moment later."""
        numbers = set()
        for _ in range(3):
            for parameter in (self.first, self.second):
                numbers |= {float(parameter.detach().min()), float(parameter.detach().max())}
        self.seen |= numbers
        if len(numbers) > 1:
            self.torn.append(sorted(numbers))
        return numbers.pop()

    def forward(self, observations, _firsts, state):
        number = self.check()
        n = observations.shape[1]
        return PolicyValue(torch.full((1, n, 3), number), torch.zeros(1, n)), state

    def __deepcopy__(self, _memo):
        """Of the lists, too, there is only one."""
        made = Uniform()
        made.torn, made.seen = self.torn, self.seen
        return made


class Endless:
    """Batches without end."""

    taken = 0

    def poll(self):
        return object()


class Checked:
    """A loss that looks at all parameters, and whose gradient tells the version."""

    def __init__(self, net):
        self.net, self.version = net, None

    def prepare(self, version):
        self.version = version

    def __call__(self, _batch):
        if self.net.check() != self.version:
            self.net.torn.append(("number", self.version))
        return (self.net.first.sum() + self.net.second.sum()) * self.version, {}


class Rows:
    first = np.zeros(2, bool)


class FakeLane:
    """A lane without an unroll."""

    envs, state, rows = 2, None, Rows()
    observations = np.zeros((2, 4), np.float32)

    def __init__(self, told):
        self.told = told

    def observe(self):
        pass

    def decide(self, _actions, log_probs, _state, version, _rng):
        self.told.append((version, float(log_probs[0])))


def test_nobody_sees_half_written_parameters():
    """Two trainers and two predictors, while versions are published as fast as may be."""
    net, versions, bell, told = Uniform(), Versions(), Bell(), []
    vector = np.zeros(SIZE, np.float32)
    versions.publish(vector, 0, 0)

    def choose(output, _version, _steps, _rng):
        return np.zeros(2, np.int64), output.logits[0, :2, 0].numpy()

    predictors = Predictors(
        lambda _: Predictor(net, versions, choose, np.random.default_rng(1)),
        2, 2, 0.0, 1, lambda: None,
    )  # fmt: skip
    predictors.active = 2

    def make():
        own = net.__deepcopy__({})
        flat = FlatParameters(own)
        return flat, Checked(own)

    training = TrainerThreads(
        Endless(), make, versions, lambda _: 1, Poller(60.0, sleep=bell.sleep), bell.ring
    )
    training.active = 2
    stop, published = threading.Event(), [0]

    def publish():
        while not stop.is_set():
            published[0] += 1
            vector.fill(published[0])
            versions.publish(vector, published[0], 0)

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    try:
        predictors.put([FakeLane(told) for _ in range(40)])
        while training.trained < 40 or len(net.seen) < 10:  # versions must change meanwhile
            trained = training.next()
            low, high = trained.gradient.min(), trained.gradient.max()
            assert low == high, "and a gradient stays as it is until the next one is asked for"
        while len(told) < 40:
            served = predictors.take()
            assert served is None or served.size == 2
    finally:
        stop.set()
        publisher.join()
        training.close()
        predictors.close()
    assert net.torn == []
    assert all(version == number for version, number in told)
