"""Learners, an actor and real parameter servers on 5 ranks. ``servers.py [SCENARIO ...]``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import random
import sys
import time
from itertools import count, cycle

import numpy as np
import torch
from scenarios import main, meet, scenario

from drl_mpi import nets
from drl_mpi.acting.parameters import PulledParameters
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.shards import ShardClient, ShardServer, split
from drl_mpi.comm.stream import StreamReceiver, StreamSender
from drl_mpi.roles.server import Server
from drl_mpi.updating.outliers import OutlierFilter
from drl_mpi.updating.protocol import DivergenceError, Length, Wish
from drl_mpi.updating.reports import ReportsReceived, ReportsSent, report_record
from drl_mpi.updating.servers import LOST, ServerUpdating, is_last
from drl_mpi.updating.shard import Shard
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

WIDTH, LIMIT_S = 3, 60.0


def size():
    return sum(p.numel() for p in nets.make("mlp", (4,), 3, seed=1).parameters())


def serve(world, tag, servers, clients, order=None, name="rmsprop"):
    """Serves to the end; returns the shard and what its optimiser got."""
    low, high = split(size(), len(servers))[servers.index(world.rank)]
    poller = Poller(LIMIT_S)
    endpoint = ShardServer(world.comm, clients, high - low, poller, tag)
    optimizer = make_shard_optimizer(name, high - low)
    shard = Shard(optimizer, 100)
    largest, step = [], optimizer.step

    def watched(source, target, gradient, rate):
        largest.append(float(np.abs(gradient).max()))
        return step(source, target, gradient, rate)

    optimizer.step = watched
    Server(endpoint, shard, poller, order).run()
    return shard, largest


def reports(world, tag, learners, in_turn=False):
    record = report_record(WIDTH)
    if world.rank == learners[0]:
        receiver = StreamReceiver(world.comm, learners[1:], record, 2, tag + 5)
        return ReportsReceived(receiver, Poller(LIMIT_S), in_turn)
    return ReportsSent(StreamSender(world.comm, learners[0], record, 2, tag + 5), at_once=True)


class Learner:
    """A ``ServerUpdating`` of a small network, with gradients that are made up."""

    def __init__(self, world, tag, servers, learners, *, lockstep=False, steps=10**9, rounds=1):
        self.flat = nets.FlatParameters(nets.make("mlp", (4,), 3, seed=1 + world.rank))
        staging = self.flat.vector.numpy(), self.flat.gradient.numpy()
        self.client = ShardClient(world.comm, servers, *staging, tag)
        self.choose = np.random.default_rng(world.rank)
        self.updating = ServerUpdating(
            self.flat,
            staging,
            self.client,
            Poller(LIMIT_S),
            learning_rate=lambda _: 1e-2,
            max_norm=1e9,
            outliers=OutlierFilter(8.0, warmup=20),
            length=Length(steps, rounds),
            leads=world.rank == learners[0],
            reports=reports(world, tag, learners, lockstep),
            learners=len(learners),
            lockstep=lockstep,
        )

    def update(self, *, loss=1.0, scale=1.0, at=None, steps=1, wish=None, row=0.0):
        """Pulls, and applies a gradient; ``at``: a number in the midst of it."""
        self.updating.pull()
        gradient = self.flat.gradient
        noise = self.choose.normal(size=len(gradient)).astype(np.float32)
        gradient.copy_(torch.from_numpy(noise))
        gradient.mul_(scale)
        if at is not None:
            gradient[len(gradient) // 2] = at
        info = np.full(WIDTH, row, np.float32)
        noisy = loss * (1 + 0.05 * self.choose.normal())
        self.updating.apply(gradient, info, loss=noisy, steps=steps, wish=wish or Wish())
        return self.updating.agreed


@scenario
def outliers(world, tag):
    """What is out of the ordinary never reaches a shard; its steps count all the same."""
    servers, normal, bad = (3, 4), 61, 15
    if world.rank in servers:
        shard, largest = serve(world, tag, servers, (0,))
        assert len(largest) == normal
        assert max(largest) < 10.0, "an outlier came through"
        assert shard.pushes == {0: normal}
        assert shard.version == normal
        assert shard.steps == 7 * (normal + bad + 3) + 7 * (2 * LOST - 1)
        return
    if world.rank:
        return
    learner = Learner(world, tag, servers, (0,))
    updating = learner.updating
    updating.start()
    for _ in range(normal - 1):
        learner.update(steps=7)
    updating.gauges()
    updating.pull()
    before = learner.flat.vector.clone()
    inf, nan = np.inf, np.nan
    for what in (
        {"loss": 1e3}, {"loss": -1e3}, {"scale": 1e3}, {"at": 1e7}, {"at": nan}, {"at": inf},
        {"at": -inf}, {"loss": nan}, {"loss": inf}, {"loss": -inf}, {"loss": nan, "at": nan},
        {"scale": 1e30}, {"scale": nan}, {"loss": 1e39}, {"scale": 1e3, "loss": 0.0},
    ):  # fmt: skip
        learner.update(steps=7, **what)
        updating.pull()
        assert torch.equal(learner.flat.vector, before), what
    assert updating.steps == 7 * (normal - 1 + bad)
    assert updating.version == normal - 1
    assert updating.gauges()["outlier_rate"] == 1.0
    learner.update(steps=7)
    updating.pull()
    assert updating.version == normal, "a sound gradient is sent on"
    assert updating.gauges()["outlier_rate"] == 0.0
    updating.skip(np.zeros(WIDTH, np.float32), steps=21, wish=Wish())
    for _ in range(LOST - 1):
        learner.update(steps=7, at=nan)
    learner.update(steps=7, loss=1e3)  # finite: the count begins again
    for _ in range(LOST - 1):
        learner.update(steps=7, loss=inf)
    updating.pull()
    try:
        learner.update(steps=7, at=nan)
    except DivergenceError as error:
        said = str(error)
    else:
        raise AssertionError("no DivergenceError")
    assert said.startswith(f"{LOST} gradients in a row have norm nan (loss "), said
    updating.close()


@scenario
def free_commands(world, tag):
    """The first learner agrees at once, others with the update after their next; then the end."""
    servers, learners, actor = (3, 4), (0, 1), 2
    if world.rank in servers:
        serve(world, tag, servers, (*learners, actor))
        return
    if world.rank == actor:
        acting(world, tag, servers, in_turn=False)
        return
    learner = Learner(world, tag, servers, learners, steps=100)
    updating, leads = learner.updating, world.rank == 0
    updating.start()
    updating.pull()
    for wish in (Wish(save=True), Wish(stop=True), Wish(save=True, stop=True)):
        assert learner.update() == Wish()
        updating.pull()
        some_meet(world, learners)
        if leads:
            assert learner.update(wish=wish) == wish
            updating.pull()
        some_meet(world, learners)
        if not leads:
            assert learner.update(wish=Wish(save=True, stop=True)) == Wish(), "no wish of its own"
            updating.pull()
            agreed = learner.update()
            assert (agreed.save, agreed.stop) == (True, wish.stop), agreed
        assert learner.update() == Wish(), "once only"
        updating.pull()
        assert not updating.over
        some_meet(world, learners)
    if leads:
        some_meet(world, (0, actor))  # it has acted
        learner.update(steps=100)
        assert updating.over
        assert updating.agreed == Wish()
        updating.pull()
    some_meet(world, learners)
    if not leads:
        learner.update()
        assert not updating.over, "it has not heard of it yet"
        updating.pull()
        learner.update()
        assert updating.over
    updating.pull()
    assert updating.steps >= 100
    some_meet(world, learners)  # for a last checkpoint
    updating.close()


@scenario
def lockstep_commands(world, tag):
    """Everybody agrees in the same round, and ends after the same one, whatever the timing."""
    servers, learners, actor, rounds = (3, 4), (0, 1), 2, 12
    if world.rank in servers:
        # One pull each, then rounds of one update each and a pull of the actor.
        serve(world, tag, servers, (*learners, actor), cycle((0, 1, actor)))
        return
    if world.rank == actor:
        acting(world, tag, servers, in_turn=True)
        return
    wishes = {2: Wish(save=True), 5: Wish(stop=True), 7: Wish(save=True), 8: Wish(save=True)}
    learner = Learner(world, tag, servers, learners, lockstep=True, steps=2 * 10 * 5, rounds=3)
    updating, pause = learner.updating, random.Random(world.rank)
    updating.start()
    updating.pull()
    agreed, over = [], []
    for n in range(rounds):
        time.sleep(pause.choice([0.0, 1e-3, 1e-2]))
        wish = wishes.get(n) if world.rank == 0 else Wish(stop=True)
        agreed.append(learner.update(steps=5, wish=wish))
        over.append(updating.over)
        assert len(updating.infos) == (1 + (n > 0) if world.rank == 0 else 1)
    expected = [Wish()] * rounds
    for n, wish in wishes.items():
        expected[n + 1] = Wish(True, wish.stop)
    if world.rank == 0:
        expected = [Wish(), *(wishes.get(n, Wish()) for n in range(rounds - 1))]
    assert agreed == expected, agreed
    assert over == [False] * (rounds - 1) + [True], over  # 10 rounds' steps, and whole threes
    updating.pull()
    served_before = world.rank == 0  # the other's last steps are not in its answer
    assert updating.steps == 2 * 5 * rounds - 5 * served_before
    assert updating.rounds == rounds
    updating.close()


def acting(world, tag, servers, *, in_turn):
    """An actor that makes unrolls until it is told to stop."""
    vector = np.zeros(size(), np.float32)
    client = ShardClient(world.comm, servers, vector, None, tag)
    parameters = PulledParameters(
        client, vector, len(servers), 1, is_last, in_turn=in_turn, clock=count().__next__
    )  # always time for a look
    versions, poller = [], Poller(LIMIT_S)

    def wait_for_room():
        for _ in range(20):
            if parameters.stopped:
                return False
            time.sleep(2e-3)
        return True

    while wait_for_room():
        parameters.begin()
        published = poller.wait(parameters.newest, "parameters")
        assert published.vector.any()
        versions.append(published.version)
        if not in_turn and len(versions) == 1:
            some_meet(world, (0, world.rank))
    assert versions == sorted(versions)
    if in_turn:
        assert len(versions) == 14
        assert versions[:13] == [2 * n for n in range(13)], versions
    parameters.close()


def some_meet(world, ranks):
    """A barrier of some ranks that does not spin."""
    others = [rank for rank in ranks if rank != world.rank]
    requests = [world.comm.isend(None, other, tag=9) for other in others]
    requests += [world.comm.irecv(source=other, tag=9) for other in others]
    for request in requests:
        Poller(LIMIT_S).wait(lambda request=request: request.test()[0] or None, "the others")


@scenario
def resharding(world, tag):
    """A state of three servers goes on with one, and with two: every number is the same."""
    states = []
    for turn, servers in enumerate(((2, 3, 4), (3,), (2, 4))):
        own = tag + 20 * turn
        if world.rank in servers:
            shard, _ = serve(world, own, servers, (0,), name="adam")
            assert shard.version == shard._optimizer.steps == 5 + turn
        if world.rank == 0:
            learner = Learner(world, own, servers, (0,))
            updating = learner.updating
            if turn:
                updating.restore(states[-1])
                updating.pull()
                again = updating.state()
                same(again, states[-1])
                assert updating.version == 4 + turn
                assert updating.steps == 3 * (4 + turn)
                assert updating.rounds == 4 + turn
            else:
                updating.start()
            for _ in range(1 if turn else 5):
                learner.update(steps=3)
            updating.pull()
            states.append(updating.state())
            if turn:
                assert states[-1]["model"].keys() == states[-2]["model"].keys()
                moved = [
                    np.abs(states[-1]["model"][name] - states[-2]["model"][name]).max()
                    for name in states[-1]["model"]
                ]
                assert 0 < max(moved) < 0.02, moved
            assert states[-1]["counters"] == {
                "version": 5 + turn, "rounds": 5 + turn, "steps": 3 * (5 + turn),
                "optimizer_steps": 5 + turn,
            }  # fmt: skip
            updating.close()
        meet(world)


def same(one, other):
    assert one["counters"] == other["counters"]
    assert one["optimizer"].keys() == other["optimizer"].keys() == {"mean", "mean_square"}
    for mine, theirs in [
        (one["model"], other["model"]),
        *((one["optimizer"][slot], other["optimizer"][slot]) for slot in one["optimizer"]),
    ]:
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].tobytes() == theirs[name].tobytes(), name
            assert np.abs(mine[name]).max() > 0


@scenario
def complete_reports(world, tag):
    """Every row reaches the first learner, in order, and nobody waits for it to look."""
    learners, settled = (0, 1, 2), 2
    counts = {1: (700, 1, 0), 2: (3, 64, 65)}
    if world.rank not in learners:
        return
    ours, came = reports(world, tag, learners), []
    if world.rank == 0:
        for part in range(3):
            for source in (1, 2):  # it looks at nothing before they have handed in everything
                Poller(LIMIT_S).wait(
                    lambda source=source: world.comm.Iprobe(source, tag + 9) or None, "them"
                )
                world.comm.recv(source=source, tag=tag + 9)
            found = ours.pass_on(np.full(WIDTH, -1.0, np.float32))
            assert (found[0] == -1.0).all()
            came += list(found[1:])
            if part < settled:  # all have met
                Poller(LIMIT_S).wait(ours.settled, "the rest")
                came += list(ours.rest())
                assert len(came) == sum(sum(each[: part + 1]) for each in counts.values())
                some_meet(world, learners)
        for source in (1, 2):
            for part in range(3):
                numbers = [row[2] for row in came if tuple(row[:2]) == (source, part)]
                if part < settled:
                    assert numbers == list(range(counts[source][part])), (source, part)
    else:
        for part, rows in enumerate(counts[world.rank]):
            for n in range(rows):
                row = np.array([world.rank, part, n], np.float32)
                assert ours.pass_on(row).tolist() == [row.tolist()]
                row.fill(-9)  # it is ours again
            world.comm.send(None, 0, tag=tag + 9)
            if part < settled:
                Poller(LIMIT_S).wait(ours.settled, "the first learner")
                assert not len(ours.rest())
                some_meet(world, learners)
    Poller(LIMIT_S).wait(ours.end, "the end")
    ours.close()


@scenario
def reports_in_turn(world, tag):
    """In lock-step the first learner gets exactly the rows of the round before, however slow."""
    learners = (0, 1, 2)
    if world.rank not in learners:
        return
    ours, pause = reports(world, tag, learners, in_turn=True), random.Random(world.rank)
    for block in range(3):
        for n in range(8):
            time.sleep(pause.choice([0.0, 0.0, 5e-3]))
            found = ours.pass_on(np.array([world.rank, block, n], np.float32))
            if world.rank == 0:
                before = [[source, block, n - 1] for source in (1, 2)] if n else []
                assert found.tolist() == [[0, block, n], *before], found
        Poller(LIMIT_S).wait(ours.settled, "the rest")
        rest = ours.rest()
        if world.rank == 0:
            assert rest.tolist() == [[source, block, 7] for source in (1, 2)], rest
        some_meet(world, learners)
    Poller(LIMIT_S).wait(ours.end, "the end")
    ours.close()


torch.set_num_threads(1)
main(sys.argv[1:], spacing=100)
