"""Streams under a real mpirun; the scenarios are in programs/streams.py."""

from pathlib import Path

import pytest

from drl_mpi.comm.record import Field, Record
from drl_mpi.comm.stream import SpreadSender, StreamReceiver, StreamSender

pytestmark = pytest.mark.smoke

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
    "spread",
    "spread_waits_for_all",
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


class Ring:
    """What a `SpreadSender` sees of one of its senders."""

    def __init__(self, name, depth=4):
        self.name, self.depth = name, depth
        self.sent, self.driven, self.closed, self.looks = 0, 0, False, 0

    def free(self, count):
        return (
            [f"{self.name}{self.sent + i}" for i in range(count)] if count <= self.depth else None
        )

    def send(self):
        self.sent += 1
        self.depth -= 1

    def progress(self):
        self.driven += 1

    def end(self):
        self.looks += 1
        return True if self.looks > 2 else None

    def close(self):
        self.closed = True


def test_spreading_gives_each_receiver_a_block():
    a, b = Ring("a"), Ring("b")
    spread = SpreadSender([a, b], 4)
    assert spread.free(4) == ["a0", "a1", "b0", "b1"]
    assert spread.free(4) == ["a0", "a1", "b0", "b1"], "nothing was sent yet"
    counts = []
    for _ in range(4):
        spread.send()
        counts.append((a.sent, b.sent))
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2)]
    assert spread.free(4) == ["a2", "a3", "b2", "b3"]


def test_spreading_waits_drives_ends_and_closes_all():
    a, b = Ring("a"), Ring("b", depth=1)
    spread = SpreadSender([a, b], 4)
    assert spread.free(4) is None
    b.looks = -1
    for _ in range(5):
        assert (spread.end() is True) == (b.looks > 2)
        spread.progress()
    assert spread.end() is True
    spread.close()
    assert a.driven == b.driven == 5
    assert a.closed
    assert b.closed


def test_records_that_do_not_spread_are_refused():
    with pytest.raises(ValueError, match="5 records do not spread evenly over 2 ranks"):
        SpreadSender([Ring("a"), Ring("b")], 5)
    for count in (1, 2, 6):
        with pytest.raises(ValueError, match=f"asked for {count} slots of 4"):
            SpreadSender([Ring("a"), Ring("b")], 4).free(count)
