"""Records: what is written by name lies in one buffer, aligned, and is read back the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.comm.record import ALIGNMENT, Field, Record, Slot, aligned_bytes

DTYPES = ["uint8", "bool", "int16", "float32", "float64", "int64", "uint64", "complex128"]

fields = st.lists(
    st.builds(
        Field,
        st.text("abcdefgh_", min_size=1, max_size=4),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda field: field.name,
)


def content(field, seed):
    """Any bytes at all, as a value of the field's dtype."""
    raw = np.random.default_rng(seed).integers(0, 256, field.nbytes, dtype=np.uint8)
    raw = raw & 1 if field.dtype == "bool" else raw
    return raw.view(field.dtype).reshape(field.shape)


@given(fields, st.integers(0, 1000))
def test_every_field_keeps_its_own_bytes(layout, seed):
    record = Record(layout)
    slot = Slot(record)
    for i, field in enumerate(layout):
        slot[field.name][...] = content(field, seed + i)
    wire = slot.buffer.tobytes()
    other = Slot(Record(layout))
    other.buffer[:] = np.frombuffer(wire, np.uint8)
    assert list(other.fields) == [field.name for field in layout]
    for i, field in enumerate(layout):
        got = other[field.name]
        assert got.dtype == field.dtype
        assert got.shape == field.shape
        assert got.tobytes() == content(field, seed + i).tobytes()


@given(fields)
def test_fields_are_aligned_and_do_not_overlap(layout):
    record, end = Record(layout), 0
    slot = Slot(record)
    assert slot.buffer.ctypes.data % ALIGNMENT == 0
    assert slot.buffer.shape == (record.nbytes,)
    assert record.nbytes >= ALIGNMENT  # an empty message ends a stream, so no record is empty
    for field in layout:
        assert record.offsets[field.name] % ALIGNMENT == 0
        assert record.offsets[field.name] >= end
        end = record.offsets[field.name] + field.nbytes
        if field.nbytes:
            start = slot[field.name].ctypes.data - slot.buffer.ctypes.data
            assert start == record.offsets[field.name]
    assert end <= record.nbytes


def test_views_are_views():
    slot = Slot(Record([Field("a", "uint8", (3,)), Field("b", "int32")]))
    slot["b"][...] = 7
    assert slot.buffer[ALIGNMENT] == 7
    slot.buffer[0] = 9
    assert slot["a"][0] == 9


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ([Field("a", "int8"), Field("a", "int8")], "'a' stands twice"),
        ([Field("a", "object")], "'a' has dtype 'object'"),
        ([Field("a", "int8", (2, -1))], r"'a' has shape \(2, -1\)"),
    ],
)
def test_bad_layouts_are_refused(layout, text):
    with pytest.raises(ValueError, match=text):
        Record(layout)


@pytest.mark.parametrize(
    "buffer", [np.zeros(63, np.uint8), np.zeros((1, 64), np.uint8), np.zeros(64, np.int8)]
)
def test_a_wrong_buffer_is_refused(buffer):
    with pytest.raises(ValueError, match=r"needs uint8 \(64,\)"):
        Record([Field("a", "int64")]).views(buffer)


def test_a_busy_slot_cannot_be_read_or_written():
    slot = Slot(Record([Field("a", "int64")]))
    slot.busy = True
    with pytest.raises(RuntimeError, match="belongs to an MPI request"):
        slot["a"][...] = 1
    with pytest.raises(RuntimeError, match="belongs to an MPI request"):
        _ = slot.fields
    slot.busy = False
    assert slot["a"] == 0


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 1 << 20])
def test_aligned_bytes(nbytes):
    raw = aligned_bytes(nbytes)
    assert raw.shape == (nbytes,)
    assert raw.ctypes.data % ALIGNMENT == 0
    assert not raw.any()
