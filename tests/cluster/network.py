"""Machines of a small network: namespaces of this one machine, joined by a bridge.

Nothing has a name outside: namespaces live as long as the first process of each machine, and that
process as long as the one that made it, so even after a SIGKILL of the tests the kernel removes
processes, mounts, and links by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SUBNETS = "10.251"
"""First half of all addresses: a private range that hardly anybody uses."""

_FIRST_PROCESS = """
set -e
echo "$1" > /proc/sys/kernel/hostname
mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo ready
# A first process has to bury orphans; for one that ignores SIGCHLD the kernel does it.
exec env --ignore-signal=CHLD sleep infinity
"""

_numbers = itertools.count()


def checked(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command; :class:`RuntimeError` with all it wrote when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=env)
    if done.returncode != 0:
        message = f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return done.stdout


def free_subnet() -> str:
    """First three numbers of a /24 network in which this machine has no address."""
    links = json.loads(checked(["ip", "-json", "-4", "address", "show"]))
    taken = {entry["local"].rpartition(".")[0] for link in links for entry in link["addr_info"]}
    for i in range(256):
        subnet = f"{SUBNETS}.{(os.getpid() + i) % 256}"
        if subnet not in taken:
            return subnet
    raise RuntimeError(f"all networks {SUBNETS}.x.0/24 are taken: {sorted(taken)}")


class Machine:
    """Own network, hostname, processes, mounts, shared memory, and System V objects.

    The file system is this machine's, but for /proc, /dev/shm, and /etc/hosts.
    """

    def __init__(self, name: str, hosts: Path):
        """Starts a machine without links; ``hosts`` becomes its /etc/hosts."""
        self.name = name
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._first = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL",
                "unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--mount-proc",
                "--fork", "--kill-child",
                "sh", "-c", _FIRST_PROCESS, "sh", name, str(hosts),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop it in order
        )  # fmt: skip
        self.pid = self._first.pid
        """A process of this machine's namespaces, except that of processes: there its child is."""
        assert self._first.stdout is not None
        assert self._first.stderr is not None
        try:
            if self._first.stdout.readline() != "ready\n":
                raise RuntimeError(f"machine {name} does not start: {self._first.stderr.read()}")
        except BaseException:
            self.kill()
            raise

    def inside(self, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """The command line that runs ``argv`` on this machine."""
        namespaces = ["--net", "--uts", "--mount", "--ipc"]
        processes = f"--pid=/proc/{self.pid}/ns/pid_for_children"
        enter = ["nsenter", "--target", str(self.pid), *namespaces, processes]
        return [*enter, "env", f"--chdir={cwd or '/'}", *argv]

    def start(self, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """Starts a daemon that stays in the foreground; its output is appended to ``log``."""
        with log.open("ab") as output:
            daemon = subprocess.Popen(
                self.inside(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def has_ended(self) -> bool:
        """Whether the machine or one of its daemons has ended."""
        return self._first.poll() is not None or any(d.poll() is not None for d in self._daemons)

    def kill(self) -> None:
        """SIGKILL to everything that runs on it; returns when all of it is gone."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)  # all others die before it does
            self._first.wait(timeout=10.0)
        self._first.kill()
        self._first.wait()
        for daemon in self._daemons:
            daemon.wait()
        for stream in (self._first.stdout, self._first.stderr):
            if stream is not None:
                stream.close()


class Network:
    """A bridge on a machine of its own, which is also a member, and a link to this machine."""

    def __init__(self, switch: Machine, subnet: str):
        """Makes ``switch`` the machine with the bridge, at address 1; this machine is 254."""
        self.subnet = subnet
        self._switch = switch
        self._uplink = f"box{os.getpid()}-{next(_numbers)}"
        self._ip(switch, "link add bridge type bridge")
        self._ip(switch, f"address add {subnet}.1/24 dev bridge")
        self._ip(switch, "link set bridge up")
        peer = f"peer name uplink netns {switch.pid}"
        checked(f"ip link add {self._uplink} type veth {peer}".split())
        try:
            self._ip(switch, "link set uplink master bridge up")
            checked(f"ip address add {subnet}.254/24 dev {self._uplink}".split())
            checked(f"ip link set {self._uplink} up".split())
        except BaseException:
            self.close()
            raise

    def join(self, machine: Machine, number: int) -> None:
        """Links ``machine`` to the bridge, with address ``number`` on its eth0."""
        # With a MAC address of its own for good, nobody's ARP table is wrong after a restart.
        mac = f"02:00:00:00:00:{number:02x}"
        peer = f"peer name eth0 address {mac} netns {machine.pid}"
        self._ip(self._switch, f"link add {machine.name} type veth {peer}")
        self._ip(self._switch, f"link set {machine.name} master bridge up")
        self._ip(machine, f"address add {self.subnet}.{number}/24 dev eth0")
        self._ip(machine, "link set eth0 up")

    def leave(self, machine: Machine) -> None:
        """Takes the link away: what the machine sends from now on reaches nobody."""
        self._ip(self._switch, f"link delete {machine.name}")

    def sent_bytes(self, machine: Machine) -> int:
        """Bytes that ``machine`` sent through its link since it joined."""
        links = json.loads(self._ip(machine, "-json -statistics link show dev eth0"))
        return int(links[0]["stats64"]["tx"]["bytes"])

    def close(self) -> None:
        """Removes the link to this machine; the others go with their machines."""
        checked(["ip", "link", "delete", self._uplink])

    @staticmethod
    def _ip(machine: Machine, command: str) -> str:
        # Not in the machine's namespace of processes: `netns` takes this one's process ids.
        return checked(["nsenter", f"--net=/proc/{machine.pid}/ns/net", "ip", *command.split()])
