"""Gradients summed over synchronous learners, each of which then makes the same update.

Synchronous learners are vital for data efficiency (Espeholt et al. 2018, section 3.1). One flat
bucket per update holds the gradient and every learner's info row, so all learners take part in the
same number of collectives whatever their queues hold, and decide together on what is in the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import Group
from drl_mpi.updating.collectives import GradientSum
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.protocol import Info, Wish

_OWN = 5
"""Numbers of our own in a learner's row: wishes (2), steps, and two halves of a checksum."""
CHECK_EVERY = 100
"""Updates between comparisons of the learners' parameters: 2 ms each for a million of them."""


class ReplicaError(RuntimeError):
    """The learners' parameters differ, though every learner made the same updates."""


class AllReduceUpdating:
    """Sums gradients over the learners, then updates locally.

    Args:
        local: this learner's parameters and optimiser.
        group: the learners.
        sums: of their buckets.
        poller: waits for the slowest.
        info_width: length of the info rows.
    """

    def __init__(
        self,
        local: LocalUpdating,
        group: Group,
        sums: GradientSum,
        poller: Poller,
        info_width: int,
    ) -> None:
        self._local = local
        self._group = group
        self._sums = sums
        self._poller = poller
        size, rows = local.flat.vector.numel(), (group.size, info_width + _OWN)
        self._rows = np.zeros(rows, dtype=np.float32)
        self._bucket = torch.zeros(size + self._rows.size, device=sums.device)
        self._summed, self._tail = self._bucket[:size], self._bucket[size:].view(rows)
        self.infos = self._rows[:, :-_OWN]
        self.agreed = Wish()

    @property
    def version(self) -> int:
        """See ``Updating.version``."""
        return self._local.version

    @property
    def rounds(self) -> int:
        """See ``Updating.rounds``."""
        return self._local.rounds

    @property
    def steps(self) -> int:
        """See ``Updating.steps``."""
        return self._local.steps

    @property
    def over(self) -> bool:
        """See ``Updating.over``."""
        return self._local.over

    @property
    def gradient_norm(self) -> float:
        """See ``Updating.gradient_norm``."""
        return self._local.gradient_norm

    def pull(self) -> None:
        """See ``Updating.pull``."""

    def apply(
        self, gradient: torch.Tensor, info: Info, *, loss: float, steps: int, wish: Wish
    ) -> int:
        """See ``Updating.apply``. Collective over the learners.

        Raises:
            ReplicaError: when the parameters of two learners differ.
        """
        self._summed.copy_(gradient)
        self._rows[:] = 0.0
        own = self._rows[self._group.rank]
        own[:-_OWN] = info
        own[-_OWN:-2] = wish.save, wish.stop, steps  # few enough for a float32 to hold exactly
        checked = self.version % CHECK_EVERY == 0
        if checked:
            # Halves of the checksum, since a float32 holds 24 bits exactly.
            checksum = crc32(self._local.flat.vector.cpu().numpy().view(np.uint8).data)
            own[-2:] = divmod(checksum, 1 << 16)
        rows = torch.from_numpy(self._rows)
        self._tail.copy_(rows)
        self._sums.sum(self._bucket, self._poller, "the other learners' gradients")
        rows.copy_(self._tail)
        if checked and np.any(self._rows[:, -2:] != self._rows[0, -2:]):
            differing = np.flatnonzero(np.any(self._rows[:, -2:] != self._rows[0, -2:], axis=1))
            raise ReplicaError(
                f"at version {self.version} the parameters of learners {differing.tolist()} "
                "differ from learner 0's: a rank computes differently (mixed hardware or "
                "libraries); resume from a checkpoint on equal nodes"
            )
        gradient.copy_(self._summed)
        save, stop, all_steps = self._rows[:, -_OWN:-2].astype(np.float64).sum(axis=0)
        self.agreed = Wish(bool(save), bool(stop))
        self.infos = self._rows[:, :-_OWN]
        return self._local.apply(gradient, info, loss=loss, steps=int(all_steps), wish=self.agreed)

    def skip(self, info: Info, *, steps: int, wish: Wish) -> int:
        """Learners that take the same number of collectives cannot leave one out."""
        raise NotImplementedError("synchronous learners all learn from the first batch on")

    def gauges(self) -> dict[str, float]:
        """See ``Updating.gauges``."""
        return self._local.gauges()

    def settle(self) -> None:
        """See ``Updating.settle``: every update brings all of them."""
        self.infos = self.infos[:0]

    def forget(self) -> None:
        """See ``Updating.forget``."""

    def keepsakes(self) -> dict[str, Any]:
        """Nothing: all learners hold the same."""
        return {}

    def state(self) -> dict[str, Any]:
        """See ``Updating.state``."""
        return self._local.state()

    def start(self) -> None:
        """See ``Updating.start``."""
        self._local.start()

    def restore_keepsakes(self, kept: Mapping[str, Any]) -> None:
        """See ``Updating.restore_keepsakes``."""
        self._local.restore_keepsakes(kept)

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``Updating.restore``."""
        self._local.restore(state)

    def close(self) -> None:
        """See ``Updating.close``. Collective over the learners."""
        self._sums.close(self._poller)
