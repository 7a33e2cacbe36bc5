"""Parameters from rank 0 to rank 1, which relays to ranks 2 and 3. ``relays.py [SCENARIO ...]``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import sys
import time

import numpy as np
from scenarios import main, meet, scenario

from drl_mpi.comm.parameters import ParameterPublisher, ParameterSubscriber, parameters_record
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.relay import RelayingSubscriber

FOLLOWERS = (2, 3)
SIZE = 60_000
"""240 KB: far above what MPI sends before the receiver looks, so that messages stay under way."""
MESSAGE = parameters_record(SIZE).nbytes


def vector(version):
    return np.arange(SIZE, dtype=np.float32) % 97 + np.float32(version)


def end_of(world, tag, poller):
    """This rank's end: publisher, relay or follower."""
    if world.rank == 0:
        return ParameterPublisher(world.comm, (1,), SIZE, tag)
    if world.rank == 1:
        return RelayingSubscriber(world.comm, 0, FOLLOWERS, SIZE, tag, poller)
    return ParameterSubscriber(world.comm, 1, SIZE, tag)


def read(subscriber, poller, until, work=lambda: None):
    """Versions and steps that come until ``until(version)`` or the end; each is whole."""
    seen = []

    def look():
        published = subscriber.newest()
        if published is not None:
            assert np.array_equal(published.vector, vector(published.version)), published.version
            assert published.steps == 10 * published.version
            seen.append(published.version)
            work()
        return True if subscriber.stopped or (seen and until(seen[-1])) else None

    poller.wait(look, "versions")
    return seen


def finish(world, subscriber, poller):
    read(subscriber, poller, lambda _: False)
    assert subscriber.stopped
    subscriber.close()
    meet(world)


@scenario
def one_by_one(world, tag):
    """Every version comes to everybody, and crosses from the publisher once."""
    poller, last = Poller(30.0), 20
    end = end_of(world, tag, poller)
    if world.rank == 0:
        for version in range(last):
            end.owe_all()
            end.publish(vector(version), version, 10 * version)
            meet(world, end.progress)
        assert end.bytes_sent == last * MESSAGE
        poller.wait(end.stop, "the relay")
        meet(world)
        return
    for version in range(last):
        assert read(end, poller, lambda seen, due=version: seen == due) == [version]
        meet(world, end.progress)
    if world.rank == 1:
        # The publisher may have been first out of the meeting, and its short last word be here.
        assert end.bytes_sent // MESSAGE == last * len(FOLLOWERS)
    finish(world, end, poller)


@scenario
def slow_follower(world, tag):
    """One that looks seldom gets fewer versions; it holds up neither relay nor the other one."""
    poller, last = Poller(30.0), 60
    end = end_of(world, tag, poller)
    if world.rank == 0:
        for version in range(last):
            end.owe_all()
            end.publish(vector(version), version, 10 * version)
            for _ in range(20):
                end.progress()
                time.sleep(1e-4)
        began = time.perf_counter()
        poller.wait(lambda: end.progress() or (not end._sending or None), "the last version")
        assert time.perf_counter() - began < 1.0, "the relay waited for the slow one"
        poller.wait(end.stop, "the relay")
        meet(world)
        return
    nap = 0.5 if world.rank == 3 else 0.0
    seen = read(end, poller, lambda version: version == last - 1, lambda: time.sleep(nap))
    assert seen == sorted(set(seen))
    if world.rank == 3:
        assert len(seen) < 10, seen
    else:
        assert seen[-1] == last - 1
        assert len(seen) > 15, seen
    finish(world, end, poller)


@scenario
def stop_before_anything(world, tag):
    """The end comes through without a version before it."""
    poller = Poller(30.0)
    end = end_of(world, tag, poller)
    if world.rank == 0:
        poller.wait(end.stop, "the relay")
        meet(world)
    else:
        finish(world, end, poller)


@scenario
def a_relay_that_waits_for_something_else(world, tag):
    """Versions and the end reach the followers while it waits, and nothing that it had is lost."""
    poller = Poller(30.0)
    end = end_of(world, tag, poller)
    if world.rank == 0:
        end.owe_all()
        end.publish(vector(3), 3, 30)
        poller.wait(lambda: end.progress() or (not end._sending or None), "version 3")
        world.comm.recv(source=2, tag=tag + 1)  # a follower has it
        poller.wait(end.stop, "the relay")
        world.comm.recv(source=2, tag=tag + 1)  # and the end
        world.comm.send(None, 1, tag + 1)
        meet(world)
    elif world.rank == 1:
        request = world.comm.irecv(source=0, tag=tag + 1)
        poller.wait(lambda: request.test()[0] or None, "something else")
        published = end.newest()
        assert published is not None
        assert published.version == 3
        assert np.array_equal(published.vector, vector(3))
        assert end.newest() is None
        assert end.stopped
        end.close()
        meet(world)
    else:
        assert read(end, poller, lambda version: version == 3) == [3]
        if world.rank == 2:
            world.comm.send(None, 0, tag + 1)
        read(end, poller, lambda _: False)
        if world.rank == 2:
            world.comm.send(None, 0, tag + 1)
        end.close()
        meet(world)


if __name__ == "__main__":
    main(sys.argv[1:])
