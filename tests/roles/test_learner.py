"""The learner's loop with scripted rooms around it: when it publishes, saves and ends."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drl_mpi.comm.poller import Poller
from drl_mpi.envs import EnvSpec
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.roles.info import WIDTH
from drl_mpi.roles.learner import Horizon, Learner

SHAPE = UnrollShape(EnvSpec("any", (3,), "float32", 1, 2, 1), 4, 2)


class Rooms:
    """Source, updating, publisher and journal in one, which write down what is asked of them."""

    def __init__(self, version=0, stop_at=None, save_at=()):
        self.version, self.gradient_norm = version, 1.0
        self.stop_at, self.save_at = stop_at, save_at
        self.infos = np.zeros((1, WIDTH), np.float32)
        self.published, self.owed, self.saved, self.noted = [], 0, [], []
        self.batch = Batch(SHAPE)
        self.batch.versions[:] = 0
        self.closed = False

    def next(self):
        return self.batch

    def drain(self):
        return True

    def close(self):
        self.closed = True

    def state(self):
        return {"version": self.version}

    def apply(self, _gradient, info):
        self.infos = info[np.newaxis].copy()
        self.version += 1
        return self.version

    def publish(self, _vector, version):
        self.published.append(version)

    def owe_all(self):
        self.owed += 1

    def progress(self):
        pass

    def stop(self):
        return True

    def wishes(self):
        return self.version in self.save_at, self.version == self.stop_at

    def update(self, _version, _summary, scalars):
        assert scalars["loss"] == 3.0

    def save(self, version, _state, _sources):
        self.saved.append(version)

    def note(self, message):
        self.noted.append(message)


def learn(rooms, horizon):
    flat = SimpleNamespace(vector=torch.zeros(2), gradient=torch.zeros(2), zero_grad=lambda: None)
    weight = torch.zeros(1, requires_grad=True)

    def loss(_batch):
        return (weight * 2).sum(), {"loss": torch.tensor(3.0)}

    parts = (flat, rooms, loss, rooms, rooms, Poller(1.0), horizon, rooms, lambda state: [state])
    return Learner(*parts).run()


def test_it_ends_at_the_horizon_and_saves_there():
    rooms = Rooms()
    assert learn(rooms, Horizon(end=3)) is True
    assert rooms.published == [0, 1, 2, 3]
    assert rooms.saved == [3]
    assert rooms.closed


def test_a_wish_to_stop_is_granted_at_once_and_saved():
    rooms = Rooms(stop_at=4)
    assert learn(rooms, Horizon(end=100)) is False
    assert rooms.saved == [5]


def test_a_wish_to_save_is_granted():
    rooms = Rooms(save_at=(2, 6))
    learn(rooms, Horizon(end=9))
    assert rooms.saved == [3, 7, 9]


def test_lock_step_publishes_rounds_and_saves_and_stops_at_boundaries():
    rooms = Rooms(stop_at=5, save_at=(1,))
    assert learn(rooms, Horizon(end=100, save_every=4, publish_every=2)) is False
    assert rooms.published == [0, 2, 4, 6, 8]
    assert rooms.owed == 5
    assert rooms.saved == [4, 8]
    assert len(rooms.noted) == 1, "says that it stops later"


@pytest.mark.parametrize("version", [7, 9])
def test_nothing_left_to_do_wakes_nobody(version):
    """A lock-step run may end between boundaries: its actors must not act from there."""
    rooms = Rooms(version=version)
    assert learn(rooms, Horizon(end=7, save_every=4, publish_every=2)) is True
    assert (rooms.published, rooms.owed, rooms.saved) == ([], 0, [])
    assert rooms.closed
