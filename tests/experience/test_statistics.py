"""Statistics of fresh experience: what is summed, and what is of one update only."""

import numpy as np

from drl_mpi.experience import Batch, TransitionBatch
from drl_mpi.experience.statistics import Statistics


def note(statistics, make_fields, shape, number, ended=()):
    """Notes unroll ``number``, in which games (t, environment, return) ended."""
    fields = make_fields(shape, number)
    fields["waited_s"][...] = 0.25 * number
    fields["worked_s"][...] = 2.0
    fields["episode_returns"][...] = np.nan
    for t, env, value in ended:
        fields["episode_lengths"][t, env] = 9
        fields["episode_returns"][t, env] = value
    statistics.note(fields)
    for values in fields.values():  # the record goes back to MPI
        values[...] = 1


def test_sums_over_unrolls(make_shape, make_fields):
    statistics, two, three = Statistics(), make_shape(envs=2), make_shape(length=4, envs=3)
    note(statistics, make_fields, two, 8, [(2, 1, -21.0), (0, 0, 4.5)])
    note(statistics, make_fields, three, 11)
    note(statistics, make_fields, two, 9, [(1, 1, 0.0)])
    assert statistics.steps == 3 * 2 + 4 * 3 + 3 * 2
    assert statistics.versions.tolist() == [8, 8, 11, 11, 11, 9, 9]
    assert statistics.versions.dtype == np.int64
    assert statistics.waited_s == 0.25 * (8 + 11 + 9)
    assert statistics.worked_s == 6.0
    assert statistics.episode_returns == [4.5, -21.0, 0.0]


def test_an_update_begins_with_nothing(make_shape, make_fields):
    statistics, two = Statistics(), make_shape(envs=2)
    for _ in range(2):
        assert (statistics.steps, statistics.waited_s, statistics.worked_s) == (0, 0.0, 0.0)
        assert statistics.versions.size == 0
        assert statistics.episode_returns == []
        note(statistics, make_fields, two, 3, [(1, 0, 7.0)])
        returns, versions = statistics.episode_returns, statistics.versions
        statistics.begin()
        assert returns == [7.0], "who keeps them keeps them"
        assert versions.tolist() == [3, 3]


def test_all_batches_have_them_and_are_to_be_trained_on(make_shape):
    for batch in (Batch(make_shape()), TransitionBatch(make_shape().spec, 4)):
        assert isinstance(batch, Statistics)
        assert batch.trainable
        assert batch.steps == 0
