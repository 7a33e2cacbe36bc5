"""Replay: what is kept, what gives way, what is drawn, and how it goes on after a restart."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.envs import EnvSpec
from drl_mpi.experience import Batch, UnrollReplay
from drl_mpi.experience import stored as stored_rows
from drl_mpi.experience.rng import make_rng, pack_rng, unpack_rng
from drl_mpi.experience.unroll import PER_ENVIRONMENT, UnrollShape
from drl_mpi.run import checkpoint


def labels(samples):
    """Which environment's unroll each sample is: see ``make_fields``."""
    return samples["rewards"][0].astype(int)


def stored(replay):
    return sorted(int(row[0]) for row in replay.state()["rows"]["rewards"])


def test_a_sample_is_a_whole_unroll_with_all_its_fields(make_shape, make_fields):
    shape = make_shape(envs=3)
    replay = UnrollReplay(shape, 7, make_rng(1))
    added = {}
    for number in range(2):
        fields = make_fields(shape, number)
        replay.add(fields)
        for env in range(3):
            added[number * 100 + env] = {
                name: fields[name][:, env].copy() for name in (*PER_ENVIRONMENT, "state")
            }
        for name in fields:  # the slot goes back to MPI: nothing may be kept by reference
            fields[name][...] = 1
    samples = replay.sample(40)
    assert set(labels(samples)) == set(added)
    assert set(samples) == {*PER_ENVIRONMENT, "state"}
    for column, label in enumerate(labels(samples)):
        for name, values in added[label].items():
            assert samples[name].dtype == values.dtype
            np.testing.assert_array_equal(samples[name][:, column], values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 9))
def test_the_oldest_give_way(capacity, envs, count):
    spec = EnvSpec("Numbers", (1,), "float32", 1, 2, 1)
    shape = UnrollShape(spec, 1, envs)
    replay, history = UnrollReplay(shape, capacity, make_rng(0)), []
    for number in range(count):
        slot = {f.name: np.zeros(f.shape, f.dtype) for f in shape.record().fields}
        slot["rewards"][...] = number * 100 + np.arange(envs)
        replay.add(slot)
        history += [number * 100 + env for env in range(envs)]
        assert replay.size == min(len(history), capacity)
        assert stored(replay) == sorted(history[-capacity:])


@pytest.mark.parametrize("size", [5, 16])
def test_draws_are_uniform_over_what_is_stored(make_shape, make_fields, size):
    shape = make_shape(length=1, envs=1)
    replay = UnrollReplay(shape, 16, make_rng(3))
    for number in range(size):
        replay.add(make_fields(shape, number))
    draws = 40_000
    counts = np.bincount(labels(replay.sample(draws)) // 100, minlength=size)
    assert len(counts) == size  # nothing that was never stored
    expected = draws / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < {5: 18.5, 16: 37.7}[size]  # 0.1 % points with 4 and 15 degrees of freedom


def test_draws_are_with_replacement_and_vary(make_shape, make_fields):
    shape = make_shape(envs=2)
    replay = UnrollReplay(shape, 8, make_rng(3))
    replay.add(make_fields(shape, 0))
    assert len(labels(replay.sample(9))) == 9
    replay.add(make_fields(shape, 1))
    assert list(labels(replay.sample(20))) != list(labels(replay.sample(20)))


@pytest.mark.parametrize("piece_bytes", [1, 300, stored_rows.PIECE_BYTES])
@pytest.mark.parametrize("added", [2, 9])
def test_a_restored_replay_goes_on_bit_for_bit(
    make_shape, make_fields, added, piece_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(stored_rows, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(checkpoint, "STORED_BYTES", 100)
    shape = make_shape(envs=2)
    straight = UnrollReplay(shape, 7, make_rng(3))
    for number in range(added):
        straight.add(make_fields(shape, number))
    straight.sample(5)
    checkpoint.save(tmp_path / "c.h5", {"replay": straight.state()})
    resumed = UnrollReplay(shape, 7, make_rng(99))
    resumed.add(make_fields(shape, 50))  # forgotten
    with checkpoint.opened(tmp_path / "c.h5", "replay") as state:
        assert not isinstance(state["replay"]["rows"]["frames"], np.ndarray)
        resumed.restore(state["replay"])
    for number in range(added, added + 5):
        left, right = straight.sample(6), resumed.sample(6)
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name])
        straight.add(make_fields(shape, number))
        resumed.add(make_fields(shape, number))
        assert straight.size == resumed.size
        for name, rows in straight.state()["rows"].items():
            np.testing.assert_array_equal(rows, resumed.state()["rows"][name])


@pytest.mark.parametrize("capacity", [500, 600])
def test_restoring_takes_no_second_copy(capacity, peak_of_restoring):
    spec = EnvSpec("Numbers", (84, 84), "uint8", 4, 6, 4)
    shape = UnrollShape(spec, 20, 20)
    made, resumed = (UnrollReplay(shape, size, make_rng(1)) for size in (500, capacity))
    fields = {f.name: np.zeros(f.shape, f.dtype) for f in shape.record().fields}
    for number in range(30):  # 84 MB of frames
        fields["frames"][...] = number
        made.add(fields)
    for rows in resumed._rows.values():
        rows.fill(1)
    peak = peak_of_restoring(made, resumed)
    assert resumed.size == made.size == 500
    assert peak < 30e6, peak


def test_an_empty_replay_has_a_state_too(make_shape):
    shape = make_shape()
    resumed = UnrollReplay(shape, 7, make_rng(1))
    resumed.restore(copy.deepcopy(UnrollReplay(shape, 7, make_rng(2)).state()))
    assert resumed.size == 0
    with pytest.raises(ValueError, match="replay is empty"):
        resumed.sample(1)


@pytest.mark.parametrize("piece_bytes", [1, stored_rows.PIECE_BYTES])
def test_a_larger_replay_goes_on_and_still_drops_the_oldest_first(
    make_shape, make_fields, piece_bytes, monkeypatch
):
    monkeypatch.setattr(stored_rows, "PIECE_BYTES", piece_bytes)
    shape = make_shape(envs=1)
    small = UnrollReplay(shape, 3, make_rng(1))
    for number in range(5):  # wraps: holds 2, 3, 4
        small.add(make_fields(shape, number))
    large = UnrollReplay(shape, 4, make_rng(1))
    large.restore(copy.deepcopy(small.state()))
    for number in (5, 6):
        large.add(make_fields(shape, number))
    assert stored(large) == [300, 400, 500, 600]


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("frames", lambda a: a[:, :, :1], "replay has frames of uint8"),
        ("rewards", lambda a: a.astype(np.float64), "replay has rewards"),
        ("rewards", lambda a: np.concatenate([a, a]), "replay has rewards"),
        ("state", lambda a: a[:, :1], "replay has state of float32"),
    ],
)
def test_a_state_of_another_shape_is_refused(make_shape, make_fields, name, change, text):
    shape = make_shape()
    replay = UnrollReplay(shape, 7, make_rng(1))
    replay.add(make_fields(shape, 1))
    state = copy.deepcopy(replay.state())
    state["rows"][name] = change(state["rows"][name])
    with pytest.raises(ValueError, match=text):
        UnrollReplay(shape, 7, make_rng(1)).restore(state)


