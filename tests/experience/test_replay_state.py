"""Replay in a checkpoint: it goes on alike, moves into other lanes, and damage is refused."""

import copy
from functools import partial
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.envs import EnvSpec
from drl_mpi.experience import PrioritizedReplay, TransitionBatch, UniformReplay, stored
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.testing import Trial
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.run import checkpoint

KINDS = [UniformReplay, partial(PrioritizedReplay, alpha=0.6, eps=0.01)]


def assert_go_on_alike(left, right, rounds=6):
    """Both draw the same, bit for bit, while the same is added and learned."""
    batches = [TransitionBatch(left.spec, 16) for _ in range(2)]
    for _ in range(rounds):
        for trial, batch in zip((left, right), batches):
            trial.sample(batch)
        for name in ("observations", "next_observations", "actions", "rewards", "discounts",
                     "weights", "indices", "generations", "ages"):  # fmt: skip
            np.testing.assert_array_equal(*(getattr(batch, name) for batch in batches))
        fields, _ = left.world.unroll(0, 2, 5)
        for trial, batch in zip((left, right), batches):
            trial.replay.add(0, fields)
            if isinstance(trial.replay, PrioritizedReplay):
                trial.replay.update(batch.indices, batch.generations, np.arange(16.0))
    assert left.replay.size == right.replay.size


