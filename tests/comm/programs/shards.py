"""Shards between 5 ranks: 0 to 2 are clients, 3 and 4 serve. ``shards.py FOLDER [SCENARIO ...]``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import random
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from scenarios import main, meet, scenario

from drl_mpi.comm import shards
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.shards import PULL, PUSH, Kind, ShardClient, ShardServer, split

CLIENTS, SERVERS = (0, 1, 2), (3, 4)
LARGE = 600_000
"""1.2 MB per shard: far above what MPI sends before the receiver has told where to."""
LIMIT_S = 60.0


def refused(action, error, text):
    """``pytest.raises`` for ranks."""
    try:
        action()
    except error as caught:
        if text not in str(caught):
            raise
        return
    raise AssertionError(f"no {error.__name__} with {text!r}")


class Client:
    """A ``ShardClient`` with its memory, that waits."""

    def __init__(self, world, size, tag, servers=SERVERS):
        self.vector, self.gradient = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.shards = [self.vector[low:high] for low, high in split(size, len(servers))]
        self.end = ShardClient(world.comm, servers, self.vector, self.gradient, tag)

    def start(self, kind, **more):
        self.end.request(kind, [0] * len(self.shards), **more)

    def wait(self):
        """Returns the versions that came."""
        Poller(LIMIT_S).wait(self.end.ready, "the servers")
        return [int(answer["version"]) for answer in self.end.answers]

    def ask(self, kind, **more):
        self.start(kind, **more)
        return self.wait()

    @property
    def command(self):
        return max(int(answer["command"]) for answer in self.end.answers)


class Server:
    """A server whose newest version is simply the last gradient."""

    def __init__(self, world, size, tag, write=np.copyto, servers=SERVERS):
        low, high = split(size, len(servers))[servers.index(world.rank)]
        self.poller = Poller(LIMIT_S)
        self.end = ShardServer(world.comm, CLIENTS, high - low, self.poller, tag)
        self.log = []
        """All that was asked."""
        self.values = [0.0]
        """Of every element of a version."""
        self.command = 0
        self._write = write

    def step(self, client=None):
        """Serves one request."""
        end = self.end
        asked = self.poller.wait(lambda: end.next(client), "a request")
        self.log.append(asked)
        if asked.kind is PUSH:
            gradient = end.gradient(asked.client)
            assert (gradient == gradient[0]).all(), f"rank {asked.client}: two gradients in one"
            vector = end.blank()
            assert vector is not end.vector
            self.values.append(float(gradient[0]))
            self._write(vector, gradient)
            end.advance(vector)
        if asked.kind in (PULL, PUSH):
            self.command = max(self.command, asked.command)
            end.answer(
                asked.client, version=len(self.values) - 1, steps=asked.steps,
                command=self.command, counts=[asked.version, asked.client],
            )  # fmt: skip
        return asked

    def run(self):
        while self.end.clients:
            self.step()
        self.poller.wait(self.end.drained, "the last answers")
        self.end.close()


def _slowly(vector, gradient):
    half = len(vector) // 2
    vector[:half] = gradient[:half]
    time.sleep(3e-4)
    vector[half:] = gradient[half:]


@scenario
def whole_versions(world, tag, folder):  # noqa: ARG001
    """What is pulled is one version, whatever others push meanwhile; each push arrives once."""
    for size, pushes in ((2, 60), (7, 60), (LARGE, 15)):
        found = (_serve_whole if world.rank in SERVERS else _ask_whole)(world, size, tag, pushes)
        everything = world.gather(found)
        if everything is None:
            continue
        for server in SERVERS:  # what came is what the server had made of that version
            values = everything[server]
            for client in CLIENTS:
                seen = [(v, value) for rank, v, value in everything[client] if rank == server]
                assert len(seen) >= pushes
                assert all(values[version] == value for version, value in seen)
                assert all(old[0] <= new[0] for old, new in pairwise(seen)), "an older version"


def _serve_whole(world, size, tag, pushes):
    made, make = [], shards._floats
    shards._floats = lambda length: made.append(length) or make(length)
    server = Server(world, size, tag, _slowly)
    server.run()
    shards._floats = make
    for client in CLIENTS:
        mine = [value for value in server.values[1:] if value // 4096 == client]
        assert mine == [client * 4096 + push for push in range(pushes)], mine
    assert len(server.values) == 1 + pushes * len(CLIENTS)
    # The newest, the next, one under way to and one from each client.
    assert len(made) <= 2 + 2 * len(CLIENTS), f"{len(made)} buffers"
    return server.values


def _ask_whole(world, size, tag, pushes):
    client, seen, choose = Client(world, size, tag), [], random.Random(size + world.rank)
    push = 0
    while push < pushes:
        pulls = push and choose.random() < 0.4
        if not pulls:
            client.gradient[:] = world.rank * 4096 + push  # exact in float32
            push += 1
        client.start(PULL if pulls else PUSH)
        time.sleep(choose.choice([0.0, 0.0, 1e-3, 4e-3]))  # MPI gets no attention here
        versions = client.wait()
        client.gradient[:] = -1.0  # it is ours again
        for server, shard, version in zip(SERVERS, client.shards, versions):
            assert (shard == shard[0]).all(), f"{np.unique(shard)} in version {version}"
            seen.append((server, version, float(shard[0])))
    client.end.leave()
    return seen


@scenario
def fairness(world, tag, folder):  # noqa: ARG001
    """With all clients as fast as they can, nobody is served twice as often as another."""
    only = SERVERS[:1]  # two would keep clients in step
    for at, kind in enumerate((PULL, PUSH)):
        if world.rank in only:
            server = Server(world, 20, tag + 4 * at, servers=only)
            while len(server.log) < 120:
                server.step()
                time.sleep(2e-3)  # everybody asks again meanwhile
                world.comm.Iprobe()  # and MPI has seen it
            counts = Counter(asked.client for asked in server.log)
            assert max(counts.values()) <= 2 * min(counts[client] for client in CLIENTS), counts
            server.command = 1
            server.run()
        elif world.rank in CLIENTS:
            client = Client(world, 20, tag + 4 * at, only)
            while not client.command:
                client.ask(kind)
            client.end.leave()


@scenario
def absent_minded(world, tag, folder):
    """A client that pushes and then does something else keeps nobody waiting."""
    done = folder / f"done-{tag}"
    if world.rank in SERVERS:
        Server(world, LARGE, tag).run()
        return
    client = Client(world, LARGE, tag)
    client.ask(PULL)
    if world.rank == 0:
        client.start(PUSH)
        deadline = time.monotonic() + 20.0
        while not done.exists():  # without a call of MPI
            assert time.monotonic() < deadline, "the others were not served meanwhile"
            time.sleep(1e-3)
        client.wait()
    else:
        for _ in range(10):
            time.sleep(5e-3)
            client.ask(PUSH)
        if world.rank == 1:
            done.touch()
    client.end.leave()


@scenario
def one_at_a_time(world, tag, folder):  # noqa: ARG001
    """No second request while one is under way, and nothing is read that may be half there."""
    if world.rank in SERVERS:
        server = Server(world, 100, tag)
        meet(world)
        server.run()
        return
    client = Client(world, 100, tag)
    end = client.end
    assert not end.busy
    assert end.ready()
    client.start(PUSH)
    assert end.busy
    for again in (
        lambda: client.start(PULL),
        lambda: client.start(PUSH),
        lambda: end.load([{}, {}]),
        end.save,
        end.leave,
    ):
        refused(again, RuntimeError, "a request is under way; wait until ready()")
    refused(lambda: end.answers[0]["version"], RuntimeError, "belongs to an MPI request")
    meet(world)
    client.wait()
    assert not end.busy
    client.ask(PULL)
    refused(lambda: end.request(PULL, [0]), ValueError, "zip()")
    client.ask(PULL)  # nothing was started by that
    end.leave()


@scenario
def in_order(world, tag, folder):  # noqa: ARG001
    """``next(client)`` hands out that one's pulls and pushes only, and what is not served."""
    if world.rank in SERVERS:
        server = Server(world, 10, tag)
        end = server.end
        meet(world)  # 1 has pulled, 2 pushed, 0 not asked
        for _ in range(200):
            assert end.next(0) is None
        assert sorted(end.asking) == [1, 2]
        assert server.step(2).client == 2
        assert server.step(1).client == 1
        meet(world)  # now 0 asks, 1 leaves
        kinds = [server.step(0).kind for _ in range(2)]
        assert sorted(kinds) == [PULL, Kind.LEAVE], kinds
        assert end.clients == [0, 2]
        server.run()
        return
    client = Client(world, 10, tag)
    if world.rank:
        client.start([PULL, PUSH][world.rank - 1])
    meet(world)
    if world.rank:
        client.wait()
    meet(world)
    if world.rank != 1:
        client.ask(PULL)
    client.end.leave()


