"""The actor that asks for its actions, told what to do by a script."""

from collections import deque
from itertools import count

import numpy as np
import pytest

from drl_mpi.acting.requests import Command, Kind, answer_record, read_rows, request_record
from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.comm.record import Slot
from drl_mpi.envs.base import EnvSpec, Rows
from drl_mpi.roles.asking_actor import AskingActor

ENVS = 3
SPEC = EnvSpec("scripted", (2,), "float32", 1, 100, 1)
STEP, RESTART, WAIT, END, DISMISS = Command


class Env:
    """Its rows say which group and row they are."""

    def __init__(self, group, log, time):
        self.group, self.log, self.time = group, log, time
        self.row = self.closed = 0

    def rows(self, begin):
        self.row += 1
        number = 100 * self.group + self.row
        return Rows(
            frame=np.full((ENVS, 2), number, np.float32),
            reward=np.full(ENVS, number + 0.5, np.float32),
            terminated=np.array([False, not begin, False]),
            reset=np.full(ENVS, begin),
            first=np.full(ENVS, begin),
            episode_return=np.array([np.nan, number, np.nan]),
            episode_length=np.array([0, number, 0]),
        )

    def reset(self, seed):
        self.log.append((self.group, "reset", seed))
        return self.rows(True)

    def step(self, actions):
        self.log.append((self.group, "step", actions.tolist()))
        self.time[0] += 1 + self.group  # as many seconds of work
        return self.rows(False)

    def close(self):
        assert not self.closed
        self.closed += 1
        self.log.append((self.group, "close"))


class Client:
    """Answers as it is told.

    Args:
        script: per look, the answers that have come: (channel, command, argument). The argument
            is the actions, or the number of the restart.
    """

    def __init__(self, channels, log, script):
        self.requests = [Slot(request_record(SPEC, ENVS)) for _ in range(channels)]
        self.answers = [Slot(answer_record(ENVS)) for _ in range(channels)]
        self.script, self.log = deque(script), log
        self.numbers = [0] * channels
        self.off = 0
        """Added to the numbers of answers."""
        self.asked = []
        """(channel, kind, newest frame, waited_s, worked_s)"""
        self.moved = self.closed = self.idle = 0

    def request(self, channel):
        assert not self.requests[channel].busy
        return self.requests[channel]

    def ask(self, channel):
        slot = self.requests[channel]
        assert int(slot["number"]) == self.numbers[channel]
        self.numbers[channel] += 1
        times = float(slot["waited_s"]), float(slot["worked_s"])
        self.asked.append((channel, Kind(int(slot["kind"])), float(slot["frame"][0, 0]), *times))
        slot.busy = True

    def progress(self):
        self.moved += 1

    def answered(self):
        if not self.script:
            self.idle += 1
            assert self.idle < 5_000, "it waits for more than it is told"
            return []
        answers = self.script.popleft()
        for channel, command, argument in answers:
            assert self.requests[channel].busy, "nothing was asked there"
            self.requests[channel].busy = False
            slot = self.answers[channel]
            slot.buffer.fill(255)
            slot["command"][...] = command
            slot["number"][...] = self.numbers[channel] - 1 + self.off
            slot["actions" if command is STEP else "epoch"][...] = argument
        return [channel for channel, *_ in answers]

    def answer(self, channel):
        assert not self.requests[channel].busy
        return self.answers[channel]

    def close(self):
        self.closed += 1
        self.log.append("closed")


class Played:
    """An actor that has played a script."""

    def __init__(self, groups, script, seed=lambda group, epoch: 10 * group + epoch, **more):
        self.log, self.time = [], [100.0]
        self.envs = [Env(group, self.log, self.time) for group in range(groups)]
        self.client = Client(groups, self.log, script)
        for name, value in more.items():
            setattr(self.client, name, value)

        def sleep(_):
            self.time[0] += 0.25

        clock = lambda: self.time[0]  # noqa: E731
        self.poller = Poller(50.0, clock=clock, sleep=sleep)
        self.actor = AskingActor(self.envs, self.client, self.poller, seed, clock)

    def run(self):
        self.actor.run()
        return self


