"""What the ranks of ``bench.latency`` do: rank 0 chooses actions, the others ask for them.

Everything between an actor's request and its answer is the library's own: ``AskingActor``,
``ExchangeClient``, ``ExchangeServer``, ``CentralActing``, ``Predictors``. Environments are not:
they show the same frame for ever, and note when they asked and when they were answered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drl_mpi.acting.requests import Command, answer_record, request_record
from drl_mpi.bench.command import BenchError
from drl_mpi.comm.exchange import ExchangeClient, ExchangeServer
from drl_mpi.comm.poller import BRISK_SPIN_S, Bell, Poller
from drl_mpi.comm.world import World, connect
from drl_mpi.envs.base import Array, EnvSpec, Rows
from drl_mpi.roles.asking_actor import AskingActor
from drl_mpi.run.launcher import launch_environment, mpirun_command
from drl_mpi.systems.asking import SPIN_S
from drl_mpi.systems.tags import TAG_REQUESTS

if TYPE_CHECKING:
    from drl_mpi.acting.central import CentralActing
    from drl_mpi.acting.lanes import Lane
    from drl_mpi.acting.predictors import Predict, Served
    from drl_mpi.acting.versions import Versions

SPEC = EnvSpec("Frames", (84, 84), "uint8", stack=4, num_actions=6, action_repeat=4)
LENGTH = 5
"""Steps per unroll, as Babaeizadeh et al. 2017 have them. Unrolls are thrown away."""
ALONE = 300
"""Predictions that are timed without anybody asking."""

Trip = tuple[float, float]
"""When a request was made and when its actions came, on the clock that all ranks share."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    envs: int = 1
    """Environments of a request."""
    net: str | None = None
    """That chooses; ``None`` for a choice that costs nothing."""
    precision: str = "bf16"
    gap_ms: float = 0.0
    """Between an answer and the next request, as if environments stepped for so long."""
    seconds: float = 3.0
    askers: int = 1
    """Ranks that ask."""
    lanes: int = 1
    """Of each of them, each with a request of its own."""
    predictors: int = 1
    predict_batch: int = 128
    """Environments per prediction, at most."""


Report = dict[str, Any]
"""alone: seconds of predictions, measured alone.
served: [(source, channel, arrived, taken, chosen)] of every request, in order.
answered: when its answer was sent, in the same order with one predictor.
waits: seconds from its arrival to then.
trips: per asking rank, per lane, its trips."""


def measure(case: Case, folder: Path) -> Report:
    """Runs a case under mpirun.

    Args:
        case: what to measure.
        folder: for the report.
    """
    report = folder / "report.json"
    words = ["-m", __name__, str(report), json.dumps(asdict(case))]
    command = mpirun_command(1 + case.askers, words)
    limit = 300 + case.seconds
    code = subprocess.run(command, check=False, env=launch_environment(), timeout=limit).returncode
    if code:
        raise BenchError(f"a rank ended with code {code}; see above")
    found: Report = json.loads(report.read_text())
    return found


def main(arguments: Sequence[str]) -> None:
    """A rank."""
    path, case = Path(arguments[0]), Case(**json.loads(arguments[1]))
    world, poller = connect(), Poller(60.0)
    poller.be_brisk(SPIN_S if world.rank else BRISK_SPIN_S)
    if world.rank:
        world.gather(_ask(world, poller, case))
    else:
        report = _serve(world, poller, case)
        trips = world.gather(None)
        assert trips is not None
        path.write_text(json.dumps(report | {"trips": trips[1:]}))
    world.leave()


# -- the rank that serves ---------------------------------------------------------------------


def _serve(world: World, poller: Poller, case: Case) -> Report:
    import torch

    from drl_mpi import nets
    from drl_mpi.acting.versions import Versions
    from drl_mpi.systems.service import SWITCH_S

    torch.set_num_threads(1)
    nets.keep_freed_memory()
    sys.setswitchinterval(SWITCH_S)
    bell, versions = Bell(), Versions()
    poller.sleep = bell.sleep
    versions.publish(np.zeros(1, dtype=np.float32), 0, 0)
    make = _maker(case, versions)
    alone = _alone(make(0), case)
    notes = _Notes()
    acting = _acting(world, poller, case, versions, bell, lambda n: _Noting(make(n), notes), notes)
    poller.background = acting.progress
    world.meet(poller, "the asking ranks")
    deadline = time.perf_counter() + case.seconds

    def ready() -> bool | None:
        while (delivery := acting.take()) is not None:
            acting.release(delivery)
        if time.perf_counter() < deadline:
            return None
        return True if acting.stop() and acting.ended else None

    poller.wait(ready, "the end")
    acting.close()
    return {"alone": alone, **asdict(notes)}


def _maker(case: Case, versions: Versions) -> Callable[[int], Predict]:
    """Number of a predictor -> the predictor."""
    from drl_mpi import nets
    from drl_mpi.acting.choosing import choose_by_softmax
    from drl_mpi.acting.predictors import Predictor, Served
    from drl_mpi.experience.rng import make_rng

    if case.net is None:
        actions = np.zeros(case.envs, dtype=np.int64)
        return lambda _: lambda lanes: Served(lanes, [actions] * len(lanes))
    net = nets.make(
        case.net, SPEC.observation_shape, SPEC.num_actions, head="policy_value", core=None, seed=1
    )
    net.precision = case.precision
    versions.publish(nets.FlatParameters(net).vector.detach().numpy(), 0, 0)
    return lambda number: Predictor(net, versions, choose_by_softmax, make_rng(1, number))