@scenario
def requests_and_answers(world, tag, folder):  # noqa: ARG001
    """Every number of a request and of an answer arrives, each server's at its own end."""
    if world.rank in SERVERS:
        server = Server(world, 5, tag)
        server.run()
        for client in CLIENTS:
            asked = [each for each in server.log if each.client == client]
            assert [each.kind for each in asked] == [PULL, PUSH, PULL, Kind.LEAVE]
            own = 100 * client + 10 * SERVERS.index(world.rank)
            for each, i in zip(asked, range(3)):
                got = (each.version, each.steps, each.command, each.rate)
                assert got == (own + i, 10**12 + client, i, 0.1 * i), got
        return
    client = Client(world, 5, tag)
    for i, kind in enumerate((PULL, PUSH, PULL)):
        versions = [100 * world.rank + 10 * j + i for j in range(2)]
        client.end.request(
            kind, versions, steps=10**12 + world.rank, command=i, rate=0.1 * i
        )  # fmt: skip
        client.wait()
        for answer, version in zip(client.end.answers, versions):
            assert answer["counts"][:3].tolist() == [version, world.rank, 0]
            assert answer["steps"] == 10**12 + world.rank
            assert answer["command"] >= i
    client.end.leave()


@scenario
def load_and_save(world, tag, folder):  # noqa: ARG001
    """Whatever a LOAD brings to each server, a SAVE can bring back; far above any buffer."""
    if world.rank in SERVERS:
        server = Server(world, 10, tag)
        held = None
        while server.end.clients:
            asked = server.step()
            if asked.kind is Kind.LOAD:
                held = server.end.loaded(asked.client)
            elif asked.kind is Kind.SAVE:
                server.end.saved(asked.client, held)
        return
    client = Client(world, 10, tag)
    if world.rank == 0:
        given = [{"of": server, "slots": {"a": np.full(LARGE, server)}} for server in SERVERS]
        client.end.load(given)
        for _ in range(2):
            for one, other in zip(given, client.end.save(), strict=True):
                assert one["of"] == other["of"]
                assert np.array_equal(one["slots"]["a"], other["slots"]["a"])
    client.ask(PUSH)
    client.end.leave()


@scenario
def leaving(world, tag, folder):  # noqa: ARG001
    """Clients leave in any order, while others go on, and with large answers just taken."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        if world.rank in SERVERS:
            server = Server(world, LARGE // 4, tag)
            server.run()
            left = [asked.client for asked in server.log if asked.kind is Kind.LEAVE]
            assert left == list(order), left
            assert server.end.drained()
        else:
            client = Client(world, LARGE // 4, tag)
            place = order.index(world.rank)
            client.ask(PUSH)
            for _ in range(10 * place):
                client.ask(PUSH)
            if place:
                world.comm.recv(source=order[place - 1], tag=tag)
            client.ask(PULL)
            client.end.leave()
            if place < 2:
                world.comm.send(None, order[place + 1], tag=tag)
        meet(world)


main(sys.argv[2:], Path(sys.argv[1]))
