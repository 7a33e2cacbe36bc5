"""A Slurm cluster in a box: controller and nodes as namespaces of this one machine, for tests.

By hand, as root (stops at Ctrl-C):

    python -m tests.cluster.box --nodes 2 --gpus 2

Every node has its own network link, hostname, process ids, and shared memory, so that MPI between
nodes goes over TCP and a node can be killed like a computer. Files are shared by all, including
/tmp. Cores, memory, and GPUs are only counted, not enforced.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.cluster.network import Machine, Network, checked, free_subnet
from tests.cluster.slurm import Slurm

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Programs that a box needs, with their Debian packages."""

CONTROLLER = "controller"

_SLURM_CONF = """
ClusterName=box
SlurmctldHost={controller}({subnet}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: seconds to start a job in, and that a requeued one waits before (default 120)
AuthInfo=socket={root}/munge/socket,cred_expire=10
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n/slurmd.pid
SlurmdSpoolDir={root}/%n/spool
# PMIx has sockets there under the job's number alone: nodes must not share it. For Open MPI's the
# prolog sets TMPDIR, as process ids of the nodes are alike.
TmpFS={root}/%n/tmp
TaskProlog={root}/task_prolog
MailProg=/bin/true

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu

ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2,sched_min_interval=0
PriorityType=priority/basic

# A dead node must be noticed soon and must not delay messages to the others.
SlurmdTimeout=10
TreeWidth=1024
MessageTimeout=5
KillWait=5
OverTimeLimit=0
MinJobAge=86400

"""


_PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=short Nodes=ALL MaxTime=10 PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """What this machine lacks to run a box; ``None`` when it lacks nothing."""
    if os.geteuid() != 0:
        return "a cluster in a box needs root"
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    try:
        ctypes.CDLL("libpmix.so")  # Slurm's name for it, and only the development package has it
    except OSError:
        packages.add("libpmix-dev")
    if packages:
        return f"not installed: apt-get install {' '.join(sorted(packages))}"
    try:
        namespaces = "unshare --net --uts --mount --ipc --pid --fork --mount-proc"
        links = "ip link add test0 type bridge && ip link add test1 type veth peer name test2"
        checked([*namespaces.split(), "sh", "-c", f"mount -t tmpfs tmpfs /dev/shm && {links}"])
    except RuntimeError as error:
        return f"this machine gives no namespaces of its own: {error}"
    return None


