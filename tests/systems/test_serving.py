"""A parameter server's rank: what it loads, and whom it serves after whom in lock-step."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from drl_mpi.run.layout import plan
from drl_mpi.systems.a3c import A3C
from drl_mpi.systems.gorilla import Gorilla
from drl_mpi.systems.serving import service_order
from drl_mpi.systems.system import Prepared

A3C_JOB = Path(__file__).parents[2] / "jobs" / "a3c.py"

# -- what it loads --------------------------------------------------------------------------------

IMPORTS = """
import sys
import drl_mpi.systems.serving, drl_mpi.systems.gorilla, drl_mpi.systems.a3c, drl_mpi.run.launch
import drl_mpi.comm.world
print([name for name in ("torch", "ale_py", "gymnasium", "h5py") if name in sys.modules])
"""


def test_a_servers_imports_are_light():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[-2] == "[]", done.stdout


def test_a_servers_process_has_no_torch_in_it(mpirun, tmp_path):
    options = "--env CartPole-v1 --net mlp --learners 2 --total-frames 1e9 --run-dir run"
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(mpirun(3, A3C_JOB, *options.split(), cwd=tmp_path, timeout=120))
    )
    thread.start()
    try:
        learning = tmp_path / "run" / "progress.csv"
        deadline = time.monotonic() + 90.0
        while not (learning.exists() and learning.read_text().count("\n") > 1):
            assert not ended, ended[0].text
            assert time.monotonic() < deadline, "nothing was learnt"
            time.sleep(0.05)
        maps, kib = zip(*[_memory(_rank(tmp_path, rank)) for rank in range(3)])
    finally:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "STOP").touch()
        thread.join()
    assert ended[0].rc == 75, ended[0].text
    assert ["libtorch" in text for text in maps] == [True, True, False], "rank 2 serves"
    assert kib[2] < 40 * 1024, f"{kib[2]} KiB of its own"


def _rank(cwd, rank):
    for process in psutil.process_iter():
        try:
            number = process.environ().get("OMPI_COMM_WORLD_RANK")
            if number == str(rank) and process.cwd() == str(cwd):
                return process.pid
        except psutil.Error:
            continue
    raise AssertionError(f"there is no rank {rank}")


def _memory(pid):
    """What a process has mapped, and its anonymous memory in KiB."""
    rollup = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    return Path(f"/proc/{pid}/maps").read_text(), int(rollup["Anonymous"].split()[0])


# -- lock-step: whom it serves after whom ---------------------------------------------------------

GORILLA = replace(
    Gorilla(), lockstep=True, env="CartPole-v1", envs_per_actor=4, unroll_length=2,
    batch_size=8, replay_ratio=2.0, replay_start=8, checkpoint_unrolls=3, n_steps=1,
)  # fmt: skip
"""An unroll of 4 environments brings 8 steps; 4 steps are an update."""
CASES = {
    "a3c": (replace(A3C(), lockstep=True, checkpoint_unrolls=3), 3, 0),
    "a3c alone": (replace(A3C(), lockstep=True, checkpoint_unrolls=1), 1, 0),
    "bundled": (replace(GORILLA, bundled=True, replay_start=24), 2, 0),
    "one to one": (GORILLA, 2, 2),
    "one learner": (replace(GORILLA, replay_start=72), 1, 3),
    "several each": (replace(GORILLA, replay_start=48), 2, 4),
    "global": (replace(GORILLA, replay="global", replay_start=24), 2, 3),
    "global, one actor each": (replace(GORILLA, replay="global", replay_start=16), 2, 2),
    "deep streams": (replace(GORILLA, stream_depth=3, replay_start=16), 2, 2),
}


class Run:
    """A run in lock-step with nothing in it but who waits for what, in random order.

    Each rank is a generator that yields what it waits for, as a function. Learners and actors do
    what ``roles.learner`` and ``roles.actor`` do; each server serves whom ``service_order`` says.
    """

    def __init__(self, config, learners, actors, servers, seed, *, resumed=False, last=9):
        ranks = learners + actors + servers
        self.layout = layout = plan(
            ranks, ["here"] * ranks, 0, learners=learners, servers=servers, actors=actors
        )
        self.config, self.last = config, last
        self.choose = random.Random(seed)
        self.prepared = Prepared(None, 100, Path("checkpoint.h5") if resumed else None)
        self.warm_up = 0 if resumed else config.warm_up_unrolls(layout)
        self.asked = {server: set() for server in layout.servers}
        self.left = {server: set() for server in layout.servers}
        self.pushed = {server: Counter() for server in layout.servers}
        self.pushing: dict[int, bool] = {}
        self.acted: dict[tuple[int, int], set[int]] = {}
        """(actor, unroll) -> updates that its servers' parameters had seen."""
        self.stop = dict.fromkeys(layout.servers, False)
        self.told: dict[int, bool] = {}
        self.sent: Counter[tuple[int, int]] = Counter()
        self.taken: Counter[tuple[int, int]] = Counter()
        self.closed: set[tuple[int, int]] = set()
        self.met: Counter[int] = Counter()
        self.unrolls: Counter[int] = Counter()

    def play(self):
        """To the end of all ranks."""
        layout = self.layout
        ranks = {rank: self.learner(rank) for rank in layout.learners}
        ranks |= {rank: self.actor(rank) for rank in layout.actors}
        ranks |= {rank: self.server(rank) for rank in layout.servers}
        waits = {rank: next(generator) for rank, generator in ranks.items()}
        while waits:
            ready = [rank for rank, waiting in waits.items() if waiting()]
            assert ready, f"ranks {sorted(waits)} wait for each other"
            rank = self.choose.choice(ready)
            try:
                waits[rank] = next(ranks[rank])
            except StopIteration:
                del waits[rank]
        return self

    def server(self, me):
        order = service_order(self.config, self.layout, self.prepared)
        clients = {*self.layout.learners, *self.layout.actors}
        for client in order:
            if client not in self.left[me]:
                yield lambda client=client: client in self.asked[me] | self.left[me]
            if client in self.asked[me]:
                self.asked[me].remove(client)
                if client in self.layout.actors:
                    seen = self.acted.setdefault((client, self.unrolls[client]), set())
                    seen.add(sum(self.pushed[me].values()))
                    self.told[client] = self.stop[me]
                elif self.pushing[client] == "push":
                    self.pushed[me][client] += 1
                elif self.pushing[client] == "last":
                    self.stop[me] = True
            if self.left[me] == clients:
                return

    def ask(self, me, kind="pull"):
        self.pushing[me] = kind
        for server in self.layout.servers:
            assert me not in self.asked[server]
            self.asked[server].add(me)

    def answered(self, me):
        return lambda: not any(me in asked for asked in self.asked.values())

    def leave(self, me):
        for left in self.left.values():
            left.add(me)

    def learner(self, me):
        config, layout = self.config, self.layout
        sources = config.actors_of(me, layout)
        replays = isinstance(config, Gorilla)
        steps = config.unroll_length * config.record_envs(layout)
        rows, credit, rounds = 0, 0.0, 0
        records = 1
        if sources:
            shares = len(config.learners_of(sources[0], layout))
            records = config.envs_per_actor // config.record_envs(layout) // shares
        taken = 0
        warm = not replays or self.prepared.checkpoint is not None

        def take():
            nonlocal taken
            if not sources:  # an unroll of its own, with the newest parameters
                yield self.answered(me)
                return
            pair = sources[taken // records % len(sources)], me
            taken += 1
            yield lambda: self.sent[pair] > self.taken[pair]
            self.taken[pair] += 1

        self.ask(me)
        yield self.answered(me)
        while True:
            if replays and warm:
                while credit < config.steps_per_update:
                    yield from take()
                    credit += steps
                credit -= config.steps_per_update
            else:
                yield from take()
            yield self.answered(me)
            if not warm:
                rows += steps
                warm = rows >= config.replay_start
                self.ask(me, "skip")
                continue
            self.ask(me, "push")
            rounds += 1
            period = config.updates_per_round(layout)
            over = rounds == self.last * period
            if over or rounds % (period * config.checkpoint_unrolls) == 0:
                yield self.answered(me)
                self.met[rounds] += 1
                yield lambda rounds=rounds: self.met[rounds] == len(layout.learners)
                if over:
                    break
                self.ask(me)
                yield self.answered(me)
        if me == layout.learners[0]:
            self.ask(me, "last")
            yield self.answered(me)
        self.leave(me)
        while not {(source, me) for source in sources} <= self.closed:
            yield lambda: any(
                self.sent[source, me] > self.taken[source, me] or (source, me) in self.closed
                for source in sources
            )
            for source in sources:
                self.taken[source, me] = self.sent[source, me]

    def actor(self, me):
        config, layout = self.config, self.layout
        learners = config.learners_of(me, layout)
        records = config.envs_per_actor // config.record_envs(layout)
        each = records // len(learners)
        depth = config.stream_depth * each

        def room():
            return all(
                max(0, self.sent[me, learner] - self.taken[me, learner] - depth) + each <= depth
                for learner in learners
            )

        while True:
            yield room
            self.ask(me)
            yield self.answered(me)
            if self.told[me]:
                break
            self.unrolls[me] += 1
            for learner in learners:
                for _ in range(each):
                    self.sent[me, learner] += 1
        for learner in learners:
            self.closed.add((me, learner))
        self.leave(me)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("last", [1, 3, 7], ids="{} rounds".format)
@pytest.mark.parametrize("case", CASES)
def test_nobody_waits_for_ever_and_every_unroll_has_its_version(case, last, resumed):
    config, learners, actors = CASES[case]
    for seed in range(4):
        run = Run(config, learners, actors, 1 + seed % 2, seed, resumed=resumed, last=last).play()
        layout = run.layout
        updates = config.updates_per_round(layout)
        assert all(
            pushed == dict.fromkeys(layout.learners, last * updates)
            for pushed in run.pushed.values()
        )
        for actor in layout.actors:
            assert run.unrolls[actor] >= run.warm_up + last
        for (_, unroll), versions in run.acted.items():
            if unroll < run.warm_up + last:
                behind = max(0, unroll - run.warm_up)
                assert versions == {behind * updates * learners}


def test_the_cases_are_those_that_the_command_line_allows():
    for config, learners, actors in CASES.values():
        config.check()
        layout = plan(
            learners + actors + 1, ["here"] * (learners + actors + 1), 0,
            learners=learners, servers=1, actors=actors,
        )  # fmt: skip
        config.check_layout(layout)
