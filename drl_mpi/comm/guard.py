"""Ends a rank whose call of MPI does not return: from outside, since it holds Python's lock.

MPI brings all ranks together before any of them can say that one is missing. If one never comes,
the others wait in MPI's own code, where neither a signal handler nor a thread of Python's runs. So
a child process watches. It is made before MPI is, since no process may be forked afterwards.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator

REST_S = 4.0
"""Seconds that others leave the first rank to speak for all of them."""


class Guard:
    """A child process that ends this one, with a line that says why, unless it is called off.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        theirs, self._line = os.pipe()
        ours = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self._line)
                _watch(theirs, ours)
            finally:
                os._exit(0)
        os.close(theirs)

    @contextlib.contextmanager
    def bounded(self, seconds: float, what: str) -> Iterator[None]:
        """Ends this process if what is done in here takes longer.

        Args:
            seconds: until then.
            what: is done, such as "MPI_Init".
        """
        rest = REST_S if self._rank else 0.0
        text = (
            f"rank {self._rank} on {socket.gethostname()}: {what} has not returned for "
            f"{seconds:g} s: another rank did not start, is stuck, or cannot be reached; look "
            "for a host that is down, a slow file system, or a network that a firewall cuts"
        )
        os.write(self._line, f"{seconds + rest} {text}\n".encode())
        try:
            yield
        finally:
            os.write(self._line, b"called off\n")

    def close(self) -> None:
        """Ends the child. Nothing is bounded any more."""
        os.close(self._line)
        os.waitpid(self._child, 0)


def _watch(line: int, process: int) -> None:
    """Until the line is closed, by ``close`` or by the process's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the process, which may go on
    seconds: float | None = None
    text = ""
    while select.select([line], [], [], seconds)[0]:
        said = os.read(line, select.PIPE_BUF).decode()
        if not said:
            return
        order, _, text = said.splitlines()[-1].partition(" ")
        seconds = None if order == "called" else float(order)
    os.write(2, f"{text}\n".encode())
    os.kill(process, signal.SIGKILL)
