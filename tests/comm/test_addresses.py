"""Which address others can reach, on hosts that are set up in every way."""

import socket

import pytest

from drl_mpi.comm import addresses

HOSTS = ["here", "there"]


@pytest.fixture
def net(monkeypatch):
    """``net(names, routes)``: names resolve so, and the kernel sends from there; nothing else."""

    def make(names, routes=None, interfaces=None):
        def resolve(host, *_args, **_kwargs):
            if host not in names and not host[0].isdigit():
                raise socket.gaierror(host)
            return [(0, 0, 0, "", (names.get(host, host), 0))]

        class Route:
            def __init__(self, _family, kind):
                assert kind == socket.SOCK_DGRAM

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def connect(self, where):
                if where[0] not in (routes or {}):
                    raise OSError("unreachable")
                self.own = (routes or {})[where[0]]

            def getsockname(self):
                return self.own, 1

        monkeypatch.delenv(addresses.ADDRESS_VARIABLE, raising=False)
        monkeypatch.setattr(addresses.socket, "gethostname", lambda: "here")
        monkeypatch.setattr(addresses.socket, "getaddrinfo", resolve)
        monkeypatch.setattr(addresses.socket, "socket", Route)
        monkeypatch.setattr(addresses, "address_of", (interfaces or {}).get)

    return make


DEBIAN = {"here": "127.0.1.1", "there": "10.0.0.2"}
LOOP = {"127.0.1.1": "127.0.0.1"}


@pytest.mark.parametrize(
    ("names", "routes", "expected"),
    [
        # The address that faces the other host, whatever our own name leads to.
        (DEBIAN, LOOP | {"10.0.0.2": "10.0.0.1"}, "10.0.0.1"),
        ({"here": "10.9.9.9", "there": "10.0.0.2"}, {"10.0.0.2": "10.0.0.1"}, "10.0.0.1"),
        # The other's name is unknown here, or is in this host's file of names as loopback.
        ({"here": "10.0.0.1"}, {}, "10.0.0.1"),
        ({"here": "10.0.0.1", "there": "127.0.1.1"}, LOOP, "10.0.0.1"),
        # Both names are: what remains is the way out.
        ({"here": "127.0.1.1", "there": "127.0.1.1"}, LOOP | {"192.0.2.1": "10.0.0.1"}, "10.0.0.1"),
        ({"here": "::1", "there": "fd00::2"}, {"fd00::2": "fd00::1"}, "fd00::1"),
    ],
)
def test_it_is_one_that_others_can_reach(net, names, routes, expected):
    net(names, routes)
    assert addresses.own_address(HOSTS) == expected


def test_on_one_host_nothing_leaves_it(net):
    net(DEBIAN, {"10.0.0.2": "10.0.0.1"})
    assert addresses.own_address(["here", "here"]) == "127.0.0.1"


def test_the_user_knows_better(net, monkeypatch):
    net(DEBIAN, {"10.0.0.2": "10.0.0.1"}, {"ib0": "10.8.0.1"})
    assert addresses.own_address(HOSTS, "ib0") == "10.8.0.1"
    assert addresses.own_address(HOSTS, "eth") == "10.0.0.1", "no such interface: may be a prefix"
    monkeypatch.setenv(addresses.ADDRESS_VARIABLE, "10.7.0.1")
    assert addresses.own_address(HOSTS, "ib0") == "10.7.0.1"
    assert addresses.own_address(["here"]) == "10.7.0.1"


def test_a_host_without_a_network_says_so(net):
    net({"here": "127.0.1.1", "there": "127.0.1.1"}, LOOP)
    with pytest.raises(OSError, match=r"host here has no .* there .*: its name .*DRL_MPI_ADDRESS"):
        addresses.own_address(HOSTS)


def test_interfaces_of_this_machine():
    assert addresses.address_of("lo") == "127.0.0.1"
    assert addresses.interface_of("127.0.0.1") == "lo"
    assert addresses.source_address("127.0.0.1") == "127.0.0.1"
    assert addresses.address_of("no-such-interface") == addresses.interface_of("192.0.2.77") == ""
    assert addresses.source_address("no-such-host.invalid") == ""
