"""The learner's loop with scripted rooms around it: when it publishes, saves and ends."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drl_mpi.comm.poller import Poller
from drl_mpi.envs import EnvSpec
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.roles.info import WIDTH
from drl_mpi.roles.learner import Learner, Rhythm
from drl_mpi.roles.training import OwnTraining
from drl_mpi.updating.protocol import Wish

SHAPE = UnrollShape(EnvSpec("any", (3,), "float32", 1, 2, 1), 4, 2)
STEPS = 8
"""Of every batch."""


class Source:
    """Gives one batch again and again; the first ``filling`` are not to be trained on."""

    def __init__(self, log, filling=0, replay=None):
        self.log, self.filling, self.replay = log, filling, replay
        self.closed = False
        self.batch = Batch(SHAPE)
        self.batch.versions = np.zeros(1, np.int64)
        self.batch.steps = STEPS

    def next(self):
        self.batch.trainable = self.filling <= 0
        self.filling -= 1
        return self.batch

    def idle(self):
        self.log.append("idle")

    def drain(self):
        return True

    def close(self):
        self.closed = True

    def gauges(self):
        return {"replay_size": 17.0}

    def state(self):
        return {"rng": "words"}

    def keepsakes(self):
        self.log.append("keepsakes")
        return {"replay": self.replay} if self.replay else {}


class Loss:
    """Checks that the parameters are current, and that it was prepared for their version."""

    def __init__(self, rooms, kept=None):
        self.rooms, self.kept = rooms, kept
        self.prepared = []
        self.weight = torch.zeros(1, requires_grad=True)

    def prepare(self, version):
        assert self.rooms.current
        self.prepared.append(version)

    def __call__(self, batch):
        assert batch is self.rooms.source.batch
        assert self.prepared[-1] == self.rooms.version
        return (self.weight * 2 + 5).sum(), {"loss": torch.tensor(3.0)}

    def state(self):
        return self.kept or {}


class Rooms:
    """Updating, publisher, journal and group in one, which write down what is asked of them."""

    def __init__(
        self, version=0, *, end=1000, stop_at=None, save_at=(), filling=0, replay=None, kept=None,
        outliers=None,
    ):  # fmt: skip
        self.version = self.rounds = version
        self.steps = STEPS * version
        self.end, self.stop_at, self.save_at = end, stop_at, save_at
        self.gradient_norm = 1.5
        self.infos = np.zeros((1, WIDTH), np.float32)
        self.agreed, self.current, self.outliers = Wish(), False, outliers
        self.published, self.owed, self.saved, self.noted, self.log = [], False, [], [], []
        self.lags = 0
        self.losses, self.gauges_at, self.scalars, self.parts = [], [], [], []
        self.under_way = 0
        """Steps that servers have heard of, and this learner not yet."""
        self.late = self.infos[:0]
        """What other learners tell only when all have come together."""
        self.source = Source(self.log, filling, replay)
        self.loss = Loss(self, kept)

    # updating

    @property
    def over(self):
        return self.version >= self.end

    def pull(self):
        if not self.current:
            self.log.append("pull")
        self.current = True

    def apply(self, gradient, info, *, loss, steps, wish):
        assert self.current
        self.losses.append((float(gradient), loss))
        self.version += 1
        self.rounds += 1
        return self.skip(info, steps=steps, wish=wish)

    def skip(self, info, *, steps, wish):
        self.infos, self.agreed, self.current = info[np.newaxis].copy(), wish, False
        self.steps += steps
        self.log.append("apply")
        return self.version

    def gauges(self):
        return {"learning_rate": 0.25}

    def settle(self):
        self.log.append("settle")
        self.infos = self.late

    def forget(self):
        self.log.append("forget")
        self.current = False

    def keepsakes(self):
        return {"outliers": self.outliers} if self.outliers else {}

    def state(self):
        assert self.current
        self.log.append("state")
        counters = {"steps": self.steps + self.under_way, "version": self.version}
        return {"version": self.version, "counters": counters}

    def close(self):
        self.log.append("close")

    # publisher

    subscribed = True

    def publish(self, _vector, version, steps):
        assert steps == self.steps
        self.published.append((version, self.owed))
        self.owed = False

    def owe_all(self):
        self.owed = True

    def progress(self):
        pass

    def stop(self):
        return True

    # journal

    def wishes(self):
        return self.version in self.save_at, self.version == self.stop_at

    def update(self, version, steps, summary, scalars, gauges):
        assert (version, steps) == (self.version, self.steps)
        self.lags += summary.lag_count
        self.log.append("update")
        self.scalars.append(scalars)
        self.gauges_at.append(gauges)

    def save(self, state, learners):
        assert learners == [{"rng": "words", "kept": self.parts[-1][1] if self.parts else ""}]
        self.log.append("save")
        self.saved.append(state["version"])

    def note(self, message):
        self.noted.append(message)

    # group

    def gather(self, value):
        self.log.append("gather")
        return [value]

    def share(self, mark):
        self.log.append("share")
        return mark if any(mark) else (self.steps, self.version)  # as the first learner has it

    def meet(self, _poller, _what, meanwhile=lambda: None):
        meanwhile()
        self.log.append("meet")

    # the part of a checkpoint

    def keep(self, mark, state):
        self.log.append("keep")
        self.parts.append((mark, f"checksum {len(self.parts)}", state))
        return self.parts[-1][1]


class Training(OwnTraining):
    closed = 0

    def close(self):
        self.closed += 1


def learn(rooms, rhythm=None, *, leads=True):
    class Flat:
        vector, gradient = torch.zeros(2), torch.zeros(1)

        def zero_grad(self):
            rooms.loss.weight.grad = self.gradient
            self.gradient.zero_()

    flat, poller = Flat(), Poller(1.0)
    training = rooms.training = Training(flat, rooms.source, rooms.loss, rooms, poller)
    return Learner(
        flat, rooms.source, rooms.loss, training, rooms, rooms, poller, rhythm or Rhythm(),
        rooms if leads else None, rooms, rooms.keep,
        lambda version, steps: {"exploration": version + steps / 1000},
    ).run()  # fmt: skip


def versions(rooms):
    return [version for version, _ in rooms.published]


def test_it_ends_with_its_updating_and_saves_there():
    rooms = Rooms(end=3)
    assert learn(rooms) is True
    assert rooms.published == [(0, True), (1, False), (2, False), (3, False)]
    assert rooms.saved == [3]
    assert rooms.losses == [(2.0, 5.0)] * 3, "each gradient of its own, and its loss"
    assert rooms.loss.prepared == [0, 1, 2]
    assert rooms.source.closed
    assert rooms.training.closed == 1
    assert rooms.log[-1] == "close"


def test_a_wish_to_stop_is_granted_at_once_and_saved():
    rooms = Rooms(stop_at=4)
    assert learn(rooms) is False
    assert rooms.saved == [5]


def test_a_wish_to_save_is_granted():
    rooms = Rooms(save_at=(2, 6), end=9)
    learn(rooms)
    assert rooms.saved == [3, 7, 9]


def test_what_learners_agreed_on_counts_and_not_what_one_of_them_wished():
    """A learner that does not lead has no wishes; it saves and stops when the others say so."""
    rooms = Rooms()
    skip = rooms.skip

    def agree(info, *, steps, wish):
        assert wish == Wish()
        answer = skip(info, steps=steps, wish=wish)
        rooms.agreed = Wish(save=rooms.version == 2, stop=rooms.version == 4)
        return answer

    rooms.skip = agree
    assert learn(rooms, leads=False) is False
    assert rooms.log.count("gather") == 2
    assert rooms.version == 4


def test_lock_step_publishes_rounds_and_saves_and_stops_at_boundaries():
    rooms = Rooms(stop_at=5, save_at=(1,))
    assert learn(rooms, Rhythm(save_every=4, publish_every=2)) is False
    assert rooms.published == [(version, True) for version in (0, 2, 4, 6, 8)]
    assert rooms.saved == [4, 8]
    assert len(rooms.noted) == 1, "says that it stops later"


@pytest.mark.parametrize("version", [7, 9])
def test_nothing_left_to_do_wakes_nobody(version):
    """A lock-step run may end between boundaries: its actors must not act from there."""
    rooms = Rooms(version=version, end=7)
    assert learn(rooms, Rhythm(save_every=4, publish_every=2)) is True
    assert (rooms.published, rooms.owed, rooms.saved) == ([], False, [])
    assert rooms.source.closed
    assert rooms.log == ["close"]


@pytest.mark.parametrize("rhythm", [Rhythm(), Rhythm(save_every=4, publish_every=2)])
def test_experience_that_is_not_enough_to_learn_from_is_counted_and_nothing_else(rhythm):
    rooms = Rooms(end=4, filling=3)
    assert learn(rooms, rhythm) is True
    assert rooms.scalars[:3] == [{}] * 3
    assert rooms.loss.prepared == [0, 1, 2, 3]
    assert rooms.steps == 7 * STEPS
    assert versions(rooms) == ([0, 2, 4] if rhythm.save_every else [0, 1, 2, 3, 4])
    assert rooms.saved == [4], "and a lock-step run has no boundary before it learns"


def test_a_stop_while_a_replay_fills_is_saved_too():
    rooms = Rooms(stop_at=0, filling=100)
    assert learn(rooms) is False
    assert (rooms.saved, rooms.steps) == ([0], STEPS)


def test_what_is_logged():
    rooms = Rooms(end=2)
    learn(rooms)
    assert rooms.scalars == [{"loss": 3.0, "gradient_norm": 1.5}] * 2
    assert rooms.lags == 2
    gauges = rooms.gauges_at[-1]()
    assert gauges == {"replay_size": 17.0, "learning_rate": 0.25, "exploration": 2.016}


def test_a_checkpoint_is_made_while_nobody_pushes():
    """When all are there, the parameters; then parts, and the file last; then all ask anew."""
    rooms = Rooms(end=3, save_at=(0,), replay={"rows": 1}, kept={"target": 2}, outliers={"mean": 3})
    learn(rooms)
    step = ["pull", "apply", "update"]
    part = ["keepsakes", "keep", "meet", "gather"]
    save = ["pull", "idle", "meet", "settle", "state", "share", *part, "save"]
    assert rooms.log == [*step, *save, "forget", *step, *step, *save, "forget", "close"]
    kept = {"replay": {"rows": 1}, "loss": {"target": 2}, "outliers": {"mean": 3}}
    assert [(mark, state) for mark, _, state in rooms.parts] == [((8, 1), kept), ((24, 3), kept)]


def test_while_it_waits_for_the_others_it_lets_actors_go_on():
    """An actor that feeds several learners waits for the slowest."""
    rooms = Rooms(end=1)
    learn(rooms)
    assert rooms.log.index("idle") < rooms.log.index("meet")


def test_what_was_saved_is_not_saved_again_before_anything_is_learnt():
    rooms = Rooms(end=3, filling=4, save_at=(0,))
    rooms.source.batch.steps = 0  # nothing comes in, and nothing is learnt
    learn(rooms)
    assert rooms.saved == [0, 1, 3]


def test_what_others_tell_late_is_in_the_checkpoint():
    rooms = Rooms(end=1)
    rooms.late = np.zeros((2, WIDTH), np.float32)
    rooms.late[:, 1] = 3.0  # fresh unrolls
    learn(rooms)
    assert rooms.lags == 1 + 6
    assert rooms.log.index("settle") < len(rooms.log) - 1 - rooms.log[::-1].index("update")
    assert rooms.log[-3:] == ["save", "forget", "close"]
    assert rooms.scalars[-1] == {}


def test_a_learner_with_nothing_to_keep_writes_no_part():
    rooms = Rooms(end=1)
    learn(rooms)
    assert rooms.saved == [1]
    assert rooms.parts == []
    rooms = Rooms(end=1, kept={"target": 2})
    learn(rooms)
    assert rooms.parts[0][2] == {"loss": {"target": 2}}


def test_all_parts_are_written_under_the_count_of_what_is_saved():
    """Learners of servers know different numbers of steps, all smaller; the file has one name."""
    first, other = (Rooms(end=1, replay={"rows": 1}) for _ in range(2))
    first.under_way = 1000
    learn(first)
    assert [mark for mark, _, _ in first.parts] == [(STEPS + 1000, 1)]

    def share(own):
        assert own == (0, 0)
        return STEPS + 1000, 1

    other.share = share
    learn(other, leads=False)
    assert [mark for mark, _, _ in other.parts] == [(STEPS + 1000, 1)]
    assert other.saved == []
    assert "state" not in other.log
    for collective in ("meet", "gather"):
        assert other.log.count(collective) == first.log.count(collective)


def test_publishing_goes_on_while_it_waits():
    rooms = Rooms(end=1)
    poller = Poller(1.0)
    Learner(
        SimpleNamespace(), rooms.source, rooms.loss, SimpleNamespace(), rooms, rooms, poller,
        Rhythm(), rooms, rooms, rooms.keep,
    )  # fmt: skip
    assert poller.background == rooms.progress
