"""Slurm's commands as functions: submit jobs, watch them, and wait for what should happen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.network import checked

LAUNCHERS = (
    "OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM", "SBATCH_", "SALLOC_", "SCANCEL_", "SINFO_",
    "SQUEUE_", "SRUN_",
)  # fmt: skip
"""Beginnings of variables that would change what a launcher or a Slurm command does."""

FINAL = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "TIMEOUT")
)
"""States in which a job stays."""

Job = int | str
"""A job's number, or for one task of an array ``"number_index"``."""


class Slurm:
    """Client of the cluster that a slurm.conf describes."""

    def __init__(self, conf: Path):
        """Contacts nobody yet."""
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
        """Variables for client commands, without those of any launcher around the tests."""
        self.env["SLURM_CONF"] = str(conf)

    # Jobs

    def try_sbatch(
        self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``sbatch *args`` with the box's variables and those in ``env``."""
        return subprocess.run(
            ["sbatch", *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**self.env, **(env or {})},
        )

    def sbatch(
        self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> int:
        """Submits a job and returns its number; :class:`RuntimeError` when it is refused."""
        done = self.try_sbatch("--parsable", *args, cwd=cwd, env=env)
        if done.returncode != 0:
            raise RuntimeError(f"sbatch: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return int(done.stdout.strip().partition(";")[0])

    def states(self, job: Job) -> dict[str, str]:
        """State of each task of an array, ``{"7_0": "RUNNING", ...}``; of a plain job, its own."""
        query = ["--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i %T"]
        lines = self.client("squeue", *query).splitlines()
        return dict(line.split() for line in lines)

    def state(self, job: Job) -> str:
        """State of a job, such as RUNNING; of an array, that of all its tasks or MIXED."""
        states = set(self.states(job).values())
        return states.pop() if len(states) == 1 else "MIXED"

    def record(self, job: Job) -> dict[str, str]:
        """What ``scontrol show job`` knows of one job, such as ``{"Reason": "None", ...}``."""
        words = self.scontrol("--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def restarts(self, job: Job) -> int:
        """How often the job was requeued."""
        return int(self.record(job)["Restarts"])

    def nodes_of(self, job: Job) -> list[str]:
        """Names of the nodes that the job has, or had at its end; none while it waits."""
        nodes = self.record(job)["NodeList"]
        return [] if nodes == "(null)" else self.scontrol("show", "hostnames", nodes).split()

    def output(self, job: Job) -> str:
        """What the job has written to its standard output; empty before it wrote any."""
        file = Path(self.record(job)["StdOut"])
        return file.read_text(errors="replace") if file.exists() else ""

    def wait(self, job: Job, *states: str, timeout: float = 60.0) -> str:
        """Waits until the job is in one of ``states`` (default COMPLETED) and returns that state.

        Raises:
            RuntimeError: not within ``timeout`` seconds, or it has ended otherwise; the message
                has the job's record and its output.
        """
        wanted = states or ("COMPLETED",)
        end = time.monotonic() + timeout
        ended = 0
        while (state := self.state(job)) not in wanted:
            # A job that a signal or a failing node ended is final for a moment, then requeued.
            ended = ended + 1 if state in FINAL else 0
            if ended > 20 or time.monotonic() > end:
                what = self.scontrol("show", "job", job)
                text = "" if state == "MIXED" else self.output(job)
                raise RuntimeError(f"job {job} is {state}, not {wanted}\n{what}\n{text}")
            time.sleep(0.1)
        return state

    def requeue(self, job: Job) -> None:
        """Ends the job, puts it back in the queue, and waits until it runs again."""
        times = self.restarts(job) + 1
        self.scontrol("requeue", job)
        self.wait_restart(job, times)

    def wait_restart(self, job: Job, times: int = 1, timeout: float = 60.0) -> None:
        """Waits until the job was requeued ``times`` times and runs again, or ran.

        Shortens the delay of 11 s between the two to 2 s. :class:`RuntimeError` after ``timeout``.
        """

        hastened = False

        def restarted() -> bool:
            nonlocal hastened
            record = self.record(job)
            if int(record["Restarts"]) < times:
                return False
            if (record["JobState"], record["Reason"]) == ("PENDING", "BeginTime") and not hastened:
                # Nodes refuse a job that starts in the second in which they ended it.
                self.scontrol("update", f"JobId={job}", "StartTime=now+2")
                hastened = True
            return record["JobState"] in FINAL | {"RUNNING"}

        self.until(restarted, timeout, f"job {job} has not restarted")

    def cancel(self, job: Job) -> None:
        """Cancels the job as a user would: SIGTERM, and SIGKILL after KillWait."""
        self.client("scancel", str(job))

    def cancel_all(self, timeout: float = 30.0) -> None:
        """Kills all jobs and waits until none is left."""

        def none_left() -> bool:
            jobs = self.client("squeue", "--noheader", "--format=%A").split()
            if jobs:  # may end by themselves meanwhile, so errors are no news
                for options in (["--full", "--signal=KILL"], []):
                    command = ["scancel", "--quiet", *options, *sorted(set(jobs))]
                    subprocess.run(command, env=self.env, capture_output=True)
            return not jobs

        self.until(none_left, timeout, "jobs are left")

    # Commands

    def client(self, *argv: str) -> str:
        """Standard output of a Slurm command; :class:`RuntimeError` when it fails."""
        return checked(argv, self.env)

    def scontrol(self, *args: object) -> str:
        """Standard output of ``scontrol *args``; :class:`RuntimeError` when it fails."""
        return self.client("scontrol", *map(str, args))

    def node_states(self) -> dict[str, str]:
        """States of all nodes as ``sinfo`` says them, such as ``{"node1": "idle", ...}``.

        A trailing ``*`` says that the node does not respond.
        """
        try:
            lines = self.client("sinfo", "--noheader", "--Node", "--partition=main",
                                "--format=%N %T").splitlines()  # fmt: skip
        except RuntimeError:  # no controller yet
            return {}
        return dict(line.split() for line in lines)

    def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits for a condition.

        Raises:
            RuntimeError: not within ``timeout`` seconds, or hopeless; the message begins with
                ``what``, which says what is the case instead, and ends with :meth:`report`.
        """
        end = time.monotonic() + timeout
        while not (trouble := self.trouble()) and not condition():
            if time.monotonic() > end:
                trouble = f"not within {timeout:g} s"
                break
            time.sleep(0.1)
        if trouble:
            raise RuntimeError(f"{what}: {trouble}\n{self.report()}")

    def trouble(self) -> str:
        """Why waiting is hopeless; empty when it is not."""
        return ""

    def report(self) -> str:
        """What helps to understand a failure."""
        return ""
