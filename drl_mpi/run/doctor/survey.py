"""Brings together at rank 0 what all ranks find, and has them exchange messages.

Rank 0 asks, the others answer; nothing is collective, so one stuck rank cannot hide behind the
others: it is the one that has not answered. Messages are the very thing that is examined, which is
why the doctor calls MPI, as otherwise only ``comm`` does.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.run.doctor import files, library, links, look
from drl_mpi.run.doctor.facts import Folder, Launch, Link, Mpirun, Rank, Survey

if TYPE_CHECKING:
    from mpi4py import MPI

ASK, ANSWER = 1, 2
"""Tags: of rank 0's questions, and of the answers."""
LINKS_S = 3.0
"""Seconds after which no further pair of ranks is measured."""
PATIENCE = 6.0
"""Timeouts that a rank waits for the next question; rank 0 waits for others meanwhile."""

Share = tuple[Path, str, str]
"""The run folder, a file in it, and what it holds."""


def alone(launch: Launch, run_dir: Path, mpirun: Mpirun, here: Rank, mpi_error: str = "") -> Survey:
    """What can be said without MPI."""
    return Survey(
        launch,
        [here],
        str(run_dir),
        look.slurm(),
        mpirun,
        mpi_error,
        folders={here.host: _own_folder(run_dir)},
    )


def lead(
    comm: MPI.Comm,
    launch: Launch,
    here: Rank,
    run_dir: Path,
    mpirun: Mpirun,
    timeout_s: float,
    links_s: float = LINKS_S,
) -> Survey:
    """Rank 0: asks all others. They call ``follow``.

    Args:
        comm: the world.
        launch: of this process.
        here: what this rank found.
        run_dir: made for the time of the survey, if need be.
        mpirun: what a job would start itself with.
        timeout_s: seconds that a rank may take to answer.
        links_s: seconds after which no further pair of ranks is measured.
    """
    asker = _Asker(comm, timeout_s)
    found = asker.answers(range(1, comm.Get_size()))
    ranks = [here, *(found[rank] for rank in sorted(found))]
    survey = Survey(
        launch, ranks, str(run_dir), look.slurm(), mpirun, silent=asker.silent, timeout_s=timeout_s
    )
    if survey.broken:
        return replace(survey, folders={here.host: _own_folder(run_dir)})
    survey = replace(survey, folders=_folders(asker, survey, run_dir), silent=asker.silent)
    if not survey.broken:
        survey = _links(asker, survey, links_s)
    if not survey.broken:
        for rank in range(1, comm.Get_size()):
            asker.ask(rank, None)
    return survey


def follow(comm: MPI.Comm, here: Rank, timeout_s: float) -> None:
    """The other ranks: answer until rank 0 has no more questions.

    Ends all ranks when it asks nothing for much longer than the timeout.
    """
    try:
        _answer_all(comm, here, timeout_s)
    except SilenceError as error:
        print(f"rank {here.rank} on {here.host}: {error}", file=sys.stderr, flush=True)
        library.abort(1)


def _answer_all(comm: MPI.Comm, here: Rank, timeout_s: float) -> None:
    patient = Poller(PATIENCE * timeout_s)
    answer: Any = here
    while True:
        request = comm.isend(answer, dest=0, tag=ANSWER)
        patient.wait(lambda request=request: request.test()[0] or None, "rank 0")  # type: ignore[misc]
        message = patient.wait(lambda: comm.improbe(source=0, tag=ASK), "a question of rank 0")
        question = message.recv()
        if question is None:
            return
        answer = question(comm, timeout_s)


class _Asker:
    """Rank 0's side of the conversation."""

    def __init__(self, comm: MPI.Comm, timeout_s: float) -> None:
        self.comm = comm
        self.timeout_s = timeout_s
        self.silent: list[int] = []
        self._poller = Poller(timeout_s)

    def ask(self, rank: int, question: Callable[[MPI.Comm, float], Any] | None) -> None:
        """Sends a question, which the rank calls for its answer; ``None`` ends the conversation."""
        request = self.comm.isend(question, dest=rank, tag=ASK)
        with contextlib.suppress(RuntimeError):  # the missing answer will tell
            self._poller.wait(lambda: request.test()[0] or None, f"rank {rank}")

    def answers(self, ranks: Iterable[int]) -> dict[int, Any]:
        """What ranks answer, in any order; notes who is silent for too long."""
        found: dict[int, Any] = {}
        for rank in ranks:
            # Who comes after a silent one had as much time already.
            wait = Poller(0.0) if self.silent else self._poller
            with contextlib.suppress(RuntimeError):
                message = wait.wait(
                    lambda rank=rank: self.comm.improbe(source=rank, tag=ANSWER),  # type: ignore[misc]
                    f"an answer of rank {rank}",
                )
                found[rank] = message.recv()
                continue
            self.silent.append(rank)
        return found


