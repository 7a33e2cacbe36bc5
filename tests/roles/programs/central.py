"""A learner that chooses its actors' actions: rank 0 serves, 1 to 3 play. ``central.py SCENARIO``.

Every observation says whose it is and where its group stands, every action for whom and for which
request it was chosen: the environments of an actor refuse what was meant for another one. Only the
learner loads torch. Prints "ok SCENARIO" when all ranks have got through one; the first failure
ends the job.
"""

import re
import sys
import threading
import time
import traceback
from itertools import pairwise

import numpy as np
from scenarios import main, scenario

from drl_mpi.acting.requests import Command, Kind, answer_record, request_record
from drl_mpi.comm.exchange import ExchangeClient, ExchangeServer
from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import Bell, Poller, SilenceError
from drl_mpi.envs.base import EnvSpec, Rows
from drl_mpi.roles.asking_actor import AskingActor

ACTORS, CHANNELS, ENVS, LENGTH = (1, 2, 3), 2, 2, 4
END, DISMISS = Command.END, Command.DISMISS
LIMIT_S = 120.0
OVER, NOTE = CHANNELS, CHANNELS + 1
"""Tags, behind those of the channels."""
WIDTH = 1_500
"""Numbers in a frame: requests are large enough to wait for their receives, as real ones are."""
SPEC = EnvSpec("where", (WIDTH,), "float32", 1, 1 << 40, 1)
PAUSE_S = 4e-3
"""That an environment takes for a step."""


def actions_for(rank, channel, t):
    """What must be played at step t, and nowhere else."""
    return ((rank * 10 + channel) * 10_000_000 + t) * 10 + np.arange(ENVS)


class Where:
    """Environments of one group. ``at``: step -> what happens in it."""

    spec, num_envs = SPEC, ENVS

    def __init__(self, rank, channel, at):
        self.rank, self.channel, self.at = rank, channel, at
        self.t = self.resets = self.closed = 0
        self.pause_s = PAUSE_S

    def rows(self, begin):
        frame = np.full((ENVS, WIDTH), self.t, np.float32)
        frame[:, :2] = self.rank, self.channel
        return Rows(
            frame=frame,
            reward=np.full(ENVS, self.t, np.float32),
            terminated=np.zeros(ENVS, bool),
            reset=np.full(ENVS, begin),
            first=np.full(ENVS, begin),
            episode_return=np.full(ENVS, np.nan),
            episode_length=np.zeros(ENVS, np.int64),
        )

    def reset(self, seed):
        assert seed == 1000 * self.rank + self.channel
        self.resets += 1
        self.t = 0
        return self.rows(True)

    def step(self, actions):
        expected = actions_for(self.rank, self.channel, self.t)
        assert np.array_equal(actions, expected), (
            f"rank {self.rank} group {self.channel} step {self.t} got {actions}, not {expected}"
        )
        self.at.get(self.t, lambda: time.sleep(self.pause_s))()
        self.t += 1
        return self.rows(False)

    def close(self):
        self.closed += 1


class OverError(Exception):
    """The learner has ended the scenario without telling in the way under test."""


class Client(ExchangeClient):
    """Notes what is said: (seconds, channel, kind or command); goes wrong where it is told to.

    Args:
        wrong: (channel, number) -> what to do instead of asking.
    """

    def __init__(self, world, tag, wrong):
        records = request_record(SPEC, ENVS), answer_record(ENVS)
        super().__init__(world.comm, 0, CHANNELS, *records, tag)
        self.comm, self.tag, self.wrong = world.comm, tag, wrong
        self.said = []
        self.plain = []
        """Messages past the exchange, with their buffers."""

    def ask(self, channel):
        slot = self.request(channel)
        kind, number = Kind(int(slot["kind"])), int(slot["number"])
        self.said.append((time.perf_counter(), channel, kind))
        self.wrong.get((channel, number), lambda _client, _: super(Client, self).ask(channel))(
            self, channel
        )

    def answered(self):
        channels = super().answered()
        for channel in channels:
            command = Command(int(self.answer(channel)["command"]))
            self.said.append((time.perf_counter(), channel, command))
        return channels

    def on(self, channel, what=None):
        """What was said on a channel; of one sort if that is given."""
        return [
            said
            for _, number, said in self.said
            if number == channel and (what is None or said is what)
        ]

    def withdraw(self):
        """Frees what is under way."""
        for request in self._receives:
            request.Cancel()
            request.Wait()
        for request in self._sends:
            request.Wait()
        self.close()


