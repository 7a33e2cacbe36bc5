"""Parameters that actors ask servers for: when, how often, and what they make of the answers."""

import numpy as np
import pytest

from drl_mpi.acting.parameters import LOOK_EVERY_S, PulledParameters
from drl_mpi.comm.shards import Kind

LAST = 99
"""The command that ends a run."""


class Client:
    """Two servers that answer when the test says so."""

    def __init__(self):
        self.vector = np.zeros(6, np.float32)
        self.answers = [{"version": 0, "steps": 0, "command": 0} for _ in range(2)]
        self.asked = 0
        self.busy = self.left = False

    def request(self, kind, versions):
        assert kind is Kind.PULL
        assert versions == [0, 0]
        assert not self.busy
        assert not self.left
        self.busy, self.here = True, False
        self.asked += 1

    def answer(self, versions=(0, 0), steps=(0, 0), command=0):
        assert self.busy
        for answer, version, count in zip(self.answers, versions, steps):
            answer.update(version=version, steps=count, command=command)
        self.vector[:] = versions[0]
        self.here = True

    def ready(self):
        if self.busy and not self.here:
            return None
        self.busy = False
        return True

    def leave(self):
        assert not self.busy
        self.left = True


class Clock:
    now = 10.0

    def __call__(self):
        return self.now


def make(**options):
    client, clock = Client(), Clock()
    every = options.pop("every", 1)
    parameters = PulledParameters(
        client, client.vector, 2, every, lambda command: command == LAST, clock=clock, **options
    )
    return parameters, client, clock


def test_an_unroll_waits_for_what_it_asked_for():
    parameters, client, _ = make()
    assert parameters.newest() is None
    parameters.begin()
    assert parameters.due
    assert parameters.newest() is None
    client.answer((7, 5), (300, 310))
    published = parameters.newest()
    assert not parameters.due
    assert published.version == 5, "so many updates every parameter has seen"
    assert published.steps == 310
    assert published.vector is client.vector
    assert parameters.newest() is None, "there is nothing newer"


@pytest.mark.parametrize("every", [1, 3])
def test_it_asks_every_so_many_unrolls(every):
    parameters, client, _ = make(every=every)
    asked = []
    for _ in range(7):
        parameters.begin()
        if parameters.due:
            client.answer()
            assert parameters.newest() is not None
        asked.append(client.asked)
    assert asked == [1 + i // every for i in range(7)]


def test_while_it_waits_for_room_it_looks_whether_the_run_has_ended():
    parameters, client, clock = make()
    parameters.begin()
    client.answer()
    parameters.newest()
    assert not parameters.stopped
    assert client.asked == 1, "not all the time"
    clock.now += LOOK_EVERY_S + 0.01
    assert not parameters.stopped
    assert not parameters.stopped
    assert client.asked == 2, "and not again before the answer"
    client.answer(command=3)
    assert not parameters.stopped, "another command is none of an actor's business"
    clock.now += LOOK_EVERY_S + 0.01
    assert not parameters.stopped
    client.answer(command=LAST)
    assert parameters.stopped
    clock.now += 1.0
    assert parameters.stopped
    parameters.begin()
    assert not parameters.due, "no more unrolls"
    assert client.asked == 3
    parameters.close()
    assert client.left


def test_an_answer_to_a_look_serves_the_unroll_that_begins_meanwhile():
    parameters, client, clock = make()
    parameters.begin()
    client.answer()
    parameters.newest()
    clock.now += LOOK_EVERY_S + 0.01
    assert not parameters.stopped
    parameters.begin()
    assert parameters.due
    assert client.asked == 2
    client.answer((4, 4))
    assert parameters.newest().version == 4


def test_an_unroll_that_hears_of_the_end_sees_it():
    parameters, client, _ = make()
    parameters.begin()
    client.answer((4, 4), command=LAST)
    assert parameters.newest().version == 4
    assert parameters.stopped


def test_in_lock_step_it_asks_in_its_turn_only():
    """One question per unroll, whatever time passes: servers answer in a fixed order."""
    parameters, client, clock = make(in_turn=True)
    for unroll in range(3):
        parameters.begin()
        clock.now += 10.0
        assert not parameters.stopped
        client.answer((unroll, unroll))
        assert parameters.newest().version == unroll
        clock.now += 10.0
        assert not parameters.stopped
        assert client.asked == unroll + 1
    parameters.begin()
    client.answer(command=LAST)
    assert parameters.stopped