class Try:
    """A question: how do you find the run folder?"""

    def __init__(self, share: Share) -> None:
        self.share = share

    def __call__(self, _comm: MPI.Comm, timeout_s: float) -> Folder:
        return files.look_at(*self.share, sleep=Poller(timeout_s).sleep)


class Play:
    """A question: how fast are messages to a peer? The peer is asked too."""

    def __init__(self, peer: int, serves: bool) -> None:
        self.peer, self.serves = peer, serves

    def __call__(self, comm: MPI.Comm, timeout_s: float) -> tuple[float, float] | str:
        try:
            return links.play(comm, self.peer, self.serves, timeout_s)
        except RuntimeError as error:  # silence, or MPI's own errors
            return str(error)


def _own_folder(run_dir: Path) -> Folder:
    with _Shared(run_dir) as (share, error):
        return Folder(error=error) if share is None else _try_here(share)


def _try_here(share: Share) -> Folder:
    return files.look_at(*share, sleep=time.sleep)


def _folders(asker: _Asker, survey: Survey, run_dir: Path) -> dict[str, Folder]:
    firsts = {host: ranks[0].rank for host, ranks in survey.hosts.items()}
    with _Shared(run_dir) as (share, error):
        here = survey.ranks[0].host
        if share is None:
            return {here: Folder(error=error)}
        others = {host: rank for host, rank in firsts.items() if rank}
        for rank in others.values():
            asker.ask(rank, Try(share))
        found = {here: _try_here(share)}
        answers = asker.answers(others.values())
        return found | {host: answers[rank] for host, rank in others.items() if rank in answers}


class _Shared:
    """The run folder with a file in it that others look for; leaves no trace."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir.absolute()
        self._name = f".doctor-{secrets.token_hex(8)}"
        self._made: list[Path] = []

    def __enter__(self) -> tuple[Share | None, str]:
        token = secrets.token_hex(8)
        try:
            self._made = files.make(self._path)
            (self._path / self._name).write_text(token)
        except OSError as error:
            return None, error.strerror or str(error)
        return (self._path, self._name, token), ""

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            (self._path / self._name).unlink()
        files.remove(self._made)


def _links(asker: _Asker, survey: Survey, links_s: float) -> Survey:
    hosts = [rank.host for rank in survey.ranks]
    pairs = links.choose_pairs(hosts)
    measured: list[Link] = []
    began = time.monotonic()
    for count, (a, b) in enumerate(pairs):
        if time.monotonic() - began > links_s:
            return replace(survey, links=measured, unmeasured=len(pairs) - count)
        results = _one_link(asker, a, b)
        wrong = [text for text in results if isinstance(text, str)]
        if wrong or asker.silent:
            where = f"between ranks {a} ({hosts[a]}) and {b} ({hosts[b]})"
            return replace(survey, links=measured, link_error=where, silent=asker.silent)
        latency, bandwidth = results[0]
        measured.append(Link((a, b), (hosts[a], hosts[b]), latency, bandwidth))
    return replace(survey, links=measured)


def _one_link(asker: _Asker, a: int, b: int) -> list[Any]:
    """What both ranks answer, the one that measures first; rank 0 plays itself."""
    if a:
        asker.ask(a, Play(b, serves=True))
    asker.ask(b, Play(a, serves=False))
    own = [] if a else [Play(b, serves=True)(asker.comm, asker.timeout_s)]
    # Players give up on their own after the timeout, and say so.
    patient = _Asker(asker.comm, 2 * asker.timeout_s)
    answers = patient.answers([b] if a == 0 else [a, b])
    asker.silent += patient.silent
    return own + [answers[rank] for rank in (a, b) if rank in answers]
