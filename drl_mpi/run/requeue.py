"""How a Slurm job goes on after an interruption: back to the queue, or not.

A batch script hands its process over to the job (`exec python jobs/...`), so Slurm's warning before
a preemption or the time limit (`--signal=B:USR2@300`) arrives where it becomes a STOP.signal. The
same process starts the ranks, sees how they ended, and requeues the Slurm job if that makes sense.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import StopSignals
from drl_mpi.run.slurm import Allocation, say

MAX_REQUEUES = "MAX_REQUEUES"
"""Variable that bounds how often a job goes back to the queue by itself; 0 for never."""
USUAL_REQUEUES = 100
BATCH = "DRL_MPI_BATCH"
"""Variable with "JOB:PID" of the batch script, which has handed itself over to the job."""
WARNED = "DRL_MPI_WARNED"
"""Variable that is not empty if Slurm's warning came while the batch script was still a shell."""
KILLED_WITHIN_S = 60.0
"""Seconds within which Slurm ends a job that it has put back into the queue."""
TRIES, PAUSE_S, ANSWER_S = 24, 10.0, 60.0
"""A controller that does not answer is asked again: so often, so many seconds later. It may be
restarted, or replaced (SlurmctldTimeout, 2 minutes by default), and the warning leaves 5."""
LOCKED_S, LOOK_S = 600.0, 2.0
"""Seconds for which a job that came back waits for its folder, and between looks."""

UNKNOWN = "unknown"
BUSY = (
    "timed out", "Unable to contact", "try again", "Zero Bytes", "standby", "refused", "Connection",
    "connection", "not responding", "temporarily",
)  # fmt: skip
"""Words of a controller that should be asked again."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the ranks of a job in an allocation ended.

    Args:
        code: exit code of the job; 0 only if DONE is there.
        before: name of the newest checkpoint before the ranks started.
        began: whether they were started at all: else Slurm's warning came before.
    """

    code: int
    before: str | None
    began: bool = True


def early_signals(environment: Mapping[str, str] = os.environ) -> StopSignals:
    """Hears Slurm's warning from now on, if this process is a batch script."""
    signals = StopSignals()
    if environment.get(BATCH, "").partition(":")[2] == str(os.getpid()):
        signals.came = int(bool(environment.get(WARNED)))
        signals.listen(signal.SIGUSR2)
        # What came since the script's last look is held back until now (slurm/common.sh).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    return signals


def check_batch(given: Allocation, environment: Mapping[str, str] = os.environ) -> None:
    """Says so if a batch script's job is another process, which Slurm's warning does not reach."""
    job, _, process = environment.get(BATCH, "").partition(":")
    if job == given.job and process != str(os.getpid()):
        say(
            f"job {given.job} hears no warning and will not be requeued: its script is process "
            f"{process}, this is {os.getpid()}; let PYTHON be a Python itself, and call play last "
            "and not in ( )"
        )


def lock_again(given: Allocation, folder: RunFolder, signals: StopSignals) -> bool:
    """Waits for the folder of a job that came back. Returns whether it is locked then.

    A node that Slurm has given up may still play, and a network file system keeps the locks of one
    that died for a while.

    Raises:
        UsageError: for a job that starts for the first time: somebody else has its folder.
    """
    until = time.monotonic() + LOCKED_S
    told = False
    while True:
        try:
            folder.lock()
        except UsageError as error:
            if given.restarts == 0:
                raise
            if not told:
                say(f"{error}. Job {given.job} came back: it waits for up to {LOCKED_S:.0f} s")
                told = True
        else:
            return True
        if signals.came or time.monotonic() > until:
            return False
        time.sleep(LOOK_S)


