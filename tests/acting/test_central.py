"""The learner's end of central acting, on an exchange without messages.

Actors obey when the test lets them; every observation names its environment, game and row, so a
row, an action or an unroll that went astray shows.
"""

from collections import deque
from itertools import pairwise

import numpy as np
import pytest

from drl_mpi import envs
from drl_mpi.acting import central
from drl_mpi.acting.central import CentralActing
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.predictors import Served
from drl_mpi.acting.requests import Command, Kind, answer_record, request_record, write_rows
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.exchange import Asked
from drl_mpi.comm.poller import SilenceError
from drl_mpi.comm.record import Slot
from drl_mpi.envs.testing import register
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.experience.rng import make_rng
from drl_mpi.roles.unroller import Pace

LENGTHS = (5, -3, 1, 9)
SILENCE_S = 40.0
SEED = 1000
"""Of an actor's environments: its rank so many times, and 10 for each group before."""


class Server:
    """An exchange: what was asked comes with the next poll, what is answered is written down."""

    def __init__(self, keys, request, answer):
        self.requests = {key: Slot(request) for key in keys}
        self.answers = {key: Slot(answer) for key in keys}
        self.arrived = deque()
        self.sent = []
        """(source, channel, command) of every answer."""
        self.waiting = set()
        """Keys that asked and were not answered."""
        self.actors = {}
        self.is_drained = self.closed = False

    def poll(self):
        arrived = [Asked(*each) for each in self.arrived]
        self.arrived.clear()
        self.waiting |= {(asked.client, asked.channel) for asked in arrived}
        return arrived

    def request(self, client, channel):
        return self.requests[client, channel]

    def answer(self, client, channel):
        return self.answers[client, channel]

    def send(self, client, channel, *, last=False):
        key = client, channel
        assert key in self.waiting, f"{key} has not asked"
        self.waiting.remove(key)
        answer = self.answers[key]
        command = Command(int(answer["command"]))
        assert last == (command in (Command.END, Command.DISMISS))
        if command != Command.DISMISS:  # after a wrong number there is no right one
            assert int(answer["number"]) == self.actors[key].number - 1
        self.sent.append((*key, command))
        self.actors[key].told = command, int(answer["epoch"]), answer["actions"].copy()

    def drained(self):
        return True if self.is_drained else None

    def close(self):
        self.closed = True


class Actor:
    """A group of environments, as `roles.asking_actor` plays them."""

    def __init__(self, server, source, channel, env):
        self.server, self.key, self.env = server, (source, channel), env
        self.number = 0
        self.told = None
        self.steps = 0

    def ask(self, kind, rows=None, number=None, fault=""):
        slot = self.server.requests[self.key]
        slot["kind"][...] = kind
        slot["number"][...] = self.number if number is None else number
        slot["waited_s"][...], slot["worked_s"][...] = 0.5, 0.25
        if rows is not None:
            write_rows(slot, rows)
        self.number += 1
        self.server.arrived.append((*self.key, fault))

    def obey(self):
        """Does what it was told, if it was. Returns the command."""
        if self.told is None:
            return None
        (command, epoch, actions), self.told = self.told, None
        if command == Command.STEP:
            self.steps += 1
            self.ask(Kind.ROWS, self.env.step(actions))
        elif command == Command.RESTART:
            source, channel = self.key
            seed = SEED * source + 10 * channel + 100 * epoch
            self.ask(Kind.ROWS, self.env.reset(seed))
        elif command == Command.WAIT:
            self.ask(Kind.AGAIN)
        return command


class Predictors:
    """Serves one batch per ``serve``, or whatever comes if ``at_once``."""

    def __init__(self, versions, at_once):
        self.versions, self.at_once = versions, at_once
        self.put_so_far = []
        """(source, channel) of the lanes of every ``put``."""
        self.waiting, self.served = deque(), deque()
        self.rng = make_rng(5)
        self.closed = False

    def put(self, lanes):
        lanes = list(lanes)
        self.put_so_far.append([(lane.source, lane.channel) for lane in lanes])
        self.waiting.append(lanes)
        if self.at_once:
            self.serve()

    def serve(self):
        lanes, actions = self.waiting.popleft(), []
        for lane in lanes:
            lane.observe()
            actions.append(self.rng.integers(3, size=lane.envs))
            log_probs = np.full(lane.envs, -1.0, np.float32)
            lane.decide(actions[-1], log_probs, None, self.versions.newest.number, self.rng)
        self.served.append(Served(lanes, actions))

    def take(self):
        return self.served.popleft() if self.served else None

    def close(self):
        self.closed = True


