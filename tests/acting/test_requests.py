"""Requests and answers: what is written is read, and what makes no sense is told."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from drl_mpi.acting.requests import (
    FLAGS,
    Command,
    Kind,
    answer_record,
    fault_of,
    read_rows,
    request_record,
    write_rows,
)
from drl_mpi.comm.record import Slot
from drl_mpi.envs.base import EnvSpec, Rows

FRAMES = {"uint8": [(7, 5), (84, 84), (2, 3, 4)], "float32": [(1,), (4,), (3, 2)]}
DTYPES = {
    "reward": np.float32,
    "terminated": np.bool_,
    "reset": np.bool_,
    "first": np.bool_,
    "episode_return": np.float64,
    "episode_length": np.int64,
}


def spec(dtype="float32", shape=(4,)):
    return EnvSpec("x", shape, dtype, 4, 3, 4)


def bits(array):
    """An array down to the bits of its NaNs."""
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def numbers_of(dtype, shape):
    """Arrays of any bits whatever."""
    raw = arrays.arrays(np.uint8, (*shape, np.dtype(dtype).itemsize))
    if dtype is np.bool_:
        return arrays.arrays(np.bool_, shape)
    return raw.map(lambda each: each.view(dtype).reshape(shape))


@st.composite
def rows_and_spec(draw):
    dtype = draw(st.sampled_from(sorted(FRAMES)))
    shape, n = draw(st.sampled_from(FRAMES[dtype])), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    size = n * int(np.prod(shape)) * np.dtype(dtype).itemsize
    frame = np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(n, *shape)
    if draw(st.booleans()):  # environments may give views
        frame = np.repeat(frame, 2, axis=-1)[..., ::2]
    fields = {name: draw(numbers_of(kind, (n,))) for name, kind in DTYPES.items()}
    return Rows(frame=frame, **fields), spec(dtype, shape), n


@given(rows_and_spec())
def test_rows_arrive_bit_for_bit(drawn):
    rows, of, n = drawn
    record = request_record(of, n)
    asked, arrived = Slot(record), Slot(record)
    asked["kind"][...] = Kind.ROWS
    asked["number"][...] = 2**40
    asked["waited_s"][...] = 0.25
    asked["worked_s"][...] = 1e-9
    write_rows(asked, rows)
    arrived.buffer[:] = asked.buffer  # all that travels
    read = read_rows(arrived)
    for name in ("frame", *DTYPES):
        assert bits(getattr(read, name)) == bits(getattr(rows, name)), name
        assert np.shares_memory(getattr(read, name), arrived.buffer), f"{name} is a copy"
    assert arrived["number"] == 2**40
    assert (arrived["waited_s"], arrived["worked_s"]) == (0.25, 1e-9)
    assert fault_of(arrived, 2**40, fresh=True) == ""


def test_frames_travel_alone():
    """Of a stack only the newest frame, and no more than its bytes."""
    record = request_record(spec("uint8", (84, 84)), 16)
    assert sum(field.nbytes for field in record.fields) == 16 * (84 * 84 + 3 + 4 + 8 + 8) + 32
    assert record.nbytes < 16 * 84 * 84 * 1.01 + 1024


def test_an_answer_has_an_action_for_each():
    answer = Slot(answer_record(5))
    assert answer["actions"].shape == (5,)
    assert answer["actions"].dtype == np.int64
    assert {"command", "number", "epoch"} <= set(answer.fields)


def test_what_is_said_has_numbers_that_last():
    """They travel: another end may be of another version."""
    assert [kind.value for kind in (Kind.HELLO, Kind.ROWS, Kind.AGAIN)] == [0, 1, 2]
    assert [command.name for command in Command] == ["STEP", "RESTART", "WAIT", "END", "DISMISS"]
    assert [command.value for command in Command] == [0, 1, 2, 3, 4]
    assert FLAGS == ("terminated", "reset", "first")


def request(kind, number, flag=0, where=(0, 0)):
    slot = Slot(request_record(spec(), 3))
    slot["kind"][...] = kind
    slot["number"][...] = number
    slot["flags"][where] = flag
    return slot


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2, 10**12])
def test_one_kind_is_due(number, fresh):
    due = Kind.HELLO if number == 0 else Kind.ROWS if fresh else Kind.AGAIN
    for kind in (-1, 0, 1, 2, 3, 2**62, -(2**63)):
        said = fault_of(request(kind, number), number, fresh)
        if kind == due:
            assert said == ""
        else:
            assert said == f"a request of kind {kind} where {due.name} ({due.value}) is due"


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("number", "expected"), [(1, 0), (0, 1), (5, 4), (3, 4), (-1, 0), (2**63 - 1, 7)]
)
def test_one_number_is_due(number, expected, fresh):
    for kind in Kind:
        said = fault_of(request(kind, number), expected, fresh)
        assert said == f"request number {number} where {expected} is due"


@pytest.mark.parametrize("where", [(i, n) for i in range(3) for n in (0, 2)])
def test_flags_are_zero_or_one(where):
    """A view of them as truth values would be neither."""
    for kind, fresh in ((Kind.ROWS, True), (Kind.AGAIN, False)):
        assert fault_of(request(kind, 4, 1, where), 4, fresh) == ""
        for flag in (2, 7, 255):
            said = fault_of(request(kind, 4, flag, where), 4, fresh)
            assert said == f"a flag of {flag} where 0 and 1 are allowed"
    assert fault_of(request(Kind.HELLO, 0, 7, where), 0, True) == "", "it brings no rows"


PLAY = """
import sys
import numpy as np
import drl_mpi.acting.requests, drl_mpi.roles.asking_actor, drl_mpi.systems.asking
from drl_mpi import envs
env = envs.make("ALE/Pong-v5", 2, envs.EnvOptions())
rows = env.reset(3)
for _ in range(3):
    rows = env.step(np.array([0, 1]))
slot = drl_mpi.comm.record.Slot(drl_mpi.acting.requests.request_record(env.spec, 2))
drl_mpi.acting.requests.write_rows(slot, rows)
env.close()
print("frame", rows.frame.shape, "loaded", *{"torch", "h5py", "tensorboardX"} & set(sys.modules))
"""


@pytest.mark.parametrize(
    "module",
    ["drl_mpi.acting.requests", "drl_mpi.roles.asking_actor", "drl_mpi.systems.asking"],
)
def test_an_asking_actor_loads_no_torch(module):
    code = f"import sys, {module}; print(*{{'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_game_is_played_without_torch():
    done = subprocess.run([sys.executable, "-c", PLAY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "frame (2, 84, 84) loaded"
