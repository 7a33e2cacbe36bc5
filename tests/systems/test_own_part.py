"""What a learner alone keeps comes back to it, and to memory once."""

from pathlib import Path

import numpy as np
import pytest

from drl_mpi.run import checkpoint
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints
from drl_mpi.systems.dqn import DQN
from drl_mpi.systems.own_part import OwnPart
from drl_mpi.systems.system import Prepared

FRAMES = np.arange(3000, dtype=np.uint8).reshape(30, 10, 10)
RNG = {"1": np.arange(6)}


class Source:
    """Keeps what it is given, as far as that is possible once the file is closed."""

    def __init__(self, wrong=None):
        self.wrong = wrong

    def restore(self, state):
        self.state = state
        if self.wrong:
            raise self.wrong
        if "replay" in state:
            self.stored = not isinstance(state["replay"]["rows"]["frames"], np.ndarray)
            self.frames = state["replay"]["rows"]["frames"][:]


class Loss:
    restored = None

    def restore(self, state):
        self.restored = state


class Updating:
    def restore_keepsakes(self, kept):
        self.kept = set(kept)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Of learner 1: what it kept is in a checkpoint to go on from."""
    monkeypatch.setattr(checkpoint, "STORED_BYTES", 1000)
    config = DQN(run_dir=tmp_path, replay_capacity=50)
    folder = tmp_path / "checkpoints"
    part = {
        "replay": {"rows": {"frames": FRAMES}},
        "loss": {"target": {"w": np.ones(500)}},
    }
    before = OwnPart(config, Prepared(None, 1), 1)
    before._prepared = Prepared(type("Spec", (), {"action_repeat": 4}), 1)
    name, checksum = before.keep((10, 3), part).split()
    state = {"parts": {name: checksum}, "rng": RNG, "counters": {"steps": 10, "version": 3}}
    path = Checkpoints(folder).save(40, state)
    prepared = Prepared(None, 1, checkpoint=path)
    return lambda index: OwnPart(config, prepared, index), state


def open_files(folder):
    files = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [file for file in files if file.is_relative_to(folder)]


def test_a_large_replay_is_read_from_the_open_file(own, tmp_path):
    make, state = own
    source, loss, updating = Source(), Loss(), Updating()
    make(1).restore(state, source, loss, updating)
    assert source.stored
    assert np.array_equal(source.frames, FRAMES)
    assert source.state["rng"] is RNG
    assert np.array_equal(loss.restored["target"]["w"], np.ones(500)), "as large, but no replay"
    assert updating.kept == {"loss", "replay"}
    assert open_files(tmp_path) == []
    assert make(1).saved(state) == (10, 3)


def test_a_learner_without_a_part_starts_with_nothing(own):
    make, state = own
    source, loss, updating = Source(), Loss(), Updating()
    make(0).restore(state, source, loss, updating)
    assert source.state == {"rng": RNG}
    assert loss.restored is None
    assert updating.kept == set()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (OSError(5, "Input/output error"), r"cannot be read: .*Input/output error; use another"),
        (KeyError("rows"), "lacks or garbles 'rows'; use another"),
        (ValueError("has no rows"), "lacks or garbles has no rows; use another"),
        (TypeError("not a mapping"), "lacks or garbles not a mapping; use another"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_wrong_with_it_is_said(own, tmp_path, wrong, text):
    make, state = own
    with pytest.raises(CheckpointError, match=rf"learner-1-\.\.\. of checkpoint .*frames-.*{text}"):
        make(1).restore(state, Source(wrong), Loss(), Updating())
    assert open_files(tmp_path) == []