def change(name, value):
    """A request with another number in one field."""

    def ask(client, channel):
        client.request(channel)[name].flat[0] = value
        ExchangeClient.ask(client, channel)

    return ask


def resize(nbytes):
    """A request with so many bytes more."""

    def ask(client, channel):
        buffer = np.append(client.request(channel).buffer, np.full(max(nbytes, 0), 255, np.uint8))
        buffer = buffer[: len(client.request(channel).buffer) + nbytes].copy()
        client.request(channel).busy = client.answer(channel).busy = True
        client._receives[channel].Start()
        message = [buffer, MPI.BYTE], 0, client.tag + channel
        client.plain.append((client.comm.Isend(*message), buffer))

    return ask


SIZE = request_record(SPEC, ENVS).nbytes
FAULTS = {
    "short": (resize(-64), f"{SIZE - 64} bytes where a request has {SIZE}"),
    "long": (resize(64), f"{SIZE + 64} bytes where a request has {SIZE}"),
    "larger": (resize(300_000), f"{SIZE + 300_000} bytes where a request has {SIZE}"),
    "number": (change("number", 77), r"request number 77 where \d+ is due"),
    "kind": (change("kind", Kind.HELLO), r"a request of kind 0 where ROWS \(1\) is due"),
    "unheard": (change("kind", 9), r"a request of kind 9 where ROWS \(1\) is due"),
    "flag": (change("flags", 7), "a flag of 7 where 0 and 1 are allowed"),
}
"""What may be wrong -> how to do it, and what is said of it."""


class Actor:
    """One actor of this rank.

    Args:
        at: (channel, step) -> what happens in that step.
        wrong: see ``Client``.
    """

    def __init__(self, world, tag, *, at=None, wrong=None, silence_s=LIMIT_S):
        at = at or {}
        self.envs = [
            Where(world.rank, c, {t: do for (channel, t), do in at.items() if channel == c})
            for c in range(CHANNELS)
        ]
        self.client = Client(world, tag, wrong or {})
        poller = Poller(silence_s)
        poller.background = self.look_whether_over
        self.world, self.tag = world, tag
        self.actor = AskingActor(
            self.envs, self.client, poller, lambda group, _: 1000 * world.rank + group
        )

    def look_whether_over(self):
        if self.world.comm.Iprobe(0, self.tag + OVER):
            self.world.comm.Recv([None, 0, MPI.BYTE], 0, self.tag + OVER)
            raise OverError

    def play(self, told=END):
        """Until the learner tells every group of the end, or one that this actor is dismissed."""
        self.actor.run()
        assert "torch" not in sys.modules
        assert [env.closed for env in self.envs] == [1] * CHANNELS
        assert [env.resets for env in self.envs] == [1] * CHANNELS
        said = [what for _, _, what in self.client.said]
        if told is END:
            assert DISMISS not in said
            for channel in range(CHANNELS):
                assert self.client.on(channel).count(END) == 1
                assert self.client.on(channel)[-1] is END
        else:
            assert END not in said
            asked = [what for what in said[said.index(DISMISS) :] if isinstance(what, Kind)]
            assert len(asked) < CHANNELS, "it asked on, beyond what had been answered before"
        for request, _ in self.client.plain:
            request.Wait()
        return self

    def play_until_over(self):
        """To the end of the scenario, which ``Learner.over`` tells."""
        try:
            self.actor.run()
            Poller(LIMIT_S).wait(self.look_whether_over, "the end of the scenario")
        except OverError:
            pass
        for request, _ in self.client.plain:
            request.Wait()


