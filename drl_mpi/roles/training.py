"""From a batch to a gradient: in the learner's own thread, or in trainers beside it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from drl_mpi.acting.versions import Version, Versions
from drl_mpi.comm.poller import Poller
from drl_mpi.experience.source import Source
from drl_mpi.experience.statistics import Statistics
from drl_mpi.nets import FlatParameters
from drl_mpi.nets.threads import own_stream, use_threads
from drl_mpi.roles.loss import Loss
from drl_mpi.updating.protocol import Updating

WORK_S = 1.0
"""Seconds after which a wait for a trainer at work begins anew."""

B = TypeVar("B", bound=Statistics)
B_co = TypeVar("B_co", bound=Statistics, covariant=True)


@dataclass(frozen=True, slots=True)
class Trained(Generic[B]):
    """A gradient and what it came from; valid until the next one is asked for."""

    batch: B
    gradient: torch.Tensor
    """float32 ``[size]``."""
    loss: float | None
    """``None`` where there was nothing to learn from."""
    scalars: dict[str, torch.Tensor]
    waited_s: float
    """Seconds since the last one that were spent waiting for the batch."""
    worked_s: float


class Training(Protocol[B]):
    """Where a learner's gradients come from."""

    def next(self) -> Trained[B]:
        """The next gradient. Waits for a batch if need be."""
        ...

    def close(self) -> None:
        """Ends what was started."""
        ...


