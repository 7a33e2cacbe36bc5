"""How actions are chosen: by a network copy in the actor's own rank."""

from drl_mpi.acting.local import Acting, Choice, LocalActing

__all__ = ["Acting", "Choice", "LocalActing"]
