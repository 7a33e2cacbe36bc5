"""Checkpoints come back bit for bit, and no accident while saving takes the earlier one away."""

import contextlib
import ctypes
import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drl_mpi.run import checkpoint, checkpoint_format, checkpoint_read, checkpoint_write
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, check_arrays, load, opened, save

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Synchronising takes most of the time and changes nothing that a test could see."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def plain(value):
    """A value with all its bits, types and shapes, as something that == compares."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, str):
        return value
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return kind, value.dtype.str, value.shape, value.tobytes()


def stored(value):
    """What `load` promises for a value that was saved."""
    if isinstance(value, dict):
        return {name: stored(each) for name, each in value.items()}
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value) if value < 2**63 else np.uint64(value)
    return np.float64(value) if type(value) is float else value


def some_state(frames=7):
    rng = np.random.default_rng(frames)
    return {
        "config": '{"env": "ALE/Pong-v5"}',
        "counters": {"frames": frames, "updates": 3},
        "model": {
            "body.0.weight": rng.normal(size=(60, 70)).astype("f4"),
            "body.0.bias": np.zeros(60, "f4"),
        },
        "optimizer": {"square_avg": {"body.0.bias": np.ones(60, "f4")}},
    }


def names_in(folder):
    return sorted(each.name for each in Path(folder).iterdir())


def temporary_files(folder):
    return [name for name in names_in(folder) if ".tmp" in name]


DTYPES = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.unsigned_integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)


@pytest.fixture
def replay(tmp_path, monkeypatch):
    """A checkpoint with a group that may stay in the file, from 1,000 bytes on; its state."""
    monkeypatch.setattr(checkpoint, "STORED_BYTES", 1000)
    rng = np.random.default_rng(1)
    rows = {
        "frames": rng.integers(0, 255, (300_000, 3, 2), "u1"),  # several chunks, compressed
        "swapped": rng.normal(size=500).astype(">f4"),
        "few": np.arange(124),
        "flags": rng.normal(size=5000) > 0,
    }
    state = {"replay": {"rows": rows, "count": 5, "kind": "x" * 2000}, "other": dict(rows)}
    save(tmp_path / "c.h5", state)
    return tmp_path / "c.h5", state


def test_large_arrays_of_one_group_stay_in_the_file(replay):
    path, state = replay
    with opened(path, "replay") as found:
        assert plain(found["other"]) == plain(state["other"])
        assert plain(found["replay"]["count"]) == plain(np.int64(5))
        rows = found["replay"].pop("rows")
        for name in ("few", "flags"):
            assert plain(rows[name]) == plain(state["other"][name])
        for name in ("frames", "swapped"):
            array, expected = rows[name], state["other"][name]
            assert not isinstance(array, np.ndarray)
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
            assert len(array) == len(expected)
            n = len(expected)
            for part in (
                slice(None), slice(0, 0), slice(1), slice(n - 1, n), slice(7, n // 2),
                slice(n // 2, n + 9), slice(n, n + 1), slice(9, 3), slice(-5, None),
            ):  # fmt: skip
                assert plain(array[part]) == plain(expected[part])
            for wrong in (0, "rows", slice(None, None, 2), slice(None, None, -1)):
                with pytest.raises(TypeError, match="only successive rows"):
                    array[wrong]
            for kind in (list, dict):  # not empty, but refused
                with pytest.raises(TypeError):
                    kind(array)


def test_an_open_checkpoint_is_closed_and_its_users_errors_are_theirs(replay):
    path, _ = replay
    with pytest.raises(FileNotFoundError, match="mine"), opened(path, "replay"):
        raise FileNotFoundError("mine")
    files = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert str(path) not in files


def test_a_group_that_is_an_array_is_no_group(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "STORED_BYTES", 0)
    save(tmp_path / "c.h5", {"replay": np.arange(9)})
    with opened(tmp_path / "c.h5", "replay") as found:
        assert plain(found["replay"]) == plain(np.arange(9))


def test_what_goes_wrong_at_closing_is_explained(replay, monkeypatch):
    @contextlib.contextmanager
    def open_file(_fd, _stored):
        yield {"x": 1}
        raise RuntimeError("HDF5 cannot close")

    monkeypatch.setattr(checkpoint_read, "open_file", open_file)
    with pytest.raises(CheckpointError, match=r"c\.h5 cannot be read: HDF5 cannot close"):
        load(replay[0])


def test_an_opened_checkpoint_must_be_good(replay, tmp_path):
    path, _ = replay
    with pytest.raises(CheckpointError, match="does not exist"), opened(tmp_path / "none.h5"):
        pass
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"), opened(path, "replay"):
        pass


def test_a_file_that_fails_while_it_is_open(replay):
    path, _ = replay
    with opened(path, "replay") as found:
        os.truncate(path, 4096)
        with pytest.raises(OSError, match=r"."):
            found["replay"]["rows"]["frames"][:]


ARRAYS = st.tuples(
    DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), st.randoms()
).map(lambda made: bits(*made))
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=9)
LEAVES = (
    ARRAYS
    | ARRAYS.filter(lambda a: a.size).map(
        lambda a: a.reshape(-1).astype(a.dtype.newbyteorder("="))[0]
    )
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
)
STATES = st.recursive(
    st.dictionaries(NAMES.filter(lambda n: n not in ("", ".", "..")), LEAVES, max_size=6),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | LEAVES, max_size=3),
    max_leaves=8,
)


def bits(dtype, shape, rng):
    """An array of random bits, so all kinds of NaN among the floats."""
    size = int(np.prod(shape))
    if dtype == np.bool_:
        return np.array([rng.random() < 0.5 for _ in range(size)], bool).reshape(shape)
    return np.frombuffer(rng.randbytes(size * dtype.itemsize), dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(state=STATES)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "roundtrip.h5"
    save(path, state)
    assert plain(load(path)) == plain(stored(state))


@pytest.mark.parametrize("dtype", [d.str for d, _ in checkpoint_format.TYPES])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (70000,), (3, 50001), (300, 84, 84)])
def test_every_type_in_every_layout(tmp_path, dtype, shape):
    array = bits(np.dtype(dtype), (97,), random.Random(1))
    array = np.resize(array, shape).astype(dtype)
    save(tmp_path / "x.h5", {"x": array})
    assert plain(load(tmp_path / "x.h5")) == plain({"x": array})


def test_arrays_need_not_be_contiguous(tmp_path):
    array = np.arange(240000, dtype="i4").reshape(600, 400).T[::-1, ::3]
    save(tmp_path / "x.h5", {"x": array})
    assert np.array_equal(load(tmp_path / "x.h5")["x"], array)


def test_equal_states_give_equal_files(tmp_path):
    state = some_state() | {"frames": np.zeros((200, 84, 84), np.uint8)}
    save(tmp_path / "a.h5", state)
    time.sleep(1.1)  # HDF5 notes seconds
    save(tmp_path / "b.h5", dict(reversed(state.items())))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_frames_are_compressed_and_floats_are_not(tmp_path):
    frames, floats = np.zeros((200, 84, 84), np.uint8), np.zeros(300_000)
    save(tmp_path / "x.h5", {"frames": frames, "floats": floats})
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["frames"].compression == "lzf"
        assert file["floats"].compression is None
        assert file["frames"].fletcher32
        assert file["floats"].fletcher32
    save(tmp_path / "y.h5", {"frames": frames}, compress=False)
    assert (tmp_path / "y.h5").stat().st_size > frames.nbytes


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=5000),
    itemsize=st.sampled_from([1, 2, 4, 8]),
)
def test_chunks_are_neither_small_nor_large_nor_empty(shape, itemsize):
    chunk = checkpoint_format.chunk_shape(shape, itemsize)
    size = itemsize * int(np.prod(chunk))
    pieces = int(np.prod([-(-length // side) for length, side in zip(shape, chunk)]))
    assert size <= checkpoint_format.CHUNK_BYTES
    if itemsize * int(np.prod(shape)) > checkpoint_format.COMPACT_BYTES:
        assert size >= 10 * 1024
    assert pieces * size <= 2 * itemsize * int(np.prod(shape))


class Source:
    def __init__(self, array, lengths):
        self.shape, self.dtype = array.shape, array.dtype
        self.array, self.lengths = array, lengths

    def blocks(self):
        start = 0
        buffer = np.empty((max(self.lengths), *self.shape[1:]), self.dtype)
        for length in self.lengths:  # one buffer for all blocks: they must be used up at once
            buffer[:length] = self.array[start : start + length]
            yield buffer[:length]
            start += length


@pytest.mark.parametrize("lengths", [[1500], [1, 0, 700, 799], [100] * 15])
def test_a_source_is_saved_like_its_array(tmp_path, lengths):
    array = np.random.default_rng(0).integers(0, 255, (1500, 84, 84), np.uint8)
    save(tmp_path / "array.h5", {"x": array})
    save(tmp_path / "source.h5", {"x": Source(array, lengths)})
    assert (tmp_path / "array.h5").read_bytes() == (tmp_path / "source.h5").read_bytes()
    assert np.array_equal(load(tmp_path / "source.h5")["x"], array)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_a_source_may_be_empty(tmp_path, shape):
    save(tmp_path / "x.h5", {"x": Source(np.empty(shape), [shape[0]])})
    assert load(tmp_path / "x.h5")["x"].shape == shape


@pytest.mark.parametrize("lengths", [[10], [100, 1], [99]])
def test_a_source_with_the_wrong_rows_saves_nothing(tmp_path, lengths):
    array = np.zeros((101, 2))
    source = Source(array, lengths)
    source.shape = (100, 2)
    with pytest.raises(ValueError, match="rows"):
        save(tmp_path / "x.h5", {"x": source})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "é" * 128, "\ud800", 3])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="key"):
        save(tmp_path / "x.h5", {"a": {name: 1}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [None, b"x", [1], 1j, object(), np.array(["a"]), np.array([None]), np.zeros(2, complex)],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match=r"/a/b is a .* convert"):
        save(tmp_path / "x.h5", {"a": {"b": value}})


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_values_that_do_not_fit_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="/b"):
        save(tmp_path / "x.h5", {"b": value})


def test_a_state_that_load_would_refuse_is_not_saved(tmp_path, monkeypatch):
    deep = {}
    for _ in range(checkpoint_format.MAX_DEPTH):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="deeper"):
        save(tmp_path / "x.h5", deep)
    monkeypatch.setattr(checkpoint_format, "MAX_OBJECTS", 5)
    with pytest.raises(ValueError, match="at most 5"):
        save(tmp_path / "x.h5", some_state())


def test_the_documented_lines_read_a_checkpoint(tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(.*?)```", (ROOT / "docs/checkpoint.md").read_text(), re.S)[1]
    assert len([line for line in lines.splitlines() if line]) <= 10
    state = some_state()
    save(tmp_path / "checkpoint.h5", state)
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(lines, space)
    assert "drl_mpi checkpoint" in capsys.readouterr().out
    found = space["state"]
    assert found["config"] == state["config"]
    assert found["counters/frames"] == 7
    assert np.array_equal(found["model/body.0.weight"], state["model"]["body.0.weight"])
    assert len(found) == 6


def test_the_documented_command_checks_the_seal(tmp_path):
    save(tmp_path / "x.h5", some_state())
    seal = (tmp_path / "x.h5").read_bytes()[:512].split(b"\n")[2].decode()
    command = f"tail -c +513 {tmp_path / 'x.h5'} | sha256sum"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert seal == f"sha256 {found.split()[0]}"


# Accidents while saving


@pytest.mark.parametrize("where", ["fsync", "replace", "seal", "verify"])
def test_a_failure_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, where):
    path = tmp_path / "x.h5"
    save(path, some_state(1))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    module, name = {
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "seal": (checkpoint_format, "write_seal"),
        "verify": (checkpoint_read, "open_checked"),
    }[where]
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(CheckpointError, match="No space left") as e:
        save(path, some_state(2))
    monkeypatch.undo()
    assert "\n" not in str(e.value)
    assert "MB free" in str(e.value)
    assert names_in(tmp_path) == ["x.h5"]
    assert plain(load(path)) == plain(stored(some_state(1)))


def test_the_disk_has_the_file_before_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: seen.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *a: (seen.append("replace"), replace(*a)))
    save(tmp_path / "x.h5", some_state())
    assert [".tmp" in seen[0], *seen[1:]] == [True, "replace", str(tmp_path)]


def test_an_interrupt_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "x.h5", some_state(1))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "x.h5", some_state(2))
    assert names_in(tmp_path) == ["x.h5"]


def test_a_disk_that_forgets_is_noticed(tmp_path, monkeypatch):
    """What is on the disk is whole and sealed, but is not what was to be written."""
    write = checkpoint_write._transfer

    def forget(dataset, start, slab, *, write_):
        write(dataset, start, np.zeros_like(slab) if write_ else slab, write=write_)

    monkeypatch.setattr(
        checkpoint_write, "_transfer", lambda d, s, a, *, write: forget(d, s, a, write_=write)
    )
    for array in (np.arange(5), np.arange(90_000)):
        with pytest.raises(CheckpointError, match="/x did not read back equal"):
            save(tmp_path / "x.h5", {"x": array})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="needs a writable folder"):
        save(tmp_path / folder / "x.h5", some_state())
    with pytest.raises(CheckpointError, match=r"cannot be made|not saved"):
        Checkpoints(tmp_path / "file" / "x").save(1, some_state())


def test_temporary_names_match_nothing_that_resume_looks_for():
    name = checkpoint._temporary_name()
    assert checkpoint._TEMPORARY.fullmatch(name)
    assert not Checkpoints._NAME.search(name)
    assert ".h5" not in name
    assert name.startswith(".")


def test_temporary_files_of_dead_writers_are_removed(tmp_path):
    host, dead, alive = checkpoint._host(), 2**22 + 1, os.getppid()
    names = {
        f".drl_mpi-{host}-{dead}-0123abcd.tmp": False,
        f".drl_mpi-{host}-{alive}-0123abcd.tmp": True,
        f".drl_mpi-other-{dead}-0123abcd.tmp": True,
        f".drl_mpi-other-{dead}-01234567.tmp": False,  # untouched for two hours
        f".drl_mpi-{host}-{dead}-notours.tmp": True,
        "mine.tmp": True,
    }
    for name in names:
        (tmp_path / name).write_text("")
    old = time.time() - 7200
    os.utime(tmp_path / f".drl_mpi-other-{dead}-01234567.tmp", (old, old))
    save(tmp_path / "x.h5", {})
    left = {each for each in names_in(tmp_path) if each != "x.h5"}
    assert left == {name for name, stays in names.items() if stays}


def run_script(*arguments, limit=60):
    """This file as a program: what it does may kill a process, and needs none of pytest's."""
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit,
    )


