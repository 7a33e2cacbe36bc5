"""Shards of a vector; the scenarios under a real mpirun are in programs/shards.py."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.comm.shards import split

pytestmark = pytest.mark.smoke

PROGRAM = Path(__file__).parent / "programs" / "shards.py"
SCENARIOS = [
    "whole_versions",
    "fairness",
    "absent_minded",
    "one_at_a_time",
    "in_order",
    "requests_and_answers",
    "load_and_save",
    "leaving",
]
TRANSPORTS = {"memory": {}, "tcp": {"OMPI_MCA_btl": "self,tcp"}}
"""Between machines MPI moves a large message only while its sender looks, too."""


@given(st.data())
def test_shards_are_even_contiguous_and_cover_the_vector(data):
    size = data.draw(st.integers(1, 10**7))
    servers = data.draw(st.integers(1, min(size, 300)))
    shards = split(size, servers)
    assert len(shards) == servers
    assert shards[0][0] == 0
    assert shards[-1][1] == size
    assert all(one[1] == other[0] for one, other in pairwise(shards))
    lengths = {high - low for low, high in shards}
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("size", "servers"), [(3, 4), (0, 1), (5, 0), (5, -1)])
def test_every_server_needs_a_parameter(size, servers):
    with pytest.raises(ValueError, match=f"{servers} servers for {size} parameters"):
        split(size, servers)


@pytest.fixture(scope="module", params=TRANSPORTS)
def played(request, mpirun, tmp_path_factory):
    """One launch for all scenarios: a launch costs as much as ten of them."""
    folder = tmp_path_factory.mktemp("shards")
    return mpirun(5, PROGRAM, folder, *SCENARIOS, timeout=150, env=TRANSPORTS[request.param])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text
