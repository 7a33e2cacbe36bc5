"""Central acting when actors or predictors go wrong (programs/central.py), and when many ask."""

import heapq
import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drl_mpi.acting.central import CentralActing
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.predictors import Predictors, Served
from drl_mpi.acting.requests import Command, Kind, answer_record, request_record
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.exchange import Asked
from drl_mpi.comm.poller import Bell, Poller
from drl_mpi.comm.record import Slot
from drl_mpi.envs.base import EnvSpec
from drl_mpi.experience.unroll import UnrollShape

PROGRAM = Path(__file__).parent / "programs" / "central.py"
SCENARIOS = [
    "plays",
    "stall",
    "faulty_short",
    "faulty_long",
    "faulty_larger",
    "faulty_number",
    "faulty_kind",
    "faulty_unheard",
    "faulty_flag",
    "two_faulty",
    "in_its_place",
    "all_faulty",
    "predictor_fails",
    "held",
    "held_to_the_end",
    "stuck",
]
ALONE = ["forgotten", "end_while_left_alone"]


@pytest.fixture(scope="module")
def played(mpirun):
    """One launch for all scenarios: a launch costs as much as ten of them."""
    return mpirun(4, PROGRAM, *SCENARIOS, timeout=300)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text


@pytest.mark.parametrize("name", ALONE)
def test_who_is_left_alone_does_not_end_the_run(mpirun, name):
    done = mpirun(4, PROGRAM, name, timeout=120)
    assert f"ok {name}\n" in done.stdout, done.text
    assert done.rc == 0, done.text


@pytest.mark.slow
def test_a_stall_of_half_a_minute(mpirun):
    done = mpirun(4, PROGRAM, "stall_30", timeout=180)
    assert done.rc == 0, done.text
    assert "ok stall_30\n" in done.stdout


class Clock:
    """Seconds that only work and idleness take: other people's jobs do not make it go."""

    def __init__(self):
        self.now = 0.0
        self.lock = threading.Lock()

    def __call__(self):
        return self.now

    def work(self, seconds):
        with self.lock:
            self.now += seconds


class Crowd:
    """Stands in for an ``ExchangeServer`` and all its clients: many actors that play on for ever.

    What is answered asks again, with rows, when it has thought. Who asks is told in the order of
    the channels, as MPI does.

    Args:
        keys: (rank, channel) of all of them.
        think: seconds from an answer to the next request.
    """

    def __init__(self, keys, think, clock):
        self.think, self.clock = think, clock
        self.index = {key: i for i, key in enumerate(keys)}
        request, answer = request_record(SPEC, 1), answer_record(1)
        self.asked = {key: Slot(request) for key in keys}
        self.answers = {key: Slot(answer) for key in keys}
        self.due = [(0.0, key) for key in keys]
        self.served = Counter()
        """(rank, channel) -> steps."""
        self.stamps = {}
        """(rank, channel) -> when it asked, and steps of all together until then."""
        self.waits = []
        """(seconds from a request's arrival to its answer, steps that others were given)"""
        self.steps = 0
        self.gone = set()
        self.polls = 0
        self.polled = threading.Condition()

    def poll(self):
        with self.polled:
            self.polls += 1
            self.polled.notify_all()
        if self.due and len(self.due) + len(self.gone) == len(self.index):  # all think
            self.clock.now = max(self.clock.now, self.due[0][0])
        now, arrived = self.clock.now, []
        while self.due and self.due[0][0] <= now:
            arrived.append(heapq.heappop(self.due)[1])
        arrived.sort(key=self.index.__getitem__)
        self.stamps.update(dict.fromkeys(arrived, (now, self.steps)))
        return [Asked(*key) for key in arrived]

    def request(self, *key):
        return self.asked[key]

    def answer(self, *key):
        return self.answers[key]

    def send(self, *key, last=False):
        answer, request = self.answers[key], self.asked[key]
        assert int(answer["number"]) == int(request["number"])
        command = Command(int(answer["command"]))
        if last:
            assert command is Command.END
            self.gone.add(key)
            return
        if command is Command.STEP:
            assert int(answer["actions"][0]) == self.index[key], "chosen for another one"
            when, steps = self.stamps[key]
            self.waits.append((self.clock.now - when, self.steps - steps))
            self.served[key] += 1
            self.steps += 1
        request["kind"][...] = Kind.AGAIN if command is Command.WAIT else Kind.ROWS
        request["number"][...] += 1
        request["frame"][...] = self.index[key]
        heapq.heappush(self.due, (self.clock.now + self.think(), key))

    def drained(self):
        return True

    def close(self):
        pass


