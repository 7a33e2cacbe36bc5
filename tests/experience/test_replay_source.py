"""The source of transitions, with a scripted stream: its ratio, its lanes, and how it goes on."""

import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import torch

from drl_mpi.comm.poller import Poller, SilenceError, Watch
from drl_mpi.experience import PrioritizedReplay, TransitionBatch, UniformReplay
from drl_mpi.experience.replay_source import ReplaySource
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.testing import Reference, Trial, World

SPEC = Trial(UniformReplay).spec
N_STEPS = 2
PRIORITIZED = partial(PrioritizedReplay, alpha=0.5, eps=0.01)
SIZE = 64
"""Transitions per batch."""


@dataclass
class Loan:
    source: int
    slot: object
    index: int


class Slots:
    def __init__(self, fields):
        self.fields = fields


class Stream:
    """Actors that make records of ``envs`` environments whenever one is wanted.

    Args:
        order: ranks, in which their records come, over and over.
        records: per unroll of an actor.
    """

    def __init__(self, order=(3,), sources=None, records=1, envs=2, length=4, ends=0.0):
        self.sources = tuple(sources or sorted(set(order)))
        self.ended, self.closed = False, False
        self.released = []
        self.told = []
        """(lane, rows) of what was taken, oldest first."""
        self._order = cycle(order)
        self._next = next(self._order)
        self._records, self._envs, self._length = records, envs, length
        self.lanes = len(self.sources) * records * envs
        self._world = World(3, SPEC, self.lanes, ends)
        self._taken = dict.fromkeys(self.sources, 0)

    def take(self, source=None):
        if source not in (None, self._next) or self.ended:
            return None
        source, self._next = self._next, next(self._order)
        part = self._taken[source] % self._records
        self._taken[source] += 1
        # Lanes as the replay should have them: all of the first actor's, then the second's.
        lane = (self.sources.index(source) * self._records + part) * self._envs
        fields, told = self._world.unroll(lane, self._envs, self._length)
        self.told += [(lane + i, rows) for i, rows in enumerate(told)]
        fields["rng"][:] = np.arange(6) + 10 * source + self._taken[source]
        fields["version"][...] = self._taken[source]
        return Loan(source, Slots(fields), len(self.released))

    def arrived(self, source):
        return source == self._next

    def release(self, loan):
        self.released.append(loan.source)
        for values in loan.slot.fields.values():
            values[...] = 0  # the next record arrives in the same memory

    def close(self):
        self.closed = True

    @property
    def steps(self):
        return len(self.released) * self._envs * self._length


class Publisher:
    def __init__(self):
        self.debts = []

    def owe(self, rank):
        self.debts.append(rank)


def make(stream, kind=UniformReplay, *, start=16, steps_per_update=Fraction(8), **options):
    """A source, and its replay."""
    capacity = options.pop("capacity", 40 * stream.lanes)
    replay = kind(SPEC, stream.lanes, capacity, N_STEPS, make_rng(1))
    poller = Poller(options.pop("silence_s", 60.0))
    source = ReplaySource(
        stream, replay, TransitionBatch(SPEC, SIZE), stream._envs, stream._records, poller,
        options.pop("publisher", Publisher()), start=start, steps_per_update=steps_per_update,
        beta=options.pop("beta", lambda: 0.5), **options,
    )  # fmt: skip
    return source, replay


def warm(source):
    """Batches until there is something to learn from; that one is included."""
    count = 1
    while not source.next().trainable:
        count += 1
    return count


