"""How fast and how large a replay is: python -m drl_mpi.bench.replay --capacity 1000000 --batch 32

Fills each kind of replay with random frames, one after the other, and prints what it takes. Needs
``storage_bytes`` of memory: 7.1 GB for a million rows of Atari.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.experience import PrioritizedReplay, TransitionBatch, UniformReplay, UnrollShape
from drl_mpi.experience.replay import row_bytes, storage_bytes
from drl_mpi.experience.rng import make_rng

ATARI = EnvSpec("Atari", (84, 84), "uint8", stack=4, num_actions=18, action_repeat=4)
GAME_STEPS = 500
"""Mean steps between two resets, and between two terminations."""
RECORDS = 8
"""Different unrolls, added in turn."""


def main() -> None:
    """Measures both kinds, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=1_000_000, help="rows")
    parser.add_argument("--batch", type=int, default=32, help="transitions per sample")
    parser.add_argument("--lanes", type=int, default=64, help="environments of all actors")
    parser.add_argument("--envs", type=int, default=16, help="environments per unroll")
    parser.add_argument("--length", type=int, default=20, help="transitions per unroll")
    parser.add_argument("--n-steps", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000, help="batches to time")
    options = parser.parse_args()
    if options.lanes % options.envs:
        parser.error(f"--envs {options.envs} does not divide --lanes {options.lanes}")
    measure(options, prioritized=False)
    gc.collect()
    measure(options, prioritized=True)


def measure(options: argparse.Namespace, *, prioritized: bool) -> None:
    """Fills one replay, samples from it, and goes on adding."""
    shape = UnrollShape(ATARI, options.length, options.envs)
    records = [_record(shape, number) for number in range(RECORDS)]
    batch = TransitionBatch(ATARI, options.batch)
    settings = (ATARI, options.lanes, options.capacity, options.n_steps, make_rng(1))
    before = resident_bytes()
    print("prioritised" if prioritized else "uniform", flush=True)
    replay = PrioritizedReplay(*settings, 0.6, 1e-6) if prioritized else UniformReplay(*settings)

    def add(count: int) -> float:
        """Rows per second."""
        rows, began = 0, time.perf_counter()
        while rows < count:
            for lane in range(0, options.lanes, options.envs):
                replay.add(lane, records[(rows // options.length + lane) % RECORDS].fields)
                rows += options.length * options.envs
        return rows / (time.perf_counter() - began)

    fresh = add(replay.capacity + options.lanes * options.length)  # the rings wrap
    resident = (resident_bytes() - before) / replay.size
    claimed = storage_bytes(ATARI, options.lanes, options.capacity, prioritized) / replay.capacity
    print(f"  {replay.size:,} rows, {replay.sampleable:,} of them starts")
    print(f"  adding            {fresh:,.0f} rows/s into fresh memory, ", end="")
    print(f"{add(replay.capacity // 10):,.0f} when full")
    print(f"  resident          {resident:,.1f} bytes/row (computed {claimed:,.1f}, ", end="")
    print(f"a row alone {row_bytes(ATARI):,})")

    if isinstance(replay, PrioritizedReplay):
        ranked, errors = replay, np.abs(make_rng(2).normal(size=options.batch))

        def update() -> None:
            ranked.update(batch.indices, batch.generations, errors)

        _report(f"sampling {options.batch}", lambda: ranked.sample(batch, 0.4), options.samples)
        _report(f"updating {options.batch}", update, options.samples)
    else:
        uniform = replay
        _report(f"sampling {options.batch}", lambda: uniform.sample(batch), options.samples)


def _report(what: str, call: Callable[[], None], count: int) -> None:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    median, late = np.percentile(times, [50, 99])
    print(f"  {what:17} median {median:.3f} ms, 99 % {late:.3f} ms")


def _record(shape: UnrollShape, number: int) -> Slot:
    slot, rng = Slot(shape.record()), make_rng(3, number)
    slot["frames"][...] = rng.integers(256, size=slot["frames"].shape, dtype=np.uint8)
    slot["resets"][...] = rng.random(slot["resets"].shape) < 1 / GAME_STEPS
    slot["actions"][...] = rng.integers(shape.spec.num_actions, size=slot["actions"].shape)
    slot["rewards"][...] = rng.normal(size=slot["rewards"].shape)
    slot["discounts"][...] = 0.99 * (rng.random(slot["discounts"].shape) > 1 / GAME_STEPS)
    return slot


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
