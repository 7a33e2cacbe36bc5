"""The bench's options: those of IMPALA, how long to measure, and where to leave the results."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from drl_mpi.envs import EnvOptions
from drl_mpi.systems.impala import PRESETS as IMPALA_PRESETS
from drl_mpi.systems.impala import Impala

WARM_UP_S = 10.0
"""The job's progress.csv has its first row then (``run.journal.LOG_EVERY_S``): counting starts."""
OURS = frozenset({"run_dir", "device", "max_minutes", "resume"})
"""Options of IMPALA that mean something else here, or nothing."""
JOB_WINDOWS = 6
"""The job is measured for so many times ``--seconds``: it has rows of ten seconds."""


@dataclass(frozen=True, kw_only=True)
class Bench(Impala):
    """Measures each stage of IMPALA alone on every core, then the whole job, and compares.

    Takes 2 minutes with the defaults. The machine should have nothing else to do.
    """

    seconds: float = 10.0
    """Length of each stage's measurement; the whole job is measured for six times that, after a
    warm-up of 10 s."""
    repeats: int = 5
    """Windows into which a stage's measurement is cut; its rate is their median."""
    run_dir: Path | None = None
    """Folder of the results; by default runs/bench-ENV-NET-PRECISION."""
    # The bench decides about these. Stages are measured on cores, so learners learn there, too.
    device: Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.Fixed, tyro.conf.Suppress] = "cpu"
    max_minutes: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 0.0
    resume: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "auto"

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
        net = "" if self.net == "auto" else f"-{self.net}"
        core = "" if self.core == "none" else f"-{self.core}"
        env = re.sub(r"[^A-Za-z0-9.]+", "-", self.env)
        return Path("runs") / f"bench-{env}{net}{core}-{self.precision}"

    def job(self, run_dir: Path) -> Impala:
        """The run to measure end to end."""
        values = {field.name: getattr(self, field.name) for field in fields(Impala)}
        minutes = (WARM_UP_S + JOB_WINDOWS * self.seconds) / 60
        values |= {"run_dir": run_dir, "max_minutes": minutes}
        return Impala(**values)


def _bench(preset: Impala) -> Bench:
    values = {f.name: getattr(preset, f.name) for f in fields(Impala) if f.name not in OURS}
    return Bench(**values)


PRESETS = {name: _bench(IMPALA_PRESETS[name]) for name in ("paper", "small")}
"""The first is the default: batches as in the paper, 32 x 20 steps, 32 environments per actor."""


def command_line(config: Impala) -> list[str]:
    """Arguments from which jobs/impala.py reads exactly ``config``."""
    return _differences(config, next(iter(IMPALA_PRESETS.values())))


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