class Echo:
    """Chooses the actions that belong to the observations, and notes when: (seconds, rank).

    Args:
        meanwhile: called with the number of the batch.
    """

    def __init__(self, log, meanwhile=lambda _: None):
        self.log, self.meanwhile, self.batches = log, meanwhile, 0
        self.rng = np.random.default_rng(1)

    def __call__(self, lanes):
        from drl_mpi.acting.predictors import Served

        self.meanwhile(self.batches)
        self.batches += 1
        chosen = []
        for lane in lanes:
            lane.observe()
            assert (lane.observations == lane.observations[0]).all()
            rank, channel, t = (int(number) for number in lane.observations[0, :3])
            assert (rank, channel) == (lane.source, lane.channel), "another's observation"
            actions = actions_for(rank, channel, t)
            lane.decide(actions, np.zeros(ENVS, np.float32), None, 0, self.rng)
            chosen.append(actions)
            self.log.append((time.perf_counter(), rank))
        return Served(lanes, chosen)


class Learner:
    """Serves, takes unrolls, and checks that they are whole."""

    def __init__(self, world, tag, *, silence_s=LIMIT_S, meanwhile=lambda _: None):
        from drl_mpi.acting.central import CentralActing
        from drl_mpi.acting.lanes import Lane
        from drl_mpi.acting.predictors import Predictors
        from drl_mpi.acting.versions import Versions
        from drl_mpi.experience.unroll import UnrollShape

        bell = Bell()
        self.world, self.tag = world, tag
        self.poller = Poller(LIMIT_S, sleep=bell.sleep)
        self.log = []
        """(seconds, rank) of all that was answered."""
        self.next = {(rank, channel): 0 for rank in ACTORS for channel in range(CHANNELS)}
        """Step that the lane's next unroll begins with."""
        shape, versions = UnrollShape(SPEC, LENGTH, ENVS), Versions()
        self.acting = CentralActing(
            ExchangeServer(
                world.comm, ACTORS, CHANNELS, request_record(SPEC, ENVS), answer_record(ENVS), tag
            ),
            [Lane(*key, shape, ENVS, 1, gamma=0.99, reward_clip=1.0) for key in self.next],
            Predictors(lambda _: Echo(self.log, meanwhile), 2, 6, 0.0, 1, bell.ring),
            versions,
            1,
            silence_s,
        )
        self.acting._predictors.active = 2
        self.acting.publish(np.zeros(3, np.float32), 1)

    def served(self, rank, since=0.0, until=float("inf")):
        """Requests of an actor that were answered with actions."""
        return sum(rank == each and since <= when < until for when, each in self.log)

    def step(self):
        self.acting.progress()
        while (delivery := self.acting.take()) is not None:
            self._check(delivery)
            self.acting.release(delivery)

    def _check(self, delivery):
        frames = delivery.slot["frames"].astype(int)
        rank, channel = frames[0, 0, :2]
        assert rank == delivery.source
        steps = self.next[rank, channel] + np.arange(LENGTH + 1)
        for env in range(ENVS):
            assert (frames[:, env, :2] == (rank, channel)).all()
            assert (frames[:, env, 2:] == steps[:, None]).all(), (frames[:, env, 2], steps)
        for t in range(LENGTH):
            assert np.array_equal(delivery.slot["actions"][t], actions_for(rank, channel, steps[t]))
        self.next[rank, channel] = steps[-1]

    def play(self, until, what="enough play"):
        """Serves until ``until()`` holds."""
        self.poller.wait(lambda: (self.step(), until() or None)[1], what)

    def play_for(self, seconds):
        end = time.perf_counter() + seconds
        self.play(lambda: time.perf_counter() > end)

    def play_on(self, more, ranks):
        """Until each of these was answered so many more times."""
        goals = {rank: self.served(rank) + more for rank in ranks}
        self.play(lambda: all(self.served(rank) >= goal for rank, goal in goals.items()))

    def end(self):
        """An orderly one."""
        self.poller.wait(lambda: (self.step(), self.acting.stop())[1], "the end of all actors")
        assert self.acting.ended
        self.acting.close()
        assert not [each for each in threading.enumerate() if each.name.startswith("predictor")]
        return self

    def fail(self, error):
        """Plays until it fails with ``error``, and tells all actors; returns what was raised."""
        try:
            self.play(lambda: False)
        except error as caught:
            for rank in ACTORS:
                self.world.comm.Isend([None, 0, MPI.BYTE], rank, self.tag + OVER).Wait()
            self.acting.close()
            return caught
        raise AssertionError


