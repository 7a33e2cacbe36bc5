"""Two learners that sum their gradients. ``learners.py FOLDER``; a third rank does not learn.

In each scenario every learner writes its parameters and what it saw of the other to
FOLDER/SCENARIO-LEARNER.npz, and the error that ended it to FOLDER/SCENARIO-LEARNER.txt.
"train": nothing special. "tamper": learner 1 changes a parameter. "nan": learner 1 has a NaN.
"length": a run of LENGTH steps in rounds of 4 updates, of which learner 1 reports more than learner
0.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from drl_mpi import nets
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect
from drl_mpi.updating.allreduce import AllReduceUpdating, ReplicaError
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.optimizers import RMSProp
from drl_mpi.updating.protocol import DivergenceError, Length, Wish

UPDATES, BATCH, WIDTH = 30, 8, 5
STEPS = (70_000, 100_001)
"""Of learners 0 and 1, per update."""
LENGTH = 10 * sum(STEPS)
WISHES = {3: (Wish(save=True), Wish()), 5: (Wish(), Wish(stop=True)), 6: (Wish(), Wish(True, True))}
"""Version -> wishes of learners 0 and 1."""


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


def play(scenario, group, folder):
    net, flat, local = make(*((LENGTH, 4) if scenario == "length" else ()))
    updating = AllReduceUpdating(local, group, Poller(60.0), WIDTH)
    infos, agreed, steps, said = [], [], [], ""
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
            wish = WISHES.get(version, (Wish(), Wish()))[group.rank]
            own = STEPS[group.rank]
            new = updating.apply(flat.gradient, info, loss=0.5, steps=own, wish=wish)
            assert new == updating.version == updating.rounds == version + 1
            infos.append(updating.infos.copy())
            updating.settle()
            assert len(updating.infos) == 0
            agreed.append((updating.agreed.save, updating.agreed.stop))
            steps.append(updating.steps)
    except (ReplicaError, DivergenceError) as error:
        said = f"{type(error).__name__}: {error}"
    name = f"{scenario}-{group.rank}"
    (folder / f"{name}.txt").write_text(said)
    np.savez(
        folder / f"{name}.npz", vector=flat.vector.numpy(), infos=np.array(infos), agreed=agreed,
        steps=steps,
    )  # fmt: skip


def main():
    torch.set_num_threads(1)
    world = connect()
    group = world.group(range(2))
    if group is not None:
        for scenario in ("train", "tamper", "nan", "length"):
            play(scenario, group, Path(sys.argv[1]))
    world.leave()


if __name__ == "__main__":
    main()
