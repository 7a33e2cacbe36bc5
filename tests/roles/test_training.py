"""From batches to gradients: trainers beside the learner's thread make those that it would make."""

import threading
import time
import traceback

import numpy as np
import pytest
import torch

from drl_mpi.acting.versions import Versions
from drl_mpi.comm.poller import Bell, Poller, SilenceError
from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.nets import FlatParameters, make
from drl_mpi.roles.training import OwnTraining, TrainerThreads
from drl_mpi.systems.actor_critic_loss import ActorCriticLoss
from drl_mpi.systems.impala import Impala
from drl_mpi.systems.vtrace_loss import VTraceLoss

SOON_S = 60.0
"""For what happens at once in code that is right, on a machine that may be busy."""
MOMENT_S = 0.05
"""For what never happens in code that is right."""


class Numbered:
    """A batch that is filled again and again."""

    trainable = True

    def __init__(self):
        self.number = -1


class Ring:
    """A source with so many batches, used in turn; ``there`` more come."""

    taken = 0

    def __init__(self, width, there=10**9):
        self.batches = [Numbered() for _ in range(width)]
        self.there = there
        self.polled = 0

    def poll(self):
        if self.polled >= self.there:
            return None
        batch = self.batches[self.polled % len(self.batches)]
        batch.number = self.polled
        self.polled += 1
        return batch


class Loss:
    """Notes what it is asked; holds up the batches that are to be held up."""

    def __init__(self, trainers, number, flat):
        self.trainers, self.number, self.flat = trainers, number, flat
        self.version = None

    def prepare(self, version):
        self.version = version

    def __call__(self, batch):
        trainers, number = self.trainers, batch.number
        with trainers.lock:
            trainers.begun.append(number)
            trainers.at_work += 1
            trainers.most_at_work = max(trainers.most_at_work, trainers.at_work)
        trainers.began.release()
        if number in trainers.gates:
            assert trainers.gates[number].wait(SOON_S)
        if number in trainers.broken:
            self.break_down(number)
        assert batch.number == number, "a batch is valid while it is trained on"
        with trainers.lock:
            trainers.done.append(number)
            trainers.at_work -= 1
            trainers.by[number] = self.number
            trainers.versions[number] = self.version
            trainers.threads[number] = torch.get_num_threads()
        parameters = self.flat.split(self.flat.vector)["weight"]
        assert (parameters == self.version).all()
        weight = trainers.nets[self.number].weight
        return (weight * float(number + 1)).sum(), {"number": torch.tensor(float(number))}

    def break_down(self, number):
        raise ValueError(f"batch {number} is broken")


class Trainers:
    """Trainer threads with what they did."""

    def __init__(self, source, *, published=True, held=(), broken=(), clock=None):
        self.lock = threading.Lock()
        self.begun, self.done = [], []
        self.by, self.versions, self.threads = {}, {}, {}
        self.at_work = self.most_at_work = 0
        self.began = threading.Semaphore(0)
        self.gates = {number: threading.Event() for number in held}
        self.broken = broken
        self.nets, self.made_by = [], []
        self.store = Versions()
        self.bell = Bell()
        if published:
            self.publish(0)
        options = {} if clock is None else {"clock": clock}
        self.training = TrainerThreads(
            source, self.make, self.store, lambda active: 4 - active,
            Poller(SOON_S, sleep=self.bell.sleep), self.bell.ring, **options,
        )  # fmt: skip

    def make(self):
        net = torch.nn.Linear(3, 2, bias=False)
        flat = FlatParameters(net)
        with self.lock:
            self.nets.append(net)
            self.made_by.append(threading.current_thread().name)
            return flat, Loss(self, len(self.nets) - 1, flat)

    def publish(self, number):
        self.store.publish(np.full(6, number, np.float32), number, 0)

    def next(self):
        trained = self.training.next()
        number = trained.batch.number
        assert (trained.gradient == number + 1).all()
        assert float(trained.scalars["number"]) == number
        assert trained.loss == pytest.approx((number + 1) * 6 * self.versions[number])
        return number

    def let(self, number):
        self.gates[number].set()

    def wait_begun(self, count):
        for _ in range(count):
            assert self.began.acquire(timeout=SOON_S)