@scenario
def plays(world, tag):
    """Nothing goes wrong: all play, and each gets what was chosen for it."""
    if world.rank:
        actor = Actor(world, tag).play()
        assert all(env.t >= 30 for env in actor.envs)
        for channel in range(CHANNELS):
            assert actor.client.on(channel)[:3] == [Kind.HELLO, Command.RESTART, Kind.ROWS]
            assert not actor.client.on(channel, Command.WAIT)
    else:
        learner = Learner(world, tag)
        learner.play_on(100, ACTORS)
        learner.end()
        assert not learner.acting.faults
        assert min(learner.next.values()) >= 40, "too few unrolls came"


def _stall(world, tag, seconds):
    """One actor is away for a while: the others play on at their pace, and then it does, too."""
    if world.rank == 1:
        Actor(world, tag, at={(0, 100): lambda: time.sleep(seconds)}).play()
        return
    if world.rank:
        Actor(world, tag).play()
        return
    learner = Learner(world, tag, silence_s=seconds + 60)
    learner.play(lambda: learner.served(1) > 400)
    learner.end()
    times = [when for when, rank in learner.log if rank == 1]
    gap, began = max((b - a, a) for a, b in pairwise(times))
    assert gap > 0.95 * seconds, f"the longest gap took {gap} s"
    before, ended = began - times[0], began + gap
    for rank in (2, 3):
        pace = learner.served(rank, times[0], began) / before
        within = learner.served(rank, began, ended) / gap
        assert within > pace / 4, f"rank {rank} was answered {pace} times/s, then {within}"
        for part in range(4):
            some = learner.served(rank, began + part * gap / 4, began + (part + 1) * gap / 4)
            assert some, f"rank {rank} was not answered in quarter {part} of the stall"
    assert learner.served(1, ended) > 50


@scenario
def stall(world, tag):
    _stall(world, tag, 3.0)


@scenario
def stall_30(world, tag):
    _stall(world, tag, 30.0)


def _left_alone(world, tag, how):
    """Who sends nonsense on a channel is told so, and leaves; the others play on."""
    channel, number = 1, 20
    wrong, said = FAULTS[how]
    if world.rank == 1:
        actor = Actor(world, tag, wrong={(channel, number): wrong}).play(DISMISS)
        assert actor.envs[channel].t == number - 1
        note = world.comm.Isend([None, 0, MPI.BYTE], 0, tag + NOTE)
        Poller(LIMIT_S).wait(lambda: note.Test() or None, "the note")
        return
    if world.rank:
        Actor(world, tag).play()
        return
    learner = Learner(world, tag)
    note = world.comm.Irecv([None, 0, MPI.BYTE], 1, tag + NOTE)
    learner.play(note.Test, "the actor that was told to end")
    assert list(learner.acting.faults) == [1]
    assert re.fullmatch(said, learner.acting.faults[1]), learner.acting.faults
    served = learner.served(1)
    learner.play_on(60, (2, 3))
    assert learner.served(1) == served, "it was served on"
    learner.end()
    assert list(learner.acting.faults) == [1]


@scenario
def faulty_short(world, tag):
    _left_alone(world, tag, "short")


@scenario
def faulty_long(world, tag):
    _left_alone(world, tag, "long")