@pytest.mark.parametrize("piece_bytes", [1, 100, stored.PIECE_BYTES])
@pytest.mark.parametrize("unrolls", [1, 2, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_replay_goes_on_bit_for_bit(kind, unrolls, piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(checkpoint, "STORED_BYTES", 0)
    straight, resumed = Trial(kind), Trial(kind, seed=99)
    straight.play(*[11] * unrolls)
    batch = straight.sample()
    if isinstance(straight.replay, PrioritizedReplay):
        errors = np.linspace(-2, 3, len(batch))
        straight.replay.update(batch.indices, batch.generations, errors)
    checkpoint.save(tmp_path / "c.h5", {"replay": straight.replay.state()})
    resumed.play(17, 17, 17)  # what was there before is forgotten
    with checkpoint.opened(tmp_path / "c.h5", "replay") as state:
        assert not isinstance(state["replay"]["rows"]["frames"], np.ndarray)
        resumed.replay.restore(state["replay"])
    assert_go_on_alike(straight, resumed)


@pytest.mark.parametrize("length", [5000, 7000])
@pytest.mark.parametrize("kind", KINDS)
def test_restoring_takes_no_second_copy(kind, length, peak_of_restoring):
    spec = EnvSpec("Numbers", (84, 84), "uint8", 4, 6, 4)
    made, resumed = (
        kind(spec, 2, 2 * rows, 3, make_rng(1)) for rows in (5000, length)
    )  # 70 MB of frames, and as much or more
    fields = {
        f.name: np.zeros(f.shape, f.dtype) for f in UnrollShape(spec, 1000, 2).record().fields
    }
    for number in range(6):
        fields["frames"][...] = number
        made.add(0, fields)
    for rows in resumed._rings.rows.values():
        rows.fill(1)
    peak = peak_of_restoring(made, resumed)
    assert resumed.size == made.size
    assert peak < 30e6, peak


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_replay_has_a_state_too(kind):
    straight, resumed = Trial(kind), Trial(kind)
    resumed.play(11)
    resumed.replay.restore(straight.replay.state())
    assert resumed.replay.size == resumed.replay.sampleable == 0
    straight.play(11, 11)
    resumed.replay.restore(straight.replay.state())
    assert_go_on_alike(straight, resumed)


def test_the_state_is_what_is_in_use_and_no_copy():
    trial = Trial(UniformReplay)
    trial.play(11)
    rows = trial.replay.state()["rows"]
    assert {len(values) for values in rows.values()} == {22}
    for name, values in rows.items():
        assert np.shares_memory(values, trial.replay._rings.rows[name])


def test_n_may_be_another():
    short, long = Trial(UniformReplay, n_steps=1), Trial(UniformReplay, n_steps=4)
    short.play(*[11] * 9)
    long.play(*[11] * 9)
    short.replay.restore(long.replay.state())
    short.check()


@settings(max_examples=100, deadline=None)
@given(
    st.data(),
    st.sampled_from(KINDS),
    st.lists(st.integers(1, 14), min_size=1, max_size=20),
    st.integers(0, 2**32),
)
def test_another_layout_keeps_the_newest_in_closed_pieces(data, kind, unrolls, seed):
    stack, n_steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    old, new = (
        {
            "stack": stack,
            "n_steps": n_steps,
            "lanes": data.draw(st.integers(1, 4)),
            "length": stack + n_steps + 1 + data.draw(st.integers(0, 15)),
        }
        for _ in range(2)
    )
    if old == new:
        return
    straight = Trial(kind, **old, width=1, seed=seed)
    straight.play(*unrolls)
    moved = Trial(kind, **new, width=1, serial=1000)
    with mock.patch.object(stored, "PIECE_BYTES", data.draw(st.sampled_from([1, 20, 50, 2**22]))):
        moved.replay.restore(straight.replay.state())
    moved.reference = straight.reference.moved(moved.lanes, moved.length)
    assert moved.replay.size == sum(moved.reference.rows)
    fit = min(straight.replay.size, moved.replay.capacity)
    assert fit - straight.lanes < moved.replay.size <= fit
    moved.check()
    for length in (3, 9, 5, 5):
        moved.play(length)
        moved.check()


def test_priorities_move_with_their_rows():
    old, new = (
        Trial(partial(PrioritizedReplay, alpha=1.0, eps=0.5), lanes=lanes, length=length)
        for lanes, length in ((2, 30), (5, 40))
    )
    old.play(*[11] * 9)
    starts = list(old.reference.starts())
    slots = np.array([old.slot(*key) for key in starts])
    numbers = np.array([number for _, number in starts])
    old.replay.update(slots, numbers, np.arange(len(starts)) * 1.0)
    new.replay.restore(old.replay.state())
    before, after = (
        {
            tuple(stack[-1].tolist()): trial.replay.state()["priorities"][index]
            for trial_batch in [trial.sample()]
            for stack, index in zip(trial_batch.stacks, trial_batch.indices)
        }
        for trial in (old, new)
    )
    assert len(set(before.values())) > 20
    for name, value in after.items():  # the largest for those that are starts only now
        assert value == before.get(name, len(starts) - 0.5)
    # 5 pieces lose the first 2, whose stacks are cut, and the last 2, whose windows are.
    assert len(before.keys() - after.keys()) <= 20


def put(value, at=3):
    def change(values):
        values = values.copy()
        values.reshape(-1)[at] = value
        return values

    return change


DAMAGE = [
    ("frames", lambda a: a[:-1], "has frames of float32"),
    ("frames", lambda a: a[:, :1], "has frames of float32"),
    ("frames", lambda a: a.astype(np.float64), "has frames of float64"),
    ("frames", lambda _: 3, "no array frames"),
    ("rewards", put(np.nan), "rewards of nan"),
    ("rewards", put(-np.inf), "rewards of -inf"),
    ("discounts", put(1.5), "discounts of 1.5; allowed: 0 to 1"),
    ("discounts", put(np.nan), "discounts of nan"),
    ("actions", put(5), "actions of 5; allowed: 0 to 4"),
    ("actions", lambda a: a.astype(np.int64), "has actions of int64"),
    ("begins", put(3), "rows that begin with 3"),
    ("begins", lambda a: a * 0, "priorities that"),  # other starts than the priorities say
    ("rows", lambda _: None, "has no rows"),
    ("added", put(-1, 0), "impossible numbers of rows"),
    ("added", put(2**63 - 1, 0), "impossible numbers of rows"),
    ("added", put(5, 0), "priorities that"),
    ("added", put(5, slice(None)), "has frames of"),
    ("added", lambda a: a[:0], "has broken of bool"),
    ("added", lambda a: a[:1], "has broken of bool"),
    ("added", lambda a: a.astype(np.float64), "has added of float64"),
    ("broken", lambda _: "yes", "no array broken"),
    ("length", lambda _: 0, "length of 0"),
    ("length", lambda _: 2**63, "length of"),
    ("length", lambda _: True, "no number length"),
    ("length", lambda _: 11, "has frames of"),
    ("n_steps", lambda _: 1000, "n_steps of 1000"),
    ("n_steps", lambda _: 4, "priorities that"),
    ("rng", lambda a: a[:5], "has rng of uint64"),
    ("rng", put(2**63, 4), "random numbers"),
    ("rng", put(2**63, 5), "random numbers"),
    ("rng", put(2, 3), "random numbers"),
    ("priorities", put(np.nan, 0), "priorities that"),
    ("priorities", put(np.inf, 0), "priorities that"),
    ("priorities", put(-1.0, 0), "priorities that"),
    ("priorities", put(0.0, slice(None)), "priorities that"),
    ("priorities", put(1.0, slice(None)), "priorities that"),
    ("priorities", lambda a: a[:-1], "has priorities of float64"),
    ("largest", lambda _: np.nan, "largest of nan"),
    ("largest", lambda _: 1e308, "largest of 1e"),
    ("largest", lambda _: 0.0, "largest of 0.0"),
    ("largest", lambda _: "much", "largest of 'much'"),
]


@pytest.mark.parametrize(("name", "change", "text"), DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(name, change, text):
    trial = Trial(KINDS[1])
    trial.play(*[11] * 9)
    state = copy.deepcopy(trial.replay.state())
    trial.play(5, 5)
    untouched = copy.deepcopy(trial)
    where = state["rows"] if name in state["rows"] else state
    where[name] = change(where[name])
    with pytest.raises(ValueError, match=text) as error:
        trial.replay.restore(state)
    assert "\n" not in str(error.value)
    assert_go_on_alike(trial, untouched, rounds=2)
    del where[name]
    with pytest.raises(ValueError, match=name):
        trial.replay.restore(state)
