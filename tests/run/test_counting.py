"""Counting: steps, frames and versions follow from one another."""

from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.run.counting import Counting

countings = st.builds(
    Counting,
    st.integers(1, 100_000),
    st.integers(1, 8),
    st.integers(0, 10**6),
    st.integers(0, 10**12),
)


def test_an_example():
    counting = Counting(640, 4, start_version=10, start_steps=5_000)
    assert [counting.steps(version) for version in (10, 11, 13)] == [5_000, 5_640, 6_920]
    assert counting.frames(11) == 22_560
    assert counting.version_at(22_560) == 11
    assert counting.version_at(22_561) == 12


@given(countings, st.integers(0, 1000))
def test_every_update_consumes_the_same(counting, updates):
    version = counting.start_version + updates
    assert counting.steps(counting.start_version) == counting.start_steps
    assert counting.steps(version + 1) - counting.steps(version) == counting.steps_per_update
    assert counting.frames(version) == counting.steps(version) * counting.action_repeat


@given(countings, st.integers(0, 10**14))
def test_version_at_is_the_first_with_that_many_frames(counting, frames):
    version = counting.version_at(frames)
    assert version >= counting.start_version  # what is behind us is not undone
    assert counting.frames(version) >= frames
    if version > counting.start_version:
        assert counting.frames(version - 1) < frames


@given(countings, st.integers(0, 1000))
def test_version_at_is_the_inverse_of_frames(counting, updates):
    version = counting.start_version + updates
    assert counting.version_at(counting.frames(version)) == version


@given(countings, st.integers(0, 1000), st.integers(1, 64))
def test_a_run_goes_on_counting_with_another_batch(counting, updates, factor):
    version = counting.start_version + updates
    later = Counting(
        counting.steps_per_update * factor,
        counting.action_repeat,
        version,
        counting.steps(version),
    )
    assert later.frames(version) == counting.frames(version)
    assert later.steps(version + 1) == counting.steps(version + factor)