@scenario
def faulty_larger(world, tag):
    _left_alone(world, tag, "larger")


@scenario
def faulty_number(world, tag):
    _left_alone(world, tag, "number")


@scenario
def faulty_kind(world, tag):
    _left_alone(world, tag, "kind")


@scenario
def faulty_unheard(world, tag):
    _left_alone(world, tag, "unheard")


@scenario
def faulty_flag(world, tag):
    _left_alone(world, tag, "flag")


def _dismissed_late(world, tag, slow_s):
    """An actor whose group 1 sends nonsense while group 0 steps, which takes so long."""
    actor = Actor(world, tag)

    def ask(client, channel):
        answer = client._receives[0]
        Poller(LIMIT_S).wait(lambda: answer.Get_status() or None, "the answer of group 0")
        actor.envs[0].pause_s = slow_s
        FAULTS["flag"][0](client, channel)

    actor.client.wrong = {(1, 20): ask}
    actor.play(DISMISS)
    assert actor.client.on(1)[-1] is DISMISS, "where it sent nonsense it was told nothing"
    world.comm.Isend([None, 0, MPI.BYTE], 0, tag + NOTE).Wait()


@scenario
def forgotten(world, tag):
    """Nothing more is expected of an actor that is left alone: it may be silent for ever."""
    if world.rank == 1:
        _dismissed_late(world, tag, 0.5)
    elif world.rank:
        Actor(world, tag).play()
    else:
        learner = Learner(world, tag, silence_s=5.0)
        note = world.comm.Irecv([None, 0, MPI.BYTE], 1, tag + NOTE)
        learner.play(note.Test, "the actor that was told to end")
        learner.play_for(8.0)
        learner.end()


@scenario
def end_while_left_alone(world, tag):
    """The run ends while an actor that is left alone still steps its other group."""
    if world.rank == 1:
        _dismissed_late(world, tag, 2.0)
    elif world.rank:
        Actor(world, tag).play()
    else:
        learner = Learner(world, tag)
        note = world.comm.Irecv([None, 0, MPI.BYTE], 1, tag + NOTE)
        learner.play(lambda: learner.acting.faults)
        learner.end()
        Poller(20.0).wait(lambda: note.Test() or None, "the end of who was left alone")


@scenario
def two_faulty(world, tag):
    """One is enough to go on with."""
    if world.rank == 2:
        Actor(world, tag).play()
    elif world.rank:
        Actor(world, tag, wrong={(0, 10 * world.rank): FAULTS["kind"][0]}).play(DISMISS)
    else:
        learner = Learner(world, tag)
        learner.play(lambda: len(learner.acting.faults) == 2)
        learner.play_on(60, (2,))
        assert sorted(learner.acting.faults) == [1, 3]
        learner.end()


@scenario
def in_its_place(world, tag):
    """Where only so many are to play, another one plays for who is left alone."""
    if world.rank == 1:
        Actor(world, tag, wrong={(0, 20): FAULTS["number"][0]}).play(DISMISS)
    elif world.rank:
        actor = Actor(world, tag).play()
        assert (min(env.t for env in actor.envs) > 20) == (world.rank == 2)
    else:
        learner = Learner(world, tag)
        learner.acting.active = 1
        learner.play_on(20, (1,))
        assert learner.served(2) == learner.served(3) == 0
        learner.play_on(60, (2,))
        assert list(learner.acting.faults) == [1]
        assert learner.served(3) == 0
        learner.end()


@scenario
def all_faulty(world, tag):
    """When nobody is left there is nothing to go on with."""
    if world.rank:
        how = {1: "flag", 2: "short", 3: "number"}[world.rank]
        Actor(world, tag, wrong={(0, 10 * world.rank): FAULTS[how][0]}).play_until_over()
        return
    learner = Learner(world, tag)
    error = learner.fail(RuntimeError)
    faults = learner.acting.faults
    assert sorted(faults) == list(ACTORS), repr(error)
    rank = list(faults)[-1]
    assert str(error) == f"no actor is left; the last one, rank {rank}, sent {faults[rank]}", error


