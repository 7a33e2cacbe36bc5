"""Streams under a real mpirun; the scenarios are in programs/streams.py."""

from pathlib import Path

import pytest

from drl_mpi.comm.record import Field, Record
from drl_mpi.comm.stream import StreamReceiver, StreamSender

PROGRAM = Path(__file__).parent / "programs" / "streams.py"
GOOD = [
    "everything",
    "turns",
    "starvation",
    "flow",
    "fixed_order",
    "several_at_once",
    "unasked_send",
    "end_behind_data",
]


@pytest.fixture(scope="module")
def played(mpirun):
    """One launch for all scenarios that end well: a launch costs as much as ten of them."""
    return mpirun(4, PROGRAM, *GOOD, timeout=60)


@pytest.mark.parametrize("name", GOOD)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text


@pytest.mark.parametrize("name", ["too_short", "too_long"])
def test_a_message_of_the_wrong_size_is_a_stream_error(mpirun, name):
    done = mpirun(4, PROGRAM, name, timeout=30)
    assert done.rc == 0, done.text
    assert f"ok {name}\n" in done.stdout


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_must_be_positive(depth):
    record = Record([Field("a", "int64")])
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        StreamReceiver(None, (1,), record, depth, 1)
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        StreamSender(None, 1, record, depth, 1)
