"""Fields of unrolls whose every number tells where it came from; what restoring a replay takes."""

import tracemalloc

import numpy as np
import pytest

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.run import checkpoint

SPEC = EnvSpec("Numbers", (2, 3), "uint8", stack=3, num_actions=4, action_repeat=4)


@pytest.fixture
def make_shape():
    """make_shape(length, envs, core) -> UnrollShape."""

    def make(length=3, envs=2, core=True):
        return UnrollShape(SPEC, length, envs, (2, 5) if core else ())

    return make


@pytest.fixture
def make_fields():
    """make_fields(shape, number) -> fields of the record, drawn from a seed, number noted."""

    def make(shape, number=0):
        slot = Slot(shape.record())
        rng = np.random.default_rng(number)
        for field in shape.record().fields:
            array = slot[field.name]
            if field.dtype == "bool":
                array[...] = rng.random(field.shape) < 0.2
            elif field.dtype.startswith("float"):
                array[...] = rng.normal(size=field.shape)
            else:
                array[...] = rng.integers(0, 4, field.shape)
        # What identifies an environment's unroll at a glance.
        slot["rewards"][...] = number * 100 + np.arange(shape.envs)
        slot["episode_lengths"][...] = 0
        slot["version"][...] = number
        return slot.fields

    return make


@pytest.fixture
def peak_of_restoring(tmp_path):
    """peak_of_restoring(made, resumed) -> bytes that it takes beside what `resumed` has already."""

    def peak(made, resumed):
        checkpoint.save(tmp_path / "c.h5", {"replay": made.state()})
        tracemalloc.start()
        try:
            with checkpoint.opened(tmp_path / "c.h5", "replay") as state:
                resumed.restore(state["replay"])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return peak
