"""Which address of this host the other hosts of a job can reach.

For libraries that open connections of their own, beside MPI. A host's own name is not enough: on
Debian it resolves to 127.0.1.1.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

ADDRESS_VARIABLE = "DRL_MPI_ADDRESS"
"""Environment variable with the address to use instead of the one found here."""
LOOPBACK = "127.0.0.1"
_ELSEWHERE = "192.0.2.1"
"""Reserved for documentation (RFC 5737), so never on this network: reached by the default route."""


def own_address(hosts: Sequence[str], interface: str = "") -> str:
    """An address of this host at which all ``hosts`` can reach it.

    What the user said comes first. Then the address from which this host would send to another
    one, that of its name, and the one at its default route. Nothing is sent to find out.

    Args:
        hosts: names of the hosts that want to reach this one, itself included.
        interface: the network interface that the user named, if any.

    Raises:
        OSError: this host has no other address than its loopback's.
    """
    said = os.environ.get(ADDRESS_VARIABLE, "")
    if said:
        return said
    name = socket.gethostname()
    others = sorted({*hosts} - {name})
    if not others:
        return LOOPBACK
    for address in _candidates(name, others, interface):
        if address and not ip_address(address.partition("%")[0]).is_loopback:
            return address
    raise OSError(
        f"host {name} has no address that {', '.join(others[:3])} could reach: its name and theirs "
        f"lead to loopback; set {ADDRESS_VARIABLE} to an address of {name}"
    )


def _candidates(name: str, others: Sequence[str], interface: str) -> Iterator[str]:
    yield address_of(interface) if interface else ""
    yield from (source_address(host) for host in others)
    yield from _resolved(name)
    yield source_address(_ELSEWHERE)


def source_address(host: str) -> str:
    """The address from which this host sends to another, given by name or address; "" if none."""
    for address in _resolved(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            try:
                route.connect((address, 9))  # of a datagram socket: sends nothing
            except OSError:
                continue
            return str(route.getsockname()[0])
    return ""


def _resolved(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]


def interface_of(address: str) -> str:
    """The network interface that has an IPv4 address; "" if none has."""
    for _, name in socket.if_nameindex():
        if address_of(name) == address:
            return name
    return ""


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface; "" if it has none or does not exist."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


_SIOCGIFADDR = 0x8915
"""Of Linux: the address of an interface, see netdevice(7)."""