@pytest.fixture
def trainers():
    """``trainers(source, ...)``, ended when the test is."""
    made = []

    def make(*args, **options):
        made.append(Trainers(*args, **options))
        return made[-1]

    yield make
    for each in made:
        for gate in each.gates.values():
            gate.set()
        each.training.close()


def in_background(call):
    """Starts ``call`` in a thread; returns it, and where its result will be."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    return thread, found


def until(ready):
    deadline = time.monotonic() + SOON_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


@pytest.mark.parametrize("active", [1, 2, 3])
def test_gradients_come_in_the_order_in_which_their_batches_were_begun(trainers, active):
    source = Ring(3)
    made = trainers(source)
    made.training.active = active
    for expected in range(30):
        assert made.next() == expected
        assert source.polled == expected + active, "so many are begun, and no more"
        assert made.training.trained == expected + 1
    assert made.most_at_work <= active
    assert len(made.nets) == active
    assert set(made.by.values()) == set(range(active))


def test_a_gradient_that_is_ready_early_waits_for_those_before_it(trainers):
    made = trainers(Ring(3), held=(0, 1))
    made.training.active = 3
    thread, found = in_background(made.next)
    made.wait_begun(3)
    thread.join(MOMENT_S)
    assert not found, "2 is done, and 0 is not"
    made.let(1)
    thread.join(MOMENT_S)
    assert not found
    made.let(0)
    thread.join(SOON_S)
    assert found == [0]
    assert [made.next() for _ in range(4)] == [1, 2, 3, 4]


def test_so_many_trainers_as_are_active_work_at_the_same_time(trainers):
    made = trainers(Ring(3), held=range(3))
    made.training.active = 3
    thread, found = in_background(made.next)
    made.wait_begun(3)
    assert made.at_work == 3
    assert set(made.begun) == {0, 1, 2}
    for number in range(3):
        made.let(number)
    thread.join(SOON_S)
    assert found == [0]


def test_trainers_may_become_fewer_and_more(trainers):
    source = Ring(3)
    made = trainers(source)
    made.training.active = 3
    assert [made.next(), source.polled] == [0, 3]
    made.training.active = 1
    assert [made.next(), source.polled] == [1, 3], "what was begun is not lost"
    assert [made.next(), source.polled] == [2, 3]
    made.most_at_work = 0
    assert [made.next(), source.polled] == [3, 4]
    assert [made.next(), source.polled] == [4, 5]
    assert made.most_at_work == 1
    made.training.active = 2
    assert [made.next(), source.polled] == [5, 7]
    assert [made.next(), source.polled] == [6, 8]
    assert len(made.nets) == 3, "those that rest are used again"


def test_each_gradient_is_of_the_version_that_was_newest_when_it_was_begun(trainers):
    made = trainers(Ring(2))
    made.training.active = 2
    for number in range(6):
        assert made.next() == number
        made.publish(10 + number)
    made.next()
    # 0 and 1 are begun together; then one whenever a gradient was applied.
    assert [made.versions[number] for number in range(7)] == [0, 0, 10, 11, 12, 13, 14]


def test_versions_are_not_copied(trainers):
    """A network of millions of parameters would be, for every gradient."""
    made = trainers(Ring(1))
    for number in range(3):
        made.publish(number)
        made.next()
        assert made.nets[0].weight.data_ptr() == made.store.newest.vector.data_ptr()


def test_nothing_begins_before_there_are_parameters(trainers):
    source = Ring(1)
    made = trainers(source, published=False)
    assert made.training._poll() is None
    assert source.polled == 0
    made.publish(7)
    assert made.next() == 0
    assert made.versions == {0: 7}


def test_a_batch_that_is_not_full_is_not_begun(trainers):
    source = Ring(2, there=1)
    made = trainers(source)
    made.training.active = 2
    assert made.next() == 0
    made.training._poller = Poller(0.02)
    with pytest.raises(SilenceError, match="an actor's unroll"):
        made.next()
    source.there = 2
    made.training._poller = Poller(SOON_S)
    assert made.next() == 1


def test_batches_and_gradients_last_until_the_next_is_asked_for(trainers):
    """While the others work on theirs; a ring has as many batches as there are trainers."""
    source = Ring(2)
    made = trainers(source, held=(1, 3))
    made.training.active = 2
    trained = made.training.next()
    made.wait_begun(2)
    for _ in range(2):
        assert trained.batch.number == 0
        assert (trained.gradient == 1).all()
        made.let(1)
        until(lambda: 1 in made.done)
    later = made.training.next()
    assert later.batch.number == 1
    assert (later.gradient == 2).all()
    assert later.gradient.data_ptr() != trained.gradient.data_ptr()
    made.let(3)
    assert made.next() == 2


def test_each_has_so_many_of_torchs_threads_as_its_share(trainers):
    before = torch.get_num_threads()
    made = trainers(Ring(3))
    shares = []
    for active in (1, 3, 1):
        made.training.active = active
        for _ in range(active + 2):
            number = made.next()
        shares.append(made.threads[number])
    assert shares == [3, 1, 3]
    assert torch.get_num_threads() == before, "the thread that talks MPI keeps its own"


@pytest.mark.parametrize("broken", [0, 3])
def test_an_error_comes_out_where_the_job_is_ended_with_its_traceback(trainers, broken):
    made = trainers(Ring(2), broken=(broken,))
    made.training.active = 2
    made.training._poller.sleep = lambda _: made.bell.sleep(SOON_S)
    for number in range(broken):
        assert made.next() == number
    with pytest.raises(ValueError, match=f"batch {broken} is broken") as caught:
        made.next()
    text = "".join(traceback.format_exception(caught.value))
    assert "break_down" in text
    assert "_train" in text


def test_a_gradient_wakes_who_waits(trainers):
    """Who would sleep for a minute."""
    made = trainers(Ring(2))
    made.training._poller.sleep = lambda _: made.bell.sleep(SOON_S)
    for number in range(5):
        assert made.next() == number
    assert made.training._poller.idle_s < SOON_S


def test_close_ends_all_threads_after_what_they_work_on(trainers):
    before = set(threading.enumerate())
    made = trainers(Ring(3), held=(1, 2))
    made.training.active = 3
    assert made.next() == 0
    made.wait_begun(3)
    threads = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in threads) == [f"trainer-{i}" for i in range(3)]
    closing, _ = in_background(made.training.close)
    closing.join(MOMENT_S)
    assert closing.is_alive()
    made.let(1)
    made.let(2)
    closing.join(SOON_S)
    assert not closing.is_alive()
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(made.done) == [0, 1, 2]


def test_trainers_are_made_when_they_are_needed(trainers):
    made = trainers(Ring(3))
    for _ in range(3):
        made.next()
    assert len(made.nets) == 1, "each has a network: memory that none of one needs"
    made.training.active = 3
    for _ in range(3):
        made.next()
    assert sorted(made.made_by) == [f"trainer-{i}" for i in range(3)], "each in its own thread"


def test_time_is_told_apart(trainers, monkeypatch):
    now = [0.0]
    made = trainers(Ring(1), clock=lambda: now[0])
    seen = []

    class Slow:
        """The source; asked by the learner's thread while the trainer rests."""

        taken = 0

        def poll(self):
            now[0] += 5.0
            return Numbered()

    made.training._source = Slow()
    inner = Loss.__call__

    def slow(loss, batch):
        now[0] += 3.0
        return inner(loss, batch)

    monkeypatch.setattr(Loss, "__call__", slow)
    for _ in range(3):
        trained = made.training.next()
        seen.append((trained.waited_s, trained.worked_s))
        now[0] += 2.0
    assert seen == [(0.0, 3.0), (7.0, 3.0), (7.0, 3.0)]


