"""The bench's options: those of a system, how long to measure, and where to leave the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from drl_mpi.bench.command import Parser
from drl_mpi.envs import EnvOptions
from drl_mpi.run.command_line import parse
from drl_mpi.run.launcher import core_quota
from drl_mpi.run.layout import Layout, local_layout, plan
from drl_mpi.systems.central import Central
from drl_mpi.systems.ga3c import GA3C
from drl_mpi.systems.ga3c import PRESETS as GA3C_PRESETS
from drl_mpi.systems.impala import PRESETS as IMPALA_PRESETS
from drl_mpi.systems.impala import Impala

OURS = frozenset({"run_dir", "device", "max_minutes", "resume"})
"""Options of a system that mean something else here, or nothing."""
JOB_WINDOWS = 6
"""The job is measured for so many times ``--seconds``: it has rows of ten seconds."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a stage works on at a time."""

    environments: int
    steps: int = 1

    def __str__(self) -> str:
        return f"{self.environments}" if self.steps == 1 else f"{self.environments} x {self.steps}"


@dataclass(frozen=True, slots=True)
class Unrolls:
    """What a learner trains on at a time."""

    batch: int
    """Unrolls of single environments."""
    fresh: int
    """Of which so many come straight from actors."""
    replay_capacity: int = 1
    """Where the others come from."""


if TYPE_CHECKING:
    _System = Central
else:
    _System = object


@dataclass(frozen=True, kw_only=True)
class BenchOptions(_System):
    """What a bench has beyond its system: to be mixed in before it."""

    seconds: float = 10.0
    """Length of each stage's measurement; the whole job is measured for six times that, after a
    warm-up of one row of its progress.csv (``--log-seconds``: 10 s)."""
    repeats: int = 5
    """Windows into which a stage's measurement is cut; its rate is their median."""
    run_dir: Path | None = None
    """Folder of the results; by default runs/bench-SYSTEM-ENV-NET-PRECISION."""
    # The bench decides about these. Stages are measured on cores, so learners learn there, too.
    device: Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.Fixed, tyro.conf.Suppress] = "cpu"
    max_minutes: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 0.0
    resume: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "auto"

    @property
    def unrolls(self) -> Unrolls:
        """Of an update."""
        raise NotImplementedError

    def batch_sizes(self, predicted: float | None = None) -> dict[str, BatchSize]:
        """Stage -> the size of its batches in the job.

        Args:
            predicted: central acting: environments per prediction that the job was seen to have.
        """
        if self.central:
            assert predicted is not None, "central acting: run the job first"
            stepped, asked = self.group_envs, max(1, round(predicted))
        else:
            stepped = asked = self.envs_per_actor
        return {
            "environment": BatchSize(stepped),
            "inference": BatchSize(asked),
            "training": BatchSize(self.unrolls.batch, self.unroll_length),
        }

    def layout(self) -> Layout:
        """That the job will choose for this machine."""
        return layout_here(self)

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        self._within("seconds", 0.1, 3600.0)
        self._within("repeats", 1, 1000)

    @property
    def path(self) -> Path:
        """Folder of bench.json, bench.png and the job's run folders."""
        if self.run_dir is not None:
            return self.run_dir
        acting = "-central" if self.central else ""
        net = "" if self.net == "auto" else f"-{self.net}"
        core = "" if self.core == "none" else f"-{self.core}"
        env = re.sub(r"[^A-Za-z0-9.]+", "-", self.env)
        return Path("runs") / f"bench-{self.name}{acting}-{env}{net}{core}-{self.precision}"

    @property
    def job_seconds(self) -> float:
        """Seconds that the job runs for, warm-up included."""
        return self.log_seconds + JOB_WINDOWS * self.seconds

    def job(self, run_dir: Path) -> Central:
        """The run to measure end to end."""
        usual = _first(JOB_PRESETS[self.name])
        values = {field.name: getattr(self, field.name) for field in fields(usual)}
        values |= {"run_dir": run_dir, "max_minutes": self.job_seconds / 60}
        if self.central and self.tune == "auto":
            values["tune"] = "off"
        return type(usual)(**values)


