"""An actor in the learner's rank: the same unrolls as from a stream, made when they are wanted."""

from types import SimpleNamespace

import numpy as np
import pytest

from drl_mpi import envs
from drl_mpi.acting.local import Choice
from drl_mpi.comm.poller import Poller
from drl_mpi.envs.testing import register
from drl_mpi.experience import Batch, UnrollQueue, UnrollShape
from drl_mpi.experience.rng import make_rng, pack_rng
from drl_mpi.roles.bundle import OwnUnrolls
from drl_mpi.roles.unroller import Unroller

RANK = 6


class AtRandom:
    """Acts as ``Script`` of the conftest does; the version is that of the learner."""

    stopped = False

    def __init__(self, num_actions, rng):
        self.num_actions, self.rng = num_actions, rng
        self.version, self.refreshed, self.acts = 0, 0, 0

    def refresh(self, version=None):
        assert version is None
        self.refreshed += 1
        self.version += 3
        return True

    def act(self, _observations, first, _state):
        self.acts += 1
        actions = self.rng.integers(self.num_actions, size=len(first))
        log_probs = np.log(self.rng.uniform(0.1, 0.9, len(first))).astype(np.float32)
        return actions, Choice(log_probs, None)


@pytest.fixture
def make():
    """make(env_id) -> own unrolls, with what they are made of."""

    def run(env_id, num_envs=4, length=6, seed=30):
        env, rng = envs.make(env_id, num_envs, envs.EnvOptions()), make_rng(seed)
        shape = UnrollShape(env.spec, length, num_envs)
        acting = AtRandom(env.spec.num_actions, rng)
        unroller = Unroller(env, acting, shape, gamma=0.9, reward_clip=1.0, restart=lambda _: seed)
        return SimpleNamespace(
            own=OwnUnrolls(unroller, shape, RANK, rng), shape=shape, acting=acting, rng=rng, env=env
        )

    return run


def test_they_are_those_that_an_actor_would_send(make, play):
    env_id = register("drl_mpi/Games-v0", lengths=(5, -3, 1, -1, 9))
    made, sent = make(env_id), play(env_id, unrolls=5).tape.sent
    assert len(sent) == 5
    for fields in sent:
        delivery = made.own.take()
        assert delivery.source == RANK
        for name, values in fields.items():
            if name == "version":
                assert delivery.slot[name] == made.acting.version
            elif name == "worked_s":
                assert delivery.slot[name] > 0.0
            elif name == "waited_s":
                assert delivery.slot[name] == 0.0, "nobody has to wait"
            else:
                np.testing.assert_array_equal(delivery.slot[name], values, err_msg=name)
        np.testing.assert_array_equal(delivery.slot["rng"], pack_rng(made.rng))
        made.own.release(delivery)
    assert made.acting.refreshed == 5, "each with the newest parameters"


def test_a_queue_takes_them_as_if_from_a_stream_and_makes_none_at_the_end(make):
    made = make(register("drl_mpi/Games-v0", lengths=(5, -3, 1, -1, 9)))
    owed = []
    publisher = SimpleNamespace(owe=owed.append)
    queue = UnrollQueue(made.own, [Batch(made.shape)], 4, Poller(1.0), publisher)
    seen = [queue.next().versions.tolist() for _ in range(3)]
    assert seen == [[3] * 4, [6] * 4, [9] * 4]
    assert list(queue.state()["rng"]) == [str(RANK)]
    assert queue.drain() is True
    assert made.acting.acts == 3 * 6
    closed = []
    made.env.close = lambda: closed.append(True)
    queue.close()
    assert closed == [True]
