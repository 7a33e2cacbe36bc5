"""Local updates: against the optimiser by hand, refusal of what is not finite, restart."""

import copy

import numpy as np
import pytest
import torch

from drl_mpi import nets
from drl_mpi.updating.local import DivergenceError, LocalUpdating
from drl_mpi.updating.optimizers import Adam, RMSProp, clip_by_global_norm


def rate(version):
    return 1e-2 / (1 + version)


def make(optimizer=Adam, max_norm=1.0, seed=1):
    flat = nets.FlatParameters(nets.make("mlp", (4,), 3, seed=seed))
    return LocalUpdating(flat, optimizer(), rate, max_norm)


def gradients(updating, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = updating.flat.vector.shape
    return [torch.randn(size, generator=generator) * 10.0 ** (i % 4 - 3) for i in range(count)]


NO_INFO = np.zeros(0, np.float32)


@pytest.mark.parametrize("optimizer", [Adam, RMSProp])
def test_it_clips_and_steps_with_the_rate_of_the_version(optimizer):
    updating = make(optimizer)
    by_hand, vector = optimizer(), updating.flat.vector.clone()
    for version, gradient in enumerate(gradients(updating, 12)):
        clipped = gradient.clone()
        norm = clip_by_global_norm(clipped, 1.0)
        assert (norm > 1.0) == (clipped.norm() < 0.999 * norm)
        by_hand.step(vector, clipped, rate(version))
        assert updating.apply(gradient, NO_INFO) == updating.version == version + 1
        assert updating.gradient_norm == norm
        assert torch.equal(updating.flat.vector, vector)


def test_infos_are_what_was_handed_in():
    updating = make()
    updating.apply(gradients(updating, 1)[0], np.array([3.0, np.nan], np.float32))
    np.testing.assert_array_equal(updating.infos, [[3.0, np.nan]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_ends_training_unapplied(bad):
    updating = make()
    for gradient in gradients(updating, 3):
        updating.apply(gradient, NO_INFO)
    before = copy.deepcopy(updating.state())
    gradient = gradients(updating, 1)[0]
    gradient[17] = bad
    with pytest.raises(DivergenceError, match=r"gradient of update 3 has norm (nan|inf)"):
        updating.apply(gradient, NO_INFO)
    assert_same(updating.state(), before)


def assert_same(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name])
    else:
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("optimizer", [Adam, RMSProp])
@pytest.mark.parametrize("cut", [0, 5])
def test_a_restored_update_goes_on_bit_for_bit(optimizer, cut):
    straight = make(optimizer)
    sequence = gradients(straight, 10)
    for gradient in sequence[:cut]:
        straight.apply(gradient.clone(), NO_INFO)
    state = copy.deepcopy(straight.state())
    resumed = make(optimizer, seed=9)
    resumed.restore(state)
    assert resumed.version == cut
    for gradient in sequence[cut:]:
        straight.apply(gradient.clone(), NO_INFO)
        resumed.apply(gradient.clone(), NO_INFO)
    assert_same(straight.state(), resumed.state())
    assert_same(
        {k: v.numpy() for k, v in straight.flat.split(straight.flat.vector).items()},
        resumed.state()["model"],
    )


def test_the_state_has_every_parameter_and_slot_by_name():
    updating = make()
    updating.apply(gradients(updating, 1)[0], NO_INFO)
    state = updating.state()
    assert set(state) == {"model", "optimizer", "counters"}
    assert set(state["optimizer"]) == {"mean", "mean_square"}
    for arrays in (state["model"], *state["optimizer"].values()):
        assert {n: a.shape for n, a in arrays.items()} == {
            name: shape for name, (_, shape) in updating.flat.slices.items()
        }
    assert state["counters"] == {"version": 1, "optimizer_steps": 1}


@pytest.mark.parametrize("change", ["other names", "other shape"])
def test_a_state_of_another_network_is_refused(change):
    updating = make()
    state = copy.deepcopy(updating.state())
    name = next(iter(state["model"]))
    values = state["model"].pop(name)
    state["model"]["x" if change == "other names" else name] = values[:1]
    with pytest.raises(ValueError, match="another network"):
        updating.restore(state)