# The same as in the learner's own thread.

T, B = 6, 5
SPEC = EnvSpec("Numbers", (4,), "float32", stack=2, num_actions=3, action_repeat=1)


def network(core):
    net = make("mlp", (8,), 3, core=core, seed=1)
    with torch.no_grad():
        net.head.policy.weight.mul_(50)
    return net


def random_batch(net, seed):
    shape = UnrollShape(SPEC, T, B, net.state_shape)
    fields, rng = Slot(shape.record()).fields, np.random.default_rng(seed)
    for name in ("frames", "state", "rewards"):
        fields[name][...] = rng.normal(size=fields[name].shape)
    fields["actions"][...] = rng.integers(0, 3, (T, B))
    fields["log_probs"][...] = np.log(rng.uniform(0.1, 0.9, (T, B)))
    fields["discounts"][...] = 0.9 * (rng.random((T, B)) < 0.8)
    fields["resets"][...] = rng.random(fields["resets"].shape) < 0.2
    fields["firsts"][...] = fields["resets"][1:] | (rng.random((T + 1, B)) < 0.1)
    batch = Batch(shape)
    batch.begin()
    batch.write(0, fields)
    batch.note(fields)
    return batch


LOSSES = {
    "n-step": lambda net: ActorCriticLoss(net, 0.5, 0.01),
    "guarded": lambda net: ActorCriticLoss(net, 0.5, 0.01, 1e-6),
    "V-trace": lambda net: VTraceLoss(net, Impala()),
}


