"""Stacks from newest frames, against a slow reference. Against AtariVectorEnv: test_atari.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.envs import build_stacks, update_stack


def stack_at(frames, reset, row, env, k):
    """The obvious way: walk back from the newest frame until a new game or k frames."""
    stack = np.zeros((k, *frames.shape[2:]), frames.dtype)
    for back in range(k):
        stack[k - 1 - back] = frames[row - back, env]
        if reset[row - back, env]:
            break
    return stack


@st.composite
def unrolls(draw):
    k, rows, n = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    frames = rng.integers(1, 256, (k - 1 + rows, n, *draw(st.sampled_from([(), (2,), (3, 2)]))))
    reset = rng.random(frames.shape[:2]) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return frames.astype(draw(st.sampled_from([np.uint8, np.float32]))), reset, k


@given(unrolls())
def test_build_stacks_equals_the_slow_reference(unroll):
    frames, reset, k = unroll
    stacks = build_stacks(frames, reset, k)
    assert stacks.dtype == frames.dtype
    for t in range(len(frames) - k + 1):
        for env in range(frames.shape[1]):
            np.testing.assert_array_equal(
                stacks[t, env], stack_at(frames, reset, k - 1 + t, env, k)
            )


@given(unrolls())
def test_update_stack_equals_build_stacks(unroll):
    frames, reset, k = unroll
    reset[0] = True
    stack = np.full((frames.shape[1], k, *frames.shape[2:]), 99, frames.dtype)
    expected = build_stacks(frames, reset, k)
    for row in range(len(frames)):
        update_stack(stack, frames[row], reset[row])
        if row >= k - 1:
            np.testing.assert_array_equal(stack, expected[row - k + 1])


def test_build_stacks_fills_columns_of_a_larger_batch_and_nothing_else():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 256, (8, 2, 3, 3), dtype=np.uint8)
    reset = rng.random((8, 2)) < 0.3
    batch = np.full((5, 6, 4, 3, 3), 77, np.uint8)
    out = build_stacks(frames, reset, 4, out=batch[:, 2:4])
    assert np.shares_memory(out, batch)
    np.testing.assert_array_equal(batch[:, 2:4], build_stacks(frames, reset, 4))
    assert (batch[:, :2] == 77).all()
    assert (batch[:, 4:] == 77).all()


@pytest.mark.parametrize(
    ("out_shape", "dtype", "resets"),
    [((5, 2, 4, 3), np.float32, 8), ((4, 2, 4, 3), np.uint8, 8), ((5, 2, 4, 3), np.uint8, 7)],
)
def test_build_stacks_refuses_what_does_not_fit(out_shape, dtype, resets):
    frames, reset = np.zeros((8, 2, 3), np.uint8), np.zeros((resets, 2), np.bool_)
    with pytest.raises(ValueError, match=r"must be|disagree"):
        build_stacks(frames, reset, 4, out=np.zeros(out_shape, dtype))


def test_too_few_rows_for_one_stack_are_refused():
    with pytest.raises(ValueError, match="disagree"):
        build_stacks(np.zeros((3, 2, 3)), np.zeros((3, 2), np.bool_), 4)


def test_update_stack_refuses_frames_that_do_not_fit():
    with pytest.raises(ValueError, match="disagree"):
        update_stack(np.zeros((2, 4, 3)), np.zeros((2, 5)), np.zeros(2, np.bool_))
