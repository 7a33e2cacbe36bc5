"""The batch of transitions: its tensors, and what it forgets."""

import numpy as np
import pytest
import torch

from drl_mpi.envs import EnvSpec
from drl_mpi.experience import TransitionBatch


@pytest.mark.parametrize(
    ("frame", "dtype", "observation"),
    [
        ((4, 5), "uint8", (3, 4, 5)),
        ((2, 4, 5), "uint8", (6, 4, 5)),
        ((7,), "float32", (21,)),
    ],
)
def test_its_tensors_have_the_environments_shapes(frame, dtype, observation):
    batch = TransitionBatch(EnvSpec("Shapes", frame, dtype, 3, 4, 1), 5)
    for tensor, stacks in (
        (batch.observations, batch.stacks),
        (batch.next_observations, batch.next_stacks),
    ):
        assert tensor.shape == (5, *observation)
        assert tensor.dtype == getattr(torch, dtype)
        assert stacks.shape == (5, 3, *frame)
        stacks[1, 2] = 7  # the same memory
        assert tensor[1, -(observation[0] // 3) :].eq(7).all()
        assert tensor.sum() == 7 * np.prod(frame)
    assert batch.actions.dtype == torch.int64
    for name in ("rewards", "discounts", "weights"):
        assert getattr(batch, name).dtype == torch.float32
        assert getattr(batch, name).shape == (5,)
    assert len(batch) == 5
    assert batch.errors is None


def test_a_new_update_forgets_the_last_ones_errors_and_statistics():
    batch = TransitionBatch(EnvSpec("Shapes", (2,), "float32", 1, 4, 1), 3)
    batch.errors, batch.steps = torch.ones(3), 9
    batch.begin()
    assert batch.errors is None
    assert batch.steps == 0


def test_ready_moves_the_tensors_to_the_device():
    spec = EnvSpec("Shapes", (2,), "float32", 1, 4, 1)
    batch = TransitionBatch(spec, 3)
    assert batch.ready() is batch
    away = TransitionBatch(spec, 3, torch.device("meta"))
    there = away.ready()
    assert there is not away
    for name in (
        "observations", "next_observations", "actions", "rewards", "discounts", "weights",
    ):  # fmt: skip
        assert getattr(there, name).device.type == "meta"
        assert getattr(away, name).device.type == "cpu"
    assert there.indices is away.indices


def test_mean_age():
    batch = TransitionBatch(EnvSpec("Shapes", (2,), "float32", 1, 4, 1), 2)
    batch.ages[:] = 3, 6
    assert batch.mean_age == 4.5


def test_a_batch_is_not_empty():
    with pytest.raises(ValueError, match="batch size is 0"):
        TransitionBatch(EnvSpec("Shapes", (2,), "float32", 1, 4, 1), 0)
