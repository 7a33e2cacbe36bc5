"""Synchronous learners under a real mpirun; the program is programs/learners.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

PROGRAM = Path(__file__).parent / "programs" / "learners.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("learners_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def played(mpirun, tmp_path_factory):
    """The folder that all scenarios wrote to: torch makes a launch dear."""
    folder = tmp_path_factory.mktemp("learners")
    done = mpirun(3, PROGRAM, folder, timeout=120)
    assert done.rc == 0, done.text
    return folder


@pytest.fixture(scope="module")
def trained(played):
    assert [(played / f"train-{learner}.txt").read_text() for learner in range(2)] == ["", ""]
    return [dict(np.load(played / f"train-{learner}.npz")) for learner in range(2)]


def test_learners_stay_identical(trained):
    assert trained[0]["vector"].tobytes() == trained[1]["vector"].tobytes()


def test_two_learners_are_one_with_twice_the_batch(trained, program):
    net, flat, local = program.make()
    start = flat.vector.clone()
    both = torch.cat([program.batches(0), program.batches(1)], dim=2)
    for inputs in both:
        flat.zero_grad()
        program.loss(net, inputs).backward()
        steps = sum(program.STEPS)
        info = np.zeros(0, np.float32)
        local.apply(flat.gradient, info, loss=0.5, steps=steps, wish=program.Wish())
    moved = (flat.vector - start).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(
        torch.from_numpy(trained[0]["vector"]), flat.vector, atol=float(moved) * 1e-2, rtol=1e-3
    )


def test_everybody_sees_everybodys_infos(trained, program):
    infos = trained[0]["infos"]
    assert infos.shape == (program.UPDATES, 2, program.WIDTH)
    np.testing.assert_array_equal(infos, trained[1]["infos"])
    for version in range(program.UPDATES):
        for learner in range(2):
            row = np.arange(program.WIDTH) + 100.0 * version + 10 * learner
            np.testing.assert_array_equal(infos[version, learner, :-1], row[:-1])
            assert np.isnan(infos[version, learner, -1])  # NaN stays in its own place


def test_what_any_learner_wishes_all_agree_on(trained, program):
    expected = np.zeros((program.UPDATES, 2), bool)
    for version, wishes in program.WISHES.items():
        expected[version] = [any(w.save for w in wishes), any(w.stop for w in wishes)]
    for learner in range(2):
        np.testing.assert_array_equal(trained[learner]["agreed"], expected)


def test_steps_are_those_of_all_learners(trained, program):
    for learner in range(2):
        expected = sum(program.STEPS) * np.arange(1, program.UPDATES + 1)
        np.testing.assert_array_equal(trained[learner]["steps"], expected)


def test_all_learners_end_with_the_same_round(played, program):
    for learner in range(2):
        assert (played / f"length-{learner}.txt").read_text() == ""
        steps = np.load(played / f"length-{learner}.npz")["steps"]
        assert len(steps) == 12, "10 updates are enough, a round is 4"
        assert steps[-1] == 12 * sum(program.STEPS)


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        ("tamper", "ReplicaError: at version 0 the parameters of learners [1] differ"),
        ("nan", "DivergenceError: the gradient of update 7 has norm nan"),
    ],
)
def test_all_learners_end_together_and_say_why(played, scenario, text):
    for learner in range(2):
        assert (played / f"{scenario}-{learner}.txt").read_text().startswith(text)