class Listed:
    """A source of batches that are there."""

    taken = 0

    def __init__(self, batches):
        self.batches = list(batches)

    def next(self):
        return self.batches.pop(0)

    def poll(self):
        return self.batches.pop(0) if self.batches else None


class Kept:
    """An updating that keeps no parameters current but counts versions."""

    version = 0

    def pull(self):
        pass


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("core", [None, "lstm"])
def test_a_trainers_gradient_is_the_learners_own_bit_for_bit(loss, core):
    net = network(core)
    flat = FlatParameters(net)
    batches = [random_batch(net, seed) for seed in range(4)]
    vectors = [flat.vector * (1 + number / 3) for number in range(4)]
    own = OwnTraining(flat, Listed(batches), LOSSES[loss](net), Kept(), Poller(SOON_S))
    expected = []
    for vector in vectors:
        flat.load(vector)
        trained = own.next()
        expected.append((trained.gradient.clone(), trained.loss, dict(trained.scalars)))
    assert len({bytes(gradient.numpy()) for gradient, _, _ in expected}) == 4

    versions, bell = Versions(), Bell()

    def make_trainer():
        other = make("mlp", (8,), 3, core=core, seed=9)
        return FlatParameters(other), LOSSES[loss](other)

    training = TrainerThreads(
        Listed(batches), make_trainer, versions, lambda _: torch.get_num_threads(),
        Poller(SOON_S, sleep=bell.sleep), bell.ring,
    )  # fmt: skip
    for number, (vector, batch) in enumerate(zip(vectors, batches)):
        versions.publish(vector.numpy(), number, 0)
        trained = training.next()
        gradient, value, scalars = expected[number]
        assert trained.batch is batch
        assert trained.loss == value
        assert torch.equal(trained.gradient, gradient)
        assert trained.scalars == scalars
        assert torch.equal(versions.newest.vector, vector), "nothing is written to a version"
    training.close()


def test_own_training_accounts_for_all_its_time():
    """What is waited for is not work; work is all that lies between two gradients."""
    now = [100.0]

    def sleep(_):
        now[0] += 1.0

    poller = Poller(SOON_S, lambda: now[0], sleep)

    class Source:
        waits = 3

        def next(self):
            answers = iter([None] * self.waits)
            poller.wait(lambda: next(answers, True), "it")
            now[0] += 0.5  # unpacking
            batch = Numbered()
            batch.trainable = self.waits != 2
            self.waits -= 1
            return batch

    class Flat:
        gradient = torch.zeros(1)

        def zero_grad(self):
            now[0] += 4.0

    prepared = []

    class Plain:
        def prepare(self, version):
            prepared.append(version)

        def __call__(self, _batch):
            return torch.zeros((), requires_grad=True) * 3 + 2, {"x": torch.tensor(1.0)}

    updating = Kept()
    training = OwnTraining(Flat(), Source(), Plain(), updating, poller, lambda: now[0])
    seen = []
    for updating.version in range(3):
        trained = training.next()
        seen.append((trained.waited_s, trained.worked_s, trained.loss, list(trained.scalars)))
        now[0] += 8.0  # the update
    assert seen == [(3.0, 4.5, 2.0, ["x"]), (2.0, 8.5, None, []), (1.0, 12.5, 2.0, ["x"])]
    assert prepared == [0, 2]
    training.close()


def test_a_batch_may_take_longer_than_the_silence_timeout(trainers):
    """Actors that send a record now and then are not silent."""

    class Slow(Ring):
        """Full with its fourth record; one comes with every call."""

        def poll(self):
            self.taken += 1
            time.sleep(SILENCE_S / 3)
            return super().poll() if self.taken % 8 == 0 else None

    made = trainers(Slow(1))
    made.training._poller.silence_s = SILENCE_S
    assert made.training.next().batch.number == 0


SILENCE_S = 0.3