class Box(Slurm):
    """A running Slurm cluster between ``__enter__`` and ``__exit__``.

    Nodes are ``node1``, ``node2``, ... Partition ``main`` is the default; jobs in ``short`` (at
    most 10 minutes) go first and preempt those in ``main``, which are requeued.
    """

    def __init__(self, root: Path, nodes: int = 2, cores: int = 4, gpus: int = 0):
        """Starts nothing yet.

        Args:
            root: empty folder for configuration, logs, and spools; its path must be short enough
                for the name of a socket.
            nodes: number of nodes.
            cores: cores that each node declares, however many this machine has.
            gpus: GPUs that each node declares; their devices do nothing.
        """
        if len(str(root)) > 60:
            raise ValueError(f"root is longer than 60 characters, give a shorter one: {root}")
        super().__init__(root / "slurm.conf")
        self.root = root
        self.names = tuple(f"node{i + 1}" for i in range(nodes))
        self.cores = cores
        self.gpus = gpus
        self._subnet = free_subnet()
        self._machines: dict[str, Machine] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Box:
        """Starts everything and returns when all nodes are idle.

        Raises:
            RuntimeError: it does not start within 60 s; the message has the ends of all logs.
        """
        with contextlib.ExitStack() as stack:
            self._write_files()
            self._controller = Machine(CONTROLLER, self.root / "hosts")
            stack.callback(self._controller.kill)
            self._network = Network(self._controller, self._subnet)
            stack.callback(self._network.close)
            stack.callback(self._kill_nodes)
            self._start_controller()
            for name in self.names:
                self._start_node(name)
            self.until(
                lambda: set(self.node_states().values()) == {"idle"}, 60.0, "nodes are not idle"
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kills all jobs and daemons; only the files in ``root`` stay."""
        self._stack.close()

    # Nodes

    def address(self, name: str) -> str:
        """IPv4 address of a node."""
        return f"{self._subnet}.{self._number(name)}"

    def sent_bytes(self, name: str) -> int:
        """Bytes that a node has sent to others since it was started or revived."""
        return self._network.sent_bytes(self._machine(name))

    def run_on(
        self, name: str, argv: Sequence[str], timeout: float = 60.0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a node, outside of Slurm; its process ids are the node's own."""
        return subprocess.run(
            self._machine(name).inside(argv, cwd),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=self.env,
        )

    def kill_node(self, name: str) -> None:
        """Ends a node like a failing computer: silence on its link, then all processes gone.

        Slurm notices by itself within half a minute, or see :meth:`report_down`.
        """
        machine = self._machine(name)
        self._network.leave(machine)
        del self._machines[name]
        machine.kill()

    def report_down(self, name: str) -> None:
        """Tells Slurm, as an operator does, that a node failed: its jobs end or are requeued."""
        self.scontrol("update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def revive_node(self, name: str) -> None:
        """Starts a killed node again and waits until Slurm uses it; nothing if it lives."""

        def in_use() -> bool:
            state = self.node_states().get(name, "down")
            return not state.endswith("*") and not state.startswith(("down", "drain", "unknown"))

        if name not in self._machines:
            self.report_down(name)  # back too early, it would leave its jobs running for Slurm
            shutil.rmtree(self.root / name / "tmp")
            (self.root / name / "tmp").mkdir()
            self._start_node(name)
        self.until(in_use, 60.0, f"{name} is not back")

    # Inside

    def trouble(self) -> str:
        """Names of machines on which a daemon has ended by itself."""
        machines = [self._controller, *self._machines.values()]
        ended = [machine.name for machine in machines if machine.has_ended()]
        return f"a daemon has ended on {', '.join(ended)}" if ended else ""

    def report(self) -> str:
        """Ends of all logs."""
        tails = [
            "\n".join([f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-30:]])
            for log in sorted(self.root.glob("*.log"))
        ]
        return "\n".join(tails)

    def _write_files(self) -> None:
        for folder in (
            "munge",
            "state",
            *(f"{name}/{sub}" for name in self.names for sub in ("spool", "tmp")),
        ):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(self.gpus):  # Slurm wants a device: each is a /dev/null
            os.mknod(self.root / f"gpu{i}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        prolog = self.root / "task_prolog"
        prolog.write_text(f'#!/bin/sh\necho "export TMPDIR={self.root}/$SLURMD_NODENAME/tmp"\n')
        prolog.chmod(0o755)
        key = self.root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        hosts = ["127.0.0.1 localhost", f"{self._subnet}.1 {CONTROLLER}"]
        hosts += [f"{self.address(name)} {name}" for name in self.names]
        (self.root / "hosts").write_text("\n".join([*hosts, ""]))
        gpus = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        node = (
            f" CPUs={self.cores} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cores}"
            f" ThreadsPerCore=1 RealMemory=64000{gpus} State=UNKNOWN"
        )
        conf = _SLURM_CONF.format(controller=CONTROLLER, subnet=self._subnet, root=self.root)
        for name in self.names:
            conf += f"NodeName={name} NodeAddr={self.address(name)}{node}\n"
        (self.root / "slurm.conf").write_text(conf + _PARTITIONS)
        devices = f"Name=gpu File={self.root}/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        (self.root / "gres.conf").write_text(f"AutoDetect=off\n{devices}")

    def _start_controller(self) -> None:
        munge = self.root / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={munge / file}" for option, file in files.items()]
        log = self.root / "munged.log"
        self._controller.start(["munged", "--foreground", "--force", *options], log, self.env)
        self.until((munge / "socket").exists, 30.0, "munged is not ready")
        log = self.root / "slurmctld.log"
        self._controller.start(["slurmctld", "-D", "-c"], log, self.env)

    def _start_node(self, name: str) -> None:
        machine = Machine(name, self.root / "hosts")
        self._machines[name] = machine
        self._network.join(machine, self._number(name))
        machine.start(["slurmd", "-D"], self.root / f"{name}.log", self.env)

    def _kill_nodes(self) -> None:
        while self._machines:
            _, machine = self._machines.popitem()
            machine.kill()

    def _number(self, name: str) -> int:
        return 11 + self.names.index(name)

    def _machine(self, name: str) -> Machine:
        if name not in self._machines:
            raise ValueError(f"{name} is not a living node; there are {sorted(self._machines)}")
        return self._machines[name]


def main() -> None:
    """Starts a box by hand, says how to use it, and stops it at Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=2, help="number of nodes")
    parser.add_argument("--cores", type=int, default=4, help="cores that each node declares")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each node declares")
    args = parser.parse_args()
    if lacking := missing():
        raise SystemExit(lacking)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="box", ignore_cleanup_errors=True) as root,
        Box(Path(root), args.nodes, args.cores, args.gpus) as box,
    ):
        print(f"export SLURM_CONF={box.env['SLURM_CONF']}", flush=True)
        print(f"nodes {', '.join(box.names)}; logs in {root}; Ctrl-C stops", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
