"""The queue, with a scripted stream: what a batch is made of, and who is owed parameters."""

from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from drl_mpi.comm.poller import Poller, SilenceError, Watch
from drl_mpi.experience import Batch, UnrollQueue, UnrollReplay
from drl_mpi.experience.rng import make_rng

SILENCE_S = 50.0


@dataclass
class Loan:
    source: int
    slot: object
    index: int


class Slots:
    """A slot that a released delivery no longer opens."""

    def __init__(self, fields):
        self.fields = fields


class Stream:
    """A receiver with what has arrived so far: (source, fields), oldest first."""

    def __init__(self, *arrived):
        self.inbox = deque(arrived)
        self.released = []
        self.depth = 2
        self.ended = False
        self.sources = (1, 2, 3, 4, 5, 7)

    def take(self, source=None):
        for item in self.inbox:
            if source in (None, item[0]):
                self.inbox.remove(item)
                return Loan(item[0], Slots(item[1]), len(self.released))
        return None

    def arrived(self, source):
        return any(item[0] == source for item in self.inbox)

    def release(self, loan):
        self.released.append(loan.source)
        for values in loan.slot.fields.values():
            values[...] = 0  # the next record arrives in the same memory


class Publisher:
    def __init__(self):
        self.debts = []

    def owe(self, rank):
        self.debts.append(rank)


def poller():
    """Its time passes while it sleeps, not while the machine is busy with other things."""
    now = [0.0]
    return Poller(SILENCE_S, lambda: now[0], lambda s: now.__setitem__(0, now[0] + 1000 * s))


def queue(stream, batch, envs, publisher=None, **options):
    """``batch``: one, or several that are filled in turn."""
    batches = [batch] if isinstance(batch, Batch) else batch
    return UnrollQueue(stream, batches, envs, poller(), publisher or Publisher(), **options)


def test_batches_are_made_in_the_order_of_arrival(make_shape, make_fields):
    two = make_shape(envs=2)
    stream = Stream(*((source, make_fields(two, n)) for n, source in enumerate((5, 4, 5, 4))))
    publisher = Publisher()
    source = queue(stream, Batch(make_shape(envs=4)), 2, publisher)
    batch = source.next()
    assert batch.rewards[0].tolist() == [0.0, 1.0, 100.0, 101.0]
    assert batch.versions.tolist() == [0, 0, 1, 1]
    assert publisher.debts == [5, 4]
    assert stream.released == [], "slots go back when the version that they made was published"
    batch = source.next()
    assert stream.released == [5, 4]
    assert batch.rewards[0].tolist() == [200.0, 201.0, 300.0, 301.0]
    assert batch.versions.tolist() == [2, 2, 3, 3]


def test_a_batch_may_need_more_records_than_receives_are_posted(make_shape, make_fields):
    """Else the stream would wait for the batch, and the batch for the stream."""
    two = make_shape(envs=2)
    stream = Stream(*((5, make_fields(two, n)) for n in range(4)))
    source = queue(stream, Batch(make_shape(envs=8)), 2)
    assert source.next().rewards[0].tolist() == [0, 1, 100, 101, 200, 201, 300, 301]
    assert stream.released == [5, 5, 5], "never holds all of a source's receives"


def test_one_stuck_actor_among_others_is_noticed(make_shape, make_fields, monkeypatch):
    two = make_shape(envs=2)
    now = [0.0]
    watch = partial(Watch, clock=lambda: now[0])
    monkeypatch.setattr("drl_mpi.experience.intake.Watch", watch)
    stream = Stream(*((5, make_fields(two, n)) for n in range(4)))
    stream.sources = (4, 5)
    source = queue(stream, Batch(two), 2)
    source.next()
    now[0] = 40.0
    source.next()
    now[0] = 60.0
    with pytest.raises(SilenceError, match="nothing came from rank 4"):
        source.next()


def test_a_batch_holds_every_field_of_its_unrolls(make_shape, make_fields):
    two = make_shape(envs=2)
    first, second = make_fields(two, 1), make_fields(two, 2)
    copies = [{name: values.copy() for name, values in f.items()} for f in (first, second)]
    batch = queue(Stream((1, first), (2, second)), Batch(make_shape(envs=4)), 2).next()
    for name in ("firsts", "actions", "rewards", "discounts", "log_probs", "state"):
        expected = np.concatenate([c[name] for c in copies], axis=1)
        np.testing.assert_array_equal(getattr(batch, name).numpy(), expected, err_msg=name)
    resets = np.concatenate([c["resets"] for c in copies], axis=1)
    np.testing.assert_array_equal(batch.valid.numpy(), ~resets[-3:])
    assert batch.waited_s == sum(float(c["waited_s"]) for c in copies)
    assert batch.worked_s == sum(float(c["worked_s"]) for c in copies)


