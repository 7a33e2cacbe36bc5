"""The sum tree against a naive list."""

import bisect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.experience import SumTree

VALUES = st.one_of(
    st.just(0.0),
    st.floats(0, 10),
    st.sampled_from([5e-324, 1e-300, 1e-17, 0.1, 1 / 3, 1.0, 1e16, 1e300]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_equals_a_list_under_random_operations(data):
    capacity = data.draw(st.integers(1, 20))
    tree, naive = SumTree(capacity), [0.0] * capacity
    for _ in range(data.draw(st.integers(1, 6))):
        pairs = data.draw(st.lists(st.tuples(st.integers(0, capacity - 1), VALUES), max_size=12))
        tree.set([index for index, _ in pairs], [value for _, value in pairs])
        for index, value in pairs:  # the last of duplicates wins
            naive[index] = value
        assert tree.get(np.arange(capacity)).tolist() == naive
        assert tree.values.tolist() == naive
        assert tree.total == pytest.approx(sum(naive), rel=1e-14, abs=0)
        if tree.total == 0:
            continue
        shares = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
        targets = np.minimum(np.array(shares) * tree.total, np.nextafter(tree.total, 0))
        for target, found in zip(targets, tree.find(targets)):
            assert naive[found] > 0
            # Its interval holds the target, up to the rounding of the sums.
            slack = 1e-14 * tree.total
            assert sum(naive[:found]) - slack <= target <= sum(naive[: found + 1]) + slack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any))
def test_find_is_exact_where_sums_are(values):
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), values)
    ends = list(itertools.accumulate(values))
    targets = np.arange(0, ends[-1], 0.5)
    assert tree.find(targets).tolist() == [bisect.bisect_right(ends, target) for target in targets]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), min_size=2, max_size=33).filter(any))
def test_the_largest_target_never_finds_a_zero(values):
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), values)
    largest = np.nextafter(tree.total, 0)
    assert values[int(tree.find(largest))] > 0
    assert values[int(tree.find(0.0))] > 0


def test_rounding_does_not_lead_beyond_the_last_value():
    tree, large = SumTree(4), 2.0**52 + 2
    # The sum is rounded up by 0.5, and so is what is left of the target: to the whole right side.
    tree.set([0, 2], [1.5, large])
    target = large + 1
    assert target < tree.total == large + 2
    assert target - 1.5 == large
    assert tree.find(target) == 2


def test_equal_values_make_equal_trees_whatever_happened_before():
    rng = np.random.default_rng(0)
    worn, fresh = SumTree(37), SumTree(37)
    for _ in range(200):
        worn.set(rng.integers(37, size=9), rng.random(9) * 10.0 ** rng.integers(-9, 9))
    fresh.set(np.arange(37), worn.values)
    assert worn.total == fresh.total
    targets = rng.random(500) * fresh.total
    np.testing.assert_array_equal(worn.find(targets), fresh.find(targets))


def test_shapes_are_kept():
    tree = SumTree(6)
    tree.set(np.array([[0, 1], [2, 3]]), np.array([[1, 2], [3, 4]]))
    tree.set(np.array([4, 5]), 5)
    tree.set([], [])
    assert tree.total == 20
    assert tree.get([[0], [5]]).tolist() == [[1], [5]]
    found = tree.find([[0.5, 19.5]])
    assert found.tolist() == [[0, 5]]
    assert found.dtype == np.int64
    assert tree.find([]).shape == (0,)
    assert tree.find(3).shape == ()


@pytest.mark.parametrize("value", [-1.0, -5e-324, np.nan, np.inf, -np.inf, 1.7e308])
def test_a_bad_value_is_refused_and_changes_nothing(value):
    tree = SumTree(4)
    tree.set([0, 1], [1, 2])
    with pytest.raises(ValueError, match="cannot stand in a sum tree; allowed: 0 to"):
        tree.set([0, 1, 2], [7, value, 7])
    assert tree.values.tolist() == [1, 2, 0, 0]
    with pytest.raises(ValueError, match=r"values have shape \(2,\), indices \(3,\)"):
        tree.set([0, 1, 2], [1, 2])


@pytest.mark.parametrize("index", [-1, 5, 7, 2**40])
def test_a_bad_index_is_refused(index):
    tree = SumTree(5)  # has 8 leaves inside
    for use in (tree.get, lambda indices: tree.set(indices, 1.0)):
        with pytest.raises(IndexError, match=f"index {index} lies outside .* allowed: 0 to 4"):
            use([0, index])
    assert tree.total == 0
    with pytest.raises(IndexError, match="dtype float64; give integers"):
        tree.get([0.0])


@pytest.mark.parametrize("target", [-1e-9, 3.0, np.inf, np.nan])
def test_a_bad_target_is_refused(target):
    tree = SumTree(5)
    tree.set([1, 3], [1, 2])
    with pytest.raises(ValueError, match=r"lies outside \[0, 3.0\)"):
        tree.find([0.0, target])


def test_nothing_can_be_found_in_an_empty_tree():
    with pytest.raises(ValueError, match="set values before drawing"):
        SumTree(5).find([0.0])


@pytest.mark.parametrize("capacity", [0, -2])
def test_capacity_must_be_positive(capacity):
    with pytest.raises(ValueError, match=f"capacity is {capacity}"):
        SumTree(capacity)


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000, 1025])
def test_its_bytes_are_what_it_says(capacity):
    assert SumTree.nbytes(capacity) == SumTree(capacity)._nodes.nbytes
