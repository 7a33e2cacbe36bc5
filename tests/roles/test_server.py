"""The parameter server's loop: over scripted clients, and under a real mpirun."""

from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.comm.poller import Poller, SilenceError, Watch
from drl_mpi.comm.shards import PULL, PUSH, Asked, Kind
from drl_mpi.roles import server as server_module
from drl_mpi.roles.server import Server
from drl_mpi.updating.shard import PoisonedError, Shard
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

PROGRAM = Path(__file__).parent / "programs" / "server.py"
SCENARIOS = [
    "every_push_once",
    "straggler",
    "load_first",
    "fixed_order",
    "commands",
]
SIZE = 3
START = {
    "vector": np.ones(SIZE, np.float32),
    "slots": {},
    "optimizer_steps": 0,
    "version": 5,
    "steps": 100,
}


@pytest.fixture(scope="module")
def played(mpirun):
    return mpirun(5, PROGRAM, *SCENARIOS, timeout=120)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text


def test_a_poisoned_version_is_never_answered(mpirun):
    done = mpirun(5, PROGRAM, "poison", timeout=60)
    assert done.rc == 3, done.text
    assert "poisoned the gradient of rank 1 (number 3 from there) would make" in done.stdout
    assert "parameter 4 of this shard inf at version 3; gradient there: inf" in done.stdout
    assert "AssertionError" not in done.stderr, done.text


class Clients:
    """Stands in for a ``ShardServer``: clients that ask what is written, one thing at a time.

    Args:
        now: seconds, as a list of one; every ``next`` that finds nothing takes one.
        asks: client -> (seconds when it would ask next, kind) in order. It leaves at the end.
    """

    def __init__(self, now, asks, gradients=()):
        self.now = now
        self.clients = list(asks)
        self.vector = np.zeros(SIZE, np.float32)
        self.answers = []
        """(client, version, first parameter, steps, command)"""
        self.log = []
        self._asks = {client: [*each, (0, Kind.LEAVE)] for client, each in asks.items()}
        self._waiting = dict.fromkeys(asks)
        self._gradients = list(gradients)

    @property
    def asking(self):
        return [
            client
            for client, (due, _, *_) in ((c, a[0]) for c, a in self._asks.items() if a)
            if due <= self.now[0] and self._waiting[client] is None
        ]

    def next(self, client=None):
        for each in self.asking:
            _, kind, *more = self._asks[each][0]
            if client in (None, each) or kind not in (PULL, PUSH):
                del self._asks[each][0]
                self.log.append((each, kind))
                if kind is Kind.LEAVE:
                    self.clients.remove(each)
                elif kind in (PULL, PUSH):
                    self._waiting[each] = kind
                return Asked(each, kind, *(more or (5, 1, 0, 1.0)))
        self.now[0] += 1
        return None

    def loaded(self, client):
        assert client == 0
        return START

    def gradient(self, client):
        assert self._waiting[client] is PUSH
        return self._gradients.pop(0) if self._gradients else np.ones(SIZE, np.float32)

    def blank(self):
        return np.full(SIZE, np.nan, np.float32)

    def advance(self, vector):
        self.vector = vector

    def saved(self, client, shard):
        self.answers.append((client, shard["version"], float(shard["vector"][0])))

    def answer(self, client, *, version, steps, command, counts):
        assert len(counts) > 4
        assert self._waiting[client] is not None
        self._waiting[client] = None
        self.answers.append((client, version, float(self.vector[0]), steps, command))

    def drained(self):
        return True

    def close(self):
        self.clients = None


def shard(max_staleness=100):
    return Shard(make_shard_optimizer("adagrad", SIZE), max_staleness)


@pytest.fixture
def serve(monkeypatch):
    """Serves scripted clients to the end, on a clock of their own; returns them and the shard."""

    def run(asks, *, order=None, silence_s=1e9, gradients=(), max_staleness=100):
        now = [0.0]
        monkeypatch.setattr(server_module, "Watch", partial(Watch, clock=lambda: now[0]))
        clients, made = Clients(now, asks, gradients), shard(max_staleness)
        poller = Poller(silence_s, clock=lambda: now[0], sleep=lambda _: None)
        run.clients = clients
        Server(clients, made, poller, order).run()
        return clients, made

    return run


LOAD, SAVE = (0, Kind.LOAD), (0, Kind.SAVE)


def test_nothing_is_answered_before_it_was_loaded(serve):
    clients, _ = serve({0: [(50, Kind.LOAD), (0, PULL)], 1: [(0, PULL)], 2: [(0, PUSH)]})
    assert clients.log[0] == (0, Kind.LOAD)
    assert [answer[1] for answer in clients.answers] == [5, 5, 6]


def test_nobody_waits_for_a_client_that_left_before_it_was_loaded(serve):
    clients, _ = serve({0: [(50, Kind.LOAD), (0, PULL)], 1: []}, order=cycle([1, 0]))
    assert clients.log[0] == (1, Kind.LEAVE)
    assert [answer[0] for answer in clients.answers] == [0]


