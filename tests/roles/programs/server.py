"""Parameter servers and raw clients: ranks 0 to 2 are clients, 3 and 4 serve.

``server.py SCENARIO ...`` prints "ok SCENARIO" when all ranks have got through one; the first
failure ends the job.
"""

import random
import sys
import time

import numpy as np
from scenarios import main, scenario

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.shards import PULL, PUSH, ShardClient, ShardServer, split
from drl_mpi.roles.server import Server
from drl_mpi.updating.shard import PoisonedError, Shard, ShardCounts

CLIENTS, SERVERS, SIZE = (0, 1, 2), (3, 4), 11
LIMIT_S = 60.0


class Adds:
    """An optimiser that adds the gradient, and notes its first number."""

    def __init__(self):
        self.steps = 0
        self.log = []

    def step(self, source, target, gradient, rate):  # noqa: ARG002 (ShardOptimizer's names)
        self.steps += 1
        self.log.append(int(gradient[0]) if np.isfinite(gradient[0]) else None)
        np.add(source, gradient, out=target)
        return bool(np.isfinite(target).all())

    def slots(self):
        return {}


def serve(world, tag, max_staleness=10**9, order=None):
    """Serves to the end; returns the shard, its optimiser and the newest parameters."""
    low, high = split(SIZE, len(SERVERS))[SERVERS.index(world.rank)]
    endpoint = ShardServer(world.comm, CLIENTS, high - low, Poller(LIMIT_S), tag)
    optimizer = Adds()
    shard = Shard(optimizer, max_staleness)
    Server(endpoint, shard, Poller(LIMIT_S), order).run()
    return shard, optimizer, endpoint.vector


class Client:
    """A ``ShardClient`` with its memory, that waits; the first one gives the first parameters."""

    def __init__(self, world, tag, version=0):
        self.vector, self.gradient = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
        self.end = ShardClient(world.comm, SERVERS, self.vector, self.gradient, tag)
        self.versions = [0, 0]
        if world.rank == 0:
            self.load(version)

    def load(self, version=0):
        empty = {"slots": {}, "optimizer_steps": 0, "version": version, "steps": 0}
        shards = split(SIZE, len(SERVERS))
        self.end.load(
            [{**empty, "vector": np.full(high - low, 0.5, np.float32)} for low, high in shards]
        )

    def ask(self, kind, value=0.0, **more):
        self.start(kind, value, **more)
        Poller(LIMIT_S).wait(self.end.ready, "the servers")
        self.versions = [int(answer["version"]) for answer in self.end.answers]
        return self

    def start(self, kind, value=0.0, **more):
        self.gradient[:] = value
        self.end.request(kind, self.versions, **more)

    @property
    def counts(self):
        return [ShardCounts.from_numbers(answer["counts"]) for answer in self.end.answers]


def meet(world, ranks=(*CLIENTS, *SERVERS)):
    """A barrier of some ranks that does not spin."""
    requests = [world.comm.isend(None, other, tag=9) for other in ranks if other != world.rank]
    requests += [world.comm.irecv(source=other, tag=9) for other in ranks if other != world.rank]
    for request in requests:
        Poller(LIMIT_S).wait(lambda request=request: request.test()[0] or None, "the others")


@scenario
def every_push_once(world, tag):
    """Versions count accepted pushes, each is in the parameters once, and steps add up."""
    pushes = 40
    if world.rank in SERVERS:
        shard, optimizer, vector = serve(world, tag)
        made = [1 + n + 1000 * client for client in CLIENTS for n in range(pushes)]
        assert sorted(optimizer.log) == made
        assert (vector == 0.5 + sum(made)).all()
        assert shard.version == optimizer.steps == shard.counts.applied == len(made)
        assert shard.pushes == dict.fromkeys(CLIENTS, pushes)
        assert shard.steps == sum((1 + n) * 10**client for client in CLIENTS for n in range(pushes))
        return
    client = Client(world, tag).ask(PULL)
    for n in range(pushes):
        before = client.versions
        client.ask(PUSH, 1 + n + 1000 * world.rank, steps=(1 + n) * 10**world.rank)
        assert all(new > old for new, old in zip(client.versions, before)), "one of them is ours"
    client.end.leave()