SPEC = EnvSpec("crowd", (1,), "float32", 1, 1 << 20, 1)
LANES, CAP = 2000, 128


class Costly:
    """Chooses what tells for whom it was chosen, in the time that a network takes.

    As long as it takes, the other thread goes on: who was in a batch before asks again.
    """

    def __init__(self, sizes, crowd, predictors):
        self.sizes, self.crowd, self.predictors = sizes, crowd, predictors
        self.rng = np.random.default_rng(0)

    def __call__(self, lanes):
        self.sizes.append(len(lanes))
        chosen = []
        for lane in lanes:
            lane.observe()
            actions = lane.observations[:, 0].astype(np.int64)
            lane.decide(actions, np.zeros(1, np.float32), None, 1, self.rng)
            chosen.append(actions)
        crowd = self.crowd
        with crowd.polled:
            seen = crowd.polls
            crowd.polled.wait_for(lambda: crowd.polls > seen, timeout=1.0)
        crowd.clock.work((1e-3 + 1e-5 * len(lanes)) / self.predictors)
        return Served(lanes, chosen)


@pytest.mark.parametrize(
    ("most_think_s", "predictors"), [(0.0, 1), (0.0, 2), (0.02, 1), (0.02, 2), (0.1, 1)]
)
def test_nobody_starves_among_2000(predictors, most_think_s):
    """99 % wait at most 5 times the median, and all are answered about equally often.

    500 ranks with 4 channels each, in this process (see ``Crowd``): the real service with real
    predictor threads. A network takes 1 ms per batch and 10 us per environment, on a clock that
    nothing else drives; waits are measured on it, from a request's arrival to its answer. Without
    thinking, or with a little, more ask than can be served; with much, batches are small.
    """
    choose, sizes, bell, clock = random.Random(3), [], Bell(), Clock()
    keys = [(rank, channel) for rank in range(1, LANES // 4 + 1) for channel in range(4)]
    crowd = Crowd(keys, lambda: choose.random() * most_think_s, clock)
    shape = UnrollShape(SPEC, 5, 1)
    acting = CentralActing(
        crowd,
        [Lane(*key, shape, 1, 1, gamma=0.99, reward_clip=1.0) for key in keys],
        Predictors(lambda _: Costly(sizes, crowd, predictors), predictors, CAP, 0.0, 1, bell.ring),
        Versions(),
        1,
        600.0,
        clock=clock,
    )
    acting._predictors.active = predictors
    acting.publish(np.zeros(1, np.float32), 1)

    def serve(steps):
        def step():
            acting.progress()
            while (delivery := acting.take()) is not None:
                acting.release(delivery)
            return crowd.steps >= steps or None

        Poller(120.0, sleep=lambda _: bell.sleep(5e-5)).wait(step, "so many steps")

    serve(2 * LANES)  # until their requests have spread
    crowd.waits.clear()
    sizes.clear()
    before = crowd.served.copy()
    serve(18 * LANES)
    waits, skipped = np.array(crowd.waits).T
    served = [crowd.served[key] - before[key] for key in keys]
    Poller(60.0, sleep=bell.sleep).wait(lambda: (acting.progress(), acting.stop())[1], "the end")
    acting.close()
    assert crowd.gone == set(keys)

    middle, late = np.percentile(waits, (50, 99)) * 1e3
    print(
        f"waits: median {middle:.1f} ms, 99 % {late:.1f} ms, most {1e3 * waits.max():.1f} ms; "
        f"others' steps meanwhile: median {np.median(skipped):.0f}, most {max(skipped):.0f}; "
        f"answers: {min(served)} to {max(served)}; batches: {np.mean(sizes):.0f}"
    )
    assert len(waits) >= 15 * LANES
    assert late <= 5 * middle
    assert max(skipped) <= 4 * LANES, f"one waited while others were given {max(skipped):.0f} steps"
    spread = 3 if most_think_s else 1.5  # who draws long thoughts asks less
    assert np.mean(served) / spread <= min(served), f"one was answered {min(served)} times"
    assert np.mean(served) * spread >= max(served), f"one was answered {max(served)} times"
    assert max(sizes) <= CAP
    assert most_think_s or np.mean(sizes) > CAP / 2
