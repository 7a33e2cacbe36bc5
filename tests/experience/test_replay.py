"""Replay of transitions against lists of whole games, whatever these went through."""

import random
from functools import partial

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvOptions, EnvSpec, build_stacks, make
from drl_mpi.envs.testing import register
from drl_mpi.experience import PrioritizedReplay, TransitionBatch, UniformReplay, UnrollShape
from drl_mpi.experience.replay import CANDIDATES, row_bytes, storage_bytes
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.testing import MANY, Trial

ATARI = EnvSpec("ALE/Pong-v5", (84, 84), "uint8", 4, 18, 4)
SPEC = Trial(UniformReplay).spec
PRIORITIZED = partial(PrioritizedReplay, alpha=0.6, eps=0.01)


@st.composite
def worlds(draw):
    """Arguments of a trial."""
    stack, n_steps, lanes = (draw(st.integers(1, 4)) for _ in range(3))
    return {
        "stack": stack,
        "n_steps": n_steps,
        "lanes": lanes,
        "length": stack + n_steps + 1 + draw(st.integers(0, 15)),
        "width": draw(st.sampled_from([w for w in range(1, lanes + 1) if lanes % w == 0])),
        "spare": draw(st.integers(0, lanes - 1)),
        "ends": draw(st.sampled_from([0.0, 0.1, 0.3, 0.8])),
        "seed": draw(st.integers(0, 2**32)),
    }


UNROLLS = st.builds(
    lambda seed, count: random.Random(seed).choices(range(1, 15), k=count),
    st.integers(0, 2**32),
    st.integers(1, 30),
)


@settings(max_examples=150, deadline=None)
@given(worlds(), UNROLLS)
def test_it_equals_lists_of_whole_games(world, unrolls):
    trial = Trial(UniformReplay, **world)
    trial.check()
    for i, length in enumerate(unrolls):
        trial.play(length)
        assert trial.replay.sampleable == len(trial.reference.starts())
        if i % 5 == 0 or i == len(unrolls) - 1:
            trial.check()
    assert trial.replay.size == sum(min(rows, trial.length) for rows in trial.reference.rows)
    assert trial.replay.capacity == trial.lanes * trial.length


@settings(max_examples=80, deadline=None)
@given(worlds(), UNROLLS, st.sampled_from([0.0, 0.6, 1.0]))
def test_priorities_follow_their_rows(world, unrolls, alpha):
    trial = Trial(partial(PrioritizedReplay, alpha=alpha, eps=0.01), **world)
    waiting, naive, largest = [], {}, 1.0  # naive: (lane, number) -> priority
    for length in unrolls:
        trial.play(length)
        naive = {key: naive.get(key, largest) for key in trial.reference.starts()}
        priorities = trial.replay.state()["priorities"]
        wanted = np.zeros_like(priorities)
        for key, priority in naive.items():
            wanted[trial.slot(*key)] = priority
        np.testing.assert_allclose(priorities, wanted, 1e-12)
        if not naive:
            continue
        waiting.append(trial.sample(TransitionBatch(trial.spec, 8)))
        pick = trial.world.random
        if len(waiting) < pick.choice([1, 2, 3]):
            continue
        batch = waiting.pop(pick.randrange(len(waiting)))  # trained on some time later
        errors = np.array(pick.choices([-3.0, 0.0, 0.5, 9.0], k=8))
        trial.replay.update(batch.indices, batch.generations, errors)
        for key, error in zip(trial.keys(batch), errors):
            if key in naive:
                naive[key] = (abs(error) + 0.01) ** alpha
                largest = max(largest, naive[key])
        assert trial.replay.state()["largest"] == pytest.approx(largest)


# Distributions


def chi_square(counts, expected):
    """Standard deviations that the statistic lies above its mean."""
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5


# With few candidates, many samples come from the list of all starts.
@pytest.mark.parametrize("candidates", [CANDIDATES, 1])
def test_uniform_draws_are_uniform(candidates, monkeypatch):
    monkeypatch.setattr("drl_mpi.experience.replay.CANDIDATES", candidates)
    trial = Trial(UniformReplay)
    trial.play(*[11] * 9)
    count, draws = len(trial.reference.starts()), 100_000
    assert 20 < count < 0.9 * trial.replay.size
    batch = trial.sample(TransitionBatch(SPEC, draws))
    counts = np.unique(batch.indices, return_counts=True)[1]
    assert len(counts) == count
    assert chi_square(counts, draws / count) < 3.5


