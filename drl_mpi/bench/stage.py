"""One process of one stage: sets up, says "ready", waits for a line, measures, prints JSON.

    python -m drl_mpi.bench.stage STAGE PROCESS SECONDS REPEATS [options of jobs/impala.py]

It runs the library's own code for the stage and nothing else of the job. MPI is never started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

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
    n = config.envs_per_actor
    env = envs.make(config.env, n, config.env_options)
    spec, rng = env.spec, make_rng(config.seed, process)
    stack = np.zeros((n, spec.stack, *spec.frame_shape), dtype=spec.frame_dtype)
    row = env.reset(envs.seed_for(config.seed, process, n))
    envs.update_stack(stack, row.frame, row.reset)

    def unit() -> int:
        row = env.step(rng.integers(spec.num_actions, size=n))
        envs.update_stack(stack, row.frame, row.reset)
        return n

    return unit


def inference(config: Impala, process: int) -> Unit:
    """An actor's choice of actions for a row of its environments, sampling included."""
    spec = envs.probe(config.env, config.env_options)
    net = config.make_net(spec)
    n = config.envs_per_actor
    observations = _unroll(config, spec, net, process, n, last_of=n)
    first = np.zeros(n, dtype=bool)
    state = np.zeros((2, n, *net.state_shape[1:]), np.float32) if net.state_shape else None
    end = Loopback(net)
    acting = LocalActing(net, _as_any(end), Poller(), make_rng(config.seed, process))
    acting.refresh()

    def unit() -> int:
        acting.act(observations, first, state)
        return n

    return unit
