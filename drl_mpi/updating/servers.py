"""Gradients applied by parameter servers, asynchronously (Nair et al. 2015, section 4).

Every push brings back the servers' newest parameters. It is started by ``apply`` and completed by
``pull``, so that the next batch is sampled while gradient and parameters travel.

The first learner leads. It alone decides when all learners come together to save, to stop early or
to end: it sends a command with its push, and the servers tell everybody with their answers. Other
learners report what they consumed to it in a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.shards import Kind, ShardClient, split
from drl_mpi.nets.flat import FlatParameters
from drl_mpi.updating.local import by_name, joined
from drl_mpi.updating.optimizers import clip_by_global_norm
from drl_mpi.updating.outliers import OutlierFilter
from drl_mpi.updating.protocol import DivergenceError, Info, Length, Wish
from drl_mpi.updating.reports import Reports
from drl_mpi.updating.shard import ShardCounts

LOST = 100
"""Gradients in a row that are not finite, after which a learner gives up."""

STOP = 1
"""Flag of a command: save, then end early."""
END = 2
"""Flag of a command: save, then end, since the run is complete."""
LAST = 4
"""Flag of a command: learners have ended, actors should."""
_FLAG_BITS = 3


def is_last(command: int) -> bool:
    """Whether no actions are wanted after a command of the first learner."""
    return bool(command & LAST)


class ServerUpdating:
    """One of several learners whose gradients parameter servers apply.

    Args:
        flat: the network's parameters.
        staging: float32 ``[size]`` twice: where ``client`` receives parameters, and where it sends
            gradients from. The network's own memory where that is the CPU's.
        client: of the servers.
        poller: waits for the servers.
        learning_rate: steps -> learning rate, sent with each gradient.
        max_norm: global norm to which gradients are clipped.
        outliers: drops gradients before they are sent.
        length: when the run is complete.
        leads: whether this is the first learner.
        reports: to or from the first learner.
        learners: number of them.
        lockstep: whether all learners make the same number of updates, in turn.
    """

    def __init__(
        self,
        flat: FlatParameters,
        staging: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
        client: ShardClient,
        poller: Poller,
        *,
        learning_rate: Callable[[int], float],
        max_norm: float,
        outliers: OutlierFilter,
        length: Length,
        leads: bool,
        reports: Reports,
        learners: int,
        lockstep: bool,
    ) -> None:
        self.flat = flat
        self.infos = np.zeros((0, 0), dtype=np.float32)
        self.agreed = Wish()
        self.outliers = outliers
        self._parameters, self._gradient = staging
        self._client = client
        self._poller = poller
        self._learning_rate = learning_rate
        self._max_norm = max_norm
        self._length = length
        self._leads = leads
        self._reports = reports
        self._learners = learners
        self._lockstep = lockstep
        self._current = False
        self._versions = [0] * len(client.answers)
        self._steps = self._rounds = self._own_steps = 0
        self._gradient_norm = 0.0
        self._command = self._heard = 0
        self._pending, self._ended, self._over = Wish(), False, False
        self._counts = self._logged = self._counted()
        self._seen = self._dropped = self._lost = 0

    @property
    def version(self) -> int:
        """The smallest of the shards' versions: so many updates every parameter has seen."""
        return min(self._versions)

    @property
    def rounds(self) -> int:
        """See ``Updating.rounds``."""
        return self._rounds

    @property
    def steps(self) -> int:
        """See ``Updating.steps``."""
        return self._steps

    @property
    def over(self) -> bool:
        """See ``Updating.over``."""
        return self._over

    @property
    def gradient_norm(self) -> float:
        """See ``Updating.gradient_norm``."""
        return self._gradient_norm

    def pull(self) -> None:
        """See ``Updating.pull``. Completes the push before, or asks for the newest parameters."""
        if self._current:
            return
        if not self._client.busy:
            self._client.request(Kind.PULL, self._versions)
        self._poller.wait(self._client.ready, "the parameter servers")
        self._current = True
        if self.flat.vector.device.type != "cpu":
            self.flat.vector.copy_(torch.from_numpy(self._parameters))
        answers = self._client.answers
        self._versions = [int(answer["version"]) for answer in answers]
        self._steps = max(int(answer["steps"]) for answer in answers)
        self._counts = self._counted()
        self._obey(max(int(answer["command"]) for answer in answers))

    def settle(self) -> None:
        """See ``Updating.settle``."""
        self._poller.wait(self._reports.settled, "the other learners' reports")
        self.infos = self._reports.rest()

    def forget(self) -> None:
        """Makes the next ``pull`` ask again: after a save, everybody goes on from the same."""
        self._current = False

    def apply(
        self, gradient: torch.Tensor, info: Info, *, loss: float, steps: int, wish: Wish
    ) -> int:
        """See ``Updating.apply``. Outliers are dropped; ``steps`` count all the same."""
        self._gradient_norm = clip_by_global_norm(gradient, self._max_norm)
        self._rounds += 1
        self._seen += 1
        if not self.outliers.accept(loss, self._gradient_norm):
            self._dropped += 1
            finite = np.isfinite(self._gradient_norm) and np.isfinite(loss)
            self._lost = 0 if finite else self._lost + 1
            if self._lost >= LOST:
                raise DivergenceError(
                    f"{LOST} gradients in a row have norm {self._gradient_norm} (loss {loss}); "
                    "lower --learning-rate, or look for rewards or observations that are not finite"
                )
            return self._send(Kind.PULL, info, steps, wish)
        self._lost = 0
        if gradient.device.type != "cpu":
            self._gradient[:] = gradient.cpu().numpy()
        return self._send(Kind.PUSH, info, steps, wish)

    def skip(self, info: Info, *, steps: int, wish: Wish) -> int:
        """See ``Updating.skip``. Steps are counted by the servers."""
        return self._send(Kind.PULL, info, steps, wish)

    def gauges(self) -> dict[str, float]:
        """Staleness and drop rates since the last call."""
        now, then = self._counts, self._logged
        came = now.applied + now.stale - then.applied - then.stale
        gauges = {
            "learning_rate": self._learning_rate(self._steps),
            "outlier_rate": self._dropped / self._seen if self._seen else np.nan,
        }
        if came:
            gauges |= {
                "staleness_mean": (now.staleness_sum - then.staleness_sum) / came,
                "staleness_max": now.staleness_max,
                "stale_rate": (now.stale - then.stale) / came,
            }
            for i, (new, old) in enumerate(zip(now.histogram, then.histogram)):
                gauges[f"staleness_{(1 << i) >> 1}"] = (new - old) / came
        self._logged, self._seen, self._dropped = now, 0, 0
        return gauges

    def keepsakes(self) -> dict[str, Any]:
        """The outlier filter."""
        return {"outliers": self.outliers.state()}

    def state(self) -> dict[str, Any]:
        """See ``Updating.state``. On the first learner only, while no push is under way."""
        shards = self._client.save()
        join = {
            slot: torch.from_numpy(np.concatenate([shard["slots"][slot] for shard in shards]))
            for slot in shards[0]["slots"]
        }
        vector = torch.from_numpy(np.concatenate([shard["vector"] for shard in shards]))
        return {
            "model": by_name(self.flat, vector),
            "optimizer": {slot: by_name(self.flat, vector) for slot, vector in join.items()},
            "counters": {
                "version": min(int(shard["version"]) for shard in shards),
                "rounds": self._rounds,
                "steps": max(int(shard["steps"]) for shard in shards),
                "optimizer_steps": min(int(shard["optimizer_steps"]) for shard in shards),
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``Updating.restore``. The first learner gives every server its shard."""
        self._rounds = int(state["counters"]["rounds"])
        self._steps = int(state["counters"]["steps"])
        self._own_steps = self._steps // self._learners  # all alike, where it matters: in lock-step
        self.flat.vector.copy_(joined(self.flat, state["model"]))
        self._over = self._length.reached(self._steps, self._rounds)
        slots = {
            slot: joined(self.flat, arrays).cpu().numpy()
            for slot, arrays in (state["optimizer"] if self._leads else {}).items()
        }
        self._load(slots, state["counters"])

    def restore_keepsakes(self, kept: Mapping[str, Any]) -> None:
        """The outlier filter's; older checkpoints lack it."""
        if "outliers" in kept:
            self.outliers.restore(kept["outliers"])

    def start(self) -> None:
        """See ``Updating.start``. The first learner gives every server its shard."""
        self._load({}, {})

    def _load(
        self, slots: Mapping[str, npt.NDArray[np.float32]], counters: Mapping[str, Any]
    ) -> None:
        if not self._leads:
            return
        vector = self.flat.vector.cpu().numpy()
        self._client.load(
            [
                {
                    "vector": vector[low:high],
                    "slots": {name: slot[low:high] for name, slot in slots.items()},
                    "optimizer_steps": int(counters.get("optimizer_steps", 0)),
                    "version": int(counters.get("version", 0)),
                    "steps": int(counters.get("steps", 0)),
                }
                for low, high in split(len(vector), len(self._versions))
            ]
        )

    def close(self) -> None:
        """See ``Updating.close``. Waits until all learners have reported."""
        self._poller.wait(self._client.ready, "the parameter servers")
        if self._leads:
            last = self._command + 1 << _FLAG_BITS | LAST
            self._client.request(Kind.PULL, self._versions, command=last)
            self._poller.wait(self._client.ready, "the parameter servers")
        self._client.leave()
        self._poller.wait(self._reports.end, "the learners' last reports")
        self._reports.close()

    def _send(self, kind: Kind, info: Info, steps: int, wish: Wish) -> int:
        self._own_steps += steps
        self.agreed, self._pending = self._pending, Wish()
        flags = 0
        if self._lockstep:  # everybody counts alike, so nobody needs to be told of the end
            self._over = self._length.reached(self._own_steps * self._learners, self._rounds)
        elif self._leads and self._length.reached(self._steps + steps, self._rounds):
            self._over, flags = True, END
        command = 0
        if self._leads:
            if self._lockstep:  # the others hear of it with their answers of this round
                self._pending = wish
            else:
                self.agreed = wish
            if wish.save or wish.stop or flags:
                flags |= STOP if wish.stop else 0
                self._command += 1
                command = self._command << _FLAG_BITS | flags
                self._heard = command
        elif self._ended:
            self._over = True
        self._client.request(
            kind,
            self._versions,
            steps=steps,
            command=command,
            rate=self._learning_rate(self._steps),
        )
        self._current = False
        self.infos = self._reports.pass_on(info)
        return self.version

    def _obey(self, command: int) -> None:
        """Notes what the first learner wants; ``apply`` hands it on when its own push is out."""
        if self._leads or command <= self._heard:
            return
        self._heard = command
        self._pending = Wish(save=True, stop=bool(command & STOP))
        self._ended = bool(command & END)

    def _counted(self) -> ShardCounts:
        """Of the first server: the others' differ by what is under way."""
        return ShardCounts.from_numbers(self._client.answers[0]["counts"].tolist())
