"""Info rows: what learners tell one another survives the trip, summed or not."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.roles.info import MAX_RETURNS, WIDTH, InfoWriter, summarise


def batch(versions=(), returns=(), waited_s=0.0, worked_s=0.0):
    return SimpleNamespace(
        versions=np.array(versions, np.int64),
        episode_returns=list(returns),
        waited_s=waited_s,
        worked_s=worked_s,
    )


def write(writer, *args, version=0, **options):
    return writer.write(batch(*args, **options), version, waited_s=0.25, worked_s=0.5).copy()


def test_round_trip_of_one_row():
    row = write(
        InfoWriter(), [8, 10, 5], [1.5, -21.0], version=10, waited_s=2.0, worked_s=6.0
    )  # fmt: skip
    assert row.shape == (WIDTH,)
    assert row.dtype == np.float32
    got = summarise(row[np.newaxis])
    assert (got.lag_sum, got.lag_count) == (7.0, 3)
    assert got.lag_max == 5.0
    assert (got.actor_waited_s, got.actor_worked_s) == (2.0, 6.0)
    assert (got.learner_waited_s, got.learner_worked_s) == (0.25, 0.5)
    assert got.returns.tolist() == [1.5, -21.0]
    assert got.episodes == 2


def summed(rows):
    """As ``AllReduceUpdating`` does it: each learner's row, zeros in the others' places, summed."""
    total = np.zeros((len(rows), WIDTH), np.float32)
    for i, row in enumerate(rows):
        mine = np.zeros_like(total)
        mine[i] = row
        total += mine
    return total


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=MAX_RETURNS), min_size=1, max_size=4)
)
def test_summation_keeps_every_learners_returns(returns):
    got = summarise(summed([write(InfoWriter(), (), mine) for mine in returns]))
    assert got.returns.tolist() == [value for mine in returns for value in mine]
    assert got.episodes == sum(map(len, returns))


def test_learners_are_pooled():
    rows = [
        write(InfoWriter(), [5, 5], version=5),
        write(InfoWriter(), [1, 3], version=5, waited_s=1.0),
        write(InfoWriter(), [], version=5, waited_s=2.0),
    ]
    got = summarise(summed(rows))
    assert (got.lag_sum, got.lag_count) == (6.0, 4)
    assert got.lag_max == 4.0
    assert got.actor_waited_s == 3.0
    assert got.learner_worked_s == 1.5


def test_without_fresh_unrolls_the_lag_is_unknown():
    got = summarise(write(InfoWriter(), [], version=9)[np.newaxis])
    assert (got.lag_sum, got.lag_count) == (0.0, 0)
    assert np.isnan(got.lag_max)
    assert got.returns.size == 0


@pytest.mark.parametrize("count", [0, 1, MAX_RETURNS, MAX_RETURNS + 1, 1000])
def test_all_games_are_counted_and_the_newest_reported(count):
    writer = InfoWriter()
    write(writer, (), [9.0] * MAX_RETURNS)  # leaves nothing behind
    row = write(writer, (), [float(i) for i in range(count)])
    got = summarise(summed([row, write(InfoWriter())]))
    assert got.episodes == count
    assert got.returns.tolist() == [float(i) for i in range(count)][-MAX_RETURNS:]