def test_kill_9_while_saving_leaves_a_good_checkpoint(tmp_path):
    done = run_script("kill", tmp_path, limit=240)
    assert done.returncode == 0, done.stderr
    interrupted = int(done.stdout)
    assert interrupted >= 3, "no kill hit a save: the test tests nothing"


def kill_script(folder):
    """20 writers, each killed at a random moment; prints how many left a temporary file.

    More of them, with more time, if the machine is so busy that too few get to the point.
    """
    rng = random.Random(0)
    checkpoints, last, interrupted, writers = Checkpoints(folder), 0, 0, 0
    while writers < 20 or (writers < 200 and (interrupted < 3 or last == 0)):
        writers += 1
        writer = os.fork()
        if writer == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with this one
            for frames in range(last + 1, 10**6):
                checkpoints.save(frames, {"frames": frames, "x": np.full(400_000, frames)})
        time.sleep(rng.uniform(0.01, 0.12) * max(1, writers / 20))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        interrupted += len(temporary_files(folder)) > 0
        found = checkpoints.load_latest()
        assert checkpoints.skipped == []
        if found is None:
            assert last == 0
            continue
        path, state = found
        assert state["frames"] >= last
        assert (state["x"] == state["frames"]).all()
        assert path.name == f"frames-{state['frames']:012d}.h5"
        last = int(state["frames"])
    assert last > 0
    checkpoints.save(last + 1, {})
    assert temporary_files(folder) == []
    print(interrupted)


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    """HDF5's own driver dies of a segmentation fault here, at exit."""
    done = run_script("full", tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr == ""


def full_script(folder):
    path = Path(folder) / "x.h5"
    save(path, some_state(1))
    for limit in (700, 5_000, 100_000, 3_000_000, 3_300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        states = [{"x": np.ones((40, 100_000), "f4")}, {f"n{i}": i for i in range(1_000)}]
        for state in states if limit <= 100_000 else states[:1]:
            with pytest.raises(CheckpointError, match="File too large"):
                save(path, state)
        assert plain(load(path)) == plain(stored(some_state(1)))
        assert names_in(folder) == ["x.h5"]


def test_what_a_full_disk_did_not_take_still_reads_back(tmp_path, monkeypatch):
    """HDF5 may read again what it wrote before it closes the file."""
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    below = checkpoint_format.FileBelow(fd)
    below.write(memoryview(b"0123456789"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
        below.seek(8)
        below.write(memoryview(b"abcd"))
    below.seek(2)
    below.write(memoryview(b"xy"))
    buffer = bytearray(12)
    below.seek(0)
    assert below.readinto(memoryview(buffer)) == 12
    assert buffer == b"01xy4567abcd"
    assert below.seek(0, os.SEEK_END) == 12
    with pytest.raises(OSError, match=str(errno.ENOSPC)):
        below.check()
    os.close(fd)


# A folder of them


def test_the_newest_two_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    assert checkpoints.latest() is None
    assert checkpoints.load_latest() is None
    for frames in (5, 100, 1234567, 20):
        saved = checkpoints.save(frames, {"frames": frames})
        assert saved.exists()
    names = ["frames-000000000020.h5", "frames-000001234567.h5"]
    assert names_in(checkpoints.folder) == names
    assert checkpoints.latest() == checkpoints.folder / names[1]
    assert checkpoints.load_latest()[1] == {"frames": 1234567}


def test_keep_and_frames_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep=1"):
        Checkpoints(tmp_path, keep=1)
    for frames in (-1, 10**12):
        with pytest.raises(ValueError, match="frames="):
            Checkpoints(tmp_path).save(frames, {})


def test_other_files_are_let_alone(tmp_path):
    names = ["frames-1.h5", "frames-000000000009.h5.tmp", "other.h5", "xframes-000000000001.h5"]
    for name in names:
        (tmp_path / name).write_text("")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_latest() is None
    for frames in (1, 2, 3):
        checkpoints.save(frames, {})
    assert set(names) < set(names_in(tmp_path))


def test_resume_falls_back_and_sets_the_bad_ones_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    paths = [checkpoints.save(frames, {"frames": frames}) for frames in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    paths[1].write_bytes(b"")
    assert checkpoints.load_latest() == (paths[0], {"frames": 1})
    assert [path for path, _ in checkpoints.skipped] == [paths[2], paths[1]]
    assert "truncated" in checkpoints.skipped[0][1]
    checkpoints.save(2, {"frames": 2})
    assert names_in(tmp_path) == [
        "frames-000000000001.h5",
        "frames-000000000002.h5",
        "frames-000000000003.h5.bad",
    ]
    assert checkpoints.load_latest() == (paths[1], {"frames": 2})
    assert checkpoints.skipped == []


def test_if_none_is_good_each_reason_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    paths = [checkpoints.save(frames, some_state()) for frames in (1, 2)]
    paths[0].write_bytes(paths[0].read_bytes()[:900])
    paths[1].write_bytes(b"hello")
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_latest()
    for word in (*map(str, paths), "truncated", "no drl_mpi checkpoint", "backup"):
        assert word in str(error.value)


# check_arrays

EXPECTED = {"w": ((2, 3), np.dtype("f4")), "b": ((), np.dtype("i8"))}
FOUND = {"w": np.zeros((2, 3), "f4"), "b": np.int64(0)}


def test_the_right_arrays_pass():
    check_arrays(FOUND, EXPECTED, what="model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c": np.zeros(1)}, "has the unexpected 'c'"),
        ({"w": None}, "lacks 'w'"),
        ({"w": np.zeros((3, 2), "f4")}, r"'w' is float32 \(3, 2\), allowed is float32 \(2, 3\)"),
        ({"w": np.zeros((2, 3), "f8")}, r"'w' is float64"),
        ({"w": np.zeros((2, 3), ">f4")}, r"'w' is >f4"),
        ({"w": {}}, "'w' is a dict"),
    ],
)
def test_arrays_of_another_network_are_refused(change, words):
    found = {name: value for name, value in (FOUND | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=f"^model.*{words}.*another network"):
        check_arrays(found, EXPECTED, what="model")


if __name__ == "__main__":
    {"kill": kill_script, "full": full_script}[sys.argv[1]](sys.argv[2])
