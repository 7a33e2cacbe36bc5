"""One process of one stage: sets up, says "ready", waits for a line, measures, prints JSON.

    python -m drl_mpi.bench.stage STAGE PROCESS ENVIRONMENTS [options of jobs/bench.py]

It runs the library's own code for the stage and nothing else of the job. MPI is never started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi import envs, nets
from drl_mpi.acting.choosing import choose_by_softmax
from drl_mpi.acting.local import LocalActing
from drl_mpi.bench.config import BenchOptions, parse_bench
from drl_mpi.comm.parameters import ParameterSubscriber
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.experience import Batch, UnrollReplay, UnrollShape
from drl_mpi.experience.rng import make_rng
from drl_mpi.roles.info import WIDTH
from drl_mpi.roles.training import differentiate
from drl_mpi.systems.network import make_net
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.protocol import Length, Wish

Unit = Callable[[], int]
"""Does the stage's smallest whole piece of work and returns its number of steps."""

WARM_UP = 0.2
"""Share of a stage's time that is run before the first window, all cores at work."""


def main(arguments: list[str]) -> None:
    """The process."""
    stage, process, n, *options = arguments
    config = parse_bench(options)
    torch.set_num_threads(1)
    unit = STAGES[stage](config, int(process), int(n))
    unit()  # first calls choose kernels and fault in memory
    print("ready", flush=True)
    if not sys.stdin.readline():
        return  # the bench is gone
    _window(unit, WARM_UP * config.seconds)
    length = config.seconds / config.repeats
    print(json.dumps([_window(unit, length) for _ in range(config.repeats)]), flush=True)


def environment(config: BenchOptions, process: int, n: int) -> Unit:
    """n environments under random actions, with the stacks that a network would see."""
    play = RandomPlay(config, process, n)

    def unit() -> int:
        play.step()
        return n

    return unit


def inference(config: BenchOptions, process: int, n: int) -> Unit:
    """The choice of actions for n environments at a time, sampling included."""
    nets.keep_freed_memory()  # as every rank does
    play = RandomPlay(config, process, n)
    for _ in range(config.unroll_length):
        play.step()
    play.env.close()
    net = make_net(config, play.spec)
    # The parameters never change here, so nobody has to publish any.
    nobody = cast(ParameterSubscriber, None)
    acting = LocalActing(net, nobody, Poller(), choose_by_softmax, make_rng(config.seed, process))
    observations = play.spec.as_observation(play.stack)
    first = np.zeros(n, dtype=bool)
    parts = net.state_shape
    state = np.zeros((parts[0], n, *parts[1:]), dtype=np.float32) if parts else None

    def unit() -> int:
        acting.act(observations, first, state)
        return n

    return unit


def training(config: BenchOptions, process: int, n: int) -> Unit:
    """A learner's update from n unrolls: assembly, loss, gradient, optimiser."""
    nets.keep_freed_memory()  # as every rank does
    spec = envs.probe(config.env, config.env_options)
    net = make_net(config, spec)
    shape = UnrollShape(
        spec, config.unroll_length, config.record_envs(config.layout()), net.state_shape
    )
    fields = played_record(config, process, shape).fields
    flat = nets.FlatParameters(net)
    # A rate of 0 keeps the network as it is: every window then does the same work.
    updating = LocalUpdating(
        flat, config.make_optimizer(), lambda _: 0.0, config.max_gradient_norm, Length(1)
    )
    unrolls = config.unrolls
    wide = UnrollShape(spec, config.unroll_length, n, net.state_shape)
    batch = Batch(wide)
    replay = None
    if unrolls.fresh < unrolls.batch:
        replay = UnrollReplay(wide, unrolls.replay_capacity, make_rng(config.seed, process))
    loss_of = config.make_loss(net, flat)
    info = np.zeros(WIDTH, dtype=np.float32)

    def unit() -> int:
        batch.begin()
        for column in range(0, unrolls.fresh, shape.envs):
            batch.write(column, fields)
            batch.note(fields)
            if replay is not None:
                replay.add(fields)
        if replay is not None:
            replay.fill(batch, unrolls.fresh)
        loss_of.prepare(updating.version)
        loss, _ = differentiate(flat, loss_of, batch)
        updating.apply(flat.gradient, info, loss=loss, steps=batch.steps, wish=Wish())
        return config.unroll_length * unrolls.fresh

    return unit


STAGES: dict[str, Callable[[BenchOptions, int, int], Unit]] = {
    "environment": environment,
    "inference": inference,
    "training": training,
}


class RandomPlay:
    """n environments, played at random, and the stacks of their frames."""

    def __init__(self, config: BenchOptions, process: int, n: int) -> None:
        self.env = envs.make(config.env, n, config.env_options)
        self.spec = self.env.spec
        self.stack = np.zeros(
            (n, self.spec.stack, *self.spec.frame_shape), dtype=self.spec.frame_dtype
        )
        self._rng = make_rng(config.seed, process)
        self.row = self.env.reset(envs.seed_for(config.seed, process, n))
        envs.update_stack(self.stack, self.row.frame, self.row.reset)

    def step(self) -> npt.NDArray[np.int64]:
        """Steps all of them; returns their actions."""
        actions = self._rng.integers(self.spec.num_actions, size=self.env.num_envs)
        self.row = self.env.step(actions)
        envs.update_stack(self.stack, self.row.frame, self.row.reset)
        return actions


def played_record(config: BenchOptions, process: int, shape: UnrollShape) -> Slot:
    """A record as an actor would send it, had it acted at random."""
    play = RandomPlay(config, process, shape.envs)
    slot, before = Slot(shape.record()), shape.spec.stack - 1
    slot["log_probs"][...] = -np.log(shape.spec.num_actions)
    for t in range(-before, shape.length + 1):
        slot["frames"][before + t] = play.row.frame
        slot["resets"][before + t] = play.row.reset
        if t >= 0:
            slot["firsts"][t] = play.row.first
        if t == shape.length:
            break
        actions = play.step()
        if t >= 0:
            slot["actions"][t] = actions
            slot["rewards"][t] = np.sign(play.row.reward)
            slot["discounts"][t] = config.gamma * ~play.row.terminated
    play.env.close()
    return slot


def _window(unit: Unit, seconds: float) -> tuple[int, float]:
    """(steps, seconds) of the whole units that were begun within ``seconds``."""
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        steps += unit()
    return steps, elapsed


if __name__ == "__main__":
    main(sys.argv[1:])