def conclude(
    given: Allocation,
    ending: Ending,
    folder: RunFolder,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Puts the Slurm job back into the queue, or not.

    Returns:
        The exit code of the batch script; it does not return if the job was requeued.
    """
    code = ending.code
    if code in (EXIT_OK, EXIT_USAGE) or folder.stopped_by_user():
        return code
    if environment.get(BATCH) != f"{given.job}:{os.getpid()}":
        return code  # a command inside somebody's script or shell: the Slurm job is theirs
    record = job_record(given.job)
    newest = newest_checkpoint(folder)
    moved = newest != ending.before or not ending.began
    if refusal := _refusal(given, record, most_requeues(environment), moved=moved):
        say(refusal)
        return code
    name = job_name(given.job, record)
    say(f"exit {code}, newest checkpoint {newest}: job {name} goes back to the queue")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which Slurm ends a requeued job's script
    done = _scontrol(["requeue", name])
    if done.returncode > 0:  # below 0: it was ended, too
        say(
            f"job {name} cannot be requeued: {done.stderr.strip()}; submit it again, or chain "
            "submissions with sbatch --dependency=singleton"
        )
        return code
    time.sleep(KILLED_WITHIN_S)  # to be gone before could be taken for the job's end
    return code


def _refusal(given: Allocation, record: Mapping[str, str], most: int, *, moved: bool) -> str | None:
    """Why a job is not requeued; ``None`` if it is to be."""
    state, reason = record["JobState"], record["Reason"]
    if state != "RUNNING" and reason != "TimeLimit":
        # Cancelled, and not to be brought back; or requeued already, by Slurm itself.
        again = "; submit it again to go on" if state == UNKNOWN else ""
        return f"job {given.job} is {state} ({reason}): it is not requeued from here{again}"
    if record.get("Restarts", str(given.restarts)) != str(given.restarts):
        return f"job {given.job} runs again already, elsewhere: it is not requeued from here"
    preempted = record.get("PreemptTime", "None") not in ("None", "N/A", "Unknown")
    if not moved and not preempted:
        return f"no checkpoint since the start: job {given.job} is not requeued"
    if given.restarts >= most:
        return (
            f"job {given.job} has come back {given.restarts} times ({MAX_REQUEUES}={most}): enough"
        )
    return None


def job_record(job: str) -> dict[str, str]:
    """What ``scontrol show job`` tells of a job, at least ``JobState`` and ``Reason``."""
    done = _scontrol(["--oneliner", "show", "job", job])
    record: dict[str, str] = {}
    for line in done.stdout.splitlines():  # of an array, one for each task
        words = line.split()
        if f"JobId={job}" in words:
            for word in words:
                name, equal, value = word.partition("=")
                if equal:
                    record.setdefault(name, value)  # later words may be parts of a comment
    unknown = " ".join(done.stderr.split()) or "scontrol does not tell"
    return {"JobState": UNKNOWN, "Reason": unknown} | record


def job_name(job: str, record: Mapping[str, str]) -> str:
    """Slurm's name of a job: its number, or for one task of an array "number_index".

    The number of an array's last task is that of the whole array. Variables do not tell: a job that
    was submitted inside a task of an array has those of that task.
    """
    array, index = record.get("ArrayJobId"), record.get("ArrayTaskId", "")
    return f"{array}_{index}" if array and index.isdecimal() else job


def _scontrol(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs it, some times if need be. The last answer, whatever it is."""
    command = ["scontrol", *words]
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=ANSWER_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            done = subprocess.CompletedProcess(command, 1, "", str(error))
            if isinstance(error, FileNotFoundError):
                break
        if done.returncode <= 0 or not _is_busy(done.stderr):
            break
    return done


def _is_busy(said: str) -> bool:
    return any(words in said for words in BUSY)


def most_requeues(environment: Mapping[str, str] = os.environ) -> int:
    """How often a job may go back to the queue by itself.

    Raises:
        UsageError: for something else than a number.
    """
    text = environment.get(MAX_REQUEUES) or str(USUAL_REQUEUES)
    if not text.isdecimal():
        raise UsageError(f"{MAX_REQUEUES}={text!r}; allowed: 0 or more; 0 for never")
    return int(text)


def stopped_while_away(given: Allocation, folder: RunFolder) -> bool:
    """Whether the user touched STOP while the job waited in the queue to go on."""
    return given.restarts > 0 and folder.stopped_by_user()


def newest_checkpoint(folder: RunFolder) -> str | None:
    """Name of the newest checkpoint, or ``None``: a measure of progress."""
    from drl_mpi.run.checkpoint import Checkpoints  # here: it loads h5py, which servers do without

    try:
        newest = Checkpoints(folder.checkpoints).latest()
    except OSError:  # a file system that does not answer
        return None
    return None if newest is None else newest.name