@pytest.mark.parametrize("start", [1, 16, 17, 24, 100])
def test_it_warms_up_record_by_record(start):
    stream = Stream(envs=2, length=4)
    source, replay = make(stream, start=start, capacity=200)
    needed = max(-(-start // 8), 1)
    for record in range(1, needed + 1):
        batch = source.next()
        assert not batch.trainable
        assert batch.steps == 8
        assert replay.size == stream.steps == 8 * record
    batch = source.next()
    assert batch.trainable
    assert replay.size == 8 * (needed + 1), "a batch is paid for by steps that come after"


def test_it_is_not_warm_before_there_is_a_transition():
    stream = Stream(envs=2, length=1)
    source, replay = make(stream, start=1)
    while not source.next().trainable:
        assert replay.size <= 2 * (N_STEPS + 1)
    assert replay.sampleable > 0


@pytest.mark.parametrize("envs", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize(
    "cost", [Fraction(1), Fraction(8), Fraction(100), Fraction(32, 10), Fraction(1, 7)]
)
def test_the_ratio_is_exact_whatever_the_records(envs, length, cost):
    """No batch comes before its steps, none waits for more records than these need."""
    stream = Stream(envs=envs, length=length)
    source, _ = make(stream, start=1, steps_per_update=cost, capacity=200)
    while not source._warm:
        source.next()
    record, before, reported = envs * length, stream.steps, 0
    for batches in range(1, 50):
        reported += source.next().steps
        assert stream.steps - before == -(-batches * cost // record) * record
        assert reported == stream.steps - before


def test_no_rounding_error_waits_for_one_record_more():
    """20 updates of 32 transitions that are trained on 10 times each: exactly one record of 64."""
    stream = Stream(envs=4, length=16)
    source, _ = make(stream, start=64, steps_per_update=32 / Fraction("10.0"))
    while not source._warm:
        source.next()
    before = stream.steps
    for rounds in range(1, 50):
        for _ in range(20):
            source.next()
        assert stream.steps - before == 64 * rounds


@pytest.mark.parametrize("kind", [UniformReplay, PRIORITIZED])
def test_every_record_goes_to_lanes_of_its_own(kind):
    """Of three actors, whose unrolls of 4 environments travel as two records of 2."""
    order = (5, 3, 3, 7, 5, 7)
    stream = Stream(order, sources=(3, 5, 7), records=2, envs=2, length=4, ends=0.2)
    source, replay = make(stream, kind)
    for _ in range(20):
        source.next()
    trial = Trial(kind, stack=SPEC.stack, lanes=12, length=40, n_steps=N_STEPS)
    trial.replay = replay
    trial.reference = Reference(SPEC.stack, 12, 40, N_STEPS)
    for lane, rows in stream.told:
        trial.reference.add(lane, rows)
    trial.check()


def test_a_batch_is_what_was_sampled():
    stream = Stream(ends=0.2)
    source, _ = make(stream)
    warm(source)
    batch = source.next()
    trial = Trial(UniformReplay, lanes=2, length=40, n_steps=N_STEPS)
    trial.reference = Reference(SPEC.stack, 2, 40, N_STEPS)
    for lane, rows in stream.told:
        trial.reference.add(lane, rows)
    starts = trial.reference.starts()
    wanted = [starts[key] for key in trial.keys(batch)]
    np.testing.assert_array_equal(batch.stacks, [each.stack for each in wanted])
    assert batch.rewards.tolist() == [each.reward for each in wanted]


def test_an_actor_is_owed_one_version_per_unroll():
    publisher = Publisher()
    stream = Stream((3, 5, 3, 5), records=2)
    source, _ = make(stream, publisher=publisher)
    owed = []
    for _ in range(5):
        source.next()
        owed.append(list(publisher.debts))
    assert owed == [[], [], [3], [3, 5], [3, 5]]


def test_in_turn_waits_for_its_source_and_owes_nobody():
    publisher = Publisher()
    stream = Stream((3, 3, 5, 5), records=2)
    turns = (3, 3, 5, 5)
    source, _ = make(stream, publisher=publisher, in_turn=lambda k: turns[k % 4])
    for _ in range(8):
        source.next()
    assert stream.released == [*turns, *turns]
    assert publisher.debts == []
    other, _ = make(Stream((3, 5)), in_turn=lambda _: 5, silence_s=0.05)
    with pytest.raises(SilenceError, match="an actor's unroll"):
        other.next()


def test_one_stuck_actor_among_others_is_noticed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("drl_mpi.experience.intake.Watch", partial(Watch, clock=lambda: now[0]))
    source, _ = make(Stream((3,), sources=(3, 5)), silence_s=0.05)
    source.next()
    now[0] = 0.06
    with pytest.raises(SilenceError, match="nothing came from rank 5"):
        source.next()


def test_statistics_are_of_what_came_in_not_of_what_was_sampled():
    source, _ = make(Stream(), steps_per_update=Fraction(20))
    warm(source)
    batch = source.next()
    assert len(batch) == SIZE
    assert batch.steps == 16
    assert batch.versions.tolist() == [6, 6, 7, 7], "after 2 records to warm up and 3 for a batch"


def test_gauges_are_since_the_last_call():
    source, replay = make(Stream())
    source.next()
    gauges = source.gauges()
    assert gauges["replay_size"] == 8
    assert np.isnan(gauges["replay_age"])
    warm(source)
    ages = [source.next().mean_age for _ in range(3)]
    source.gauges()
    ages = [source.next().mean_age for _ in range(3)]
    assert source.gauges() == {"replay_size": replay.size, "replay_age": np.mean(ages)}
    assert np.isnan(source.gauges()["replay_age"])


def priorities(replay):
    return replay.state()["priorities"].copy()


def test_priorities_are_handed_back_with_the_next_batch():
    source, replay = make(Stream(), PRIORITIZED)
    warm(source)
    batch = source.next()
    slots, before = batch.indices.copy(), priorities(replay)
    assert set(before) == {0.0, 1.0}
    batch.errors = torch.linspace(0.0, 9.0, SIZE)
    last = dict(zip(slots.tolist(), batch.errors.tolist()))  # of a slot drawn twice
    assert np.array_equal(priorities(replay), before), "not before the gradient is on its way"
    source.next()
    after = priorities(replay)
    for slot, error in last.items():
        assert after[slot] == pytest.approx((error + 0.01) ** 0.5)
    others = [slot for slot in range(len(before)) if slot not in last and before[slot]]
    assert np.array_equal(after[others], before[others])
    largest = (9 + 0.01) ** 0.5
    assert set(after[len(before) :]) <= {0.0, np.float64(largest)}, "the new ones come first"


def test_a_loss_that_leaves_no_errors_changes_no_priorities():
    source, replay = make(Stream(), PRIORITIZED)
    warm(source)
    for _ in range(5):
        source.next()
    assert set(priorities(replay)) == {0.0, 1.0}


def test_beta_is_asked_for_with_every_batch():
    beta = [0.0]
    source, _ = make(Stream(), PRIORITIZED, beta=lambda: beta[0])
    warm(source)
    source.next().errors = torch.linspace(0.0, 9.0, SIZE)
    assert set(source.next().weights.tolist()) == {1.0}
    beta[0] = 1.0
    weights = source.next().weights
    assert weights.min() < 0.5 < weights.max() == 1.0


def errors_of(batch):
    """Some, which depend on what was sampled."""
    return torch.from_numpy(np.abs(np.sin(batch.indices)).astype(np.float32))


@pytest.mark.parametrize("kind", [UniformReplay, PRIORITIZED])
@pytest.mark.parametrize("batches", [1, 5, 18])
def test_it_goes_on_where_it_was(kind, batches):
    """Warm or not, between two records, with errors that were not handed back yet."""
    stream = Stream((3, 5), records=2)
    source, _ = make(stream, kind, start=50, steps_per_update=Fraction(3))
    for _ in range(batches):
        batch = source.next()
        batch.errors = errors_of(batch) if batch.trainable else None
    # As a checkpoint has it: arrays copied, and between two unrolls, as actors begin anew.
    while any(taken % 2 for taken in stream._taken.values()):
        batch = source.next()
        batch.errors = errors_of(batch) if batch.trainable else None
    state = copy.deepcopy({**source.state(), **source.keepsakes()})
    twin = copy.deepcopy(stream)
    resumed, _ = make(twin, kind, start=50, steps_per_update=Fraction(3))
    resumed.restore(state)
    assert resumed.state()["rng"].keys() == source.state()["rng"].keys()
    for _ in range(20):
        one, other = source.next(), resumed.next()
        assert one.trainable == other.trainable
        assert one.steps == other.steps
        if one.trainable:
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_array_equal(one.stacks, other.stacks)
            np.testing.assert_array_equal(one.weights, other.weights)
            one.errors, other.errors = errors_of(one), errors_of(other)


def test_without_a_part_in_the_checkpoint_it_begins_with_an_empty_replay():
    """--learners may change between runs: there is then no part of this learner."""
    source, replay = make(Stream())
    source.restore({"rng": {"3": np.arange(6), "9": np.arange(6)}})
    assert replay.size == 0
    assert set(source.state()["rng"]) == {"3"}, "those of other learners' actors are left to them"
    assert not source.next().trainable


def test_a_replay_that_shrank_below_one_transition_warms_up_again():
    source, _ = make(Stream())
    warm(source)
    state = copy.deepcopy({**source.state(), **source.keepsakes()})
    state["replay"]["warm"] = True
    empty, replay = make(Stream())
    fresh = copy.deepcopy(empty.keepsakes()["replay"])
    empty.restore({**state, "replay": {**fresh, "warm": True}})
    assert replay.size == 0
    assert not empty.next().trainable


@pytest.mark.parametrize("start", [8, 100])
def test_what_comes_while_others_are_waited_for_counts_all_the_same(start):
    """Else actors that feed two learners would wait for one, which waits for the other."""
    stream = Stream()
    source, replay = make(stream, start=start, steps_per_update=Fraction(20))
    source.next()
    reported = 8
    for ahead in (0, 3, 1, 0, 2, 5) * 5:
        for _ in range(ahead):
            source.idle()
        assert replay.size == min(stream.steps, replay.capacity)
        before, credit, warm = stream.steps, source._credit, source._warm
        batch = source.next()
        reported += batch.steps
        assert reported == stream.steps, "with the next batch, whatever that is"
        if warm and credit >= 20:
            assert stream.steps == before, "a batch that is paid for waits for nothing"
    assert source._credit < 20 + 5 * 8


def test_in_lockstep_nothing_is_taken_out_of_turn():
    stream = Stream()
    source, _ = make(stream, in_turn=lambda _: 3)
    source.idle()
    assert stream.steps == 0


def test_drain_throws_away_what_arrives_until_all_have_ended():
    stream = Stream()
    source, replay = make(stream)
    source.next()
    left = iter([True, True, False])
    take = stream.take
    stream.take = lambda source=None: take(source) if next(left) else None
    assert source.drain() is None
    assert len(stream.released) == 3
    assert replay.size == 8
    stream.ended = True
    assert source.drain() is True
    source.close()
    assert stream.closed
