"""The loops of the roles: what an actor and a learner do, whatever the system."""

from drl_mpi.roles.actor import Actor, Pace
from drl_mpi.roles.learner import Learner

__all__ = ["Actor", "Learner", "Pace"]
