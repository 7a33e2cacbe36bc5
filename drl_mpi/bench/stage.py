"""One process of one stage: sets up, says "ready", waits for a line, measures, prints JSON.

    python -m drl_mpi.bench.stage STAGE PROCESS SECONDS REPEATS [options of jobs/impala.py]

It runs the library's own code for the stage and nothing else of the job. MPI is never started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from drl_mpi import envs, nets
from drl_mpi.acting import LocalActing
from drl_mpi.comm.parameters import Published
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.comm.stream import Delivery
from drl_mpi.experience import Batch, UniformReplay, UnrollQueue, UnrollShape
from drl_mpi.experience.rng import make_rng
from drl_mpi.roles import Actor
from drl_mpi.roles.info import WIDTH
from drl_mpi.run.launch import parse
from drl_mpi.systems.impala import PRESETS, Impala
from drl_mpi.updating.local import LocalUpdating

Unit = Callable[[], int]
"""Does the stage's smallest whole piece of work and returns its number of steps."""

WARM_UP = 0.2
"""Share of a stage's time that is run before the first window, all cores at work."""


def main(arguments: list[str]) -> None:
    """The process."""
    stage, process, seconds, repeats, *options = arguments
    config = parse(PRESETS, options)
    torch.set_num_threads(1)
    unit = STAGES[stage](config, int(process))
    unit()  # first calls choose kernels and fault in memory
    print("ready", flush=True)
    if not sys.stdin.readline():
        return  # the bench is gone
    _window(unit, WARM_UP * float(seconds))
    length = float(seconds) / int(repeats)
    print(json.dumps([_window(unit, length) for _ in range(int(repeats))]), flush=True)


def environment(config: Impala, process: int) -> Unit:
    """An actor's environments under random actions, with the stacks that its network would see."""
    return RandomPlay(config, process).step


def inference(config: Impala, process: int) -> Unit:
    """An actor's choice of actions for all of its environments, sampling included."""
    play = RandomPlay(config, process)
    for _ in range(config.unroll_length):
        play.step()
    play.env.close()
    spec, n = play.env.spec, config.envs_per_actor
    net = config.make_net(spec)
    acting = _acting(config, net, Loopback(net, []), process)
    acting.refresh()
    observations = spec.as_observation(play.stack)
    first = np.zeros(n, dtype=bool)
    parts = net.state_shape
    state = np.zeros((parts[0], n, *parts[1:]), dtype=np.float32) if parts else None

    def unit() -> int:
        acting.act(observations, first, state)
        return n

    return unit


def training(config: Impala, process: int) -> Unit:
    """A learner's update from unrolls that an actor made: assembly, loss, gradient, optimiser."""
    nets.keep_freed_memory()
    env = envs.make(config.env, config.envs_per_actor, config.env_options)
    net = config.make_net(env.spec)
    shape = config.unroll_shape(env.spec, net)
    end = Loopback(net, [Slot(shape.record()) for _ in range(config.envs_per_actor // shape.envs)])
    stream = cast(Any, end)
    rng = make_rng(config.seed, process)
    Actor(
        env,
        _acting(config, net, end, process),
        stream,
        shape,
        Poller(),
        gamma=config.gamma,
        reward_clip=config.reward_clip,
        rng=rng,
        restart=lambda epoch: envs.seed_for(config.seed, process, env.num_envs, epoch),
    ).run()

    flat = nets.FlatParameters(net)
    # A rate of 0 keeps the network as it is: every window then does the same work.
    updating = LocalUpdating(flat, config.make_optimizer(), lambda _: 0.0, config.max_gradient_norm)
    wide = UnrollShape(env.spec, config.unroll_length, config.batch_size, net.state_shape)
    source = UnrollQueue(
        stream,
        Batch(wide),
        shape.envs,
        Poller(),
        stream,
        replay=UniformReplay(wide, config.replay_capacity, rng) if config.replay_fraction else None,
        fresh=config.fresh,
    )
    loss_of = config.make_loss(net)
    info = np.zeros(WIDTH, dtype=np.float32)

    def unit() -> int:
        batch = source.next()
        flat.zero_grad()
        loss, _ = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        updating.apply(flat.gradient, info)
        return config.unroll_length * config.fresh

    return unit


STAGES: dict[str, Callable[[Impala, int], Unit]] = {
    "environment": environment,
    "inference": inference,
    "training": training,
}


class RandomPlay:
    """An actor's environments, played at random."""

    def __init__(self, config: Impala, process: int) -> None:
        n = config.envs_per_actor
        self.env = envs.make(config.env, n, config.env_options)
        spec = self.env.spec
        self.stack = np.zeros((n, spec.stack, *spec.frame_shape), dtype=spec.frame_dtype)
        self._rng = make_rng(config.seed, process)
        row = self.env.reset(envs.seed_for(config.seed, process, n))
        envs.update_stack(self.stack, row.frame, row.reset)

    def step(self) -> int:
        """One step of all; returns how many they are."""
        n = self.env.num_envs
        row = self.env.step(self._rng.integers(self.env.spec.num_actions, size=n))
        envs.update_stack(self.stack, row.frame, row.reset)
        return n


class Loopback:
    """The other ends of an actor's and a learner's streams, without MPI.

    To an actor it is a learner that publishes one version and ends the run after one unroll; to a
    learner it is an actor that hands in the records of that unroll for ever.
    """

    def __init__(self, net: nets.Network, slots: list[Slot]) -> None:
        self.stopped = False
        self._slots = slots
        self._vector = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()
        self._turn = 0

    def newest(self) -> Published | None:
        """As a ``ParameterSubscriber``."""
        return Published(0, self._vector)

    def free(self, count: int) -> list[Slot] | None:
        """As a ``StreamSender``."""
        return None if self.stopped else self._slots[:count]

    def send(self) -> None:
        """As a ``StreamSender``."""
        self.stopped = True

    def flushed(self) -> bool:
        """As a ``StreamSender``."""
        return True

    def end(self) -> Loopback:
        """As a ``StreamSender``: a request that is complete."""
        return self

    def close(self) -> None:
        """As a ``StreamSender`` and a ``ParameterSubscriber``."""

    def Test(self) -> bool:  # noqa: N802 (mpi4py's name)
        """As a request."""
        return True

    def take(self, source: int | None = None) -> Delivery:  # noqa: ARG002
        """As a ``StreamReceiver``."""
        self._turn = (self._turn + 1) % len(self._slots)
        return Delivery(0, self._slots[self._turn], self._turn)

    def release(self, delivery: Delivery) -> None:
        """As a ``StreamReceiver``."""

    def progress(self) -> None:
        """As a ``ParameterPublisher``."""

    def owe(self, subscriber: int) -> None:
        """As a ``ParameterPublisher``."""


def _acting(config: Impala, net: nets.Network, end: Loopback, process: int) -> LocalActing:
    return LocalActing(net, cast(Any, end), Poller(), make_rng(config.seed, process))


def _window(unit: Unit, seconds: float) -> tuple[int, float]:
    """(steps, seconds) of the whole units that were begun within ``seconds``."""
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        steps += unit()
    return steps, elapsed


if __name__ == "__main__":
    main(sys.argv[1:])
