"""What the first learner keeps: progress, checkpoints, and the wish to stop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drl_mpi.roles.info import Summary
from drl_mpi.run.checkpoint import Checkpoints
from drl_mpi.run.checkpoint_parts import PARTS
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import StopSignals, display_width
from drl_mpi.run.meters import Metrics
from drl_mpi.run.metrics import ProgressLog
from drl_mpi.run.progress import Progress

log = logging.getLogger(__name__)

SHOW_EVERY_S = 1.0
LOG_EVERY_S = 10.0
LOOK_EVERY_S = 0.5
"""Seconds between looks for a STOP file: a stat on a parallel file system is not free."""

SCALARS = ("gradient_norm", "learning_rate")
"""Columns of every system, behind the system's own."""


class RunJournal:
    """Implements ``roles.learner.Journal`` with the files of a run folder.

    Args:
        folder: prepared.
        signals: of this process; one that came is a wish to stop.
        config: stored in every checkpoint.
        columns: of the system, beyond the standard ones.
        action_repeat: frames per step.
        total_frames: of the run, for the display.
        skipped: damaged checkpoints, which the next save sets aside.
        checkpoint_minutes: between checkpoints.
        log_seconds: between rows of progress.csv.
        max_minutes: of training, after which ``wishes`` asks to stop; 0 for no limit.
        restarts: how often the run was started before.
        status: what the system says on the live display, beyond the columns.
    """

    def __init__(
        self,
        folder: RunFolder,
        signals: StopSignals,
        config: Mapping[str, Any],
        columns: Sequence[str],
        *,
        action_repeat: int,
        total_frames: int,
        checkpoint_minutes: float,
        log_seconds: float = LOG_EVERY_S,
        max_minutes: float,
        restarts: int,
        skipped: Sequence[tuple[Path, str]] = (),
        status: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out_of_time = False
        """Whether ``max_minutes`` are over."""
        self._folder = folder
        self._signals = signals
        self._config = config
        self._repeat = action_repeat
        self._log_s = log_seconds
        self._checkpoint_s = checkpoint_minutes * 60.0
        self._max_s = max_minutes * 60.0
        self._restarts = restarts
        self._status = status
        self._clock = clock
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._checkpoints.skipped = list(skipped)
        self._log = ProgressLog(
            folder.progress, (*columns, *SCALARS), folder.tensorboard, warn=self.note
        )
        self._progress = Progress(
            total_frames, width=display_width(), total_s=self._max_s or math.inf
        )
        # One set of meters per period: taking a row starts its meters again.
        self._shown, self._logged = Metrics(clock), Metrics(clock)
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._gauges: Callable[[], Mapping[str, float]] = dict
        self._news = False
        now = clock()
        self._shown_at = self._logged_at = self._saved_at = self._looked_at = now
        self._stop_file = False
        self._version = self._steps = 0
        self._saved = self._checkpoints.latest()
        self._row_logged: dict[str, float] = {}

    def restore(self, state: Mapping[str, Any] | None, steps: int = 0) -> None:
        """Continues the curves from a checkpoint, or starts them empty.

        Args:
            state: the checkpoint's ``metrics`` and ``time_s``.
            steps: agent decisions behind it.
        """
        self._steps = steps
        frames = self._frames
        if state is not None:
            for metrics in (self._shown, self._logged):
                metrics.restore(state, frames)
        self._log.resume_at(frames if state is not None else -1)

    def wishes(self) -> tuple[bool, bool]:
        """(save now, stop early)."""
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._stop_file = self._folder.stop_requested()
        self.out_of_time = bool(self._max_s) and self._logged.time_s >= self._max_s
        stop = self._signals.came > 0 or self._stop_file or self.out_of_time
        return now - self._saved_at >= self._checkpoint_s, stop

    def update(
        self,
        version: int,
        steps: int,
        summary: Summary,
        scalars: Mapping[str, float],
        gauges: Callable[[], Mapping[str, float]],
    ) -> None:
        """Takes note of an update; shows and logs when it is time."""
        self._version, self._steps, self._gauges = version, steps, gauges
        for metrics in (self._shown, self._logged):
            metrics.episodes.add(summary.returns, summary.episodes)
            metrics.policy_lag.merge(summary.lag_sum, summary.lag_count, summary.lag_max)
            metrics.actor_wait.add(
                summary.actor_waited_s, summary.actor_waited_s + summary.actor_worked_s
            )
            metrics.learner_wait.add(
                summary.learner_waited_s, summary.learner_waited_s + summary.learner_worked_s
            )
        for name, value in scalars.items():
            self._sums[name] += value
            self._counts[name] += 1
        self._news = True
        now = self._clock()
        if now - self._shown_at >= SHOW_EVERY_S:
            self._shown_at = now
            self._progress.update(self._row(self._shown), self._status())
        if now - self._logged_at >= self._log_s:
            self._log_row()

    def note(self, message: str) -> None:
        """Tells the user, on the screen and in the log."""
        log.info(message)
        self._progress.note(message)

    def save(self, state: dict[str, Any], learners: Sequence[Any]) -> None:
        """Writes a checkpoint, with a row of progress at the same count.

        Everything but ``session`` is the experiment's: equal in two runs in lock-step.
        """
        self._version = int(state["counters"]["version"])
        self._steps = int(state["counters"]["steps"])
        # Steps that servers count come one update later, perhaps behind the last row.
        if self._news or self._frames != self._row_logged.get("frames", self._frames):
            self._log_row()
        counters = {**state["counters"], "updates": self._version, "frames": self._frames}
        metrics = self._logged.state()
        session = {"time_s": metrics.pop("time_s"), "restarts": self._restarts}
        tree = {
            **state,
            "config": json.dumps(dict(self._config), default=str),
            "counters": counters,
            "metrics": metrics,
            "session": session,
            "rng": {rank: words for learner in learners for rank, words in learner["rng"].items()},
            PARTS: dict(learner["kept"].split() for learner in learners if learner["kept"]),
        }
        self._saved = self._checkpoints.save(self._frames, tree)
        self._saved_at = self._clock()
        log.info("saved %s", self._saved)

    def finish(self, complete: bool) -> None:
        """Ends the display and, when the run is complete, writes DONE."""
        frames = self._frames
        self._log.close()
        if complete:
            self._folder.mark_done({**self._row_logged, "checkpoint": self._saved})
            limit = f", the end of --max-minutes {self._max_s / 60:g}" if self.out_of_time else ""
            self._progress.finish(f"finished: {frames:,} frames{limit}, {self._saved}")
        else:
            self._progress.finish(
                f"stopped early: saved {self._saved}; go on with --resume auto (the default)"
            )

    @property
    def _frames(self) -> int:
        return self._steps * self._repeat

    def _log_row(self) -> None:
        row = self._row(self._logged)
        row |= {name: total / self._counts[name] for name, total in self._sums.items()}
        row |= self._gauges()
        self._sums.clear()
        self._counts.clear()
        self._news = False
        self._logged_at = self._clock()
        self._row_logged = row
        self._log.append(row)

    def _row(self, metrics: Metrics) -> dict[str, float]:
        return metrics.row(
            frames=self._frames,
            steps=self._steps,
            updates=self._version,
            version=self._version,
        )
