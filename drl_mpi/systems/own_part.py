"""What a learner alone keeps: its part of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from drl_mpi.experience.source import REPLAY, Source
from drl_mpi.roles.learner import Mark
from drl_mpi.roles.loss import Loss
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, opened
from drl_mpi.run.checkpoint_parts import PARTS, part_path
from drl_mpi.run.folder import RunFolder
from drl_mpi.systems.system import Prepared, System
from drl_mpi.updating.protocol import Updating

log = logging.getLogger(__name__)


class OwnPart:
    """A learner's part of this run's checkpoints.

    Args:
        config: the system.
        prepared: names the checkpoint to go on from.
        index: of the learner among the learners.
    """

    def __init__(self, config: System, prepared: Prepared, index: int) -> None:
        self._config = config
        self._prepared = prepared
        self._checkpoints = RunFolder(config.path).checkpoints
        self._name = f"learner-{index}-"

    def keep(self, mark: Mark, state: Mapping[str, Any]) -> str:
        """See ``Learner.keep``."""
        steps, version = mark
        # Several updates may share a count of steps: each save has parts of its own.
        name = f"{self._name}{version}"
        frames = steps * self._prepared.spec.action_repeat
        return f"{name} {Checkpoints(self._checkpoints).save_part(frames, name, state)}"

    def saved(self, state: Mapping[str, Any]) -> Mark | None:
        """The mark of a checkpoint, if it is this run's own: it need not be written again."""
        checkpoint = self._prepared.checkpoint
        if checkpoint is None or checkpoint.parent != self._checkpoints:
            return None
        return int(state["counters"]["steps"]), int(state["counters"]["version"])

    def restore(
        self, state: Mapping[str, Any], source: Source[Any], loss: Loss[Any], updating: Updating
    ) -> None:
        """Gives source, loss and updating back what they kept, as far as this learner has a part.

        Args:
            state: of the checkpoint; from it the source takes its actors' RNGs.
            source: gets its replay.
            loss: gets what it remembers.
            updating: gets its keepsakes; ``updating.restore`` is left to the caller.

        Raises:
            CheckpointError: for a part that cannot be read, or lacks something.
        """
        checkpoint = self._prepared.checkpoint
        assert checkpoint is not None
        own: list[str] = [name for name in state.get(PARTS, {}) if name.startswith(self._name)]
        if not own and self._config.replay_size():
            log.info("no part of %s... in the checkpoint: its replay starts empty", self._name)
        # A replay may fill the memory: it is read piece by piece.
        with ExitStack() as stack:
            kept: dict[str, Any] = {}
            if own:
                kept = stack.enter_context(opened(part_path(checkpoint, own[0]), REPLAY))
            try:
                source.restore({"rng": state["rng"], **kept})
                if kept.get("loss"):
                    loss.restore(kept["loss"])
                updating.restore_keepsakes(kept)
            except OSError as error:
                raise CheckpointError(
                    f"the part of {self._name}... of checkpoint {checkpoint} cannot be read: "
                    f"{error}; use another checkpoint"
                ) from error
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"the part of {self._name}... of checkpoint {checkpoint} lacks or garbles "
                    f"{error}; use another checkpoint"
                ) from error
