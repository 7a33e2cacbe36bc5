"""Parameters from rank 0 to ranks 1 to 3. ``publication.py [SCENARIO ...]``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import itertools
import sys
import time

import numpy as np
from scenarios import main, meet, scenario

from drl_mpi.comm import parameters
from drl_mpi.comm.parameters import ParameterPublisher, ParameterSubscriber, parameters_record
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot

SUBSCRIBERS = (1, 2, 3)
SIZE = 60_000
"""240 KB: far above what MPI sends before the receiver looks, so that messages stay under way."""
WORK = 1
"""Tag beside the scenario's: a subscriber has consumed something and is owed a version."""


def vector(version):
    return np.arange(SIZE, dtype=np.float32) % 97 + np.float32(version)


def check(published):
    """Every number of the vector belongs to its version."""
    assert np.array_equal(published.vector, vector(published.version)), published.version


def end(world, publisher):
    """Publisher: stop, and nothing is left under way."""
    Poller(30.0).wait(publisher.stop, "the subscribers")
    assert not publisher._sending
    assert publisher.stop() is True  # again: nothing more to do
    meet(world)


def until_stopped(world, subscriber):
    """Subscriber: read until told to stop; the versions that came."""
    versions = []

    def step():
        published = subscriber.newest()
        if published is not None:
            check(published)
            versions.append(published.version)
        return subscriber.stopped or None

    Poller(30.0).wait(step, "the last message")
    assert subscriber.newest() is None
    subscriber.close()
    meet(world)
    return versions


@scenario
def rapid(world, tag):
    """Versions are published faster than they can be sent: each that arrives is whole."""
    last, debts = 400, 25
    if world.rank == 0:
        made = []

        class Counted(Slot):
            def __init__(self, record):
                made.append(self)
                super().__init__(record)

        parameters.Slot = Counted
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        parameters.Slot = Slot
        created = len(made)
        parameters.Slot = Counted
        requests = {
            source: world.comm.irecv(source=source, tag=tag + WORK) for source in SUBSCRIBERS
        }
        counts = dict.fromkeys(SUBSCRIBERS, 0)
        version, source = 0, np.empty(SIZE, np.float32)
        while any(count < debts for count in counts.values()) or version < last:
            source[:] = vector(version)
            publisher.publish(source, version)
            source[:] = -1.0  # the publisher has made a copy
            version += 1
            for rank in SUBSCRIBERS:
                if counts[rank] < debts and requests[rank].test()[0]:
                    counts[rank] += 1
                    publisher.owe(rank)
                    if counts[rank] < debts:
                        requests[rank] = world.comm.irecv(source=rank, tag=tag + WORK)
            time.sleep(1e-4)
        parameters.Slot = Slot
        limit = len(SUBSCRIBERS) + 1  # one under way to each, and the newest
        assert len(made) - created <= limit, f"{len(made) - created} buffers for {version} versions"
        messages = publisher.bytes_sent / parameters_record(SIZE).nbytes
        assert messages <= debts * len(SUBSCRIBERS), f"{messages} messages"
        assert messages > debts, f"only {messages} messages"
        end(world, publisher)
        return
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    rng, versions, asked = np.random.default_rng(world.rank), [], 0
    deadline = time.monotonic() + 30.0
    while asked < debts and time.monotonic() < deadline:
        world.comm.isend(None, 0, tag=tag + WORK).wait()
        asked += 1
        published = None
        for _ in range(40):
            published = subscriber.newest()
            if published is not None:
                break
            time.sleep(5e-4)
        if published is not None:
            check(published)
            versions.append(published.version)
            time.sleep(rng.choice([0.0, 2e-3, 8e-3]))  # work: MPI gets no attention here
            check(published)  # and it is still what it was
    assert asked == debts
    versions += until_stopped(world, subscriber)
    assert all(old < new for old, new in itertools.pairwise(versions)), versions
    assert 1 < len(versions) <= debts, f"{len(versions)} versions for {debts} debts"


@scenario
def debts(world, tag):
    """Nothing is sent without a debt; any number of debts at once are paid with one message."""
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        nbytes = parameters_record(SIZE).nbytes
        publisher.progress()  # nothing published yet
        publisher.owe(1)
        publisher.progress()
        assert publisher.bytes_sent == 0
        publisher.publish(vector(5), 5)  # pays rank 1
        assert publisher.bytes_sent == nbytes
        meet(world, publisher.progress)
        publisher.publish(vector(6), 6)  # nobody is owed anything
        for _ in range(5):
            publisher.progress()
        assert publisher.bytes_sent == nbytes
        for _ in range(3):
            publisher.owe(2)
        publisher.publish(vector(7), 7)
        meet(world, publisher.progress)
        assert publisher.bytes_sent == 2 * nbytes
        publisher.owe_all()
        publisher.progress()
        meet(world, publisher.progress)
        assert publisher.bytes_sent == 5 * nbytes
        end(world, publisher)
        return
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    expected = {1: [5, 7], 2: [7], 3: [7]}[world.rank]
    got = []

    def look():
        published = subscriber.newest()
        if published is not None:
            check(published)
            got.append(published.version)

    meet(world, look)
    meet(world, look)
    meet(world, look)
    got += until_stopped(world, subscriber)
    # The publisher counts how many were sent; of two that wait here, one look sees the last.
    assert sorted(set(got)) == sorted(set(expected)), f"got {got}, expected {expected}"


