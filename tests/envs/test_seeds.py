"""Ranks never share seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.envs import seed_for
from drl_mpi.envs.seeds import MAX_ACTORS, MAX_ENVS_PER_ACTOR

actors = st.integers(0, MAX_ACTORS - 1)
widths = st.integers(1, MAX_ENVS_PER_ACTOR)
run_seeds = st.integers(0, 2**80)
epochs = st.integers(0, 15)  # as many as the widest actors have


@given(run_seeds, widths, st.tuples(actors, epochs), st.tuples(actors, epochs))
def test_ranges_of_two_actors_or_epochs_never_overlap(seed, width, one, other):
    a = seed_for(seed, one[0], width, one[1])
    b = seed_for(seed, other[0], width, other[1])
    if one == other:
        assert a == b
    else:
        assert abs(a - b) >= width


@given(run_seeds, widths, actors, st.integers(0, 10**9))
def test_every_seed_fits_a_non_negative_int32(seed, width, actor, epoch):
    first = seed_for(seed, actor, width, epoch)
    assert first >= 0
    assert first + width - 1 <= 2**31 - 1


@pytest.mark.parametrize("width", [1, 5, 32, 33])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_all_actors_over_three_epochs_are_apart(seed, width):
    seeds = [
        seed_for(seed, actor, width, epoch) for actor in range(MAX_ACTORS) for epoch in (0, 1, 9)
    ]
    assert np.diff(np.sort(seeds)).min() >= width


@pytest.mark.parametrize("seed", range(4))
def test_the_widest_actors_use_every_block_exactly_once(seed):
    pairs = ((actor, epoch) for actor in range(MAX_ACTORS) for epoch in range(16))
    seeds = {seed_for(seed, actor, MAX_ENVS_PER_ACTOR, epoch) for actor, epoch in pairs}
    assert seeds == set(range(0, 2**31, MAX_ENVS_PER_ACTOR))


@given(run_seeds, actors, actors, st.integers(0, 10**9))
def test_actors_stay_apart_when_epochs_start_over(seed, one, other, epoch):
    if one != other:
        assert abs(seed_for(seed, one, 32, epoch) - seed_for(seed, other, 32, epoch)) >= 32


def test_neighbouring_run_seeds_share_no_environment():
    ranges = [seed_for(seed, actor, 32) for seed in range(20) for actor in range(16)]
    assert np.diff(np.sort(ranges)).min() >= 32


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 0, 8, 0),
        (0, -1, 8, 0),
        (0, MAX_ACTORS, 8, 0),
        (0, 0, 0, 0),
        (0, 0, 40_000, 0),
        (0, 0, 8, -1),
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"allowed|negative"):
        seed_for(*arguments)