def play(groups, script, **more):
    return Played(groups, script, **more).run()


def kinds(played, group):
    return [kind for channel, kind, *_ in played.client.asked if channel == group]


def test_hello_first_on_every_channel():
    played = play(3, [[(c, END, 0) for c in (0, 1, 2)]])
    assert [each[:2] for each in played.client.asked] == [(c, Kind.HELLO) for c in (0, 1, 2)]
    assert not [entry for entry in played.log if "reset" in entry or "step" in entry]


def test_commands_do_what_they_say():
    script = [
        [(0, WAIT, 0)],
        [(0, RESTART, 4)],
        [(0, STEP, [7, 8, 9])],
        [(0, WAIT, 0)],
        [(0, WAIT, 0)],
        [(0, STEP, [1, 2, 3])],
        [(0, RESTART, 5)],
        [(0, END, 0)],
    ]
    played = play(1, script)
    assert played.log == [
        (0, "reset", 4),
        (0, "step", [7, 8, 9]),
        (0, "step", [1, 2, 3]),
        (0, "reset", 5),
        (0, "close"),
        "closed",
    ]
    hello, rows, again = Kind
    assert kinds(played, 0) == [hello, again, rows, rows, again, again, rows, rows]


def test_rows_are_those_that_the_command_made():
    played = Played(1, [[(0, RESTART, 0)], [(0, STEP, 5)], [(0, WAIT, 0)], [(0, END, 0)]])
    seen, ask = [], played.client.ask

    def note(channel):
        rows = read_rows(played.client.requests[channel])
        arrays = rows.frame, rows.terminated, rows.reset, rows.episode_length
        seen.append(tuple(array.copy() for array in arrays))
        ask(channel)

    played.client.ask = note
    played.run()
    for number, begin, (frame, terminated, reset, length) in zip(
        (1, 2, 2), (True, False, False), seen[1:]
    ):  # who is told to wait says again what it has said
        assert (frame == number).all()
        assert terminated.tolist() == [False, not begin, False]
        assert (reset == begin).all()
        assert length.tolist() == [0, number, 0]


def test_the_end_of_a_group_is_not_the_others():
    script = [
        [(1, RESTART, 0)],
        [(0, RESTART, 0), (1, STEP, 3)],
        [(0, END, 0)],
        *[[(1, STEP, n)] for n in range(5)],
        [(1, END, 0)],
    ]
    played = play(2, script)
    assert [entry[2] for entry in played.log if entry[:2] == (1, "step")] == [
        [n] * ENVS for n in (3, 0, 1, 2, 3, 4)
    ]
    assert kinds(played, 0) == [Kind.HELLO, Kind.ROWS]
    assert played.log[-3:] == [(0, "close"), (1, "close"), "closed"]
    assert not played.client.script, "it left before it was told to"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_answers_are_obeyed_as_they_come(order):
    looks = [[(c, RESTART, 9) for c in order], [(c, STEP, c) for c in order]]
    played = play(3, [*looks, [(c, END, 0) for c in order]])
    obeyed = [entry[:2] for entry in played.log[:6]]
    assert obeyed == [(c, what) for what in ("reset", "step") for c in order]
    assert [each[0] for each in played.client.asked[3:]] == list(order) * 2


def test_nobody_waits_for_a_group_that_is_not_answered():
    script = [[(0, RESTART, 0)], *[[(0, STEP, n)] for n in range(20)], [(0, END, 0), (1, END, 0)]]
    played = play(2, script)
    assert len(kinds(played, 0)) == 22
    assert kinds(played, 1) == [Kind.HELLO]


