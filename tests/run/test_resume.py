"""What a run goes on from, and what is refused and why."""

import numpy as np
import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run import resume
from drl_mpi.run.checkpoint import Checkpoints, save
from drl_mpi.run.folder import RunFolder

IDENTITY = {"system": "impala", "env": "ALE/Pong-v5", "nested": {"stack": 4}, "sizes": (1, 2)}
CONFIG = '{"system": "impala", "env": "ALE/Pong-v5", "nested": {"stack": 4}, "sizes": [1, 2]}'


def tree(config=CONFIG, value=0):
    return {"config": config, "model": {"w": np.full(3, value, np.float32)}}


@pytest.fixture
def folder(tmp_path):
    """A prepared folder of a run that has not saved yet."""
    made = RunFolder(tmp_path / "run")
    made.prepare()
    made.write_config({**IDENTITY, "total_frames": 5})
    return made


def value(found):
    return float(found.state["model"]["w"][0])


@pytest.mark.parametrize("wish", ["auto", "none"])
def test_a_new_folder_starts_anew_and_is_not_touched(tmp_path, wish):
    assert resume.find(RunFolder(tmp_path / "run"), wish, IDENTITY) is None
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_saved_starts_anew(folder):
    assert resume.find(folder, "auto", IDENTITY) is None


def test_it_goes_on_from_the_newest(folder):
    checkpoints = Checkpoints(folder.checkpoints)
    for frames in (100, 300, 200):
        checkpoints.save(frames, tree(value=frames))
    found = resume.find(folder, "auto", IDENTITY)
    assert value(found) == 300.0
    assert found.path.name == "frames-000000000300.h5"
    assert found.own


def test_it_goes_back_to_the_newest_good_one(folder):
    checkpoints = Checkpoints(folder.checkpoints)
    checkpoints.save(100, tree(value=100))
    bad = checkpoints.save(200, tree(value=200))
    bad.write_bytes(bad.read_bytes()[:-500])
    found = resume.find(folder, "auto", IDENTITY)
    assert value(found) == 100.0
    assert [path for path, _ in found.skipped] == [bad]


def test_when_none_is_good_it_does_not_start_anew(folder):
    bad = Checkpoints(folder.checkpoints).save(200, tree())
    bad.write_bytes(b"")
    with pytest.raises(UsageError, match=r"none of the 1 checkpoints .* is good.*another"):
        resume.find(folder, "auto", IDENTITY)
    assert bad.exists()


def test_none_in_a_used_folder_is_refused(folder):
    with pytest.raises(UsageError, match=r"--resume none, but .* holds a run already"):
        resume.find(folder, "none", IDENTITY)


@pytest.mark.parametrize("saved", [False, True])
def test_a_folder_of_another_configuration_is_refused(folder, saved):
    if saved:
        Checkpoints(folder.checkpoints).save(100, tree())
    other = {**IDENTITY, "env": "ALE/Breakout-v5", "nested": {"stack": 1}}
    with pytest.raises(UsageError) as caught:
        resume.find(folder, "auto", other)
    text = str(caught.value)
    assert "\n" not in text
    assert 'env: "ALE/Breakout-v5" now, "ALE/Pong-v5" stored' in text
    assert "nested.stack: 1 now, 4 stored" in text
    assert "choose another --run-dir" in text


def test_fields_that_may_change_do_not_matter(folder):
    folder.write_config({**IDENTITY, "total_frames": 99, "actors": None})
    Checkpoints(folder.checkpoints).save(100, tree())
    assert resume.find(folder, "auto", IDENTITY) is not None


def test_a_new_folder_starts_from_a_named_checkpoint(tmp_path):
    save(tmp_path / "some.h5", tree(value=7))
    found = resume.find(RunFolder(tmp_path / "run"), str(tmp_path / "some.h5"), IDENTITY)
    assert value(found) == 7.0
    assert not found.own


def test_a_folder_with_checkpoints_of_its_own_goes_on_from_these(folder, tmp_path):
    save(tmp_path / "some.h5", tree(value=7))
    Checkpoints(folder.checkpoints).save(100, tree(value=100))
    assert value(resume.find(folder, str(tmp_path / "some.h5"), IDENTITY)) == 100.0


def test_a_named_checkpoint_of_another_configuration_is_refused(tmp_path):
    save(tmp_path / "some.h5", tree(CONFIG.replace("Pong", "Breakout")))
    with pytest.raises(UsageError, match=r"some.h5 belongs to another configuration \(env"):
        resume.find(RunFolder(tmp_path / "run"), str(tmp_path / "some.h5"), IDENTITY)


def test_a_named_checkpoint_that_is_missing_or_damaged_is_refused(tmp_path):
    for name in ("missing.h5", "damaged.h5"):
        if name == "damaged.h5":
            (tmp_path / name).write_bytes(b"x" * 1000)
        with pytest.raises(UsageError, match=f"--resume: checkpoint .*{name}"):
            resume.find(RunFolder(tmp_path / "run"), str(tmp_path / name), IDENTITY)


def with_part(folder, value=7):
    checkpoints = Checkpoints(folder)
    kept = checkpoints.save_part(100, "learner-0", {"replay": {"next": value}})
    return checkpoints.save(100, {**tree(value=value), "parts": {"learner-0": kept}})


def test_a_named_checkpoint_comes_with_its_parts(tmp_path):
    path = with_part(tmp_path / "some")
    assert value(resume.find(RunFolder(tmp_path / "run"), str(path), IDENTITY)) == 7.0


@pytest.mark.parametrize("how", ["copied alone", "another's part", "truncated part"])
def test_a_named_checkpoint_without_its_parts_is_refused(tmp_path, how):
    path = with_part(tmp_path / "some")
    part = path.with_suffix(".parts") / "learner-0.h5"
    if how == "copied alone":
        (tmp_path / "copied").mkdir()
        path = path.rename(tmp_path / "copied" / path.name)
        part = path.with_suffix(".parts") / "learner-0.h5"
    elif how == "another's part":
        save(part, {"replay": {"next": 8}})
    else:
        part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"^--resume: .*{part}") as error:
        resume.find(RunFolder(tmp_path / "run"), str(path), IDENTITY)
    assert "\n" not in str(error.value)


def test_it_goes_back_to_the_newest_one_with_all_its_parts(folder):
    checkpoints = Checkpoints(folder.checkpoints)
    with_part(folder.checkpoints)
    kept = checkpoints.save_part(200, "learner-0", {})
    bad = checkpoints.save(200, {**tree(value=200), "parts": {"learner-0": kept}})
    (bad.with_suffix(".parts") / "learner-0.h5").unlink()
    found = resume.find(folder, "auto", IDENTITY)
    assert value(found) == 7.0
    assert [path for path, _ in found.skipped] == [bad]


@pytest.mark.parametrize("config", ["not JSON", "5", "[]", "null", '"text"', "{}"])
def test_a_named_checkpoint_with_a_strange_config_is_refused(tmp_path, config):
    """A checkpoint is untrusted input: one line, not a traceback."""
    save(tmp_path / "some.h5", tree(config))
    with pytest.raises(UsageError):
        resume.find(RunFolder(tmp_path / "run"), str(tmp_path / "some.h5"), IDENTITY)


def test_a_named_checkpoint_without_a_config_is_refused(tmp_path):
    save(tmp_path / "some.h5", {"model": {"w": np.zeros(3)}})
    with pytest.raises(UsageError, match="holds no config of a run"):
        resume.find(RunFolder(tmp_path / "run"), str(tmp_path / "some.h5"), IDENTITY)
