"""Ends a rank whose call of MPI does not return: from outside, since it holds Python's lock.

MPI brings all ranks together before any of them can say that one is missing. If one never comes,
the others wait in MPI's own code, where neither a signal handler nor a thread of Python's runs. So
a child process watches. It is made before MPI is, since no process may be forked afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
from collections.abc import Iterator

log = logging.getLogger(__name__)

REST_S = 4.0
"""Seconds that others leave the first rank to speak for all of them."""
SPEAK_S = 1.0
"""Seconds that whoever reads our stderr gets to make room for a line."""


class Guard:
    """A child process that ends this one, with a line that says why, unless it is called off.

    Where there can be no child, nothing is bounded. If the child is killed, neither.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._child: int | None = None
        try:
            self._start()
        except OSError as error:
            log.warning("rank %d: nobody watches over MPI_Init: %s", rank, error)

    def _start(self) -> None:
        theirs, self._line = (_above_stderr(end) for end in os.pipe())
        ours = os.getpid()
        # The child keeps all signals blocked: they are meant for the process, which may go on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            child = os.fork()
            if child == 0:
                try:
                    os.close(self._line)
                    _watch(theirs, ours)
                finally:
                    os._exit(0)
            self._child = child
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(theirs)

    @contextlib.contextmanager
    def bounded(self, seconds: float, what: str) -> Iterator[None]:
        """Ends this process if what is done in here takes longer.

        Args:
            seconds: until then.
            what: is done, such as "MPI_Init".
        """
        rest = REST_S if self._rank else 0.0
        self._say(
            f"{seconds + rest} rank {self._rank} on {socket.gethostname()}: {what} has not "
            f"returned for {seconds:g} s: another rank did not start, is stuck, or cannot be "
            "reached; look for a host that is down, a slow file system, or a network that a "
            "firewall cuts"
        )
        try:
            yield
        finally:
            self._say("called off")

    def close(self) -> None:
        """Ends the child. Nothing is bounded any more."""
        if self._child is None:
            return
        os.close(self._line)
        with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(self._child, 0)
        self._child = None

    def _say(self, order: str) -> None:
        if self._child is not None:
            with contextlib.suppress(OSError):  # somebody killed it
                os.write(self._line, f"{order}\n".encode())


def _above_stderr(fd: int) -> int:
    """The same file under a number that no standard stream has, even if one is closed."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _watch(line: int, process: int) -> None:
    """Until the line is closed, by ``close`` or by the process's end."""
    seconds: float | None = None
    text = ""
    while select.select([line], [], [], seconds)[0]:
        said = os.read(line, select.PIPE_BUF).decode()
        if not said:
            return
        order, _, text = said.splitlines()[-1].partition(" ")
        seconds = None if order == "called" else float(order)
    try:
        if select.select([], [2], [], SPEAK_S)[1]:
            os.write(2, f"{text}\n".encode())
    except OSError:  # there is nobody to tell
        pass
    finally:
        os.kill(process, signal.SIGKILL)