@scenario
def immutable(world, tag):
    """What was sent is what was newest then, though much was published before it was taken."""
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        publisher.owe_all()
        publisher.publish(vector(1), 1)
        for version in range(2, 60):
            publisher.owe_all()
            publisher.publish(vector(version), version)
        assert len(publisher._sending) == 3, "all was taken already; SIZE is too small"
        meet(world)
        meet(world, publisher.progress)
        end(world, publisher)
        return
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    meet_quietly(world)
    first = Poller(30.0).wait(subscriber.newest, "an old version")
    check(first)
    newest = [first.version]

    def look():
        published = subscriber.newest()
        if published is not None:
            check(published)
            newest.append(published.version)
        return True if newest[-1] == 59 else None

    Poller(30.0).wait(look, "version 59")
    assert newest == sorted(set(newest)), newest
    assert len(newest) < 10, newest  # few were under way, and one debt was left
    meet(world, look)
    assert until_stopped(world, subscriber) == []


def meet_quietly(world):
    """The other half of the publisher's first ``meet``, begun late: MPI gets no attention."""
    time.sleep(0.3)
    meet(world)


@scenario
def stop_with_messages_under_way(world, tag):
    """STOP comes behind what is under way, to everyone, and what is owed is forgotten."""
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        publisher.owe_all()
        publisher.publish(vector(1), 1)
        publisher.owe_all()
        publisher.publish(vector(2), 2)
        assert publisher.stop() is None, "all was told, with a message under way to each"
        end(world, publisher)
        return
    time.sleep(0.2 * world.rank)
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    versions = until_stopped(world, subscriber)
    assert versions in ([], [1]), versions  # [] when version 1 and STOP were seen in one look


@scenario
def stop_before_anything(world, tag):
    """A publisher that never published can still stop its subscribers."""
    if world.rank == 0:
        end(world, ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag))
        return
    assert until_stopped(world, ParameterSubscriber(world.comm, 0, SIZE, tag)) == []


@scenario
def newest_of_two(world, tag):
    """When two versions have arrived, the newer one is handed out, whole."""
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        for version in (1, 2):
            publisher.owe_all()
            publisher.publish(vector(version), version)
            Poller(30.0).wait(
                lambda: (publisher.progress(), None if publisher._sending else True)[1], "both"
            )
        meet(world)
        end(world, publisher)
        return
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    meet(world)  # both are here, unseen
    published = subscriber.newest()
    assert published is not None
    assert published.version == 2
    check(published)
    assert subscriber.newest() is None
    check(published)
    until_stopped(world, subscriber)


@scenario
def close_without_stop(world, tag):
    """A subscriber may leave while its receives are posted."""
    if world.rank:
        subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
        assert subscriber.newest() is None
        assert not subscriber.stopped
        subscriber.close()


@scenario
def steps(world, tag):
    """A version comes with the steps behind it, however many."""
    counts = (0, 2**40 + 1)
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, SUBSCRIBERS, SIZE, tag)
        for version, count in enumerate(counts):
            publisher.owe_all()
            publisher.publish(vector(version), version, count)
            meet(world, publisher.progress)
        end(world, publisher)
        return
    subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
    for version, count in enumerate(counts):
        published = Poller(30.0).wait(subscriber.newest, "a version")
        assert (published.version, published.steps) == (version, count)
        check(published)
        meet(world)
    subscriber.begin()
    assert not subscriber.due, "nothing is asked for"
    assert until_stopped(world, subscriber) == []


@scenario
def strangers(world, tag):
    """Who does not subscribe is owed nothing: it may have sent experience all the same."""
    if world.rank == 0:
        publisher = ParameterPublisher(world.comm, (2,), SIZE, tag)
        for rank in (0, 1, 3, 77):
            publisher.owe(rank)
        publisher.publish(vector(1), 1)
        assert publisher.bytes_sent == 0
        publisher.owe(2)
        publisher.progress()
        assert publisher.bytes_sent == parameters_record(SIZE).nbytes
        end(world, publisher)
        return
    if world.rank == 2:
        subscriber = ParameterSubscriber(world.comm, 0, SIZE, tag)
        assert Poller(30.0).wait(subscriber.newest, "version 1").version == 1
        until_stopped(world, subscriber)
    else:
        meet(world)


@scenario
def nobody(world, tag):
    """Without subscribers a publication costs nothing: not even the copy."""
    publisher = ParameterPublisher(world.comm, (), SIZE, tag)
    publisher.owe_all()
    publisher.publish(np.zeros(SIZE + 1, np.float32), 1)  # would not even fit
    publisher.owe(1)
    publisher.progress()
    assert publisher.stop() is True
    assert publisher.bytes_sent == 0


main(sys.argv[1:])
