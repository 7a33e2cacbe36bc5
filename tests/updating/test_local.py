"""Local updates: against the optimiser by hand, refusal of what is not finite, restart."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi import nets
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.optimizers import Adam, RMSProp, clip_by_global_norm
from drl_mpi.updating.protocol import DivergenceError, Length, Wish

STEPS = 40
"""Per update, where it does not matter."""


def rate(steps):
    return 1e-2 / (1 + steps)


def make(optimizer=Adam, max_norm=1.0, seed=1, length=Length(10**9)):  # noqa: B008 (frozen)
    flat = nets.FlatParameters(nets.make("mlp", (4,), 3, seed=seed))
    return LocalUpdating(flat, optimizer(), rate, max_norm, length)


def apply(updating, gradient, info=None, *, loss=0.5, steps=STEPS, wish=Wish()):  # noqa: B008
    info = np.zeros(0, np.float32) if info is None else info
    return updating.apply(gradient, info, loss=loss, steps=steps, wish=wish)


def gradients(updating, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = updating.flat.vector.shape
    return [torch.randn(size, generator=generator) * 10.0 ** (i % 4 - 3) for i in range(count)]


@pytest.mark.parametrize("optimizer", [Adam, RMSProp])
def test_it_clips_and_steps_with_the_rate_of_the_steps_before(optimizer):
    updating = make(optimizer)
    by_hand, vector = optimizer(), updating.flat.vector.clone()
    steps = 0
    for version, gradient in enumerate(gradients(updating, 12)):
        clipped = gradient.clone()
        norm = clip_by_global_norm(clipped, 1.0)
        assert (norm > 1.0) == (clipped.norm() < 0.999 * norm)
        by_hand.step(vector, clipped, rate(steps))
        assert apply(updating, gradient, steps=version) == updating.version == version + 1
        steps += version
        assert updating.steps == steps
        assert updating.gauges() == {"learning_rate": rate(steps)}
        assert updating.gradient_norm == norm
        assert torch.equal(updating.flat.vector, vector)


def test_infos_are_what_was_handed_in():
    updating = make()
    apply(updating, gradients(updating, 1)[0], np.array([3.0, np.nan], np.float32))
    np.testing.assert_array_equal(updating.infos, [[3.0, np.nan]])
    updating.settle()
    assert updating.infos.shape == (0, 2), "told already"
    apply(updating, gradients(updating, 1)[0], np.array([4.0, 5.0], np.float32))
    np.testing.assert_array_equal(updating.infos, [[4.0, 5.0]])


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("stop", [False, True])
def test_what_one_learner_wishes_is_agreed(save, stop):
    updating = make()
    assert updating.agreed == Wish()
    apply(updating, gradients(updating, 1)[0], wish=Wish(save, stop))
    assert (updating.agreed.save, updating.agreed.stop) == (save, stop)
    updating.skip(np.zeros(0, np.float32), steps=0, wish=Wish())
    assert updating.agreed == Wish()


def test_what_is_skipped_is_counted_and_changes_no_parameter():
    updating = make()
    before = updating.flat.vector.clone()
    version = updating.skip(np.array([3.0], np.float32), steps=30, wish=Wish(stop=True))
    assert version == updating.version == updating.rounds == 0
    assert updating.steps == 30
    assert updating.infos.tolist() == [[3.0]]
    assert updating.agreed == Wish(stop=True)
    assert torch.equal(updating.flat.vector, before)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_is_over_behind_the_steps_and_the_round(rounds):
    updating = make(length=Length(100, rounds))
    for gradient in gradients(updating, 9):
        updates, steps = updating.version, updating.steps
        assert updating.over == (steps >= 100 and updates % rounds == 0)
        apply(updating, gradient, steps=30)
    assert updating.over


class TestLength:
    def test_an_example(self):
        length = Length(5_000, 4)
        assert not length.reached(4_999, 8)
        assert length.reached(5_000, 8)
        assert not length.reached(9_999, 9)
        assert length.reached(9_999, 12)

    @given(st.integers(1, 10**6), st.integers(1, 50), st.integers(1, 10**4))
    def test_a_run_ends_with_the_first_round_that_brings_enough(self, steps, rounds, each):
        """As many steps as wanted, and at most a round too many."""
        length = Length(steps, rounds)
        needed = -(-steps // each)
        last = -(-needed // rounds) * rounds
        assert length.reached(last * each, last)
        for updates in range(last - rounds, last):
            assert not length.reached(updates * each, updates)

    @given(st.integers(1, 10**9), st.integers(0, 10**10), st.integers(0, 10**6))
    def test_without_rounds_only_steps_count(self, steps, done, updates):
        assert Length(steps).reached(done, updates) == (done >= steps)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_ends_training_unapplied(bad):
    updating = make()
    for gradient in gradients(updating, 3):
        apply(updating, gradient)
    before = copy.deepcopy(updating.state())
    gradient = gradients(updating, 1)[0]
    gradient[17] = bad
    said = r"gradient of update 3 has norm (nan|inf) \(loss 7.5\)"
    with pytest.raises(DivergenceError, match=said):
        apply(updating, gradient, loss=7.5)
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
        apply(straight, gradient.clone())
    state = copy.deepcopy(straight.state())
    resumed = make(optimizer, seed=9)
    resumed.restore(state)
    assert resumed.version == resumed.rounds == cut
    assert resumed.steps == cut * STEPS
    for gradient in sequence[cut:]:
        apply(straight, gradient.clone())
        apply(resumed, gradient.clone())
    assert_same(straight.state(), resumed.state())
    assert_same(
        {k: v.numpy() for k, v in straight.flat.split(straight.flat.vector).items()},
        resumed.state()["model"],
    )


def test_a_run_goes_on_counting_with_another_batch():
    updating = make()
    for gradient in gradients(updating, 3):
        apply(updating, gradient, steps=40)
    later = make()
    later.restore(copy.deepcopy(updating.state()))
    apply(later, gradients(later, 1)[0], steps=160)
    assert (later.version, later.steps) == (4, 280)


def test_the_state_has_every_parameter_and_slot_by_name():
    updating = make()
    apply(updating, gradients(updating, 1)[0])
    state = updating.state()
    assert set(state) == {"model", "optimizer", "counters"}
    assert set(state["optimizer"]) == {"mean", "mean_square"}
    for arrays in (state["model"], *state["optimizer"].values()):
        assert {n: a.shape for n, a in arrays.items()} == {
            name: shape for name, (_, shape) in updating.flat.slices.items()
        }
    assert state["counters"] == {"version": 1, "rounds": 1, "steps": STEPS, "optimizer_steps": 1}
    assert updating.keepsakes() == {}


@pytest.mark.parametrize("change", ["other names", "other shape"])
def test_a_state_of_another_network_is_refused(change):
    updating = make()
    state = copy.deepcopy(updating.state())
    name = next(iter(state["model"]))
    values = state["model"].pop(name)
    state["model"]["x" if change == "other names" else name] = values[:1]
    with pytest.raises(ValueError, match="another network"):
        updating.restore(state)