def test_a_state_that_does_not_fit_is_refused(make_shape, make_fields):
    shape = make_shape(envs=3)
    replay = UnrollReplay(shape, 7, make_rng(1))
    for number in range(2):
        replay.add(make_fields(shape, number))
    with pytest.raises(ValueError, match="holds 6 unrolls, this one 5"):
        UnrollReplay(shape, 5, make_rng(1)).restore(replay.state())


@pytest.mark.parametrize("capacity", [0, -3])
def test_capacity_must_be_positive(make_shape, capacity):
    with pytest.raises(ValueError, match=f"capacity is {capacity}"):
        UnrollReplay(make_shape(), capacity, make_rng(1))


def test_fill_writes_from_a_column_to_the_end(make_shape, make_fields):
    shape = make_shape(envs=2)
    replay, batch = UnrollReplay(shape, 7, make_rng(1)), Batch(make_shape(envs=5))
    batch.rewards.fill_(-1.0)
    batch.begin()
    fields = make_fields(shape, 4)
    replay.add(fields)
    replay.fill(batch, 2)
    assert (batch.rewards[:, :2] == -1.0).all()
    assert set(batch.rewards[0, 2:].tolist()) <= {400.0, 401.0}
    for column in range(2, 5):
        env = int(batch.rewards[0, column]) - 400
        np.testing.assert_array_equal(batch.state.numpy()[:, column], fields["state"][:, env])
    assert batch.versions.size == batch.steps == 0  # replayed unrolls have no lag
    assert batch.episode_returns == []
    replay.fill(batch, 5)  # nothing to fill


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=3), st.integers(0, 9), st.booleans())
def test_rng_words_hold_the_whole_state(entropy, drawn, half):
    rng = make_rng(*entropy)
    rng.random(drawn)
    if half:
        rng.integers(5, dtype=np.uint32)  # leaves the other half of a word behind
    words = pack_rng(rng)
    assert words.dtype == np.uint64
    assert words.shape == (6,)
    other = make_rng(0)
    unpack_rng(other, words)
    assert other.bit_generator.state == rng.bit_generator.state
    assert other.integers(7, size=9, dtype=np.uint32).tolist() == rng.integers(
        7, size=9, dtype=np.uint32
    ).tolist()  # fmt: skip
    assert other.random() == rng.random()


def test_rngs_of_other_entropy_differ():
    draws = {make_rng(*entropy).random() for entropy in [(1, 2, 3), (1, 2, 4), (1, 3, 2), (2, 1)]}
    assert len(draws) == 4
