"""Learners that sum their gradients. ``learners.py FOLDER SUM LEARNERS SCENARIO...``

SUM: mpi or gloo. Ranks beyond LEARNERS do not learn.
In each scenario every learner writes its parameters and what it saw of the other to
FOLDER/SCENARIO-LEARNER.npz, and the error that ended it to FOLDER/SCENARIO-LEARNER.txt.
"train": nothing special. "tamper": learner 1 changes a parameter. "nan": learner 1 has a NaN.
"length": a run of LENGTH steps in rounds of 4 updates, of which learner 1 reports more than learner
0. "stall": learner 1 comes late, after the others' patience. "gone": learner 1 hangs up.
"orphan": learner 1 does not even connect.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from drl_mpi import nets
from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.comm.world import connect
from drl_mpi.updating.allreduce import AllReduceUpdating, ReplicaError
from drl_mpi.updating.collectives import CollectiveError, make_gradient_sum
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.optimizers import RMSProp
from drl_mpi.updating.protocol import DivergenceError, Length, Wish

UPDATES, BATCH, WIDTH = 30, 8, 5
STEPS = (70_000, 100_001, 60_000)
"""Of learners 0, 1 and 2, per update."""
LENGTH = 10 * sum(STEPS[:2])
WISHES = {3: (Wish(save=True), Wish()), 5: (Wish(), Wish(stop=True)), 6: (Wish(), Wish(True, True))}
"""Version -> wishes of learners 0 and 1."""
PATIENCE_S, LATE_S = 1.0, 2.5


def batches(learner):
    """What learner number ``learner`` trains on: inputs [updates, 1, BATCH, 4]."""
    generator = torch.Generator().manual_seed(100 + learner)
    return torch.randn(UPDATES, 1, BATCH, 4, generator=generator)


def loss(net, inputs):
    """Summed over the batch, as every loss of the suite."""
    output, _ = net(inputs, torch.zeros(inputs.shape[:2], dtype=torch.bool))
    return (output.logits.sin().sum(-1) + (output.value - inputs.sum(-1)) ** 2).sum()


def rate(steps):
    """Falls, so that learners who counted differently would move apart."""
    return 1e-3 / (1 + steps / LENGTH)


def make(length=10**12, rounds=1):
    net = nets.make("mlp", (4,), 3, seed=1)
    flat = nets.FlatParameters(net)
    # With so large an eps, and no clipping, the gradient's scale matters.
    return net, flat, LocalUpdating(flat, RMSProp(eps=1e3), rate, 1e6, Length(length, rounds))


def tasks():
    """Threads of this process, those of libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


def left(before):
    """Threads beyond so many, once those that are about to end have ended."""
    deadline = time.monotonic() + 5.0
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return tasks() - before


def play(scenario, group, folder, choice):
    net, flat, local = make(*((LENGTH, 4) if scenario == "length" else ()))
    poller, before = Poller(60.0), tasks()
    sums = make_gradient_sum(choice, group, torch.device("cpu"), poller)
    updating = AllReduceUpdating(local, group, sums, poller, WIDTH)
    if scenario in ("stall", "gone"):
        poller.silence_s = PATIENCE_S
    if scenario == "stall" and group.rank == 1:
        time.sleep(LATE_S)
    if scenario == "gone" and group.rank == 1:
        dist.destroy_process_group()
    infos, agreed, steps, said = [], [], [], ""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        for version, inputs in enumerate(batches(group.rank)):
            if updating.over:
                break
            flat.zero_grad()
            loss(net, inputs).backward()
            info = np.arange(WIDTH, dtype=np.float32) + 100 * version + 10 * group.rank
            info[-1] = np.nan
            if scenario == "tamper" and group.rank == 1 and version == 0:
                flat.vector[3] += 1e-6
            if scenario == "nan" and group.rank == 1 and version == 7:
                flat.gradient[3] = np.nan
            wish = (*WISHES.get(version, (Wish(), Wish())), Wish())[group.rank]
            own = STEPS[group.rank]
            new = updating.apply(flat.gradient, info, loss=0.5, steps=own, wish=wish)
            assert new == updating.version == updating.rounds == version + 1
            infos.append(updating.infos.copy())
            updating.settle()
            assert len(updating.infos) == 0
            agreed.append((updating.agreed.save, updating.agreed.stop))
            steps.append(updating.steps)
            if scenario in ("stall", "gone"):
                break
    except (ReplicaError, DivergenceError, SilenceError, CollectiveError) as error:
        said = f"{type(error).__name__}: {error}"
    took = time.monotonic() - began, time.thread_time() - cpu
    if scenario == "stall":
        time.sleep(max(0.0, began + LATE_S - time.monotonic()))
    poller.silence_s = 60.0
    updating.close()
    name = f"{scenario}-{group.rank}"
    (folder / f"{name}.txt").write_text(said)
    np.savez(
        folder / f"{name}.npz", vector=flat.vector.numpy(), infos=np.array(infos), agreed=agreed,
        steps=steps, took=took, threads=left(before),
    )  # fmt: skip


def orphan(scenario, group, folder, choice):
    """Learner 1 hears where to connect, and does not."""
    began, said = time.monotonic(), ""
    try:
        if group.rank == 1:
            group.share(group.gather("here"))
            group.share(None)
        else:
            make_gradient_sum(choice, group, torch.device("cpu"), Poller(PATIENCE_S))
    except (SilenceError, CollectiveError) as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f"{scenario}-{group.rank}.txt").write_text(said)
    np.savez(folder / f"{scenario}-{group.rank}.npz", took=(time.monotonic() - began, 0.0))


def main():
    torch.set_num_threads(1)
    world = connect()
    folder, choice, learners, *scenarios = sys.argv[1:]
    group = world.group(range(int(learners)))
    if group is not None:
        for scenario in scenarios:
            (orphan if scenario == "orphan" else play)(scenario, group, Path(folder), choice)
    world.leave()
    sys.stdout.flush()
    os._exit(0)  # as a job's ranks do: the thread of a connection that was given up may still wait


if __name__ == "__main__":
    main()
