"""What the first rank finds out before the start: environment, network, checkpoint, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from drl_mpi import envs
from drl_mpi.envs import EnvSpec
from drl_mpi.errors import UsageError
from drl_mpi.experience.unroll import RNG_WORDS
from drl_mpi.nets import Network
from drl_mpi.run import resume
from drl_mpi.run.checkpoint import CheckpointError, check_arrays
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.layout import Layout
from drl_mpi.run.memory import available_bytes
from drl_mpi.run.meters import Metrics
from drl_mpi.systems.network import make_net
from drl_mpi.systems.system import Prepared, System

RESERVE = 0.9
"""Share of the memory at hand that learners may fill: networks and batches need some as well."""


def inspect(config: System, layout: Layout) -> Prepared | None:
    """See ``run.job.Job.inspect``."""
    spec = envs.probe(config.env, config.env_options)
    net = make_net(config, spec)
    config.check_env(spec, layout)
    _check_memory(config, spec, layout)
    size = sum(parameter.numel() for parameter in net.parameters())
    if len(layout.servers) > size:
        raise UsageError(
            f"--servers {len(layout.servers)} for a network of {size} parameters; allowed: 1 to "
            f"{size}"
        )
    folder = RunFolder(config.path)
    found = resume.find(folder, config.resume, config.identity())
    if found is None:
        return Prepared(spec, size)
    prepared = _check_checkpoint(config, spec, net, size, found)
    frames = prepared.steps * spec.action_repeat
    minutes = float(found.state["session"]["time_s"]) / 60
    over = 0 < config.max_minutes <= minutes and found.own
    if frames < config.total_frames and not (over and folder.is_done()):
        return prepared
    if not found.own:
        raise UsageError(
            f"--resume {found.path} has {frames:,} frames, and --total-frames is "
            f"{config.total_frames:,}; there is nothing left to do: raise --total-frames"
        )
    if folder.is_done():
        print(
            f"{folder.path} is finished: {frames:,} frames, {minutes:.1f} minutes. Raise "
            "--total-frames or --max-minutes to go on, or choose another --run-dir"
        )
        return None
    return prepared


def metrics_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a journal needs of a checkpoint."""
    return {**state["metrics"], "time_s": state["session"]["time_s"]}


def _check_memory(config: System, spec: EnvSpec, layout: Layout) -> None:
    host = layout.ranks[0].host
    here = [rank for rank in layout.learners if layout.ranks[rank].host == host]
    needed = sum(config.memory_bytes(spec, layout, rank) for rank in here)
    free = int(available_bytes() * RESERVE)
    if needed > free:
        fits = int(config.replay_size() * free / needed)
        raise UsageError(
            f"--replay-capacity {config.replay_size()} takes {needed / 2**30:.1f} GiB in "
            f"{len(here)} learners on {host}, and {free / 2**30:.1f} GiB of its memory are at "
            f"hand; at most {fits} fit: lower it, or use fewer learners per host"
        )


def _check_checkpoint(
    config: System, spec: EnvSpec, net: Network, size: int, found: resume.Found
) -> Prepared:
    path, state = found.path, found.state
    try:
        expected = {
            name: (tuple(p.shape), np.dtype(np.float32)) for name, p in net.named_parameters()
        }
        check_arrays(state["model"], expected, what=f"{path}: /model")
        for slot, arrays in state["optimizer"].items():
            check_arrays(arrays, expected, what=f"{path}: /optimizer/{slot}")
        counters = state["counters"]
        if int(counters["optimizer_steps"]) or state["optimizer"]:
            slots = config.optimizer_slots()
            if set(state["optimizer"]) != slots:
                raise ValueError(
                    f"/optimizer, which has {sorted(state['optimizer'])} instead of {sorted(slots)}"
                )
        Metrics().restore(metrics_of(state), 0)
        for name in ("version", "rounds", "steps", "frames", "optimizer_steps"):
            if not 0 <= int(counters[name]) < 2**62:
                raise ValueError(f"/counters/{name} = {counters[name]}")
        for rank, words in state["rng"].items():
            if words.shape != (RNG_WORDS,) or words.dtype != np.uint64:
                raise ValueError(f"/rng/{rank}")
        for kind in ("model", *(f"optimizer/{slot}" for slot in state["optimizer"])):
            arrays = state["model"] if kind == "model" else state["optimizer"][kind[10:]]
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError(f"/{kind}, which is not finite")
        restarts = int(state["session"]["restarts"])
        if not 0 <= restarts < 2**31:
            raise ValueError(f"/session/restarts = {restarts}")
        return Prepared(
            spec,
            size,
            path,
            int(counters["rounds"]),
            int(counters["steps"]),
            restarts + 1,
            {int(rank): np.asarray(words) for rank, words in state["rng"].items()},
            tuple(found.skipped),
        )
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"checkpoint {path} lacks or garbles {error}; it was not made by this system"
        ) from error
