"""Actions chosen centrally: the learner's end of actors that hold no network.

Babaeizadeh et al. 2017 (GA3C), section 3; Espeholt et al. 2020 (SEED), section 3. An actor sends
the newest frames of a group of environments and gets actions back; predictors choose them in
batches, and unrolls are written here, so that a frame travels once.

To the learner this is the receiver of its actors' unrolls and the publisher of its parameters at
once, and neither is a message: a `StreamReceiver` and a `ParameterPublisher` for local acting.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.predictors import Predictors
from drl_mpi.acting.requests import Command, Kind, fault_of, read_rows
from drl_mpi.acting.service_meters import ServiceMeters
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.exchange import Asked, ExchangeServer
from drl_mpi.comm.poller import Watch
from drl_mpi.comm.record import Slot
from drl_mpi.comm.stream import Delivery

log = logging.getLogger(__name__)

KEEP_ALIVE = 0.25
"""Share of the silence timeout after which an actor that is held is told to wait on."""
LOOK_EVERY_S = 0.2
"""Seconds between looks at who is silent."""


class Order(Protocol):
    """Lock-step: see ``roles.unroller.Pace``."""

    def version(self, unroll: int) -> int: ...
    def epoch(self, unroll: int) -> int | None: ...


@dataclass(eq=False, slots=True)
class _Desk:
    """Where a lane stands with its actor."""

    lane: Lane
    number: int = 0
    """Of the request that comes next."""
    fresh: bool = True
    """Whether that must bring new rows."""
    here: bool = False
    """Whether a request is here that was not answered."""
    held_since: float = 0.0
    ended: bool = False
    """Whether the actor was told that no more actions are wanted."""


@dataclass(eq=False, slots=True)
class _Unroll:
    """A complete unroll on its way through the learner."""

    lane: Lane
    slots: list[Slot]
    given: int = 0
    returned: int = 0


class CentralActing:
    """Serves actors, and delivers the unrolls that follow.

    Args:
        server: of the requests; a channel per lane.
        lanes: all of them, in order of ranks and channels.
        predictors: choose the actions.
        versions: where published parameters go.
        depth: unrolls of a lane that may wait.
        silence_s: seconds without a word after which an actor counts as stuck.
        epoch: number of the restart that this process begins with.
        order: lock-step, or ``None``: predictors serve whoever asks.
        restarted: called when all environments restart (lock-step), with the restart's number.
        meanwhile: called at every poll.
    """

    subscribed = True

    def __init__(
        self,
        server: ExchangeServer,
        lanes: Sequence[Lane],
        predictors: Predictors,
        versions: Versions,
        depth: int,
        silence_s: float,
        *,
        epoch: int = 0,
        order: Order | None = None,
        restarted: Callable[[int], object] = lambda _: None,
        meanwhile: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sources = tuple(dict.fromkeys(lane.source for lane in lanes))
        self.depth = depth * sum(lane.records for lane in lanes if lane.source == lanes[0].source)
        self.faults: dict[int, str] = {}
        """Rank -> why it is left alone."""
        self.meters = ServiceMeters(clock)
        self._active = len(self.sources)
        self._server = server
        self._desks = {(lane.source, lane.channel): _Desk(lane) for lane in lanes}
        self._of: dict[int, list[_Desk]] = {source: [] for source in self.sources}
        for (source, _), desk in self._desks.items():
            self._of[source].append(desk)
        self._predictors = predictors
        self._versions = versions
        self._epoch = epoch
        self._order = order
        self._restarted = restarted
        self._restarted_at = -1
        self._meanwhile = meanwhile
        self._clock = clock
        self._keep_alive_s = KEEP_ALIVE * silence_s
        self._looked_at = clock()
        self._watch = Watch(self.sources, silence_s, clock)
        self._held: list[_Desk] = []
        """With a request here that no predictor has."""
        self._changed = False
        """Whether something happened on which held lanes may have waited."""
        self._complete: list[_Unroll] = []
        self._ready: deque[_Unroll] = deque()
        self._lent: dict[int, _Unroll] = {}
        self._deliveries = 0
        self._stopping = False

    # -- the actors -----------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Actors that play: the first so many that are well. The others are held, and go on later
        where they were."""
        return self._active

    @active.setter
    def active(self, count: int) -> None:
        self._active = count
        self._changed = True

    def progress(self) -> bool:
        """Answers, takes requests, hands lanes to the predictors. Returns whether anything moved.

        Raises:
            SilenceError: for an actor that is stuck.
            RuntimeError: when no actor is left.
        """
        moved = False
        while (served := self._predictors.take()) is not None:
            moved = True
            now = self._clock()
            for lane, actions in zip(served.lanes, served.actions):
                self._step(lane, actions)
                self.meters.wait(now - lane.asked_at)
            self.meters.batch(served.size)
        for asked in self._server.poll():
            moved = True
            self._take_request(asked)
        if self._changed and self._held:
            self._changed = False
            self._admit()
        now = self._clock()
        if now - self._looked_at > LOOK_EVERY_S:
            self._looked_at = now
            self._look(now)
        self._meanwhile()
        return moved

    def _take_request(self, asked: Asked) -> None:
        desk = self._desks[asked.client, asked.channel]
        lane, now = desk.lane, self._clock()
        desk.here, desk.held_since = True, now
        if lane.source in self.faults:
            self._tell(desk, Command.DISMISS)
            return
        self._watch.heard(lane.source)
        slot = self._server.request(lane.source, lane.channel)
        fault = asked.fault or fault_of(slot, desk.number, desk.fresh)
        if fault:
            self._give_up(desk, fault)
            return
        desk.number += 1
        desk.fresh = True
        lane.note(float(slot["waited_s"]), float(slot["worked_s"]))
        if int(slot["kind"]) == Kind.ROWS:
            lane.asked_at = now
            records = lane.arrive(read_rows(slot))
            if records is not None:
                self._complete.append(_Unroll(lane, records))
                self.meters.lag(lane.lag_inside)
        if self._order is None:
            self._hand_out()
        self._held.append(desk)
        self._changed = True

    def _hand_out(self) -> None:
        self._ready.extend(self._complete)
        self._complete.clear()

    def _admit(self) -> None:
        """Finds out what those that are held may do now."""
        if self._order is not None and not self._stopping:
            self._admit_in_step()
            return
        held, admitted = self._held, []
        self._held = []
        well = [source for source in self.sources if source not in self.faults]
        playing = set(well[: self._active])
        for desk in held:
            lane = desk.lane
            if self._stopping:
                self._tell(desk, Command.END)
            elif lane.rows is None:
                self._restart(desk, self._epoch)
            elif self._versions.newest and lane.source in playing and lane.has_room:
                admitted.append(lane)
            else:
                self._held.append(desk)
        if admitted:
            self._predictors.put(admitted)

    def _admit_in_step(self) -> None:
        """Lock-step: all lanes together, an unroll with the version that is due for it."""
        order, newest = self._order, self._versions.newest
        lanes = [desk.lane for desk in self._desks.values()]
        assert order is not None
        if len(self._held) < len(self._desks):
            return
        # In the order of lanes, not in that in which the last rows happened to come.
        self._complete.sort(key=lambda unroll: lanes.index(unroll.lane))
        self._hand_out()
        if lanes[0].between:
            unroll = lanes[0].unrolls
            epoch = order.epoch(unroll)
            if epoch is not None and self._restarted_at != unroll:
                self._restarted_at = unroll
                self._restarted(epoch)
                for desk in self._held:
                    self._restart(desk, epoch)
                self._held = []
                return
            due = order.version(unroll)
            if newest is None or newest.number < due or not all(lane.has_room for lane in lanes):
                return
            if newest.number != due:
                raise RuntimeError(
                    f"version {newest.number} is there where lock-step needs version {due}"
                )
        self._held = []
        self._predictors.put(lanes)

    def _restart(self, desk: _Desk, epoch: int) -> None:
        desk.lane.restart()
        self._tell(desk, Command.RESTART, epoch)

    def _step(self, lane: Lane, actions: npt.NDArray[np.int64]) -> None:
        self._server.answer(lane.source, lane.channel)["actions"][:] = actions
        self._tell(self._desks[lane.source, lane.channel], Command.STEP)

    def _tell(self, desk: _Desk, command: Command, epoch: int = 0) -> None:
        source, channel = desk.lane.source, desk.lane.channel
        answer = self._server.answer(source, channel)
        answer["command"][...] = command
        answer["number"][...] = desk.number - 1
        answer["epoch"][...] = epoch
        desk.here = False
        desk.ended = command in (Command.END, Command.DISMISS)
        self._server.send(source, channel, last=desk.ended)

    def _give_up(self, desk: _Desk, fault: str) -> None:
        """Leaves an actor alone whose requests make no sense; the others play on."""
        rank = desk.lane.source
        if self._order is not None:
            raise RuntimeError(f"rank {rank} sent {fault}; in lock-step nobody can be left out")
        log.error("rank %d sent %s: it is left alone from now on", rank, fault)
        self.faults[rank] = fault
        self._changed = True  # who was held may have to play in its place
        self._watch.forget(rank)
        if len(self.faults) == len(self.sources):
            raise RuntimeError(f"no actor is left; the last one, rank {rank}, sent {fault}")
        self._tell(desk, Command.DISMISS)
        for other in [held for held in self._held if held.lane.source == rank]:
            self._held.remove(other)
            self._tell(other, Command.DISMISS)

    def _look(self, now: float) -> None:
        """Now and then: who is silent, and who has waited so long that he may think we are."""
        for source, desks in self._of.items():
            if source not in self.faults and all(desk.here for desk in desks):
                self._watch.heard(source)
        self._watch.check()
        for desk in [held for held in self._held if now - held.held_since > self._keep_alive_s]:
            self._held.remove(desk)
            desk.fresh = False
            self._tell(desk, Command.WAIT)

    # -- the publisher --------------------------------------------------------------------------

    def publish(self, vector: npt.NDArray[np.float32], version: int, steps: int = 0) -> None:
        """Makes a copy of ``vector`` what predictors and trainers compute with from now on."""
        self._versions.publish(vector, version, steps)
        self._changed = True

    def owe(self, subscriber: int) -> None:
        """Nothing is owed: parameters stay here."""

    def owe_all(self) -> None:
        """See ``owe``."""

    def stop(self) -> bool | None:
        """Drives the end: ``True`` when every actor was told, else ``None``."""
        if not self._stopping:
            self._stopping = self._changed = True
        return True if self._told and self._server.drained() else None

    @property
    def _told(self) -> bool:
        """Whether every actor knows that the run has ended."""
        return all(desk.ended or desk.lane.source in self.faults for desk in self._desks.values())

    # -- the receiver ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing more will come and all was taken."""
        return self._told and not self._ready

    def take(self, source: int | None = None) -> Delivery | None:
        """The next record of a complete unroll, or ``None``; of one actor if that is given."""
        for unroll in self._ready:
            if source in (None, unroll.lane.source):
                break
        else:
            return None
        slot = unroll.slots[unroll.given]
        unroll.given += 1
        if unroll.given == len(unroll.slots):
            self._ready.remove(unroll)
        self._deliveries += 1
        self._lent[self._deliveries] = unroll
        return Delivery(unroll.lane.source, slot, self._deliveries)

    def arrived(self, source: int) -> bool:  # noqa: ARG002
        """Always: ``progress`` watches the actors."""
        return True

    def release(self, delivery: Delivery) -> None:
        """Gives a record back."""
        unroll = self._lent.pop(delivery.index)
        unroll.returned += 1
        if unroll.returned == len(unroll.slots):
            unroll.lane.release(unroll.slots)
            self._changed = True

    def gauges(self) -> dict[str, float]:
        """What the service did since the last call."""
        return self.meters.take()

    def close(self) -> None:
        """Ends the predictors, and gives back what MPI holds."""
        self._predictors.close()
        self._server.close()