class OwnTraining(Generic[B]):
    """In the learner's own thread, with the parameters that are updated.

    Args:
        flat: the network's parameters and gradients.
        source: of batches.
        loss: differentiates through the network behind ``flat``.
        updating: keeps the parameters current.
        poller: the one that all of these wait with.
    """

    def __init__(
        self,
        flat: FlatParameters,
        source: Source[B],
        loss: Loss[B],
        updating: Updating,
        poller: Poller,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flat = flat
        self._source = source
        self._loss = loss
        self._updating = updating
        self._poller = poller
        self._clock = clock
        self._began, self._idle = clock(), poller.idle_s

    def next(self) -> Trained[B]:
        """See ``Training``."""
        batch = self._source.next()
        self._updating.pull()
        loss: float | None = None
        scalars: dict[str, torch.Tensor] = {}
        if batch.trainable:
            self._loss.prepare(self._updating.version)
            loss, scalars = differentiate(self._flat, self._loss, batch)
        now, idle = self._clock(), self._poller.idle_s
        waited = idle - self._idle
        worked = now - self._began - waited
        self._began, self._idle = now, idle
        return Trained(batch, self._flat.gradient, loss, scalars, waited, worked)

    def close(self) -> None:
        """See ``Training``."""


class PolledSource(Source[B_co], Protocol[B_co]):
    """A source that need not be waited for."""

    def poll(self) -> B_co | None:
        """The next batch, or ``None`` if it is not full yet; valid while it is trained on."""
        ...

    @property
    def taken(self) -> int:
        """Records that came so far."""
        ...


class TrainerThreads(Generic[B]):
    """Trainers: threads that differentiate while the learner's own thread talks MPI.

    Each has a network of its own and lays it over a published version, which nobody writes to any
    more: so none sees half-written parameters. Gradients are handed out in the order in which
    their batches were begun; with n trainers the parameters are n - 1 updates older than those that
    a gradient is applied to.

    Args:
        source: of batches; as many must be valid at a time as there are trainers.
        make: a trainer's network's parameters and its loss; called in its thread.
        versions: of the parameters; one must have been published.
        threads: number of trainers -> torch's threads for each.
        poller: waits.
        bell: rung when a gradient is done, from any thread.
    """

    def __init__(
        self,
        source: PolledSource[B],
        make: Callable[[], tuple[FlatParameters, Loss[B]]],
        versions: Versions,
        threads: Callable[[int], int],
        poller: Poller,
        bell: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.active = 1
        """Trainers at work; threads are started as they are needed, and then rest."""
        self.trained = 0
        """Gradients so far."""
        self._source = source
        self._make = make
        self._versions = versions
        self._threads = threads
        self._poller = poller
        self._bell = bell
        self._clock = clock
        self._free: deque[_Trainer[B]] = deque()
        self._busy: deque[_Trainer[B]] = deque()
        self._handed_out: _Trainer[B] | None = None

    def next(self) -> Trained[B]:
        """See ``Training``."""
        if self._handed_out is not None:
            self._free.append(self._handed_out)
            self._handed_out = None
        while (trainer := self._poll()) is None:
            self._wait()
        self._busy.popleft()
        self._handed_out = trainer
        self.trained += 1
        return trainer.result()

    def close(self) -> None:
        """Ends the threads."""
        for trainer in (*self._free, *self._busy):
            trainer.close()
        if self._handed_out is not None:
            self._handed_out.close()

    def _wait(self) -> None:
        """Until there is news. Silence is that of actors: a batch and its gradient may be slow."""
        since, taken = self._clock(), self._source.taken

        def stirred() -> bool | None:
            if self._poll() is not None or self._source.taken > taken:
                return True
            return True if self._busy and self._clock() - since > WORK_S else None

        self._poller.wait(stirred, "an actor's unroll")

    def _poll(self) -> _Trainer[B] | None:
        """Begins what can be begun. The trainer whose gradient comes next, once it is done."""
        while len(self._busy) < self.active:
            newest = self._versions.newest
            batch = self._source.poll() if newest is not None else None
            if batch is None or newest is None:
                break
            trainer = self._free.popleft() if self._free else self._new()
            trainer.start(batch, newest, self._threads(self.active))
            self._busy.append(trainer)
        return self._busy[0] if self._busy and self._busy[0].done else None

    def _new(self) -> _Trainer[B]:
        number = len(self._busy) + len(self._free)
        return _Trainer(number, self._make, self._bell, self._clock)


class _Trainer(Generic[B]):
    """A thread that differentiates one batch at a time."""

    def __init__(
        self,
        number: int,
        make: Callable[[], tuple[FlatParameters, Loss[B]]],
        bell: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._bell = bell
        self._clock = clock
        self._work: tuple[B, Version, int] | None = None
        self._there = threading.Semaphore(0)
        self._result: Trained[B] | None = None
        self._error: BaseException | None = None
        self._ended_at = clock()
        self._thread = threading.Thread(target=self._run, name=f"trainer-{number}", daemon=True)
        self._thread.start()

    def start(self, batch: B, version: Version, threads: int) -> None:
        """Gives it work; it must be at rest."""
        self._result = None
        self._work = batch, version, threads
        self._there.release()

    @property
    def done(self) -> bool:
        """Whether the gradient is there. Raises what the thread failed with."""
        if self._error is not None:
            raise self._error
        return self._result is not None

    def result(self) -> Trained[B]:
        """What it made."""
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Ends the thread, after what it works on."""
        self._work = None
        self._there.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            flat, loss = self._make()
            device = flat.vector.device
            stream = own_stream(device)
            while True:
                self._there.acquire()
                work = self._work
                if work is None:
                    return
                began = self._clock()
                waited, batch = began - self._ended_at, work[0]
                with stream:
                    if device.type == "cuda":  # the batch was brought there by another stream
                        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream(device))
                    value, scalars = self._train(flat, loss, *work)
                self._ended_at = self._clock()
                worked = self._ended_at - began
                self._result = Trained(batch, flat.gradient, value, scalars, waited, worked)
                self._bell()
        except BaseException as error:  # the thread that talks MPI must end the job
            self._error = error
            self._bell()

    def _train(
        self, flat: FlatParameters, loss: Loss[B], batch: B, version: Version, threads: int
    ) -> tuple[float, dict[str, torch.Tensor]]:
        use_threads(threads)
        flat.adopt(version.vector)
        loss.prepare(version.number)
        value, scalars = differentiate(flat, loss, batch)
        return value, {name: scalar.cpu() for name, scalar in scalars.items()}


def differentiate(
    flat: FlatParameters, loss: Loss[B], batch: B
) -> tuple[float, dict[str, torch.Tensor]]:
    """Leaves the gradient in ``flat``. Returns the loss, and what is to be logged."""
    flat.zero_grad()
    value, scalars = loss(batch)
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach()), scalars