@pytest.mark.parametrize("off", [-1, 1, 5])
@pytest.mark.parametrize("command", [STEP, RESTART, WAIT])
def test_an_answer_to_another_request_is_an_error(command, off):
    played = Played(2, [[(1, command, 0)]], off=off)
    said = f"the learner answered request {off} of group 1 where 0 was asked"
    with pytest.raises(RuntimeError, match=said):
        played.run()
    assert not [entry for entry in played.log if "reset" in entry or "step" in entry]


def test_the_end_is_the_end_whatever_it_answers():
    played = play(2, [[(1, END, 0)], [(0, END, 0)]], off=-3)
    assert played.log == [(0, "close"), (1, "close"), "closed"]


@pytest.mark.parametrize("off", [0, 7])
def test_who_is_dismissed_leaves_at_once(off, caplog):
    """With all its groups, whether they are told or not: the learner may be gone."""
    script = [[(1, RESTART, 4), (2, RESTART, 4)], [(1, DISMISS, 0), (2, STEP, 0)]]
    played = Played(3, script)
    answered = played.client.answered

    def answer():
        played.client.off = off if len(played.client.script) == 1 else 0
        return answered()

    played.client.answered = answer
    played.run()
    assert played.log == [
        (1, "reset", 14),
        (2, "reset", 24),
        (0, "close"),
        (1, "close"),
        (2, "close"),
        "closed",
    ]
    assert "the learner cannot make sense of this rank's requests" in caplog.text
    with pytest.raises(StopIteration):  # it waits for the end of the run as long as that takes
        played.poller.wait(iter([None] * 5000).__next__, "the end of the run")


def test_an_unknown_command_is_an_error():
    with pytest.raises(ValueError, match="5 is not a valid Command"):
        play(1, [[(0, 5, 0)]])


def test_every_restart_has_a_seed_of_its_own():
    asked, numbers = [], count(1000)

    def seed(group, epoch):
        asked.append((group, epoch))
        return next(numbers)

    looks = [[(1, RESTART, 3)], [(0, RESTART, 3)], [(0, STEP, 0), (1, RESTART, 4)]]
    played = play(2, [*looks, [(0, END, 0), (1, END, 0)]], seed=seed)
    assert asked == [(1, 3), (0, 3), (1, 4)]
    assert [entry for entry in played.log if "reset" in entry] == [
        (1, "reset", 1000),
        (0, "reset", 1001),
        (1, "reset", 1002),
    ]


def test_all_is_closed_once_at_the_end():
    played = play(2, [[(0, END, 0)], [], [(1, END, 0)]])
    assert [env.closed for env in played.envs] == [1, 1]
    assert played.client.closed == 1
    assert played.log == [(0, "close"), (1, "close"), "closed"]


def test_time_is_told_once_and_all_of_it():
    """Waiting is a quarter of a second per look that found nothing; group g works 1 + g seconds."""
    script = [
        [],
        [],
        [(0, RESTART, 0), (1, RESTART, 0)],  # waited 0.5
        [(0, STEP, 0), (1, STEP, 0)],  # at once; works 1, then 2
        [],
        [(1, STEP, 0)],  # waited 0.25, works 2
        [],
        [],
        [],
        [(0, WAIT, 0)],  # waited 0.75
        [(0, END, 0), (1, END, 0)],
    ]
    times = [each[3:] for each in play(2, script).client.asked]
    assert times == [
        (0, 0), (0, 0),
        (0.5, 0), (0, 0),
        (0, 1), (0, 2),
        (0.25, 2),
        (0.75, 0),
    ]  # fmt: skip


def test_what_was_asked_is_moved_at_once():
    played = play(2, [[(0, RESTART, 0)], [(0, END, 0), (1, END, 0)]])
    assert played.client.moved == len(played.client.asked) == 3


def test_a_silent_learner_is_an_error():
    with pytest.raises(SilenceError, match="for actions from the learner"):
        play(2, [[(0, RESTART, 0)]])