def test_statistics_are_of_one_batch_only(make_shape, make_fields):
    two = make_shape(envs=2)
    ended = make_fields(two, 1)
    ended["episode_lengths"][2, 1] = 17
    ended["episode_lengths"][0, 0] = 3
    ended["episode_returns"][...] = np.nan
    ended["episode_returns"][2, 1] = -21.0
    ended["episode_returns"][0, 0] = 4.5
    source = queue(Stream((1, ended), (1, make_fields(two, 2))), Batch(two), 2)
    batch = source.next()
    assert sorted(batch.episode_returns) == [-21.0, 4.5]
    batch = source.next()
    assert batch.episode_returns == []


@pytest.mark.parametrize("fresh", [2, 4, 6])
def test_replay_tops_up_what_is_not_fresh(make_shape, make_fields, fresh):
    two, wide = make_shape(envs=2), make_shape(envs=8)
    replay = UnrollReplay(wide, 100, make_rng(1))
    stream = Stream(*((1, make_fields(two, n)) for n in range(3 * fresh // 2)))
    source = queue(stream, Batch(wide), 2, replay=replay, fresh=fresh)
    for update in range(3):
        batch = source.next()
        numbers = [update * fresh // 2 + i for i in range(fresh // 2)]
        assert batch.versions.tolist() == np.repeat(numbers, 2).tolist()
        assert replay.size == (update + 1) * fresh
        seen = {100.0 * n + env for n in range(numbers[-1] + 1) for env in range(2)}
        assert set(batch.rewards[0, fresh:].tolist()) <= seen
    assert not stream.inbox


def test_in_turn_takes_sources_in_the_given_order_and_owes_nobody(make_shape, make_fields):
    two = make_shape(envs=2)
    arrived = [(2, 20), (2, 21), (1, 10), (1, 11)]
    stream = Stream(*((source, make_fields(two, n)) for source, n in arrived))
    publisher = Publisher()
    source = queue(stream, Batch(make_shape(envs=4)), 2, publisher, in_turn=lambda k: (1, 2)[k % 2])
    assert source.next().versions.tolist() == [10, 10, 20, 20]
    assert source.next().versions.tolist() == [11, 11, 21, 21]
    assert publisher.debts == []


def test_in_turn_waits_for_its_source_though_others_are_there(make_shape, make_fields):
    two = make_shape(envs=2)
    source = queue(Stream((2, make_fields(two, 1))), Batch(two), 2, in_turn=lambda _: 1)
    with pytest.raises(SilenceError, match="an actor's unroll"):
        source.next()


def words(number):
    return np.arange(6, dtype=np.uint64) + np.uint64(2**63 + number)


def test_an_actor_is_owed_one_version_per_unroll(make_shape, make_fields):
    """Its unroll of 4 environments travels as two records of 2."""
    two, publisher = make_shape(envs=2), Publisher()
    stream = Stream(*((source, make_fields(two, n)) for n, source in enumerate((1, 2, 1, 2, 1))))
    source = queue(stream, Batch(two), 2, publisher, records=2)
    owed = []
    for _ in range(5):
        source.next()
        owed.append(list(publisher.debts))
    assert owed == [[], [], [1], [1, 2], [1, 2]]


def test_rngs_of_other_learners_actors_are_left_to_them(make_shape):
    source = queue(Stream(), Batch(make_shape()), 2)
    source.restore({"rng": {"7": np.arange(6), "9": np.arange(6)}})
    assert set(source.state()["rng"]) == {"7"}


def test_rngs_are_those_after_the_newest_consumed_unroll(make_shape, make_fields):
    two = make_shape(envs=2)
    records = [(source, make_fields(two, n)) for n, source in enumerate((7, 3, 7))]
    for number, (_, fields) in enumerate(records):
        fields["rng"][:] = words(number)
    source = queue(Stream(*records), Batch(make_shape(envs=6)), 2)
    source.next()
    state = source.state()
    assert list(state["rng"]) == ["3", "7"]
    np.testing.assert_array_equal(state["rng"]["3"], words(1))
    np.testing.assert_array_equal(state["rng"]["7"], words(2))
    resumed = queue(Stream(), Batch(two), 2)
    resumed.restore(state)
    assert set(resumed.state()["rng"]) == {"3", "7"}
    np.testing.assert_array_equal(resumed.state()["rng"]["7"], state["rng"]["7"])


def test_the_replay_is_part_of_the_state(make_shape, make_fields):
    two = make_shape(envs=2)

    def make():
        replay = UnrollReplay(two, 10, make_rng(1))
        stream = Stream(*((1, make_fields(two, n)) for n in range(3)))
        return queue(stream, Batch(make_shape(envs=4)), 2, replay=replay, fresh=2), replay

    source, replay = make()
    source.next()
    resumed, restored = make()
    resumed.restore({**source.state(), **source.keepsakes()})
    assert restored.size == replay.size == 2
    resumed._receiver.inbox.popleft()  # what the other has trained on
    np.testing.assert_array_equal(source.next().rewards, resumed.next().rewards)


def test_a_learner_that_the_checkpoint_has_no_replay_for_starts_with_an_empty_one(make_shape):
    """--learners may change between runs: there is then no part of this learner."""
    two = make_shape(envs=2)
    replay = UnrollReplay(two, 10, make_rng(1))
    source = queue(Stream(), Batch(make_shape(envs=4)), 2, replay=replay, fresh=2)
    source.restore({"rng": {}})
    assert replay.size == 0


def test_drain_throws_away_what_arrives_until_all_have_ended(make_shape, make_fields):
    two = make_shape(envs=2)
    stream = Stream((1, make_fields(two, 1)), (2, make_fields(two, 2)))
    source = queue(stream, Batch(two), 2)
    assert source.drain() is None
    assert stream.released == [1, 2]
    stream.ended = True
    assert source.drain() is True


@pytest.mark.parametrize(("fresh", "envs"), [(3, 2), (0, 1), (10, 2), (-2, 2)])
def test_widths_that_do_not_fit_are_refused(make_shape, fresh, envs):
    with pytest.raises(ValueError, match="fresh columns cannot be filled"):
        queue(Stream(), Batch(make_shape(envs=8)), envs, fresh=fresh)


def test_poll_gives_the_batches_of_next_as_records_come(make_shape, make_fields):
    two = make_shape(envs=2)
    records = [(source, make_fields(two, n)) for n, source in enumerate((5, 4, 5, 4))]
    stream, publisher = Stream(), Publisher()
    source = queue(stream, Batch(make_shape(envs=4)), 2, publisher)
    seen = []
    for record in records:
        assert source.poll() is None
        stream.inbox.append(record)
        if (batch := source.poll()) is not None:
            seen.append((batch.rewards[0].tolist(), batch.steps, list(stream.released)))
    assert seen == [([0, 1, 100, 101], 12, []), ([200, 201, 300, 301], 12, [5, 4])]
    assert publisher.debts == [5, 4, 5, 4]
    assert not stream.inbox, "what is there is unpacked though the batch is not full"
    assert source.poll() is None
    assert stream.released == [5, 4, 5, 4]


def test_a_poll_that_finds_too_little_is_gone_on_from_by_next(make_shape, make_fields):
    two = make_shape(envs=2)
    stream = Stream((1, make_fields(two, 1)))
    source = queue(stream, Batch(make_shape(envs=4)), 2)
    assert source.poll() is None
    stream.inbox.append((1, make_fields(two, 2)))
    batch = source.next()
    assert batch.versions.tolist() == [1, 1, 2, 2]
    assert batch.steps == 12


@pytest.mark.parametrize("how", ["next", "poll"])
def test_a_batch_is_valid_until_its_turn_comes_again(make_shape, make_fields, how):
    """As many trainers may be at work as there are batches."""
    two, wide = make_shape(envs=2), make_shape(envs=4)
    stream = Stream(*((1, make_fields(two, n)) for n in range(10)))
    stream.depth = 20
    source = queue(stream, [Batch(wide) for _ in range(3)], 2)
    batches = [getattr(source, how)() for _ in range(3)]
    assert len({id(batch) for batch in batches}) == 3
    for turn, batch in enumerate(batches):
        assert batch.versions.tolist() == np.repeat([2 * turn, 2 * turn + 1], 2).tolist()
        assert batch.rewards[0, ::2].tolist() == [200.0 * turn, 200.0 * turn + 100.0]
    kept = [batch.rewards.clone() for batch in batches]
    assert getattr(source, how)() is batches[0]
    assert batches[0].versions.tolist() == [6, 6, 7, 7]
    assert [bool((batch.rewards == old).all()) for batch, old in zip(batches, kept)] == [
        False, True, True,
    ]  # fmt: skip


def test_a_half_filled_batch_is_the_one_whose_turn_it_is(make_shape, make_fields):
    two, wide = make_shape(envs=2), make_shape(envs=4)
    stream = Stream(*((1, make_fields(two, n)) for n in range(5)))
    stream.depth = 20
    source = queue(stream, [Batch(wide), Batch(wide)], 2)
    first, second = source.poll(), source.poll()
    assert source.poll() is None
    assert first.rewards[0].tolist() == [400.0, 401.0, 100.0, 101.0], "the oldest is filled anew"
    assert second.rewards[0].tolist() == [200.0, 201.0, 300.0, 301.0]
    assert second.versions.tolist() == [2, 2, 3, 3]


def test_a_replay_tops_up_polled_batches(make_shape, make_fields):
    two, wide = make_shape(envs=2), make_shape(envs=8)
    replay = UnrollReplay(wide, 100, make_rng(1))
    stream = Stream((1, make_fields(two, 7)))
    source = queue(stream, [Batch(wide), Batch(wide)], 2, replay=replay, fresh=2)
    batch = source.poll()
    assert batch.versions.tolist() == [7, 7]
    assert set(batch.rewards[0].tolist()) == {700.0, 701.0}
    assert source.poll() is None
    assert replay.size == 2


def test_the_receivers_gauges_are_logged(make_shape):
    stream = Stream()
    stream.gauges = lambda: {"pps": 7.0}
    assert queue(stream, Batch(make_shape()), 2).gauges() == {"pps": 7.0}
