"""Parts of checkpoints: one whose parts are not all there, whole and its own does not count."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drl_mpi.run import checkpoint_parts
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, load, save
from drl_mpi.run.checkpoint_parts import checksum, part_path, parts_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def part(frames, learner):
    return {"replay": {"frames": frames, "rows": np.full(30_000, learner, np.float32)}}


def save_whole(checkpoints, frames, learners=2):
    """As learners do it: parts first, then the file that names them."""
    sums = {
        f"learner-{i}": checkpoints.save_part(frames, f"learner-{i}", part(frames, i))
        for i in range(learners)
    }
    return checkpoints.save(frames, {"frames": frames, "parts": sums})


def frames_of(checkpoints):
    _, state = checkpoints.load_latest()
    return int(state["frames"])


def names_in(folder):
    return sorted(str(each.relative_to(folder)) for each in Path(folder).rglob("*"))


@pytest.fixture
def checkpoints(tmp_path):
    """Two whole ones, at 1 and 2 frames."""
    made = Checkpoints(tmp_path / "checkpoints")
    for frames in (1, 2):
        save_whole(made, frames)
    return made


def test_parts_lie_beside_the_file_that_names_them(checkpoints):
    assert frames_of(checkpoints) == 2
    assert checkpoints.skipped == []
    assert names_in(checkpoints.folder) == [
        f"frames-00000000000{frames}{end}"
        for frames in (1, 2)
        for end in (".h5", ".parts", ".parts/learner-0.h5", ".parts/learner-1.h5")
    ]
    for learner in range(2):
        found = load(part_path(checkpoints.path(2), f"learner-{learner}"))["replay"]
        assert found["frames"] == 2
        assert (found["rows"] == learner).all()


def test_the_checksum_is_that_of_the_content(checkpoints):
    path = part_path(checkpoints.path(1), "learner-0")
    sha256 = hashlib.sha256(path.read_bytes()[512:]).hexdigest()
    assert checksum(path) == sha256
    assert load(checkpoints.path(1))["parts"]["learner-0"] == sha256


def test_a_checkpoint_need_not_have_parts(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"frames": 1})
    checkpoints.save(2, {"frames": 2, "parts": {}})
    assert frames_of(checkpoints) == 2
    assert checkpoints.skipped == []


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_the_seal(path):
    path.write_bytes(path.read_bytes()[:512])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def take_the_other_learners(path):
    shutil.copy(path.with_name("learner-1.h5"), path)


def take_an_older_one(path):
    shutil.copy(part_path(path.parent.with_name("frames-000000000001.h5"), "learner-0"), path)


def write_another(path):
    save(path, part(2, 7))


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    remove: "lacks its part .*No such file",
    truncate: "is truncated",
    cut_to_the_seal: "is truncated",
    flip: "is damaged",
    empty: "no drl_mpi checkpoint",
    take_the_other_learners: "is not the one that checkpoint .* names",
    take_an_older_one: "is not the one that checkpoint .* names",
    write_another: "is not the one that checkpoint .* names",
    make_a_folder: "cannot be read",
    make_a_pipe: "cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
def test_a_checkpoint_with_a_bad_part_is_passed_over(checkpoints, damage):
    bad = part_path(checkpoints.path(2), "learner-0")
    damage(bad)
    assert frames_of(checkpoints) == 1
    ((path, reason),) = checkpoints.skipped
    assert path == checkpoints.path(2)
    assert str(bad) in reason
    assert "\n" not in reason
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        raise CheckpointError(reason)


def test_if_no_checkpoint_has_its_parts_each_reason_is_named(checkpoints):
    for frames in (1, 2):
        shutil.rmtree(parts_folder(checkpoints.path(frames)))
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as error:
        checkpoints.load_latest()
    for frames in (1, 2):
        assert str(part_path(checkpoints.path(frames), "learner-0")) in str(error.value)


@pytest.mark.parametrize("parts", [np.arange(3), "learner-0", 5], ids=repr)
def test_a_strange_group_of_parts_is_refused(tmp_path, parts):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"parts": parts})
    with pytest.raises(CheckpointError, match="/parts is not a group"):
        checkpoints.load_latest()


@pytest.mark.parametrize("named", ["", np.arange(3), 5, {"a": 1}], ids=repr)
def test_a_strange_checksum_is_refused(checkpoints, named):
    save(checkpoints.path(2), {"parts": {"learner-0": named}})
    assert load(checkpoints.load_latest()[0])["frames"] == 1
    assert "is not the one that checkpoint" in checkpoints.skipped[0][1]


def test_parts_go_with_their_checkpoint(checkpoints):
    save_whole(checkpoints, 3)
    assert frames_of(checkpoints) == 3
    assert sorted(each.name for each in checkpoints.folder.iterdir()) == [
        "frames-000000000002.h5", "frames-000000000002.parts",
        "frames-000000000003.h5", "frames-000000000003.parts",
    ]  # fmt: skip


def test_parts_of_a_checkpoint_that_was_never_written_do_not_count_and_go(checkpoints):
    """Their writers died, or the first learner did."""
    checkpoints.save_part(3, "learner-0", part(3, 0))
    assert frames_of(checkpoints) == 2
    assert checkpoints.skipped == []
    save_whole(checkpoints, 4)
    assert not parts_folder(checkpoints.path(3)).exists()
    assert frames_of(checkpoints) == 4


def test_parts_of_a_bad_checkpoint_go_when_it_is_set_aside(checkpoints):
    remove(part_path(checkpoints.path(2), "learner-0"))
    assert frames_of(checkpoints) == 1
    save_whole(checkpoints, 3)
    assert sorted(each.name for each in checkpoints.folder.iterdir()) == [
        "frames-000000000001.h5", "frames-000000000001.parts", "frames-000000000002.h5.bad",
        "frames-000000000003.h5", "frames-000000000003.parts",
    ]  # fmt: skip
    assert frames_of(checkpoints) == 3


def test_a_bad_checkpoint_is_made_good_by_the_same_one(checkpoints):
    """A run in lock-step comes to the same frames again, with the same bits."""
    flip(part_path(checkpoints.path(2), "learner-1"))
    assert frames_of(checkpoints) == 1
    save_whole(checkpoints, 2)
    assert frames_of(checkpoints) == 2
    assert checkpoints.skipped == []


def test_what_is_not_ours_stays(checkpoints):
    """A folder that removal did not make may be anything."""
    names = ["frames-1.parts", "mine.parts", "frames-mine.parts", "frames-000000000009.partsx"]
    for name in names:
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "thesis.txt").write_text("")
    elsewhere = checkpoints.folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("")
    (checkpoints.folder / "frames-000000000008.parts").symlink_to(elsewhere)
    save_whole(checkpoints, 3)
    for name in names:
        assert (checkpoints.folder / name / "thesis.txt").exists()
    assert (elsewhere / "thesis.txt").exists()


def test_a_part_that_cannot_be_written_leaves_the_earlier_checkpoints(checkpoints, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(CheckpointError, match=r"learner-0\.h5 not saved: No space left"):
            checkpoints.save_part(3, "learner-0", part(3, 0))
    assert frames_of(checkpoints) == 2
    assert checkpoints.skipped == []
    (checkpoints.folder / "frames-000000000003.parts").rmdir()
    (checkpoints.folder / "frames-000000000003.parts").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be made"):
        checkpoints.save_part(3, "learner-0", part(3, 0))


def run_script(*arguments, limit=120):
    """This file as a program: what it does may kill a process, and needs none of pytest's."""
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit,
    )


