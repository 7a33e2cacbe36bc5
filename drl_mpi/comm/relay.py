"""One actor of a host receives parameters for all of them, so that they cross the network once.

A broadcast tree of depth two that nobody waits in: the relay passes on what is newest to whoever
has received the version before. Messages rather than a window of shared memory: these can be
cancelled and outlive the loss of a rank, and the copies they cost stay on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.parameters import ParameterPublisher, ParameterSubscriber, Published
from drl_mpi.comm.poller import Poller


class RelayingSubscriber:
    """Receives versions as a `ParameterSubscriber` does, and passes them on.

    Args:
        comm: communicator of all ends.
        publisher: rank that publishes.
        followers: ranks of this host that subscribe to this one.
        size: length of the parameter vector.
        tag: as the publisher's.
        poller: of this rank; while it waits for whatever, it drives the messages.
    """

    due = False
    """Nothing is asked for: versions come by themselves."""

    def __init__(
        self,
        comm: MPI.Comm,
        publisher: int,
        followers: Sequence[int],
        size: int,
        tag: int,
        poller: Poller,
    ) -> None:
        self._own = ParameterSubscriber(comm, publisher, size, tag)
        self._on = ParameterPublisher(comm, followers, size, tag)
        self._received: Published | None = None
        self._poller = poller
        poller.background = self.progress

    @property
    def stopped(self) -> bool:
        """Whether the publisher's last message has arrived."""
        return self._own.stopped

    @property
    def bytes_sent(self) -> int:
        """To the followers."""
        return self._on.bytes_sent

    def begin(self) -> None:
        """Nothing to do before an unroll."""

    def progress(self) -> None:
        """Takes in what has arrived and passes it on. Call it often: others wait for it."""
        if self._own.stopped:
            self._on.stop()
            return
        arrived = self._own.newest()
        if arrived is None:
            self._on.progress()
            return
        self._received = arrived
        self._on.owe_all()
        self._on.publish(arrived.vector, arrived.version, arrived.steps)

    def newest(self) -> Published | None:
        """The newest version that has arrived since the last call, or ``None``."""
        self.progress()
        received, self._received = self._received, None
        return received

    def close(self) -> None:
        """Waits until the followers know of the end, and withdraws what is still posted."""
        self._poller.wait(self._on.stop, "the other actors of this host to stop")
        self._own.close()
