"""The actor without a network: steps environments, and asks its learner for their actions.

It loads no torch. Its environments are cut into groups, each with a channel of its own: while one
group waits for its actions, another one steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from drl_mpi.acting.requests import Command, Kind, write_rows
from drl_mpi.comm.exchange import ExchangeClient
from drl_mpi.comm.poller import Poller
from drl_mpi.envs.base import BatchedEnv, Rows

log = logging.getLogger(__name__)


class AskingActor:
    """Plays what it is told until the learner ends the run.

    Args:
        groups: the environments.
        client: of the learner, with a channel per group.
        poller: waits for answers; its idle time is reported.
        seed: (group, restart number) -> seed of its environments.
        clock: seconds.
    """

    def __init__(
        self,
        groups: Sequence[BatchedEnv],
        client: ExchangeClient,
        poller: Poller,
        seed: Callable[[int, int], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._groups = tuple(groups)
        self._client = client
        self._poller = poller
        self._seed = seed
        self._clock = clock
        self._numbers = [0] * len(self._groups)
        self._mark = clock(), poller.idle_s

    def run(self) -> None:
        """Plays, until every group was told that the run has ended, or one that it is dismissed."""
        for channel in range(len(self._groups)):
            self._ask(channel, Kind.HELLO)
        playing = set(range(len(self._groups)))
        while playing:
            for channel in self._poller.wait(
                lambda: self._client.answered() or None, "actions from the learner"
            ):
                command = self._obey(channel)
                if command is Command.DISMISS:
                    log.error("the learner cannot make sense of this rank's requests; see its log")
                    self._poller.silence_s = math.inf  # the others may play on for days
                    playing.clear()
                    break
                if command is Command.END:
                    playing.remove(channel)
        for env in self._groups:
            env.close()
        self._client.close()

    def _obey(self, channel: int) -> Command:
        """Does what a group was told, and says what that was."""
        answer = self._client.answer(channel)
        command, env = Command(int(answer["command"])), self._groups[channel]
        if command in (Command.END, Command.DISMISS):
            return command
        number = int(answer["number"])
        if number != self._numbers[channel] - 1:
            raise RuntimeError(
                f"the learner answered request {number} of group {channel} where "
                f"{self._numbers[channel] - 1} was asked"
            )
        if command is Command.STEP:
            self._ask(channel, Kind.ROWS, env.step(answer["actions"]))
        elif command is Command.RESTART:
            self._ask(channel, Kind.ROWS, env.reset(self._seed(channel, int(answer["epoch"]))))
        else:
            self._ask(channel, Kind.AGAIN)
        return command

    def _ask(self, channel: int, kind: Kind, rows: Rows | None = None) -> None:
        slot = self._client.request(channel)
        slot["kind"][...] = kind
        slot["number"][...] = self._numbers[channel]
        self._numbers[channel] += 1
        if rows is not None:
            write_rows(slot, rows)
        now, idle = self._clock(), self._poller.idle_s
        began, waited = self._mark
        slot["waited_s"][...] = idle - waited
        slot["worked_s"][...] = now - began - (idle - waited)
        self._mark = now, idle
        self._client.ask(channel)
        self._client.progress()
