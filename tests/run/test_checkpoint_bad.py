"""A checkpoint that anybody may have made: each thing that `save` never writes is refused.

The crafted files carry a right seal: it finds damage, and whoever makes a file can make a seal.
"""

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5g, h5p, h5s, h5t, h5z

from drl_mpi.run import checkpoint_format as form
from drl_mpi.run.checkpoint import CheckpointError, load, save

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def seal(path):
    fd = os.open(path, os.O_RDWR)
    form.write_seal(fd)
    os.close(fd)


def craft(path, make, *, block=512, attributes=True):
    """A sealed file with whatever `make(file)` puts into it."""
    with h5py.File(path, "w", libver=form.LIBRARY, userblock_size=block) as file:
        if attributes:
            file.attrs["format"] = np.bytes_(form.FORMAT)
            file.attrs["version"] = np.int64(form.VERSION)
        make(file)
    seal(path)
    return path


def compact(file, name, kind, space=None, shape=()):
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_layout(h5d.COMPACT)
    space = space or (h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR))
    return h5d.create(file.id, name.encode(), kind, space, created)


def chunked(file, shape=(40_000,), chunk=(20_000,), filters=("fletcher32",), maxshape=None):
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_chunk(chunk)
    for name in filters:
        if name == "lzf":
            created.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL, ())
        else:
            getattr(created, "set_" + name)(*((4,) if name == "deflate" else ()))
    space = h5s.create_simple(shape, maxshape)
    dataset = h5d.create(file.id, b"x", h5t.STD_U8LE, space, created)
    return h5py.Dataset(dataset)


def text(size=4, cset=h5t.CSET_UTF8, pad=h5t.STR_NULLTERM):
    kind = h5t.C_S1.copy()
    kind.set_size(size)
    kind.set_cset(cset)
    kind.set_strpad(pad)
    return kind


def twelve_bits():
    kind = h5t.STD_I16LE.copy()
    kind.set_precision(12)
    return kind


def put(dataset, value):
    dataset.write(h5s.ALL, h5s.ALL, value, dataset.get_type())


def test_what_is_written_plainly_by_h5py_in_our_way_loads(tmp_path):
    """So the refusals below come from what is said, not from how the files are made."""

    def make(file):
        put(compact(file, "i", h5t.STD_I64LE), np.array(3))
        put(compact(file, "s", text(3)), np.array(b"ab\0", "S3"))
        put(compact(file, "b", h5t.STD_I32BE, shape=(2,)), np.array([1, 2], ">i4"))
        chunked(file)[:] = np.arange(40_000) % 251

    state = load(craft(tmp_path / "x.h5", make))
    assert (state["i"], state["s"], state["b"].tolist()) == (3, "ab", [1, 2])
    assert (state["x"] == np.arange(40_000) % 251).all()