def test_draws_follow_priorities_and_weights_correct_for_them():
    trial = Trial(PRIORITIZED)
    trial.play(*[11] * 9)
    replay, starts = trial.replay, list(trial.reference.starts())
    errors = make_rng(8).exponential(size=len(starts))
    slots = np.array([trial.slot(*key) for key in starts])
    replay.update(slots, np.array([number for _, number in starts]), errors)
    naive = dict(zip(starts, (errors + 0.01) ** 0.6))
    total = sum(naive.values())
    probabilities = np.array(list(naive.values())) / total

    one, drawn = TransitionBatch(SPEC, 1), []
    for _ in range(10_000):
        replay.sample(one, 1.0)
        drawn += trial.keys(one)
        assert one.weights == 1
    counts = np.array([drawn.count(key) for key in naive])
    assert chi_square(counts, 10_000 * probabilities) < 3.5

    for beta in (0.0, 0.4, 1.0):
        batch = TransitionBatch(SPEC, 16)
        replay.sample(batch, beta)
        weights = [(len(naive) * naive[key] / total) ** -beta for key in trial.keys(batch)]
        np.testing.assert_allclose(batch.weights, np.array(weights) / max(weights), 1e-5)

    # One of each of B equal parts of the sum.
    drawn = trial.keys(trial.sample())
    for key, probability in zip(naive, probabilities):
        assert abs(drawn.count(key) - MANY * probability) <= 2


@pytest.mark.parametrize("kind", [UniformReplay, PRIORITIZED])
def test_a_batch_is_filled_anew(kind):
    trial = Trial(kind)
    trial.play(11)
    batch = trial.batch
    batch.weights.fill_(7.0)
    batch.errors = batch.weights
    trial.sample()
    assert batch.weights.eq(1).all()  # these rows have one priority
    assert batch.errors is None


@pytest.mark.parametrize("kind", [UniformReplay, PRIORITIZED])
def test_samples_follow_from_the_rng_alone(kind):
    indices = []
    for _ in range(2):
        trial = Trial(kind)
        trial.play(*[11] * 9)
        indices += [trial.sample().indices.tolist() for _ in range(2)]
    assert indices[0] == indices[2] != indices[1] == indices[3]


# Through real environments and pixels


def test_transitions_of_an_environment_that_counts():
    env = make(register(lengths=(5, -3)), 2, EnvOptions(stack=2))
    replay = UniformReplay(env.spec, 2, 80, 1, make_rng(1))
    rows, length = env.reset(100), 7
    before = (np.zeros((2, 4)), np.ones(2, dtype=bool))
    for number in range(9):
        fields = Slot(UnrollShape(env.spec, length, 2).record()).fields
        fields["frames"][0], fields["resets"][0] = before
        for t in range(length):
            fields["frames"][t + 1], fields["resets"][t + 1] = rows.frame, rows.reset
            before = rows.frame.copy(), rows.reset.copy()
            fields["actions"][t] = (number + t) % 3
            rows = env.step(fields["actions"][t])
            fields["rewards"][t], fields["discounts"][t] = rows.reward, 0.5 * ~rows.terminated
        fields["frames"][length + 1], fields["resets"][length + 1] = rows.frame, rows.reset
        replay.add(0, fields)
    env.close()
    batch = TransitionBatch(env.spec, 500)
    replay.sample(batch)
    assert len(set(batch.indices)) == replay.sampleable > 60
    for i, stack in enumerate(batch.stacks):
        environment, game, t, _ = stack[1]
        assert environment == 100 + batch.indices[i] % 2
        assert stack[0, 2] == (t - 1 if t else 0)
        np.testing.assert_array_equal(batch.next_stacks[i, 0], stack[1])
        assert batch.next_stacks[i, 1].tolist() == [environment, game, t + 1, batch.actions[i]]
        assert batch.rewards[i] == t + 1
        terminated = t + 1 == 5 and (environment + game) % 2 == 0
        assert batch.discounts[i] == (0.0 if terminated else 0.5)


@pytest.mark.parametrize(("frame", "num_actions"), [((4, 3), 300), ((2, 4, 3), 70_000)])
def test_stacks_are_those_of_build_stacks(frame, num_actions):
    spec = EnvSpec("Pixels", frame, "uint8", 4, num_actions, 4)
    replay, rng = UniformReplay(spec, 3, 300, 1, make_rng(1)), make_rng(0)
    fields = Slot(UnrollShape(spec, 40, 3).record()).fields
    fields["frames"][...] = rng.integers(1, 256, fields["frames"].shape)
    fields["resets"][...] = rng.random(fields["resets"].shape) < 0.2
    fields["resets"][3] = True
    fields["actions"][...] = rng.integers(num_actions - 20, num_actions, fields["actions"].shape)
    fields["discounts"][...] = 1
    replay.add(0, fields)
    batch = TransitionBatch(spec, MANY)
    replay.sample(batch)
    observations = spec.as_observation(build_stacks(fields["frames"], fields["resets"], 4))
    lanes, t = batch.indices % 3, batch.generations
    np.testing.assert_array_equal(batch.observations, observations[t, lanes])
    np.testing.assert_array_equal(batch.next_observations, observations[t + 1, lanes])
    np.testing.assert_array_equal(batch.actions, fields["actions"][t, lanes])
    # Transitions 0 .. 38 are followed by a stored row; it must not be a reset.
    assert len(set(batch.indices)) == (~fields["resets"][4:43]).sum()


