"""How one bucket of numbers is summed over synchronous learners: by MPI, or by torch.distributed.

NCCL sums in the memory of GPUs, so gradients never pass through their hosts. gloo sums over TCP,
where neither NCCL nor a fast MPI is at hand. Both are told over MPI where to find each other.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, Protocol

import torch
import torch.distributed as dist

from drl_mpi.comm.addresses import ADDRESS_VARIABLE, interface_of, own_address, source_address
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import Group

log = logging.getLogger(__name__)

Backend = Literal["nccl", "gloo"]
Choice = Literal["auto", "mpi", "nccl", "gloo"]

CONNECT_S = 60.0
"""Seconds for which a learner tries to reach the first one, which listens already."""
CLOSING_S = 10.0
"""Seconds after which a backend that does not end is left behind: the process is about to end."""
_CPU = torch.device("cpu")


class CollectiveError(RuntimeError):
    """The library that sums gradients failed."""


class GradientSum(Protocol):
    """Sums one bucket over the learners, in place, and never spins while it waits."""

    device: torch.device
    """Where buckets must be."""

    def sum(self, bucket: torch.Tensor, poller: Poller, what: str) -> None:
        """Replaces a bucket by its sum over all learners. Collective.

        Args:
            bucket: float32 ``[size]`` on ``device``, contiguous, of equal size everywhere. What
                comes next on the device's current stream sees the sum.
            poller: waits.
            what: what is waited for, for the error's text.

        Raises:
            SilenceError: the others did not come within the poller's time.
            CollectiveError: the library failed; its own words are in the text.
        """
        ...

    def close(self, poller: Poller) -> None:
        """Gives back what the library holds. Collective; after the last sum."""
        ...


def make_gradient_sum(
    choice: Choice, group: Group, device: torch.device, poller: Poller
) -> GradientSum:
    """The sum that a learner was told to use. Collective over the learners.

    Args:
        choice: "auto" is NCCL for learners with GPUs, and MPI for others.
        group: the learners.
        device: where this learner computes.
        poller: waits for the others.

    Raises:
        CollectiveError: the learners cannot connect, or torch lacks the library.
        SilenceError: another learner did not come within the poller's time.
    """
    if choice == "auto":
        choice = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "mpi"
    log.info("gradients of %d learners are summed by %s", group.size, choice)
    return MPISum(group) if choice == "mpi" else TorchSum(choice, group, device, poller)


class MPISum:
    """By MPI, in host memory.

    Args:
        group: the learners.
    """

    def __init__(self, group: Group) -> None:
        self.device = _CPU
        self._group = group

    def sum(self, bucket: torch.Tensor, poller: Poller, what: str) -> None:
        """See ``GradientSum.sum``."""
        self._group.sum(bucket.numpy(), poller, what)

    def close(self, poller: Poller) -> None:
        """Nothing: MPI ends with the job."""


class TorchSum:
    """By a process group of torch.distributed, one per process.

    Args:
        backend: "nccl", between GPUs, or "gloo", in host memory and over TCP.
        group: the learners.
        device: where this learner computes; NCCL wants a GPU of its own for each.
        poller: waits for the others to connect.

    Raises:
        CollectiveError, SilenceError: see ``make_gradient_sum``.
    """

    def __init__(
        self, backend: Backend, group: Group, device: torch.device, poller: Poller
    ) -> None:
        self.device = device if backend == "nccl" else _CPU
        self._backend = backend
        self._group = group
        # The poller gives up first: its error says more, and NCCL's own would kill the process.
        self._timeout = timedelta(seconds=2 * poller.silence_s)
        if backend == "nccl":
            if not dist.is_nccl_available():
                raise CollectiveError(
                    "this torch was built without NCCL; use --gradient-sum mpi or gloo, or install "
                    "a torch with NCCL"
                )
            torch.cuda.set_device(device)
        host, port, listening = self._meeting_point()
        # In a thread, since it blocks for as long as others keep it waiting.
        _aside(
            lambda: self._connect(host, port, listening),
            poller,
            f"the learners' {backend} to connect by way of {host} port {port}",
        )

    def sum(self, bucket: torch.Tensor, poller: Poller, what: str) -> None:
        """See ``GradientSum.sum``."""
        failing = f"{self._backend} failed while this learner waited for {what}"
        with _named(failing):
            work = dist.all_reduce(bucket, async_op=True)
        poller.wait(lambda: work.is_completed() or None, what)
        with _named(failing):
            # Raises what went wrong. With NCCL it also makes the current stream wait for the sum;
            # without a time it would return there whatever went wrong.
            work.wait(self._timeout)

    def close(self, poller: Poller) -> None:
        """See ``GradientSum.close``."""
        # Who leaves early would cut the line of those that still receive.
        self._group.meet(poller, f"the other learners to be done with {self._backend}")
        try:
            _aside(dist.destroy_process_group, Poller(CLOSING_S), f"{self._backend} to end")
        except Exception as error:  # nothing that is still to be done needs it
            log.warning("%s did not end well: %s", self._backend, error)

    @property
    def _interface_variable(self) -> str:
        """Where users name the network interface."""
        return f"{self._backend.upper()}_SOCKET_IFNAME"

    def _meeting_point(self) -> tuple[str, int, socket.socket | None]:
        """Host and port of the first learner's store, and there the socket that listens."""
        hosts = self._group.share(self._group.gather(socket.gethostname()))
        listening: socket.socket | None = None
        if self._group.rank == 0:
            named = os.environ.get(self._interface_variable, "").partition(",")[0].lstrip("=")
            try:
                host = own_address(hosts, named)
            except OSError as error:
                raise CollectiveError(f"the learners cannot meet: {error}") from error
            try:
                family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
                # On this address only: others on the network need not find it.
                listening = socket.create_server((host, 0), family=family)
            except OSError as error:
                raise CollectiveError(
                    f"the first learner cannot listen at {host} ({error}); set {ADDRESS_VARIABLE} "
                    f"to an address of its host, {hosts[0]}"
                ) from error
        where = (host, listening.getsockname()[1]) if listening else None
        host, port = self._group.share(where)
        return host, port, listening

    def _connect(self, host: str, port: int, listening: socket.socket | None) -> None:
        """Blocks until all learners are connected."""
        nccl = self._backend == "nccl"
        if nccl:
            torch.cuda.set_device(self.device)  # is a thread's own
        else:
            # gloo would take the address of this host's name, which may be its loopback's.
            interface = interface_of(source_address(host))
            if interface:
                os.environ.setdefault(self._interface_variable, interface)
        with _named(
            f"{self._backend} cannot connect the learners by way of {host} port {port} (if that is "
            f"the wrong network, set {ADDRESS_VARIABLE} on the first learner's host to its "
            f"address, and {self._interface_variable} to the network interface)"
        ):
            store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it
                host,
                port,
                is_master=listening is not None,
                timeout=min(self._timeout, timedelta(seconds=CONNECT_S)),
                wait_for_workers=False,
                master_listen_fd=None if listening is None else listening.detach(),
            )
            dist.init_process_group(
                self._backend,
                store=store,
                rank=self._group.rank,
                world_size=self._group.size,
                timeout=self._timeout,
                # NCCL connects at once, where an error is expected, instead of in the first sum.
                device_id=self.device if nccl else None,
            )


@contextmanager
def _named(failing: str) -> Iterator[None]:
    """Says what failed, before torch's own words."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise CollectiveError(f"{failing}: {error}") from error


def _aside(task: Callable[[], object], poller: Poller, what: str) -> None:
    """Runs what may block in a thread, so that the wait for it is one like all others.

    Raises:
        SilenceError: it took longer than the poller waits; it goes on, and nobody waits for it.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        error: BaseException | None = None
        try:
            task()
        except BaseException as raised:
            error = raised
        outcome.append(error)

    threading.Thread(target=run, daemon=True, name=what).start()
    poller.wait(lambda: outcome or None, what)
    if outcome[0] is not None:
        raise outcome[0]
