"""The options that every system has. Field docstrings are the help texts of the command line."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from drl_mpi.envs import EnvOptions
from drl_mpi.errors import UsageError


def parse_count(text: str) -> int:
    """A whole number, also written as 2e6 or 2_000_000.

    Raises:
        ValueError: for anything else.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number; write 2000000, 2_000_000 or 2e6") from None
    if not value.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


MAX_RANKS = 4096
"""Of one role: as many as ``run.layout`` plans for and ``envs.seed_for`` has seeds for."""

Count = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT",
        instance_from_str=lambda args: parse_count(args[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is run, for how long, where, and on how many ranks."""

    env: str = "ALE/Pong-v5"
    """Environment id: Atari ("ALE/Breakout-v5") or any Gymnasium id with discrete actions."""
    env_options: Annotated[EnvOptions, tyro.conf.arg(name="")] = field(default_factory=EnvOptions)
    seed: int = 1
    """Seed of the networks, the environments and the actions."""
    total_frames: Count = 40_000_000
    """Length of the run in frames (steps x action repeat); also the horizon of schedules."""
    max_minutes: float = 0.0
    """End the run after this many minutes of training, earlier runs of the same folder included;
    0 for no limit."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/SYSTEM-ENV-seedN."""
    resume: str = "auto"
    """"auto" goes on from the run folder's newest good checkpoint, if there is one; "none" starts
    anew and refuses a folder that holds a run; a path names another run's checkpoint to start
    from, as long as the folder has none of its own."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    log_seconds: float = 10.0
    """Seconds between rows of progress.csv."""
    learners: int | None = None
    """Ranks that learn; by default one per GPU, or 1 (all but the servers if learners act for
    themselves)."""
    actors: int | None = None
    """Ranks that act; by default the rest (without mpirun: one per core)."""
    envs_per_actor: int = 32
    """Environments that each actor steps together (ours: see docs/benchmarks.md)."""
    net: Literal["auto", "shallow", "nature", "deep", "mlp"] = "auto"
    """Network; "auto" takes shallow for pixels and mlp for vectors."""
    core: Literal["none", "lstm"] = "none"
    """Recurrent core behind the network."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks' bodies; heads, losses and parameters are always fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where learners compute; "auto" takes the GPUs if torch can use them, one learner each.
    Actors always compute on the CPU."""
    lockstep: bool = False
    """Fix the order of unrolls and the version that acts in each: two runs give the same bits, and
    so does one that was killed and resumed. Slower; environments restart at checkpoints."""
    checkpoint_unrolls: int = 100
    """Lock-step: unrolls of each actor between checkpoints (which there do not depend on time)."""
    stream_depth: int = 1
    """Unrolls per actor that may wait at its learner, and again at the actor. More hide the
    learner's pauses where actors have cores of their own; each adds policy lag."""
    silence_timeout: float = 600.0
    """The run ends when a rank has been silent for so many seconds; choose more than saving the
    replay takes."""

    name: ClassVar[str] = "run"
    """Name of the system."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Of progress.csv, beyond those of every system."""
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            "total_frames",
            "max_minutes",
            "run_dir",
            "resume",
            "checkpoint_minutes",
            "log_seconds",
            "learners",
            "actors",
            "envs_per_actor",
            "precision",
            "device",
            "stream_depth",
            "silence_timeout",
        }
    )
    """Fields that a resumed run may have changed, unless it is in lock-step."""

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            UsageError: one line; what, the value, what is allowed, what to do.
        """
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("total_frames", 1, 10**15),
            ("max_minutes", 0.0, 10**9),
            ("checkpoint_minutes", 0.01, 10**9),
            ("log_seconds", 0.1, 10**9),
            ("envs_per_actor", 1, 32_768),
            ("checkpoint_unrolls", 1, 10**9),
            ("stream_depth", 1, 1_000),
            ("silence_timeout", 1.0, 10**9),
        ):
            self._within(name, low, high)
        if self.run_dir == Path():
            raise UsageError("--run-dir is empty or '.'; name a folder of the run's own")
        for name in ("learners", "actors"):
            if getattr(self, name) is not None:
                self._within(name, 0, MAX_RANKS)

    @property
    def path(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        env = re.sub(r"[^A-Za-z0-9.]+", "-", self.env)
        return Path("runs") / f"{self.name}-{env}-seed{self.seed}"

    def identity(self) -> dict[str, Any]:
        """The fields that make this the experiment that it is."""
        fields = self.as_dict()
        fields["env_options"].pop("threads")  # changes the speed, not the experiment
        free = self.MAY_CHANGE
        if self.lockstep:  # the same bits need the same ranks, shapes, arithmetic and schedule
            free = free - {
                "learners",
                "servers",
                "replay_capacity",
                "actors",
                "envs_per_actor",
                "precision",
                "device",
                "total_frames",
                "groups",
                "predict_batch",
                "gradient_sum",
            }
        return {name: value for name, value in fields.items() if name not in free}

    def as_dict(self) -> dict[str, Any]:
        """Every field, for config.json and the checkpoint."""
        return {"system": self.name, **dataclasses.asdict(self)}

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            option = "--" + name.rstrip("_").replace("_", "-")
            raise UsageError(f"{option} is {value}; allowed: {low} to {high}")