@scenario
def straggler(world, tag):
    """Who is too late is dropped and counted; the others go on, and so does it, with the next."""
    most, others = 5, (1, 2)
    if world.rank in SERVERS:
        shard, optimizer, vector = serve(world, tag, most)
        assert optimizer.log.count(7) == 1, optimizer.log
        assert 9 not in optimizer.log, "the late gradient was applied"
        assert (vector == 0.5 + sum(optimizer.log)).all()
        assert shard.version == len(optimizer.log)
        assert shard.steps == 100, "steps count whatever became of a gradient"
        return
    client = Client(world, tag).ask(PULL)
    if world.rank in others:
        meet(world, CLIENTS)
        for _ in range(10):
            client.ask(PULL)  # they are never late
            client.ask(PUSH, 1)
        meet(world, CLIENTS)
        meet(world, CLIENTS)
        client.ask(PULL).ask(PUSH, 1)
    else:
        pulled = client.versions
        meet(world, CLIENTS)
        meet(world, CLIENTS)  # so long it was away
        client.ask(PUSH, 9, steps=100)
        assert client.versions == [counts.applied for counts in client.counts]
        for version, old, counts in zip(client.versions, pulled, client.counts):
            assert counts.staleness_max >= version - old > most
            assert counts.stale >= 1
        late = [counts.stale for counts in client.counts]
        client.ask(PUSH, 7)
        assert [counts.stale for counts in client.counts] == late
        meet(world, CLIENTS)
    client.end.leave()


@scenario
def load_first(world, tag):
    """Nobody is answered before there is anything to pull, however early it asks."""
    if world.rank in SERVERS:
        shard, _, _ = serve(world, tag)
        assert shard.version == 42
        return
    if world.rank:
        client = Client(world, tag)
        client.start(PULL)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert not client.end.ready()
            time.sleep(1e-3)
        meet(world, CLIENTS)
        Poller(LIMIT_S).wait(client.end.ready, "the servers")
        assert [int(answer["version"]) for answer in client.end.answers] == [42, 42]
        assert (client.vector == 0.5).all()
    else:
        meet(world, CLIENTS)
        client = Client(world, tag, version=42)
    client.end.leave()


@scenario
def fixed_order(world, tag):
    """In lock-step the order is what was agreed, whatever the timing; who left is passed over."""
    turns, rounds = (2, 0, 0, 1), 12

    def order():
        while True:
            yield from turns

    last = {0: rounds * 2, 1: rounds, 2: rounds // 2}
    if world.rank in SERVERS:
        _, optimizer, _ = serve(world, tag, order=order())
        left, expected = dict(last), []
        while any(left.values()):
            for client in turns:
                if left[client]:
                    expected.append(100 * client + last[client] - left[client])
                    left[client] -= 1
        assert optimizer.log == expected, (optimizer.log, expected)
        return
    client, choose = Client(world, tag), random.Random(world.rank)
    for n in range(last[world.rank]):
        time.sleep(choose.choice([0.0, 0.0, 2e-3, 1e-2]))
        client.ask(PUSH, 100 * world.rank + n)
    client.end.leave()


@scenario
def commands(world, tag):
    """A command reaches everybody with the next answer, and is not taken back."""
    if world.rank in SERVERS:
        serve(world, tag)
        return
    client = Client(world, tag).ask(PULL)
    for command in (9, 17):
        meet(world, CLIENTS)
        if world.rank == 0:
            client.ask(PUSH, 1, command=command)
        meet(world, CLIENTS)
        for _ in range(2):
            client.ask(PULL)
            assert [int(answer["command"]) for answer in client.end.answers] == [command] * 2
    client.end.leave()


@scenario
def poison(world, tag):
    """A gradient that poisons a parameter ends its server, and nobody ever sees that version."""
    if world.rank in SERVERS:
        try:
            serve(world, tag)
        except PoisonedError as error:
            print("poisoned", error, flush=True)
            # What was sent, if anything, would arrive now.
            deadline = time.monotonic() + 0.5
            Poller(LIMIT_S).wait(
                lambda: (world.comm.Iprobe(), time.monotonic() > deadline or None)[1], "an end"
            )
            world.abort(3)
        return
    client = Client(world, tag).ask(PULL)
    if world.rank == 1:
        for _ in range(2):
            client.ask(PUSH, 1)
        client.gradient[:] = 1
        client.gradient[-2] = np.inf  # the second server's parameter 4
        client.end.request(PUSH, client.versions)
        while not client.end.ready():
            time.sleep(1e-3)
        raise AssertionError("the poisoned push was answered")
    while True:  # until the job is aborted
        client.ask(PULL)
        assert np.isfinite(client.vector).all(), "a poisoned version was answered"
        assert client.versions[1] <= 2


main(sys.argv[1:])