def test_learners_write_their_parts_at_once(tmp_path):
    done = run_script("at_once", tmp_path)
    assert done.returncode == 0, done.stderr


def at_once_script(folder):
    """Three writers in one folder: none takes another's temporary file for an abandoned one."""
    checkpoints = Checkpoints(folder)
    for frames in range(1, 6):
        writers = []
        for learner in range(3):
            if (pid := os.fork()) == 0:
                checkpoints.save_part(frames, f"learner-{learner}", part(frames, learner))
                os._exit(0)
            writers.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in writers] == [0, 0, 0]
        names = [f"learner-{learner}" for learner in range(3)]
        sums = {name: checksum(part_path(checkpoints.path(frames), name)) for name in names}
        checkpoints.save(frames, {"frames": frames, "parts": sums})
        assert frames_of(checkpoints) == frames
        assert checkpoints.skipped == []
    assert len(names_in(folder)) == 2 * (1 + 1 + 3)


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    done = run_script("kill", tmp_path)
    assert done.returncode == 0, done.stderr
    incomplete = int(done.stdout)
    assert incomplete >= 3, "no kill came between parts and file: the test tests nothing"


def kill_script(folder):
    """20 writers, each killed at a random moment; prints how many left parts without a file."""
    rng = random.Random(0)
    checkpoints, last, incomplete = Checkpoints(folder), 0, 0
    for _ in range(20):
        writer = os.fork()
        if writer == 0:
            for frames in range(last + 1, 10**6):
                save_whole(checkpoints, frames)
        time.sleep(rng.uniform(0.01, 0.12))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        folders = Path(folder).glob("*.parts")
        incomplete += any(not each.with_suffix(".h5").exists() for each in folders)
        found = checkpoints.load_latest()
        assert checkpoints.skipped == [], checkpoints.skipped
        if found is None:
            assert last == 0
            continue
        path, state = found
        assert state["frames"] >= last
        for learner in range(2):
            kept = load(part_path(path, f"learner-{learner}"))["replay"]
            assert kept["frames"] == state["frames"]
            assert (kept["rows"] == learner).all()
        last = int(state["frames"])
    assert last > 0
    save_whole(checkpoints, last + 1)
    assert not [name for name in names_in(folder) if ".tmp" in name]
    assert len(names_in(folder)) == 8
    print(incomplete)


def test_checking_reads_no_hdf5(checkpoints, monkeypatch):
    """Every rank loads its own part; the first one only looks whether all are whole."""
    state = load(checkpoints.path(2))
    monkeypatch.setattr("h5py.File", None)
    checkpoint_parts.check_parts(checkpoints.path(2), state)


if __name__ == "__main__":
    {"kill": kill_script, "at_once": at_once_script}[sys.argv[1]](sys.argv[2])