LINKS = {
    "soft": lambda f: f.__setitem__("x", h5py.SoftLink("/a")),
    "soft dangling": lambda f: f.__setitem__("x", h5py.SoftLink("/nowhere")),
    "external": lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "hard": lambda f: (f.create_group("a"), f.__setitem__("b", f["a"])),
    "cycle": lambda f: f.create_group("a").__setitem__("up", f["/"]),
    "own cycle": lambda f: f.create_group("a").__setitem__("a", f["a"]),
    "two to a dataset": lambda f: (
        put(compact(f, "a", h5t.STD_I8LE), np.array(1, "i1")),
        f.__setitem__("b", f["a"]),
    ),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_are_refused(tmp_path, kind):
    path = craft(tmp_path / "x.h5", LINKS[kind])
    with pytest.raises(CheckpointError, match=r"link; none is followed|linked more than once"):
        load(path)


def external_storage(file):
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_external(b"/etc/passwd", 0, 100)
    h5d.create(file.id, b"x", h5t.STD_U8LE, h5s.create_simple((100,)), created)


def virtual(file, unlimited=False):
    source = h5py.VirtualSource(
        "/etc/passwd", "x", shape=(100,), maxshape=(None if unlimited else 100,)
    )
    layout = h5py.VirtualLayout((100,), "u1", maxshape=(None if unlimited else 100,))
    layout[: h5s.UNLIMITED if unlimited else 100] = source[: h5s.UNLIMITED] if unlimited else source
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize(
    "make", [external_storage, virtual, lambda f: virtual(f, True)], ids=["external", "v", "v oo"]
)
def test_data_in_other_files_are_refused(tmp_path, make):
    path = craft(tmp_path / "x.h5", make)
    with pytest.raises(CheckpointError, match="other files; none is followed"):
        load(path)


REFERENCE = h5py.ref_dtype
TYPES = {
    "object reference": lambda: h5t.py_create(REFERENCE, logical=True),
    "region reference": lambda: h5t.py_create(h5py.regionref_dtype, logical=True),
    "compound": lambda: h5t.py_create(np.dtype([("a", "i4"), ("b", "f4")])),
    "complex": lambda: h5t.py_create(np.dtype("c8")),
    "array": lambda: h5t.array_create(h5t.STD_I32LE, (3,)),
    "vlen": lambda: h5t.vlen_create(h5t.STD_I32LE),
    "vlen string": lambda: h5t.py_create(h5py.string_dtype(), logical=True),
    "opaque": lambda: h5t.py_create(np.dtype("V7")),
    "bits": lambda: h5t.STD_B8LE,
    "other enum": lambda: h5t.py_create(h5py.enum_dtype({"A": 0, "B": 1}, "i1"), logical=True),
    "12 bits": twelve_bits,
    "float128": lambda: h5t.py_create(np.dtype("longdouble")),
    "ascii": lambda: text(cset=h5t.CSET_ASCII),
    "null-padded": lambda: text(pad=h5t.STR_NULLPAD),
}


@pytest.mark.parametrize("kind", TYPES)
def test_other_types_are_refused(tmp_path, kind):
    path = craft(tmp_path / "x.h5", lambda f: compact(f, "x", TYPES[kind]()))
    with pytest.raises(CheckpointError, match="HDF5 type of class"):
        load(path)


def test_named_types_are_refused(tmp_path):
    path = craft(tmp_path / "x.h5", lambda f: f.__setitem__("x", np.dtype("i4")))
    with pytest.raises(CheckpointError, match="neither a group nor a dataset"):
        load(path)

    def use(file):
        kind = h5t.STD_I32LE.copy()
        kind.commit(file.id, b"t")
        compact(file, "a", kind)

    with pytest.raises(CheckpointError, match="HDF5 type of class"):
        load(craft(tmp_path / "x.h5", use))


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ((), "filters"),
        (("deflate", "fletcher32"), "filters"),
        (("shuffle", "fletcher32"), "filters"),
        (("lzf",), "filters"),
        (("fletcher32", "lzf"), "filters"),
        (("lzf", "lzf", "fletcher32"), "filters"),
    ],
)
def test_other_filters_are_refused(tmp_path, filters, words):
    path = craft(tmp_path / "x.h5", lambda f: chunked(f, filters=filters).write_direct(ZEROS))
    with pytest.raises(CheckpointError, match=words):
        load(path)


ZEROS = np.zeros(40_000, np.uint8)


def half(file):
    chunked(file)[:20_000] = 1


def contiguous(file, write=True):
    file.create_dataset("x", (5,), "f8", data=np.zeros(5) if write else None)


def empty_scalar(file):
    h5d.create(file.id, b"x", h5t.STD_I64LE, h5s.create(h5s.SCALAR))


def null_space(file):
    file["x"] = h5py.Empty("f4")


def filtered_compact(file):
    kind = compact(file, "y", h5t.STD_U8LE, shape=(4,))
    del kind
    half(file)


def raw_chunk(data, mask, filters):
    def make(file):
        dataset = chunked(file, shape=(20_000,), filters=filters)
        dataset.id.write_direct_chunk((0,), data, mask)

    return make


