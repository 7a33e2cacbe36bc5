"""What the hooks of a system refuse."""

import pytest

from drl_mpi.comm.world import World
from drl_mpi.experience.queue import UnrollQueue
from drl_mpi.experience.replay_source import ReplaySource
from drl_mpi.systems.dqn import DQN
from drl_mpi.systems.pure_loss import PureLoss
from drl_mpi.systems.q_loss import QLoss
from drl_mpi.systems.service import Service
from drl_mpi.systems.system import RankContext


def blank(kind):
    """An object that nothing was done to but its making."""
    return object.__new__(kind)


class Remembering(PureLoss):
    def state(self):
        return {"target": 1}


def test_a_system_without_servers_makes_none():
    with pytest.raises(NotImplementedError, match=r"dqn has no parameter servers, but rank 3"):
        DQN().make_server(RankContext(World(None, 3, 4), None, None, None))


def test_trainers_refuse_a_source_that_must_be_waited_for():
    with pytest.raises(TypeError, match=r"make_source made a ReplaySource.*builder.queue\(\)"):
        blank(Service).training(blank(ReplaySource), blank(QLoss))


def test_trainers_refuse_a_loss_that_no_checkpoint_would_have():
    with pytest.raises(TypeError, match=r"a Remembering, which remembers \['target'\]"):
        blank(Service).training(blank(UnrollQueue), Remembering())