class Service:
    """Central acting with everything around it."""

    def __init__(
        self, *, actors=2, groups=2, size=2, width=None, length=3, depth=1, at_once=True,
        published=True, **options,
    ):  # fmt: skip
        env_id = register("drl_mpi/Central-v0", lengths=LENGTHS)
        made = {
            (source, channel): envs.make(env_id, size, envs.EnvOptions(stack=2))
            for source in range(1, actors + 1)
            for channel in range(groups)
        }
        spec = next(iter(made.values())).spec
        self.now, self.length, self.size = 100.0, length, size
        self.server = Server(made, request_record(spec, size), answer_record(size))
        self.actors = self.server.actors
        for key, env in made.items():
            self.actors[key] = Actor(self.server, *key, env)
        shape = UnrollShape(spec, length, width or size)
        self.wide = UnrollShape(spec, length, size)
        self.lanes = {
            key: Lane(*key, shape, size, depth, gamma=0.9, reward_clip=0.0) for key in made
        }
        self.versions = Versions()
        self.predictors = Predictors(self.versions, at_once)
        self.unrolls = {key: [] for key in made}
        self.acting = CentralActing(
            self.server, list(self.lanes.values()), self.predictors, self.versions, depth,
            SILENCE_S, clock=lambda: self.now, **options,
        )  # fmt: skip
        if published:
            self.publish(0)

    def publish(self, version):
        self.acting.publish(np.full(3, version, np.float32), version, 10 * version)

    def hello(self, keys=None):
        for key in keys or self.actors:
            self.actors[key].ask(Kind.HELLO)

    def round(self, keys=None):
        """Everybody obeys, then the learner makes progress. Returns what was answered."""
        for key in keys or self.actors:
            self.actors[key].obey()
        return self.progress()

    def progress(self):
        """Until nothing moves. Returns what was answered: (source, channel, command)."""
        self.server.sent.clear()
        while self.acting.progress() or self.predictors.served:
            pass
        return list(self.server.sent)

    def begin(self):
        """All have said hello, were restarted, and stand before their first actions."""
        self.hello()
        self.progress()
        for actor in self.actors.values():
            actor.obey()

    def rounds(self, count, keys=None):
        for _ in range(count):
            self.round(keys)

    def take(self, source=None, keep=False):
        """An unroll: its deliveries, released unless they are kept."""
        delivery = self.acting.take(source)
        if delivery is None:
            return None
        deliveries = [delivery]
        while len(deliveries) < next(iter(self.lanes.values())).records:
            deliveries.append(self.acting.take(source))
        batch = Batch(self.wide)
        batch.begin()
        width = self.size // len(deliveries)
        for part, each in enumerate(deliveries):
            assert each.source == delivery.source
            batch.write(part * width, each.slot.fields)
            batch.note(each.slot.fields)
        environment = int(batch.observations[0, 0, -4])
        key = environment // SEED, environment % SEED % 100 // 10
        assert key[0] == delivery.source
        self.unrolls[key].append(batch)
        if keep:
            return deliveries
        for each in deliveries:
            self.acting.release(each)
        return key

    def take_all(self):
        keys = []
        while (key := self.take()) is not None:
            keys.append(key)
        return keys

    def check_unrolls(self):
        """Every row of every environment once, with the actions that led there."""
        for (source, channel), batches in self.unrolls.items():
            for before, after in pairwise(batches):
                assert (before.observations[-1] == after.observations[0]).all()
            for batch in batches:
                newest = batch.observations.numpy()[..., -4:].astype(int)
                base = SEED * source + 10 * channel
                expected = [[base + env for env in range(self.size)]] * (self.length + 1)
                assert (newest[..., 0] % 100 + newest[..., 0] // SEED * SEED).tolist() == expected
                valid = batch.valid.numpy()
                assert (newest[1:, :, 2][valid] == newest[:-1, :, 2][valid] + 1).all()
                assert newest[1:, :, 3][valid].tolist() == batch.actions.numpy()[valid].tolist()
                assert (newest[1:, :, 2][~valid] == 0).all()


def keys_of(sent, command):
    return [(source, channel) for source, channel, told in sent if told == command]


ALL = [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_who_says_hello_is_told_to_restart_and_then_what_to_play():
    service = Service(epoch=3, at_once=False)
    service.hello([(1, 1), (2, 0)])
    assert service.progress() == [(1, 1, Command.RESTART), (2, 0, Command.RESTART)]
    assert [service.actors[key].told[1] for key in ((1, 1), (2, 0))] == [3, 3]
    assert service.round() == []
    assert service.predictors.put_so_far == [[(1, 1), (2, 0)]], "all that came, together"
    service.predictors.serve()
    assert service.progress() == [(1, 1, Command.STEP), (2, 0, Command.STEP)]
    told = [service.actors[key].told[2].tolist() for key in ((1, 1), (2, 0))]
    assert told == [
        service.lanes[key]._filling[0]["actions"][0].tolist() for key in ((1, 1), (2, 0))
    ]
    service.hello([(1, 0)])  # a late one is restarted, too, with the same number
    service.progress()
    assert service.actors[1, 0].told[:2] == (Command.RESTART, 3)


def test_progress_says_whether_anything_moved():
    service = Service(at_once=False, actors=1, groups=1)
    assert not service.acting.progress()
    service.hello()
    assert service.acting.progress()
    service.actors[1, 0].obey()
    assert service.acting.progress()
    assert not service.acting.progress()
    service.predictors.serve()
    assert service.acting.progress()
    assert not service.acting.progress()


def test_nobody_plays_before_there_are_parameters():
    service = Service(published=False)
    service.begin()
    assert service.progress() == []
    assert service.predictors.put_so_far == []
    service.publish(0)
    assert keys_of(service.progress(), Command.STEP) == ALL


@pytest.mark.parametrize(("size", "width"), [(2, 2), (2, 1), (4, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_unrolls_are_what_was_played(size, width, length, order):
    """Actors obey and the learner takes in any order."""
    service, rng = Service(size=size, width=width, length=length), np.random.default_rng(order)
    service.begin()
    for _ in range(80):
        obeying = [key for key in ALL if rng.random() < 0.7]
        rng.shuffle(obeying)
        service.round([tuple(key) for key in obeying] or [(1, 0)])
        if rng.random() < 0.5:
            service.take_all()
    service.take_all()
    assert min(len(batches) for batches in service.unrolls.values()) > 30 // length
    service.check_unrolls()
    assert {float(batch.waited_s) for each in service.unrolls.values() for batch in each[1:]} == {
        0.5 * length
    }


@pytest.mark.parametrize("depth", [1, 2])
def test_a_lane_without_room_is_held_and_goes_on_when_it_has_some(depth):
    service = Service(depth=depth, groups=1)
    service.begin()
    service.rounds(3 * (depth + 1) + 5)
    assert {key: actor.steps for key, actor in service.actors.items()} == {
        (1, 0): 3 * (depth + 1), (2, 0): 3 * (depth + 1),
    }, "so many unrolls, and no action for which there is no room"  # fmt: skip
    assert service.round() == []
    held = service.take(1, keep=True)
    assert service.round() == [], "what is learnt from is not free"
    service.acting.release(held[0])
    assert service.progress() == [(1, 0, Command.STEP)]
    service.rounds(10)
    assert service.actors[1, 0].steps == 3 * (depth + 2)
    assert service.actors[2, 0].steps == 3 * (depth + 1), "each lane has room of its own"
    service.take_all()
    service.rounds(3)
    assert service.actors[2, 0].steps > 3 * (depth + 1)
    service.take_all()
    service.check_unrolls()
    assert all(len(batches) > depth for batches in service.unrolls.values())


def test_an_unroll_of_several_records_is_free_when_all_of_them_were_given_back():
    service = Service(size=3, width=1, groups=1, actors=1)
    assert service.acting.depth == 3
    service.begin()
    service.rounds(10)
    assert service.actors[1, 0].steps == 6
    first, second = (service.take(keep=True) for _ in range(2))
    assert service.acting.take() is None
    for delivery in (first[2], second[0], first[0], second[1]):
        service.acting.release(delivery)
        assert service.progress() == []
        assert not service.lanes[1, 0].has_room
    service.acting.release(first[1])
    assert service.progress() == [(1, 0, Command.STEP)]
    service.rounds(10)
    assert service.actors[1, 0].steps == 9
    assert service.lanes[1, 0]._free == deque()
    service.acting.release(second[2])
    service.rounds(10)
    assert service.actors[1, 0].steps == 12


def test_depth_counts_the_records_of_all_groups_of_an_actor():
    """So many may a queue hold without keeping an actor waiting."""
    assert Service(depth=3, groups=2, size=4, width=2).acting.depth == 3 * 2 * 2
    assert Service(depth=1, groups=3, actors=5, size=1).acting.depth == 3


def test_unrolls_are_taken_in_the_order_in_which_they_were_completed():
    service = Service()
    service.begin()
    service.progress()
    service.rounds(3, [(2, 1), (1, 0)])
    service.rounds(3, [(2, 1)])
    service.rounds(2, [(1, 0)])
    service.rounds(3, [(1, 1), (2, 0)])
    expected = [(2, 1), (1, 0), (2, 1), (1, 1), (2, 0)]
    assert [service.take() for _ in range(5)] == expected
    assert service.acting.sources == (1, 2)


def test_unrolls_are_taken_of_one_actor_if_that_is_asked():
    service = Service()
    service.begin()
    service.rounds(4)
    assert service.acting.arrived(1)
    assert [service.take(2), service.take(1), service.take(2)] == [(2, 0), (1, 0), (2, 1)]
    assert service.take(2) is None
    assert service.take(1) == (1, 1)
    assert service.take() is None


def test_the_first_so_many_actors_play_and_the_others_go_on_where_they_were():
    service = Service(actors=3)
    service.begin()
    service.rounds(4)
    service.take_all()
    before = {key: actor.steps for key, actor in service.actors.items()}
    assert service.acting.active == 3
    service.acting.active = 1
    for _ in range(6):
        service.round()
        service.take_all()
    for (source, channel), actor in service.actors.items():
        played = actor.steps - before[source, channel]
        assert played == 6 if source == 1 else played <= 1
    assert {command for source, _, command in service.round() if source > 1} == set()
    service.acting.active = 2
    assert keys_of(service.progress(), Command.STEP) == [(2, 0), (2, 1)], "at once"
    service.acting.active = 3
    assert keys_of(service.progress(), Command.STEP) == [(3, 0), (3, 1)]
    for _ in range(8):
        service.round()
        service.take_all()
    service.check_unrolls()
    assert all(len(batches) > 2 for batches in service.unrolls.values())


def test_parameters_are_copied_and_nobody_is_owed():
    service = Service()
    vector = np.ones(3, np.float32)
    service.acting.publish(vector, 8, 77)
    vector[:] = 2
    newest = service.versions.newest
    assert (newest.number, newest.steps, newest.vector.tolist()) == (8, 77, [1, 1, 1])
    service.acting.owe(1)
    service.acting.owe_all()
    assert service.acting.subscribed


def test_the_end_reaches_everybody_wherever_he_is():
    """One is held, one is being served, one plays, one has not even said hello."""
    service = Service(at_once=False)
    service.hello([(1, 0), (1, 1), (2, 0)])
    service.progress()
    service.round([(1, 0), (1, 1)])
    service.predictors.serve()
    service.progress()
    service.round([(1, 1)])  # served again; (1, 0) plays; (2, 0) restarts
    service.acting.active = 1
    service.round([(2, 0)])  # held
    assert service.acting.stop() is None
    assert service.progress() == [(2, 0, Command.END)]
    assert service.acting.stop() is None
    service.predictors.serve()
    assert service.progress() == [(1, 1, Command.STEP)]
    assert service.round([(1, 0), (1, 1)]) == [(1, 0, Command.END), (1, 1, Command.END)]
    service.server.is_drained = True
    assert service.acting.stop() is None
    assert not service.acting.ended
    service.hello([(2, 1)])
    assert service.progress() == [(2, 1, Command.END)]
    service.server.is_drained = False
    assert service.acting.stop() is None, "not before they have heard it"
    service.server.is_drained = True
    assert service.acting.stop() is True
    assert service.acting.ended
    assert {actor.obey() for actor in service.actors.values()} == {Command.END}


def test_it_has_ended_only_when_all_unrolls_were_taken():
    service = Service(groups=1)
    service.begin()
    service.rounds(3)
    service.acting.stop()
    service.rounds(3)
    assert not service.acting.ended
    service.take_all()
    assert service.acting.ended
    service.server.is_drained = True
    assert service.acting.stop() is True


def test_a_lane_that_has_no_room_hears_of_the_end():
    service = Service(groups=1)
    service.begin()
    service.rounds(10)
    assert service.round() == []
    service.acting.stop()
    assert service.progress() == [(1, 0, Command.END), (2, 0, Command.END)]


def test_both_ends_are_closed():
    service = Service()
    service.acting.close()
    assert service.predictors.closed
    assert service.server.closed


def test_something_else_may_be_done_at_every_poll():
    calls = []
    service = Service(meanwhile=lambda: calls.append(1))
    service.acting.progress()
    service.acting.progress()
    assert len(calls) == 2


def test_what_it_notes_about_itself():
    service = Service(at_once=False, actors=1)
    service.begin()
    for version in range(1, 7):
        service.round()
        service.now += 0.25
        service.predictors.serve()
        service.progress()
        service.publish(version)
    service.round()
    found = service.acting.gauges()
    assert found["predict_batch_mean"] == 4
    assert found["pps"] == pytest.approx(6 * 4 / 1.5)
    assert found["request_wait_ms_p50"] == pytest.approx(250)
    assert found["unroll_lag_mean"] == found["unroll_lag_max"] == 2
    assert np.isnan(service.acting.gauges()["predict_batch_mean"]), "since the last call"


# Who waits, and for how long.


def keep_alive(service):
    """Time passes until somebody who is held should be told to wait on."""
    service.now += central.KEEP_ALIVE * SILENCE_S + 0.01
    return service.progress()


def test_who_is_held_for_long_is_told_to_wait_and_loses_nothing():
    service = Service(published=False)
    service.begin()
    service.progress()
    for _ in range(5):
        assert service.round() == []
        assert keys_of(keep_alive(service), Command.WAIT) == ALL
    service.publish(0)
    assert service.progress() == [], "nobody is answered who has not asked again"
    assert keys_of(service.round(), Command.STEP) == ALL
    for _ in range(9):
        service.round()
        service.take_all()
    service.check_unrolls()
    assert all(batches for batches in service.unrolls.values())


def test_what_an_actor_waited_on_counts_as_waiting():
    service = Service(published=False, actors=1, groups=1)
    service.begin()
    service.progress()
    for _ in range(4):
        keep_alive(service)
        service.round()
    service.publish(0)
    service.progress()
    service.rounds(4)
    service.take()
    (batch,) = service.unrolls[1, 0]
    # Half a second each: hello, the first rows, 4 times again, 3 steps.
    assert batch.waited_s == pytest.approx(0.5 * 9)
    assert batch.worked_s == pytest.approx(0.25 * 9)


def test_who_is_held_for_a_short_time_is_not_bothered():
    service = Service(published=False)
    service.begin()
    service.progress()
    service.now += central.KEEP_ALIVE * SILENCE_S * 0.9
    assert service.progress() == []


def test_who_waits_on_is_not_silent_and_who_plays_too_long_is():
    service = Service(groups=1)
    service.begin()
    service.rounds(20)  # 1 and 2 have no room any more
    for _ in range(20):
        keep_alive(service)
        service.round()
    service.take_all()
    service.round()  # they play, and 2 does not come back
    for _ in range(3):
        service.now += SILENCE_S * 0.3
        service.round([(1, 0)])
        service.take_all()
    service.now += SILENCE_S * 0.3
    with pytest.raises(SilenceError, match="nothing came from rank 2 for"):
        service.round([(1, 0)])


def test_one_group_is_enough_to_be_heard_of():
    """Another one of the same actor may play for long."""
    service = Service(actors=1)
    service.begin()
    service.progress()
    for turn in range(6):
        service.now += 0.6 * SILENCE_S
        service.round([(1, turn % 2)])


def test_nobody_is_silent_while_his_actions_are_being_chosen():
    service = Service(at_once=False, actors=1)
    service.begin()
    service.progress()
    for _ in range(4):
        service.now += SILENCE_S
        service.progress()
    service.predictors.serve()
    assert len(service.progress()) == 2
    service.now += SILENCE_S + 0.3
    with pytest.raises(SilenceError, match="rank 1"):
        service.progress()


# Requests that make no sense.


FAULTS = {
    "another number": (lambda actor: actor.ask(Kind.ROWS, number=77), "request number 77 where"),
    "a second hello": (lambda actor: actor.ask(Kind.HELLO), "where ROWS (1) is due"),
    "nothing new": (lambda actor: actor.ask(Kind.AGAIN), "where ROWS (1) is due"),
    "a broken message": (lambda actor: actor.ask(Kind.ROWS, fault="too many bytes"), "too many b"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_actor_whose_requests_make_no_sense_is_left_alone(fault, caplog):
    """The others play on; he is not expected to be heard of, nor waited for at the end."""
    service = Service(actors=3)
    service.begin()
    service.rounds(2)
    send, text = FAULTS[fault]
    service.actors[2, 0].told = None
    send(service.actors[2, 0])
    others = [key for key in service.actors if key[0] != 2]
    assert keys_of(service.round(others), Command.DISMISS) == [(2, 0)]
    assert list(service.acting.faults) == [2]
    assert text in service.acting.faults[2]
    assert "rank 2 sent" in caplog.text
    assert text in caplog.text
    assert service.round([(2, 1)]) == [(2, 1, Command.DISMISS)], "his other group, too"
    service.take_all()
    for _ in range(12):
        service.now += 0.2 * SILENCE_S
        service.round(others)
        service.take_all()
    service.check_unrolls()
    assert all(len(service.unrolls[key]) >= 4 for key in others)
    service.acting.stop()
    service.round(others)
    service.round(others)
    service.server.is_drained = True
    assert service.acting.stop() is True


def test_a_group_that_is_held_or_served_is_dismissed_with_its_actor():
    service = Service(groups=3, at_once=False)
    service.begin()
    service.progress()
    service.predictors.serve()
    service.progress()
    service.acting.active = 1
    service.round([(2, 1)])  # held
    service.acting.active = 2
    assert service.round([(2, 2)]) == []  # being served, with the one that was held
    assert service.predictors.put_so_far[-1] == [(2, 1), (2, 2)]
    service.acting.active = 0
    service.round([(1, 0)])  # held, and remains so
    service.actors[2, 0].told = None
    service.actors[2, 0].ask(Kind.HELLO)
    assert service.progress() == [(2, 0, Command.DISMISS)]
    service.predictors.serve()
    assert keys_of(service.progress(), Command.STEP) == [(2, 1), (2, 2)]
    sent = service.round([(2, 1), (2, 2)])
    assert sent == [(2, 1, Command.DISMISS), (2, 2, Command.DISMISS)]


def test_held_groups_of_a_faulty_actor_are_dismissed_at_once():
    service = Service(groups=3)
    service.begin()
    service.progress()
    service.acting.active = 0
    assert service.round([(1, 0), (2, 1), (2, 2)]) == []
    service.actors[2, 0].told = None
    service.actors[2, 0].ask(Kind.HELLO)
    dismissed = keys_of(service.progress(), Command.DISMISS)
    assert sorted(dismissed) == [(2, 0), (2, 1), (2, 2)]
    service.acting.active = 1
    assert service.progress() == [(1, 0, Command.STEP)]


def test_another_actor_plays_in_the_place_of_one_that_is_left_alone():
    service = Service(actors=3, groups=1)
    service.begin()
    service.acting.active = 1
    assert service.progress() == [(1, 0, Command.STEP)]
    service.actors[1, 0].told = None
    service.actors[1, 0].ask(Kind.HELLO)
    assert service.progress() == [(1, 0, Command.DISMISS), (2, 0, Command.STEP)]
    service.acting.active = 2
    assert service.progress() == [(3, 0, Command.STEP)]


def test_the_last_good_actor_ends_the_job():
    service = Service()
    service.begin()
    service.progress()
    service.actors[1, 0].ask(Kind.HELLO)
    service.progress()
    service.actors[2, 1].ask(Kind.HELLO)
    with pytest.raises(RuntimeError, match="no actor is left; the last one, rank 2, sent"):
        service.progress()


# Lock-step.


class LockStep(Service):
    """With all restarts written down: (number, actions played before)."""

    def __init__(self, pace, **options):
        self.restarts = []
        super().__init__(order=pace, restarted=self.note, published=False, **options)
        self.publish(pace.version(0))

    def note(self, epoch):
        assert not any(actor.told for actor in self.actors.values()), "before anybody knows"
        self.restarts.append((epoch, self.actors[1, 0].steps))

    def unrolls_in_turn(self):
        """What a queue takes in lock-step: an unroll's records of each actor, in order."""
        return [self.take(source) for source in self.acting.sources for _ in range(2)]


STEPS = [(*key, Command.STEP) for key in ALL]


@pytest.mark.parametrize("seed", range(3))
def test_in_lock_step_all_lanes_are_served_together_in_one_order(seed):
    """However they come in; and each unroll begins with the version that is due for it."""
    rng = np.random.default_rng(seed)
    service = LockStep(Pace(updates=2, unrolls=100))
    for count, i in enumerate(rng.permutation(4)):
        service.hello([ALL[i]])
        sent = service.progress()
        assert sorted(keys_of(sent, Command.RESTART)) == (ALL if count == 3 else [])
    for step in range(12):
        begins = step and step % 3 == 0
        for count, i in enumerate(rng.permutation(4)):
            sent = service.round([ALL[i]])
            assert sent == (STEPS if count == 3 and not begins else [])
        if begins:
            service.take_all()
            service.publish(2 * step // 3 - 1)
            assert service.progress() == [], "too old"
            service.publish(2 * step // 3)
            assert service.progress() == STEPS
    assert service.predictors.put_so_far == [ALL] * 12
    assert service.restarts == [(0, 0)]
    service.check_unrolls()
    for batches in service.unrolls.values():
        assert [batch.versions.tolist() for batch in batches] == [[0, 0], [2, 2], [4, 4]]


@pytest.mark.parametrize("arriving", [ALL, ALL[::-1]], ids=["in order", "reversed"])
def test_in_lock_step_an_actors_unrolls_come_in_the_order_of_its_groups(arriving):
    """Else columns of a batch, and with them its gradient's last bits, would depend on chance."""
    service = LockStep(Pace(updates=1, unrolls=100))
    service.hello(arriving)
    service.progress()
    for unroll in range(3):
        for _ in range(3):
            service.round(arriving)
        for key in arriving:  # one after the other: messages of an unroll's last rows
            service.round([key])
        assert service.unrolls_in_turn() == ALL
        service.publish(unroll + 1)
        service.progress()


def test_in_lock_step_a_later_version_is_an_error():
    service = LockStep(Pace(updates=2, unrolls=100))
    service.hello()
    service.progress()
    for _ in range(4):
        service.round()
    service.publish(3)
    with pytest.raises(RuntimeError, match="version 3 is there where lock-step needs version 2"):
        service.progress()


def test_in_lock_step_versions_may_come_while_an_unroll_is_made():
    """They are for the next one; what is due is asked where an unroll begins."""
    service = LockStep(Pace(updates=2, unrolls=100))
    service.hello()
    service.progress()
    service.round()
    service.publish(1)
    assert service.round() == STEPS
    service.publish(2)
    assert service.round() == STEPS
    assert service.round() == STEPS


def test_in_lock_step_all_wait_for_whom_there_is_no_room():
    service = LockStep(Pace(updates=1, unrolls=100))
    service.hello()
    service.progress()
    for version in (1, 2):
        for _ in range(3 if version == 1 else 2):
            assert service.round() == STEPS
        assert service.round() == []
        service.publish(version)
        assert service.progress() == (STEPS if version == 1 else [])
    assert not any(lane.has_room for lane in service.lanes.values())
    for key in ALL[:3]:
        assert service.take() == key
        assert service.progress() == []
    assert service.take() == ALL[3]
    assert service.progress() == STEPS


def test_in_lock_step_all_environments_restart_at_boundaries():
    pace = Pace(updates=2, unrolls=3, start=12)
    service = LockStep(pace)
    service.hello()
    sent = service.progress()
    assert sorted(keys_of(sent, Command.RESTART)) == ALL
    assert {actor.told[1] for actor in service.actors.values()} == {2}
    for unroll in range(7):
        if unroll in (3, 6):
            assert sorted(keys_of(sent, Command.RESTART)) == ALL
            assert {actor.told[1] for actor in service.actors.values()} == {2 + unroll // 3}
        elif unroll:
            assert sent == []
        service.take_all()
        service.publish(pace.version(unroll))
        sent = service.progress() or service.round()
        for _ in range(2):
            assert sent == STEPS
            sent = service.round()
        assert sent == STEPS
        sent = service.round()
    service.take_all()
    assert service.restarts == [(2, 0), (3, 9), (4, 18)]
    for batches in service.unrolls.values():
        assert [batch.versions[0] for batch in batches] == [12, 14, 16, 18, 20, 22, 24]
        at_start = [not batch.observations[0, :, -3:-1].any() for batch in batches]
        assert at_start == [unroll % 3 == 0 for unroll in range(7)], "game 0, row 0"
        assert {int(batch.observations[0, 0, -4]) % 1000 // 100 for batch in batches} == {2, 3, 4}


def test_in_lock_step_too_who_is_held_is_told_to_wait():
    """Before the first restart, and where a version is due."""
    service = LockStep(Pace(updates=1, unrolls=100))
    service.hello(ALL[:3])
    service.progress()
    assert keys_of(keep_alive(service), Command.WAIT) == ALL[:3]
    service.hello(ALL[3:])
    assert service.progress() == []
    assert service.round(ALL[:2]) == []
    assert sorted(keys_of(service.round(), Command.RESTART)) == ALL
    for _ in range(4):
        service.round()
    for _ in range(3):
        assert sorted(keys_of(keep_alive(service), Command.WAIT)) == ALL
        assert service.round() == []
    keep_alive(service)
    service.publish(1)
    assert service.round(ALL[::-1]) == STEPS
    for _ in range(4):
        service.round()
    assert service.restarts == [(0, 0)]
    service.take_all()
    service.check_unrolls()


def test_in_lock_step_nobody_can_be_left_out():
    service = LockStep(Pace(updates=1, unrolls=100))
    service.hello()
    service.progress()
    service.actors[2, 0].ask(Kind.ROWS, number=9)
    with pytest.raises(RuntimeError, match="rank 2 sent request number 9 where 1 is due; in lock"):
        service.progress()


def test_in_lock_step_the_end_does_not_wait_for_all():
    service = LockStep(Pace(updates=1, unrolls=100))
    service.hello()
    service.progress()
    service.round(ALL[:1])
    service.acting.stop()
    assert service.progress() == [(1, 0, Command.END)]
    service.round()
    service.server.is_drained = True
    assert service.acting.stop() is True