@dataclass(frozen=True, kw_only=True)
class BenchImpala(BenchOptions, Impala):
    """Measures each stage of IMPALA alone on every core, then the whole job, and compares.

    Takes 2 minutes with the defaults. The machine should have nothing else to do. ``--system ga3c``
    measures GA3C. With central acting the job runs first, and the stages then have the batches that
    it was seen to have; its tuner is off unless ``--tune on`` is given.
    """

    @property
    def unrolls(self) -> Unrolls:
        """See ``BenchOptions.unrolls``."""
        return Unrolls(self.batch_size, self.fresh, self.replay_capacity)


@dataclass(frozen=True, kw_only=True)
class BenchGA3C(BenchOptions, GA3C):
    """Measures GA3C, then each of its stages alone on every core, and compares.

    Takes 2 minutes with the defaults. The machine should have nothing else to do. The stages have
    the batches that the job was seen to have; its tuner is off unless ``--tune on`` is given.
    ``--system impala``, the default, measures IMPALA.
    """

    @property
    def unrolls(self) -> Unrolls:
        """See ``BenchOptions.unrolls``."""
        return Unrolls(self.batch_size, self.batch_size)


B = TypeVar("B", bound=BenchOptions)


def _benches(kind: type[B], presets: Mapping[str, Central], names: Sequence[str]) -> dict[str, B]:
    """Presets of a bench: those of its system."""
    return {
        name: kind(
            **{
                field.name: getattr(presets[name], field.name)
                for field in fields(presets[name])
                if field.name not in OURS
            }
        )
        for name in names
    }


JOB_PRESETS: dict[str, Mapping[str, Central]] = {"impala": IMPALA_PRESETS, "ga3c": GA3C_PRESETS}
BENCHES: dict[str, Mapping[str, BenchOptions]] = {
    "impala": _benches(BenchImpala, IMPALA_PRESETS, ("paper", "small")),
    "ga3c": _benches(BenchGA3C, GA3C_PRESETS, ("small", "paper")),
}
"""Of each, the first preset is the default. IMPALA: batches as in the paper, 32 x 20 steps, 32
environments per actor; GA3C: our own, since the paper's agents have one environment each."""


def parse_bench(arguments: Sequence[str]) -> BenchOptions:
    """The bench that a command line asks for.

    Raises:
        UsageError: as ``run.command_line.parse``, and for an unknown system.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--system", choices=list(BENCHES), default=next(iter(BENCHES)))
    chosen, rest = parser.parse_known_args(list(arguments))
    return parse(BENCHES[chosen.system], rest)


def command_line(config: Central) -> list[str]:
    """Arguments from which its job reads exactly ``config``."""
    return _differences(config, _first(JOB_PRESETS[config.name]))


def bench_command_line(config: BenchOptions) -> list[str]:
    """Arguments from which ``parse_bench`` reads exactly ``config``."""
    return ["--system", config.name, *_differences(config, _first(BENCHES[config.name]))]


def layout_here(config: Any) -> Layout:
    """The layout that a job chooses for this machine's cores.

    Args:
        config: of the job.

    Raises:
        UsageError: for one that cannot work.
    """
    wish = config.wanted(None)
    ranks = local_layout(core_quota(), 0, **wish)
    layout = plan(ranks, ["localhost"] * ranks, 0, **wish)
    config.check_layout(layout)
    return layout


C = TypeVar("C")


def _first(presets: Mapping[str, C]) -> C:
    return next(iter(presets.values()))


def _differences(config: Any, default: Any) -> list[str]:
    arguments = []
    for field in fields(default):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if isinstance(value, EnvOptions):
            arguments += _differences(value, usual)
        elif value != usual:
            option = field.name.rstrip("_").replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{option}" if value else f"--no-{option}")
            else:
                arguments += [f"--{option}", str(value)]
    return arguments
