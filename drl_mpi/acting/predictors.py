"""Predictors: threads that choose actions for whatever lanes wait (Babaeizadeh et al. 2017).

A predictor takes all lanes that wait, up to a cap, in the order in which they came, and serves them
with one call of the network. PyTorch and NumPy release the GIL while they compute. A lane that was
served goes back to the thread that talks MPI.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.acting.choosing import Choose
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.local import infer
from drl_mpi.acting.versions import Versions
from drl_mpi.nets import Network, inference_copy, load_flat
from drl_mpi.nets.threads import own_stream, use_threads


@dataclass(frozen=True, slots=True)
class Served:
    """A batch of lanes that got their actions."""

    lanes: Sequence[Lane]
    actions: Sequence[npt.NDArray[np.int64]]
    """``[n]`` per lane."""

    @property
    def size(self) -> int:
        """Environments in it."""
        return sum(lane.envs for lane in self.lanes)


class Predict(Protocol):
    """Chooses actions for lanes that wait."""

    def __call__(self, lanes: Sequence[Lane]) -> Served: ...


class Predictor:
    """What one predictor computes with.

    Args:
        net: to copy.
        versions: of its parameters; one must have been published.
        choose: from the network's output to actions.
        rng: decides.
    """

    def __init__(
        self, net: Network, versions: Versions, choose: Choose, rng: np.random.Generator
    ) -> None:
        self._net = inference_copy(net).eval()
        self._versions = versions
        self._choose = choose
        self._rng = rng
        self._number = -1
        self._cuda = next(net.parameters()).is_cuda
        self._stream = own_stream(next(net.parameters()).device)
        self._room: torch.Tensor | None = None

    def __call__(self, lanes: Sequence[Lane]) -> Served:
        """Chooses actions for all of them, with one version of the parameters."""
        with self._stream:
            return self._serve(lanes)

    def _serve(self, lanes: Sequence[Lane]) -> Served:
        newest = self._versions.newest
        assert newest is not None, "publish a version before lanes are served"
        if newest.number != self._number:
            load_flat(self._net, newest.vector)
            self._number = newest.number
        for lane in lanes:
            lane.observe()
        first = np.concatenate([lane.rows.first for lane in lanes if lane.rows is not None])
        states = [lane.state for lane in lanes if lane.state is not None]
        state = np.concatenate(states, axis=1) if states else None
        output, after = infer(self._net, self._observations(lanes), first, state)
        actions, log_probs = self._choose(output, newest.number, newest.steps, self._rng)
        begin, chosen = 0, []
        for lane in lanes:
            mine = slice(begin, begin + lane.envs)
            begin += lane.envs
            lane.decide(
                actions[mine],
                log_probs[mine],
                None if after is None else after[:, mine],
                newest.number,
                self._rng,
            )
            chosen.append(actions[mine])
        return Served(lanes, chosen)

    def _observations(self, lanes: Sequence[Lane]) -> npt.NDArray[np.generic]:
        """All of them in one array, so that one copy brings them to the device."""
        if len(lanes) == 1 and not self._cuda:
            return lanes[0].observations
        size = sum(lane.envs for lane in lanes)
        one = lanes[0].observations
        if self._room is None or len(self._room) < size:
            dtype = getattr(torch, one.dtype.name)
            self._room = torch.empty((size, *one.shape[1:]), dtype=dtype, pin_memory=self._cuda)
        room = self._room.numpy()[:size]
        return np.concatenate([lane.observations for lane in lanes], out=room)


class Predictors:
    """Threads, each with a predictor, and the lanes that wait for them.

    Args:
        make: number of a thread -> its predictor; called in the thread when it is first needed.
        most: threads.
        cap: environments in a batch, at most (unless one lane has more).
        wait_s: seconds that a batch may be waited for beyond its first lane, to become fuller.
        threads: of torch, for each of them.
        bell: rung when a batch is done, from any thread.
    """

    def __init__(
        self,
        make: Callable[[int], Predict],
        most: int,
        cap: int,
        wait_s: float,
        threads: int,
        bell: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._make = make
        self._cap = cap
        self._wait_s = wait_s
        self._torch_threads = threads
        self._bell = bell
        self._clock = clock
        self._active = 1
        self._closed = False
        self._waiting: deque[Lane] = deque()
        self._envs = 0
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        """For those at work: lanes came, or the end."""
        self._called = threading.Condition(lock)
        """For those at rest: their number changed, or the end."""
        self._served: deque[Served] = deque()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(i,), name=f"predictor-{i}", daemon=True)
            for i in range(most)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active(self) -> int:
        """Threads at work; the others rest."""
        return self._active

    @active.setter
    def active(self, count: int) -> None:
        with self._changed:
            self._active = count
            self._changed.notify_all()
            self._called.notify_all()

    def put(self, lanes: Sequence[Lane]) -> None:
        """Lanes with rows that want actions; they are lent until they come back served."""
        with self._changed:
            self._waiting.extend(lanes)
            self._envs += sum(lane.envs for lane in lanes)
            self._changed.notify_all()

    def take(self) -> Served | None:
        """The next batch that was served, or ``None``. Raises what a thread failed with."""
        if self._error is not None:
            raise self._error
        return self._served.popleft() if self._served else None

    def close(self) -> None:
        """Ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._called.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        try:
            use_threads(self._torch_threads)
            predict: Predict | None = None
            while (lanes := self._next(number)) is not None:
                predict = predict or self._make(number)
                self._served.append(predict(lanes))
                self._bell()
        except BaseException as error:  # the thread that talks MPI must end the job
            self._error = error
            self._bell()

    def _next(self, number: int) -> list[Lane] | None:
        """Waits for lanes. ``None``: the end."""
        with self._changed:
            deadline: float | None = None
            while True:
                if self._closed:
                    return None
                if number >= self._active:
                    deadline = None
                    self._called.wait()
                    continue
                if not self._waiting:
                    deadline = None
                    self._changed.wait()
                    continue
                if self._wait_s and self._envs < self._cap:
                    now = self._clock()
                    deadline = now + self._wait_s if deadline is None else deadline
                    if now < deadline:
                        self._changed.wait(deadline - now)
                        continue
                lanes = [self._waiting.popleft()]
                size = lanes[0].envs
                while self._waiting and size + self._waiting[0].envs <= self._cap:
                    lanes.append(self._waiting.popleft())
                    size += lanes[-1].envs
                self._envs -= size
                return lanes