def _lane(case: Case, source: int, channel: int) -> Lane:
    from drl_mpi.acting.lanes import Lane
    from drl_mpi.experience.unroll import UnrollShape

    shape = UnrollShape(SPEC, LENGTH, case.envs)
    return Lane(source, channel, shape, case.envs, 1, gamma=0.99, reward_clip=1.0)


def _alone(predict: Predict, case: Case) -> list[float]:
    """Seconds of predictions for one request."""
    lane, env = _lane(case, 1, 0), FrozenEnv(case.envs)
    lane.restart()
    lane.arrive(env.reset(0))
    times = []
    for _ in range(ALONE):
        began = time.perf_counter()
        predict([lane])
        times.append(time.perf_counter() - began)
    return times[ALONE // 5 :]  # the first ones choose kernels


def _acting(
    world: World,
    poller: Poller,
    case: Case,
    versions: Versions,
    bell: Bell,
    make: Callable[[int], Predict],
    notes: _Notes,
) -> CentralActing:
    from drl_mpi.acting.central import CentralActing
    from drl_mpi.acting.predictors import Predictors

    class NotingServer(ExchangeServer):
        """Notes when it sends actions."""

        def send(self, client: int, channel: int, *, last: bool = False) -> None:
            if self.answer(client, channel)["command"] == Command.STEP:
                notes.answer(client, channel)
            super().send(client, channel, last=last)

    sources = range(1, 1 + case.askers)
    records = request_record(SPEC, case.envs), answer_record(case.envs)
    predictors = Predictors(make, case.predictors, case.predict_batch, 0.0, 1, bell.ring)
    predictors.active = case.predictors
    return CentralActing(
        NotingServer(world.comm, sources, case.lanes, *records, TAG_REQUESTS),
        [_lane(case, source, channel) for source in sources for channel in range(case.lanes)],
        predictors,
        versions,
        1,
        poller.silence_s,
    )


@dataclass
class _Notes:
    """See ``Report``."""

    served: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._arrived: dict[tuple[int, int], float] = {}

    def serve(self, lanes: Sequence[Lane], taken: float, chosen: float) -> None:
        """A predictor chose for these."""
        for lane in lanes:
            self._arrived[lane.source, lane.channel] = lane.asked_at
            self.served.append((lane.source, lane.channel, lane.asked_at, taken, chosen))

    def answer(self, client: int, channel: int) -> None:
        """Actions are about to be sent."""
        now = time.perf_counter()
        self.answered.append(now)
        self.waits.append(now - self._arrived[client, channel])


class _Noting:
    """A predictor that notes whom it served, and when."""

    def __init__(self, predict: Predict, notes: _Notes) -> None:
        self._predict = predict
        self._notes = notes

    def __call__(self, lanes: Sequence[Lane]) -> Served:
        taken = time.perf_counter()
        result = self._predict(lanes)
        self._notes.serve(lanes, taken, time.perf_counter())
        return result


# -- those that ask ---------------------------------------------------------------------------


class FrozenEnv:
    """n environments that show the same frames for ever.

    Args:
        num_envs: n.
        gap_s: seconds that a step takes.
    """

    def __init__(self, num_envs: int, gap_s: float = 0.0) -> None:
        self.spec = SPEC
        self.num_envs = num_envs
        self.trips: list[Trip] = []
        self._gap_s = gap_s
        self._asked = 0.0
        rng = np.random.default_rng(1)
        self._rows = Rows(
            frame=rng.integers(256, size=(num_envs, *SPEC.frame_shape), dtype=np.uint8),
            reward=np.zeros(num_envs, dtype=np.float32),
            terminated=np.zeros(num_envs, dtype=bool),
            reset=np.zeros(num_envs, dtype=bool),
            first=np.zeros(num_envs, dtype=bool),
            episode_return=np.full(num_envs, np.nan),
            episode_length=np.zeros(num_envs, dtype=np.int64),
        )

    def reset(self, seed: int) -> Rows:  # noqa: ARG002 (all alike)
        """See ``BatchedEnv.reset``."""
        self._asked = time.perf_counter()
        return self._rows

    def step(self, actions: Array) -> Rows:  # noqa: ARG002
        """Notes that actions came, and that the next ones are asked for now."""
        self.trips.append((self._asked, time.perf_counter()))
        if self._gap_s:
            time.sleep(self._gap_s)
        self._asked = time.perf_counter()
        return self._rows

    def close(self) -> None:
        """See ``BatchedEnv.close``."""


class _Crowd(ExchangeClient):
    """Many actors in one rank. Looking at all their channels after each request would be more work
    than they make; looking for answers moves what is under way, too."""

    def progress(self) -> None: ...


def _ask(world: World, poller: Poller, case: Case) -> list[list[Trip]]:
    envs = [FrozenEnv(case.envs, case.gap_ms / 1e3) for _ in range(case.lanes)]
    client = (_Crowd if case.lanes > 1 else ExchangeClient)(
        world.comm,
        0,
        case.lanes,
        request_record(SPEC, case.envs),
        answer_record(case.envs),
        TAG_REQUESTS,
    )
    actor = AskingActor(envs, client, poller, lambda _group, _epoch: 0)
    world.meet(poller, "the others")
    actor.run()
    return [env.trips for env in envs]


if __name__ == "__main__":
    main(sys.argv[1:])
