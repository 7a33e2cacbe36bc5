"""A job that starts its ranks itself: on this machine, or on all of a Slurm allocation."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drl_mpi.errors import EXIT_OK, EXIT_STOPPED, UsageError
from drl_mpi.run import requeue, slurm
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.job import Job
from drl_mpi.run.launcher import StopSignals, core_quota, mpirun_command
from drl_mpi.run.layout import Layout, local_layout, plan


def relaunch(job: Job, argv: Sequence[str], signals: StopSignals) -> int:
    """Starts a job's ranks, waits for their end, and returns the exit code.

    Args:
        job: what ``argv`` asks for.
        argv: the program and its arguments, for every rank.
        signals: heard so far.

    Raises:
        UsageError: before any rank is started.
    """
    given = slurm.allocation()
    if given is None:
        return _here(job, argv, signals)
    return _in_allocation(given, job, argv, signals)


def _here(job: Job, argv: Sequence[str], signals: StopSignals) -> int:
    gpus, wanted = job.gpus(), job.wanted(None)
    job.check_gpus(gpus)
    ranks = local_layout(core_quota(), gpus, **wanted)
    layout = plan(ranks, ["localhost"] * ranks, gpus, **wanted)
    job.check_layout(layout)
    if job.inspect(layout) is None:
        return EXIT_OK
    command = mpirun_command(ranks, argv)
    folder = RunFolder(job.path)
    with _usable(folder):
        folder.prepare()
        folder.lock()
        _hand_over(folder)
    return _explained(signals.supervise(command, folder.stop_signal, hosts=0), folder, command)


def _in_allocation(
    given: slurm.Allocation, job: Job, argv: Sequence[str], signals: StopSignals
) -> int:
    requeue.most_requeues()  # to be refused now rather than when it is needed
    requeue.check_batch(given)
    gpus = job.gpus()
    if unseen := job.uses_gpus and slurm.unseen_gpus(gpus):
        slurm.say(unseen)
    if socket.gethostname() in given.hosts:
        job.check_gpus(gpus)
    if job.inspect(_planned(given, job, gpus)) is None:
        return EXIT_OK
    command = slurm.launch_command(given, argv)
    folder = RunFolder(job.path)
    if requeue.stopped_while_away(given, folder):
        slurm.say(f"{folder.stop} is there: not going on; remove it, or submit the job anew")
        return EXIT_STOPPED
    with _usable(folder):
        folder.prepare()
        locked = requeue.lock_again(given, folder, signals)
        if locked:
            _hand_over(folder)
    before = requeue.newest_checkpoint(folder)
    if not locked:
        ending = requeue.Ending(1, before, began=False)
    elif signals.came:
        slurm.say("Slurm's warning came before the ranks were started")
        ending = requeue.Ending(EXIT_STOPPED, before, began=False)
    else:
        code = signals.supervise(command, folder.stop_signal, hosts=len(given.hosts))
        ending = requeue.Ending(_explained(code, folder, command), before)
    return requeue.conclude(given, ending, folder)


def _planned(given: slurm.Allocation, job: Job, gpus: int) -> Layout:
    try:
        layout = plan(given.ranks, given.rank_hosts, gpus, **job.wanted(given.ranks))
        job.check_layout(layout)
    except UsageError as error:
        raise UsageError(
            f"{error}. Slurm gave {given.ranks} tasks on {len(given.hosts)} hosts: change "
            "--nodes, --ntasks-per-node"
        ) from error
    return layout


@contextmanager
def _usable(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(folder.unusable(error)) from error


def _hand_over(folder: RunFolder) -> None:
    """Leaves a locked folder to the ranks."""
    folder.clear_stop()  # here, before Ctrl-C may touch it, not in the ranks
    folder.unlock()


def _explained(code: int, folder: RunFolder, command: Sequence[str]) -> int:
    """The exit code of a job whose launcher ended with ``code``; tells what is not obvious."""
    name = Path(command[0]).name
    if code < 0:
        print(
            f"{name} was killed by signal {-code}; run the same command again to resume",
            file=sys.stderr,
        )
        return 128 - code
    if code == EXIT_OK and not folder.is_done():
        # A launcher that lost a node may still exit with 0.
        print(
            f"{name} exited with 0, but {folder.done} is missing: a rank or a node was lost; "
            "run the same command again to resume",
            file=sys.stderr,
        )
        return 1
    return code
