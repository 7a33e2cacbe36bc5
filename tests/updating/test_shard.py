"""Which gradients a parameter server's shard accepts, and what it counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.comm.shards import COUNTS, split
from drl_mpi.updating.shard import BUCKETS, PoisonedError, Shard, ShardCounts
from drl_mpi.updating.shard_optimizers import make_shard_optimizer


class Adds:
    """An optimiser that adds the gradient."""

    steps = 0

    def __init__(self):
        self.loaded = None

    def step(self, source, target, gradient, rate):
        self.steps += 1
        np.add(source, rate * gradient, out=target)
        return bool(np.isfinite(target).all())

    def slots(self):
        return {"sum": np.full(3, 7.0, np.float32)}

    def restore(self, slots, steps):
        self.loaded = dict(slots), steps


def make(max_staleness=100):
    return Shard(Adds(), max_staleness)


def push(shard, version, client=1, gradient=1.0, rate=1.0):
    """As a server does it; whether the gradient was applied."""
    if not shard.admit(client, version):
        return False
    source = np.zeros(3, np.float32)
    shard.apply(source, np.empty_like(source), np.full(3, gradient, np.float32), rate, client)
    return True


@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_gradient_may_be_so_old_and_no_older(most):
    shard = make(most)
    for version in range(8):
        assert push(shard, version)
    assert shard.version == 8
    for staleness in range(9):
        before = shard.version
        assert push(shard, before - staleness) is (staleness <= most)
        assert shard.version == before + (staleness <= most)
    counts = shard.counts
    assert counts.applied == 8 + most + 1
    assert counts.stale == 8 - most
    assert counts.staleness_sum == sum(range(9))
    assert counts.staleness_max == 8
    assert shard.pushes == {1: 17}


def test_a_dropped_gradient_changes_nothing_but_the_counts():
    shard = make(0)
    push(shard, 0)
    steps = shard._optimizer.steps
    assert not push(shard, 0, client=2)
    assert (shard.version, shard._optimizer.steps) == (1, steps)
    assert push(shard, 1, client=2)
    assert shard.pushes == {1: 1, 2: 2}


@given(st.lists(st.integers(0, 5_000), max_size=30))
def test_the_histogram_counts_by_powers_of_two(ages):
    shard = make(10**9)
    shard.version = 10_000
    for age in ages:
        shard.admit(1, 10_000 - age)
    histogram = shard.counts.histogram
    assert len(histogram) == BUCKETS
    assert sum(histogram) == len(ages)
    for bucket, count in enumerate(histogram):
        low = (1 << bucket) >> 1  # 0, 1, 2, 4, 8 ...
        high = 10**9 if bucket == BUCKETS - 1 else 1 << bucket
        assert count == sum(low <= age < high for age in ages)


def test_counts_travel_as_numbers():
    counts = ShardCounts(3, 1, 40, 30, tuple(range(BUCKETS)))
    numbers = counts.as_numbers()
    assert len(numbers) <= COUNTS
    assert ShardCounts.from_numbers(numbers + [0] * (COUNTS - len(numbers))) == counts


def test_a_gradient_that_poisons_a_parameter_is_named():
    shard = make()
    for client in (4, 7, 4, 4):
        push(shard, shard.version, client)
    assert shard.admit(4, shard.version)
    source, target = np.zeros(3, np.float32), np.zeros(3, np.float32)
    gradient = np.array([1.0, np.inf, np.nan], np.float32)
    said = r"gradient of rank 4 \(number 4 from there\) would make parameter 1 of this shard inf at"
    with pytest.raises(PoisonedError, match=said):
        shard.apply(source, target, gradient, 1.0, 4)
    assert shard.version == 4
    assert shard.counts.applied == 4


def test_the_rate_is_the_gradients_own():
    shard, target = make(), np.zeros(3, np.float32)
    shard.apply(np.ones(3, np.float32), target, np.ones(3, np.float32), 0.25, 1)
    assert target.tolist() == [1.25] * 3


def test_state_and_restore():
    shard = make()
    shard.steps = 12
    push(shard, 0)
    state = shard.state(np.arange(3, dtype=np.float32))
    other = make()
    other.restore(state)
    assert (other.version, other.steps) == (1, 12)
    slots, steps = other._optimizer.loaded
    assert steps == 1
    assert slots["sum"].tolist() == [7.0] * 3
    assert other.counts.applied == 0, "counts are of this process"
    assert push(other, 1), "versions go on"


def test_the_first_state_has_no_slots():
    shard = make()
    shard.restore({"slots": {}, "optimizer_steps": 0, "version": 0, "steps": 0})
    assert shard._optimizer.loaded is None


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["adagrad", "rmsprop", "adam"]))
def test_other_shards_go_on_with_the_same_bits(before, after, name):
    """The vector is cut into so many shards, saved, and cut into so many others."""
    size, choose = 40, np.random.default_rng(before * 10 + after)
    gradients = choose.normal(size=(6, size)).astype(np.float32)
    start = choose.normal(size=size).astype(np.float32)

    def serve(servers, vector, gradients, states=None):
        found = []
        for i, (low, high) in enumerate(split(size, servers)):
            shard = Shard(make_shard_optimizer(name, high - low), 0)
            own = vector[low:high]
            if states:
                shard.restore(states[i])
                own = states[i]["vector"]
            for gradient in gradients:
                assert shard.admit(1, shard.version)
                own, old = np.empty_like(own), own
                shard.apply(old, own, gradient[low:high], 0.1, 1)
            found.append(shard.state(own))
        return found

    def joined(states):
        slots = states[0]["slots"]
        return {
            "vector": np.concatenate([state["vector"] for state in states]),
            "slots": {key: np.concatenate([s["slots"][key] for s in states]) for key in slots},
        }

    def cut(whole, servers, states):
        return [
            {
                **states[0],
                "vector": whole["vector"][low:high],
                "slots": {key: slot[low:high] for key, slot in whole["slots"].items()},
            }
            for low, high in split(size, servers)
        ]

    halfway = serve(before, start, gradients[:3])
    ended = serve(after, start, gradients[3:], cut(joined(halfway), after, halfway))
    whole = joined(serve(1, start, gradients))
    assert joined(ended)["vector"].tobytes() == whole["vector"].tobytes()
    assert {state["version"] for state in ended} == {6}
    assert {state["optimizer_steps"] for state in ended} == {6}
    for key, slot in whole["slots"].items():
        assert joined(ended)["slots"][key].tobytes() == slot.tobytes()