LAYOUTS = {
    "chunk missing": (half, "stores fewer or more"),
    "huge and empty": (lambda f: chunked(f, (2**40,), (2**19,)), "stores fewer or more"),
    "huge in each way": (lambda f: chunked(f, (2**20,) * 3, (64,) * 3), "stores fewer or more"),
    "contiguous": (contiguous, "never written"),
    "contiguous, never written": (lambda f: contiguous(f, False), "never written"),
    "scalar, never written": (empty_scalar, "never written"),
    "huge contiguous": (lambda f: f.create_dataset("x", (2**50,), "u1"), "never written"),
    "no shape": (null_space, "no shape"),
    "resizable": (lambda f: chunked(f, maxshape=(80_000,)), "resizable"),
    "unlimited": (lambda f: chunked(f, maxshape=(h5s.UNLIMITED,)), "resizable"),
    "strings": (lambda f: compact(f, "x", text(), shape=(2,)), "array of strings"),
    "large chunks": (
        lambda f: chunked(f, (2 * MIB,), (2 * MIB,)).write_direct(np.zeros(2 * MIB, "u1")),
        "chunks of 2097152 bytes",
    ),
    "no checksum": (raw_chunk(bytes(20_004), 1, ("fletcher32",)), "filter mask 1"),
    "lzf, no checksum": (raw_chunk(bytes(20_004), 2, ("lzf", "fletcher32")), "filter mask 2"),
    "short chunk": (raw_chunk(bytes(100), 0, ("fletcher32",)), "takes 100 bytes"),
    "tiny lzf": (raw_chunk(bytes(100), 0, ("lzf", "fletcher32")), "takes 100 bytes"),
    "short skipped lzf": (raw_chunk(bytes(900), 1, ("lzf", "fletcher32")), "takes 900 bytes"),
    "long lzf": (raw_chunk(bytes(30_000), 0, ("lzf", "fletcher32")), "takes 30000 bytes"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_other_layouts_and_false_claims_are_refused(tmp_path, kind):
    make, words = LAYOUTS[kind]
    with pytest.raises(CheckpointError, match=words):
        load(craft(tmp_path / "x.h5", make))


def test_chunks_with_wrong_checksums_are_refused(tmp_path):
    for filters in (("fletcher32",), ("lzf", "fletcher32")):
        path = craft(tmp_path / "x.h5", raw_chunk(b"\1" * 20_004, len(filters) - 1, filters))
        with pytest.raises(CheckpointError, match=r"cannot be read: .*filter"):
            load(path)


def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    save(path, {"x": np.zeros((40, 84, 84, 10), np.uint8)})
    assert load(path)["x"].sum() == 0
    monkeypatch.setattr(form, "FREE_BYTES", MIB)
    assert load(path)["x"].sum() == 0
    monkeypatch.setattr(form, "MAX_RATIO", 50)
    with pytest.raises(CheckpointError, match=r"takes|claims to hold"):
        load(path)


def test_chunks_that_share_their_storage_are_refused(tmp_path, monkeypatch):
    """Both entries of the index point to the first chunk's bytes. HDF5 1.8's index has no checksum
    that would tell."""
    path = tmp_path / "x.h5"
    monkeypatch.setattr(form, "LIBRARY", ("earliest", "v110"))
    craft(path, lambda f: chunked(f, filters=("lzf", "fletcher32")).write_direct(NOISE))
    assert (load(path)["x"] == NOISE).all()
    with h5py.File(path) as file:
        found = []
        file["x"].id.chunk_iter(found.append)
    first, second = ((each.byte_offset - 512).to_bytes(8, "little") for each in found)
    data = path.read_bytes()
    assert data.count(second) == 1
    path.write_bytes(data.replace(second, first))
    seal(path)
    with pytest.raises(CheckpointError, match="share their storage"):
        load(path)


def test_lzf_that_allocates_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    monkeypatch.setattr(form, "LIBRARY", ("earliest", "v110"))
    craft(path, lambda f: chunked(f, filters=("lzf", "fletcher32")).write_direct(ZEROS))
    with h5py.File(path) as file:
        values = file["x"].id.get_create_plist().get_filter(0)[2]
    right, wrong = struct.pack("<3I", *values), struct.pack("<3I", *values[:2], 2**31)
    data = path.read_bytes()
    assert data.count(right) == 1
    path.write_bytes(data.replace(right, wrong))
    seal(path)
    with pytest.raises(CheckpointError, match="has chunks of"):
        load(path)


def test_data_that_have_no_room_in_the_file_are_refused(tmp_path, monkeypatch):
    path = craft(tmp_path / "x.h5", lambda f: chunked(f).write_direct(NOISE))
    monkeypatch.setattr(form, "check_seal", lambda _: 40_000)
    with pytest.raises(CheckpointError, match="shares its storage"):
        load(path)


NOISE = np.random.default_rng(0).integers(0, 255, 40_000, np.uint8)


def deep(file):
    for _ in range(form.MAX_DEPTH):
        file = file.create_group("a")


NAMES = {
    "too deep": (deep, "nested deeper"),
    "too long": (lambda f: f.create_group("a" * 256), "bad name.*256 bytes"),
    "no UTF-8": (lambda f: h5g.create(f.id, b"\xff\xfe"), "bad name"),
    "group with attributes": (
        lambda f: f.create_group("a").attrs.__setitem__("b", 1),
        "has attributes",
    ),
    "dataset with attributes": (
        lambda f: h5py.Dataset(compact(f, "a", h5t.STD_I8LE)).attrs.__setitem__("b", 1),
        "has attributes other than",
    ),
    "more at the root": (lambda f: f.attrs.__setitem__("more", 1), "has the attributes"),
    "other format": (
        lambda f: f.attrs.__setitem__("format", np.bytes_("drl_mpi checkpoinT")),
        "another attribute 'format'",
    ),
    "other version": (
        lambda f: f.attrs.__setitem__("version", np.int64(2)),
        "another attribute 'version'",
    ),
    "vlen format": (
        lambda f: f.attrs.__setitem__("format", form.FORMAT),
        "another attribute 'format'",
    ),
    "large version": (
        lambda f: f.attrs.__setitem__("version", np.ones(5, int)),
        "another attribute 'version'",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_other_names_and_attributes_are_refused(tmp_path, kind):
    make, words = NAMES[kind]
    with pytest.raises(CheckpointError, match=words):
        load(craft(tmp_path / "x.h5", make))


def test_too_many_objects_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "x.h5", {f"n{i}": i for i in range(20)})
    monkeypatch.setattr(form, "MAX_OBJECTS", 19)
    with pytest.raises(CheckpointError, match="more than 19 objects"):
        load(tmp_path / "x.h5")


def test_values_that_are_none_of_their_type_are_refused(tmp_path):
    def bad_bool(file):
        put(compact(file, "x", h5t.py_create(np.dtype(bool)), shape=(2,)), TWO)

    def bad_text(data):
        return lambda f: put(compact(f, "x", text(4)), np.frombuffer(data, "S4").reshape(()))

    for make, words in (
        (bad_bool, "neither true nor false"),
        (bad_text(b"abcd"), "without an end"),
        (bad_text(b"a\xff\xfe\0"), "cannot be read: .*utf-8"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load(craft(tmp_path / "x.h5", make))


TWO = np.array([1, 2], np.uint8).view(bool)


# What is no checkpoint at all


def test_files_of_other_kinds_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello\n" * 200)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = 1
    for name, words in {
        "fifo": "regular",
        ".": "regular",
        "zero": "regular",
        "empty": "no drl_mpi checkpoint",
        "text": "no drl_mpi checkpoint",
        "plain.h5": "no drl_mpi checkpoint",
        "dangling": "does not exist",
        "missing": "does not exist",
        "loop": "cannot be read",
        "a" * 300: "cannot be read",
        "a\0b": "cannot be read",
        "text/x": "cannot be read",
    }.items():
        with pytest.raises(CheckpointError, match=words) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_pipes_and_devices_are_not_even_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(CheckpointError, match="regular"):
            load(path)


def test_other_versions_are_refused_with_a_remedy(tmp_path):
    save(tmp_path / "x.h5", {"a": 1})
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data.replace(b"checkpoint 1\n", b"checkpoint 2\n"))
    with pytest.raises(CheckpointError, match=r"version 2, .* reads version 1; load it with"):
        load(tmp_path / "x.h5")


def test_a_larger_user_block_and_missing_attributes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="user block of 1024"):
        load(craft(tmp_path / "x.h5", lambda _: None, block=1024))
    with pytest.raises(CheckpointError, match="has the attributes"):
        load(craft(tmp_path / "x.h5", lambda _: None, attributes=False))


def test_a_checkpoint_changed_by_h5py_is_refused(tmp_path):
    save(tmp_path / "x.h5", {"a": 1})
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["b"] = 1
    with pytest.raises(CheckpointError, match=r"too long|changed by another program"):
        load(tmp_path / "x.h5")


# Damage

STATE = {
    "config": "{}",
    "counters": {"frames": 5},
    "model": {"w": np.arange(4000.0)},
    "frames": np.zeros((150, 84, 84), np.uint8),
}


def test_truncated_anywhere_is_refused(tmp_path):
    save(tmp_path / "x.h5", STATE)
    data = (tmp_path / "x.h5").read_bytes()
    for size in [*range(0, 600, 7), *range(600, len(data), 101), len(data) - 1]:
        (tmp_path / "y.h5").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"truncated|first 512 bytes"):
            load(tmp_path / "y.h5")
    (tmp_path / "y.h5").write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="too long"):
        load(tmp_path / "y.h5")


def test_any_flipped_bit_is_refused(tmp_path):
    """Stronger than asked: not even bytes that mean nothing may change."""
    save(tmp_path / "x.h5", STATE)
    data = bytearray((tmp_path / "x.h5").read_bytes())
    rng = random.Random(0)
    places = [*range(140), *(rng.randrange(len(data)) for _ in range(300))]
    for place in places:
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        (tmp_path / "y.h5").write_bytes(data)
        with pytest.raises(CheckpointError):
            load(tmp_path / "y.h5")
        data[place] ^= bit


def test_flipped_bits_under_a_right_seal_raise_nothing_else(tmp_path):
    """In a process of its own: HDF5 parses these."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    refused, loaded = map(int, done.stdout.split())
    assert refused > 100
    assert refused + loaded == 250


def flip_script(folder):
    path = Path(folder) / "x.h5"
    save(path, STATE)
    good = path.read_bytes()
    rng = random.Random(0)
    refused = loaded = 0
    for _ in range(250):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            # half of them in the first 4 KiB, where the structure is
            data[rng.randrange(512, rng.choice((4096, len(data))))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        seal(path)
        try:
            load(path)
            loaded += 1
        except CheckpointError:
            refused += 1
    print(refused, loaded)


if __name__ == "__main__":
    flip_script(sys.argv[1])