# Sizes and refusals


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_row_of_atari_fits_into_7300_bytes(prioritized):
    assert row_bytes(ATARI) == 84 * 84 + 1 + 4 + 4 + 1 + 1
    for capacity in (1_000_000, 2**20 + 64):
        assert storage_bytes(ATARI, 64, capacity, prioritized) <= 7300 * capacity
    replay = (PRIORITIZED if prioritized else UniformReplay)(ATARI, 3, 1000, 3, make_rng(1))
    held = replay._rings.starts.nbytes + sum(a.nbytes for a in replay._rings.rows.values())
    if prioritized:
        held += replay._tree._nodes.nbytes
    assert held == storage_bytes(ATARI, 3, 1000, prioritized)


def test_memory_is_taken_as_the_rows_come():
    fields = Slot(UnrollShape(ATARI, 20, 8).record()).fields
    fields["resets"][:4] = True
    before = psutil.Process().memory_info().rss
    replay = PRIORITIZED(ATARI, 8, 300_000, 3, make_rng(1))  # 2.1 GB
    replay.add(0, fields)
    replay.add(0, fields)
    replay.sample(TransitionBatch(ATARI, 4), 0.4)
    assert len(replay.state()["rows"]["frames"]) == 320
    assert psutil.Process().memory_info().rss - before < 100e6


def test_ready_counts_rows_and_needs_something_to_sample():
    trial = Trial(UniformReplay, lanes=1, n_steps=3, ends=0.0, seed=1)
    assert not trial.replay.ready(0)
    with pytest.raises(ValueError, match=r"0 rows, but no transition .* ask ready\(\) before"):
        trial.sample()
    trial.play(3)  # row 3, the end of the first window, is missing
    assert trial.replay.size == 3
    assert not trial.replay.ready(0)
    trial.play(9)
    assert trial.replay.ready(12)
    assert not trial.replay.ready(13)


@pytest.mark.parametrize(
    ("lanes", "capacity", "n_steps", "text"),
    [
        (3, 17, 2, "gives each of 3 environments 5 rows; .* need 6: raise it to 18 or more"),
        (0, 17, 2, "replay of 0 lanes"),
        (1, 17, 0, "0 steps"),
        (1, -5, 1, "replay capacity -5"),
    ],
)
def test_sizes_that_cannot_work_are_refused(lanes, capacity, n_steps, text):
    with pytest.raises(ValueError, match=text):
        UniformReplay(SPEC, lanes, capacity, n_steps, make_rng(1))


@pytest.mark.parametrize(("alpha", "eps"), [(-0.1, 0.1), (1.1, 0.1), (0.5, 0.0), (0.5, np.nan)])
def test_settings_that_make_no_priorities_are_refused(alpha, eps):
    with pytest.raises(ValueError, match="do not make priorities; allowed: alpha 0 to 1"):
        PrioritizedReplay(SPEC, 1, 60, 1, make_rng(1), alpha, eps)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("actions", 5, "the unroll has actions of 5; allowed: 0 to 4"),
        ("actions", -1, "actions of -1"),
        ("rewards", np.inf, "rewards of inf"),
        ("discounts", -0.5, "discounts of -0.5"),
    ],
)
def test_an_unroll_that_no_actor_makes_is_refused(name, value, text):
    trial = Trial(UniformReplay)
    trial.play(11)
    fields, _ = trial.world.unroll(0, 2, 4)
    fields[name][1, 1] = value
    with pytest.raises(ValueError, match=text):
        trial.replay.add(0, fields)
    trial.check()


def test_an_unroll_of_other_lanes_or_another_shape_is_refused():
    trial = Trial(UniformReplay)
    fields, _ = trial.world.unroll(0, 2, 4)
    for lane in (-1, 1, 2):
        with pytest.raises(ValueError, match=r"cannot go to lane .* has lanes 0 to 1"):
            trial.replay.add(lane, fields)
    with pytest.raises(ValueError, match=r"the unroll's resets have shape \(6, 2\)"):
        trial.replay.add(0, {**fields, "resets": fields["resets"][1:]})
    assert trial.replay.size == 0


def test_updates_and_batches_that_do_not_fit_are_refused():
    trial = Trial(PRIORITIZED)
    trial.play(11, 11, 11)
    replay, batch = trial.replay, trial.sample(TransitionBatch(SPEC, 4))
    before = replay.state()["priorities"].copy()
    where = batch.indices, batch.generations
    with pytest.raises(ValueError, match="a TD error is nan; the loss has diverged"):
        replay.update(*where, np.array([1, 1, np.nan, 1]))
    with pytest.raises(ValueError, match="disagree"):
        replay.update(*where, np.ones(3))
    with pytest.raises(IndexError, match="slots are 0 to 59"):
        replay.update(batch.indices + 60, batch.generations, np.ones(4))
    with pytest.raises(ValueError, match=r"beta is 1\.5"):
        replay.sample(batch, 1.5)
    with pytest.raises(ValueError, match="make both from the same EnvSpec"):
        replay.sample(TransitionBatch(Trial(UniformReplay, stack=2).spec, 4), 1.0)
    np.testing.assert_array_equal(replay.state()["priorities"], before)
