"""How fast parameter servers are: python -m drl_mpi.bench.servers

Learners that compute nothing push gradients and pull parameters as fast as they can. The bound is
what memory allows: bytes that an update must move, over the rate at which all cores together copy
vectors that no cache holds. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from drl_mpi.run.launcher import core_quota, launch_environment, mpirun_command
from drl_mpi.updating import kernels
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

COPY_BYTES = 256 * 2**20
"""Per vector: far more than any cache."""
STREAMS = 4
"""A push and a pull each read a vector and write another."""


def main() -> None:
    """Measures the copy rate, then every layout asked for, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_700_000, help="parameters")
    parser.add_argument("--optimizer", default="rmsprop")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=3.0, help="per layout and repeat")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        _rank(options)
        return
    slots = len(make_shard_optimizer(options.optimizer, 1).slots())
    # Gradient, old and new parameters once each, and every slot twice.
    streams = STREAMS + 3 + 2 * slots
    moved = 4 * options.size * streams
    cores = core_quota()
    copied = statistics.median(copy_rate(cores) for _ in range(options.repeats))
    bound = copied / moved
    print(
        f"{options.size:,} parameters, {options.optimizer} in {kernels.implementation()}: "
        f"{streams} x {4 * options.size:,} bytes per update\n"
        f"{cores} cores copy {copied / 1e9:.1f} GB/s (read and write), which bounds them to "
        f"{bound:,.0f} updates/s\n\n"
        "servers  learners  updates/s  GB/s  of the bound  ms per learner's round",
        flush=True,
    )
    for servers in options.servers:
        for learners in options.learners:
            rates = [_measure(options, servers, learners) for _ in range(options.repeats)]
            rate = statistics.median(rates)
            print(
                f"{servers:7}  {learners:8}  {rate:9,.0f}  {rate * moved / 1e9:4.1f}  "
                f"{rate / bound:12.0%}  {1e3 * learners / rate:10.2f}",
                flush=True,
            )


def copy_rate(processes: int) -> float:
    """Bytes per second, read and written, of so many processes that copy at once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.map(_copy, range(processes))  # all of them have started, and touched their memory
        return sum(pool.map(_copy, range(processes)))


def _copy(_: int) -> float:
    source = np.ones(COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    np.copyto(target, source)  # touches the memory
    began, copies = time.perf_counter(), 0
    while time.perf_counter() - began < 1.0:
        np.copyto(target, source)
        copies += 1
    return 2 * COPY_BYTES * copies / (time.perf_counter() - began)


def _measure(options: argparse.Namespace, servers: int, learners: int) -> float:
    """Updates per second of all servers together: each counts its shard's, the mean counts."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = mpirun_command(
            servers + learners,
            [
                "-m", __spec__.name, "--rank", str(report), "--servers", str(servers),
                "--size", str(options.size), "--optimizer", options.optimizer,
                "--seconds", str(options.seconds),
            ],
        )  # fmt: skip
        subprocess.run(command, check=True, env=launch_environment(), timeout=300)
        return float(json.loads(report.read_text())["updates_per_s"])


def _rank(options: argparse.Namespace) -> None:
    """What every rank of a measurement does: the first ones learn, the last ones serve."""
    from drl_mpi.comm.poller import Poller
    from drl_mpi.comm.shards import Kind, ShardClient, ShardServer, split
    from drl_mpi.comm.world import connect
    from drl_mpi.roles.server import Server
    from drl_mpi.updating.shard import Shard

    world, poller = connect(), Poller()
    learners = world.size - options.servers[0]
    servers = list(range(learners, world.size))
    if world.rank >= learners:
        low, high = split(options.size, len(servers))[world.rank - learners]
        endpoint = ShardServer(world.comm, range(learners), high - low, poller, 10)
        optimizer = make_shard_optimizer(options.optimizer, high - low)
        Server(endpoint, Shard(optimizer, max_staleness=10**9), poller).run()
        world.gather(None)
        world.leave()
        return
    vector = np.zeros(options.size, dtype=np.float32)
    gradient = np.random.default_rng(world.rank).normal(size=options.size).astype(np.float32)
    client = ShardClient(world.comm, servers, vector, gradient, 10)
    if world.rank == 0:
        client.load(
            [
                {
                    "vector": vector[low:high], "slots": {}, "optimizer_steps": 0, "version": 0,
                    "steps": 0,
                }
                for low, high in split(options.size, len(servers))
            ]
        )  # fmt: skip
    client.request(Kind.PULL, [0] * len(servers))
    poller.wait(client.ready, "the servers")
    began, pushes, counting = time.perf_counter(), 0, False
    while (elapsed := time.perf_counter() - began) < options.seconds:
        if not counting and elapsed > options.seconds / 4:  # everybody is there
            began, pushes, counting = time.perf_counter(), 0, True
        versions = [int(answer["version"]) for answer in client.answers]
        client.request(Kind.PUSH, versions, rate=1e-6)
        poller.wait(client.ready, "the servers")
        pushes += 1
    client.leave()
    rates = world.gather(pushes / (time.perf_counter() - began))
    if rates is not None:
        total = sum(rate for rate in rates if rate is not None)
        options.rank.write_text(json.dumps({"updates_per_s": total}))
    world.leave()


if __name__ == "__main__":
    main()