def test_steps_count_whatever_becomes_of_a_gradient(serve):
    asks = [LOAD, (0, PUSH, 5, 10, 0, 1.0), (0, PUSH, 1, 10, 0, 1.0), (0, PULL, 5, 10, 0, 1.0)]
    clients, made = serve({0: asks}, max_staleness=2)
    assert [(version, steps) for _, version, _, steps, _ in clients.answers] == [
        (6, 110), (6, 120), (6, 130),
    ]  # fmt: skip
    assert (made.counts.applied, made.counts.stale) == (1, 1)


def test_commands_only_grow(serve):
    asks = {
        0: [LOAD, (0, PUSH, 5, 0, 8, 1.0), (20, PUSH, 5, 0, 0, 1.0), (30, PULL, 5, 0, 17, 1.0)],
        1: [(10, PULL, 5, 0, 0, 1.0), (40, PULL, 5, 0, 0, 1.0)],
    }
    clients, _ = serve(asks)
    assert [(answer[0], answer[4]) for answer in clients.answers] == [
        (0, 8), (1, 8), (0, 8), (0, 17), (1, 17),
    ]  # fmt: skip


def test_a_save_gets_what_pushes_made(serve):
    clients, made = serve({0: [LOAD, SAVE, (0, PUSH), SAVE]})
    (_, first, before), pushed, (_, second, after) = clients.answers
    assert (first, before) == (5, 1.0)
    assert (second, after) == (6, 0.0)  # AdaGrad's first step is the rate
    assert pushed[2] == after
    assert made.version == 6


@given(st.data())
def test_in_a_fixed_order_nobody_is_served_out_of_turn(data):
    """Whenever clients come; who left is passed over, and loads and saves come when they come."""
    ranks = range(data.draw(st.integers(1, 4)))
    turns = data.draw(st.permutations([*ranks, *data.draw(st.lists(st.sampled_from(ranks)))]))
    times = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([PULL, PUSH])), max_size=8)
    asks = {rank: data.draw(times) for rank in ranks}
    asks[0] = [LOAD, *asks[0], SAVE]
    clients = Clients([0.0], asks)
    poller = Poller(1e9, sleep=lambda _: None)
    Server(clients, shard(), poller, cycle(turns)).run()
    expected, left = (
        [],
        {rank: len([a for a in asks[rank] if a[1] in (PULL, PUSH)]) for rank in ranks},
    )
    while any(left.values()):
        for turn in turns:
            if left[turn]:
                left[turn] -= 1
                expected.append(turn)
    assert [rank for rank, kind in clients.log if kind in (PULL, PUSH)] == expected


def test_after_a_poisoned_gradient_nothing_is_answered(serve):
    bad = np.array([0.0, np.nan, 0.0], np.float32)
    good = np.ones(SIZE, np.float32)
    with pytest.raises(PoisonedError, match=r"rank 1 \(number 2 from there\).* parameter 1 "):
        serve(
            {0: [LOAD, (9, PULL)], 1: [(0, PUSH), (1, PUSH)], 2: [(2, PULL)]},
            gradients=[good, bad],
        )
    clients = serve.clients
    assert len(clients.answers) == 1
    assert np.isfinite(clients.vector).all()


def test_a_silent_client_among_others_is_noticed(serve):
    others = [(10 * n, PULL) for n in range(1, 30)]
    with pytest.raises(SilenceError, match=r"nothing came from rank 2 for \d+ s"):
        serve({0: [LOAD, *others], 1: others, 2: [(35, PULL), (999, PULL)]}, silence_s=100.0)
    assert 135 <= serve.clients.now[0] <= 150


def test_in_a_fixed_order_a_silent_client_is_named(serve):
    with pytest.raises(SilenceError, match=r"waited 10\d s for a request of rank 2, "):
        serve(
            {0: [LOAD, (0, PULL)], 1: [(0, PULL), (0, PULL)], 2: [(999, PULL)]},
            order=cycle([1, 2, 0]), silence_s=100.0,
        )  # fmt: skip


def test_when_all_are_silent_all_are_named(serve):
    with pytest.raises(SilenceError, match=r"a request of any of the ranks 0, 3, "):
        serve({0: [LOAD, (999, PULL)], 2: [], 3: [(999, PULL)]}, silence_s=100.0)


def test_who_waits_for_its_turn_is_not_silent(serve):
    """One is slow, but not too slow: the one behind it has waited longer, and is not to blame."""
    slow = [(90, PULL), (180, PULL), (270, PULL)]
    clients, _ = serve(
        {0: [LOAD, *slow], 1: [(0, PULL)] * 3, 2: [(0, PULL)] * 2},
        order=cycle([2, 1, 0, 0]), silence_s=100.0,
    )  # fmt: skip
    assert len(clients.answers) == 8


def test_who_left_is_not_silent(serve):
    clients, _ = serve({0: [LOAD, (50, PULL), (120, PULL), (190, PULL)], 1: []}, silence_s=100.0)
    assert len(clients.answers) == 3


def test_a_server_answers_at_once_that_it_was_loaded_late(serve):
    """Those who asked while the first learner read a checkpoint are not silent."""
    asks = {
        0: [(60, Kind.LOAD), (155, PULL)],
        1: [(0, PULL), (150, PULL)],
        2: [(0, PULL), (99, PULL)],
    }
    clients, _ = serve(asks, silence_s=100.0)
    assert len(clients.answers) == 5
