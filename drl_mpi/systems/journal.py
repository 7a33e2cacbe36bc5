"""What the first learner keeps: progress, checkpoints, and the wish to stop."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drl_mpi.roles.info import Summary
from drl_mpi.run.checkpoint import Checkpoints
from drl_mpi.run.counting import Counting
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import STOP_SIGNALS
from drl_mpi.run.meters import Metrics
from drl_mpi.run.metrics import ProgressLog
from drl_mpi.run.progress import Progress, terminal_width

log = logging.getLogger(__name__)

SHOW_EVERY_S = 1.0
LOG_EVERY_S = 10.0
LOOK_EVERY_S = 0.5
"""Seconds between looks for a STOP file: a stat on a parallel file system is not free."""

SCALARS = ("policy_loss", "value_loss", "entropy", "gradient_norm", "learning_rate")


class RunJournal:
    """Implements ``roles.learner.Journal`` with the files of a run folder.

    Args:
        folder: prepared.
        config: stored in every checkpoint.
        counting: version -> steps and frames.
        total_frames: of the run, for the display.
        learning_rate: version -> learning rate, to log.
        skipped: damaged checkpoints, which the next save sets aside.
        checkpoint_minutes: between checkpoints.
        max_minutes: of training, after which ``wishes`` asks to stop; 0 for no limit.
        restarts: how often the run was started before.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping[str, Any],
        counting: Counting,
        *,
        total_frames: int,
        learning_rate: Callable[[int], float],
        checkpoint_minutes: float,
        max_minutes: float,
        restarts: int,
        skipped: Sequence[tuple[Path, str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out_of_time = False
        """Whether ``max_minutes`` are over."""
        self._folder = folder
        self._config = config
        self._counting = counting
        self._learning_rate = learning_rate
        self._checkpoint_s = checkpoint_minutes * 60.0
        self._max_s = max_minutes * 60.0
        self._restarts = restarts
        self._clock = clock
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._checkpoints.skipped = list(skipped)
        self._log = ProgressLog(folder.progress, SCALARS, folder.tensorboard)
        self._progress = Progress(total_frames, width=terminal_width())
        # One set of meters per period: taking a row starts its meters again.
        self._shown, self._logged = Metrics(clock), Metrics(clock)
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._updates = 0
        now = clock()
        self._shown_at = self._logged_at = self._saved_at = self._looked_at = now
        self._signalled = self._stop_file = False
        self._version = counting.start_version
        self._saved = self._checkpoints.latest()
        self._row_logged: dict[str, float] = {}
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continues the curves from a checkpoint, or starts them empty.

        Args:
            state: the checkpoint's ``metrics`` and ``time_s``.
        """
        frames = self._counting.frames(self._counting.start_version)
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
        stop = self._signalled or self._stop_file or self.out_of_time
        return now - self._saved_at >= self._checkpoint_s, stop

    def update(self, version: int, summary: Summary, scalars: Mapping[str, float]) -> None:
        """Takes note of an update; shows and logs when it is time."""
        self._version = version
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
        self._updates += 1
        now = self._clock()
        if now - self._shown_at >= SHOW_EVERY_S:
            self._shown_at = now
            self._progress.update(self._row(self._shown))
        if now - self._logged_at >= LOG_EVERY_S:
            self._log_row()

    def note(self, message: str) -> None:
        """Tells the user, on the screen and in the log."""
        log.info(message)
        self._progress.note(message)

    def save(self, version: int, state: dict[str, Any], sources: Sequence[Any]) -> None:
        """Writes a checkpoint, with a row of progress at the same count.

        Everything but ``session`` is the experiment's: equal in two runs in lock-step.
        """
        if self._updates:
            self._log_row()
        counters = {
            **state["counters"],
            "updates": version,
            "steps": self._counting.steps(version),
            "frames": self._counting.frames(version),
        }
        metrics = self._logged.state()
        session = {"time_s": metrics.pop("time_s"), "restarts": self._restarts}
        tree = {
            **state,
            "config": json.dumps(dict(self._config), default=str),
            "counters": counters,
            "metrics": metrics,
            "session": session,
            "rng": {rank: words for source in sources for rank, words in source["rng"].items()},
            "replay": {
                str(i): source["replay"] for i, source in enumerate(sources) if "replay" in source
            },
        }
        self._saved = self._checkpoints.save(counters["frames"], tree)
        self._saved_at = self._clock()
        log.info("saved %s", self._saved)

    def finish(self, complete: bool) -> None:
        """Ends the display and, when the run is complete, writes DONE."""
        frames = self._counting.frames(self._version)
        self._log.close()
        if complete:
            self._folder.mark_done({**self._row_logged, "checkpoint": self._saved})
            self._progress.finish(f"finished: {frames:,} frames, {self._saved}")
        else:
            self._progress.finish(
                f"stopped early: saved {self._saved}; go on with --resume auto (the default)"
            )

    def _log_row(self) -> None:
        row = self._row(self._logged)
        if self._updates:
            for name in SCALARS:
                row[name] = self._sums[name] / self._updates
        row["learning_rate"] = self._learning_rate(self._version)
        self._sums.clear()
        self._updates = 0
        self._logged_at = self._clock()
        self._row_logged = row
        self._log.append(row)

    def _row(self, metrics: Metrics) -> dict[str, float]:
        return metrics.row(
            frames=self._counting.frames(self._version),
            steps=self._counting.steps(self._version),
            updates=self._version,
            version=self._version,
        )

    def _on_signal(self, _signum: int, _frame: object) -> None:
        # Only a note: the loop looks at it between updates.
        self._signalled = True