def collapse(batch):
    if batch == 30:
        raise ZeroDivisionError("a predictor fell over its own feet")


@scenario
def predictor_fails(world, tag):
    """Its error comes out of the thread that talks MPI, and says where it was made."""
    if world.rank:
        Actor(world, tag).play_until_over()
        return
    error = Learner(world, tag, meanwhile=collapse).fail(ZeroDivisionError)
    assert str(error) == "a predictor fell over its own feet"
    where = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert where[-1] == "collapse", where
    assert {"progress", "take", "_run", "__call__"} <= set(where), where


@scenario
def held(world, tag):
    """Who is held hears so before it could think that we are stuck, and goes on where it was."""
    silence_s, away_s = 6.0, 8.0
    keep_alive_s = silence_s / 4
    if world.rank:
        actor = Actor(world, tag, silence_s=silence_s).play()
        for channel in range(CHANNELS):
            waits = _waits(actor.client, channel)
            if world.rank != 3:
                assert not waits
                continue
            assert len(waits) >= 2, waits
            for seconds in waits:
                assert keep_alive_s * 0.99 < seconds < silence_s, waits
            assert len(actor.client.on(channel, Command.RESTART)) == 1
        return
    learner = Learner(world, tag, silence_s=silence_s)
    learner.play_on(50, ACTORS)
    learner.acting.active = 2
    learner.play_for(1.0)  # what the predictors had, and what was on its way
    began = time.perf_counter()
    learner.play_for(away_s)
    assert learner.served(3, began) == 0
    for rank in (1, 2):
        assert learner.served(rank, began) > 50
    learner.acting.active = 3
    learner.play_on(60, ACTORS)
    before = {key: t for key, t in learner.next.items() if key[0] == 3}
    learner.play_on(60, ACTORS)
    assert all(learner.next[key] > t for key, t in before.items()), "its unrolls go on"
    learner.end()


def _waits(client, channel):
    """Seconds between a request and the word that there is nothing to do; checks what follows."""
    mine = [(when, what) for when, number, what in client.said if number == channel]
    waits = []
    for (asked, _), (told, what), following in zip(mine, mine[1:], [*mine[2:], None]):
        if what is Command.WAIT:
            waits.append(told - asked)
            assert following is not None
            assert following[1] is Kind.AGAIN
        elif what is Command.STEP and following is not None:
            assert following[1] is Kind.ROWS
    return waits


@scenario
def held_to_the_end(world, tag):
    """The end reaches those that are held, too, and those that have never played."""
    if world.rank:
        actor = Actor(world, tag, silence_s=20.0).play()
        if world.rank == 3:
            assert [env.t for env in actor.envs] == [0, 0]
        return
    learner = Learner(world, tag, silence_s=20.0)
    learner.acting.active = 2
    learner.play_on(50, (1, 2))
    assert learner.served(3) == 0
    learner.end()


@scenario
def stuck(world, tag):
    """An actor that never asks again is named, however busy the others are."""
    silence_s = 3.0
    if world.rank == 2:
        actor = Actor(world, tag)

        def hang():
            while True:
                time.sleep(0.01)
                actor.look_whether_over()

        actor.envs[0].at[40] = hang
        actor.play_until_over()
        return
    if world.rank:
        Actor(world, tag).play_until_over()
        return
    learner = Learner(world, tag, silence_s=silence_s)
    error = learner.fail(SilenceError)
    raised = time.perf_counter()
    assert str(error).startswith("nothing came from rank 2 for "), error
    last = max(when for when, rank in learner.log if rank == 2)
    assert raised - last > 0.95 * silence_s, f"after {raised - last} s"
    assert raised - last < 3 * silence_s, f"only after {raised - last} s"
    for rank in (1, 3):
        assert learner.served(rank, last) > 50, "the others went on meanwhile"


main(sys.argv[1:])
