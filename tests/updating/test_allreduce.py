"""Synchronous learners under a real mpirun; the program is programs/learners.py."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

PROGRAM = Path(__file__).parent / "programs" / "learners.py"
SCENARIOS = ("train", "tamper", "nan", "length")
FAULTS = ("stall", "gone", "orphan")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("learners_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Played:
    """Where all scenarios of a sum and a number of learners wrote to."""

    folder: Path
    learners: range

    def said(self, scenario):
        return [(self.folder / f"{scenario}-{n}.txt").read_text() for n in self.learners]

    def saw(self, scenario):
        return [dict(np.load(self.folder / f"{scenario}-{n}.npz")) for n in self.learners]


@pytest.fixture(scope="module")
def play(mpirun, tmp_path_factory):
    """Plays all scenarios once: torch makes a launch dear."""
    played = {}

    def run(choice, learners):
        if (choice, learners) not in played:
            folder = tmp_path_factory.mktemp(f"{choice}-{learners}")
            scenarios = SCENARIOS + FAULTS * (choice == "gloo" and learners == 3)
            done = mpirun(3, PROGRAM, folder, choice, learners, *scenarios, timeout=120)
            assert done.rc == 0, done.text
            played[choice, learners] = Played(folder, range(learners))
        return played[choice, learners]

    return run


@pytest.fixture(params=[("mpi", 2), ("gloo", 2), ("gloo", 3)], ids=["mpi-2", "gloo-2", "gloo-3"])
def played(request, play):
    return play(*request.param)


@pytest.fixture
def trained(played):
    assert not any(played.said("train")), played.said("train")
    return played.saw("train")


def test_learners_stay_identical(trained):
    assert len({saw["vector"].tobytes() for saw in trained}) == 1


def test_several_learners_are_one_with_their_batches_together(played, trained, program):
    net, flat, local = program.make()
    start = flat.vector.clone()
    together = torch.cat([program.batches(learner) for learner in played.learners], dim=2)
    for inputs in together:
        flat.zero_grad()
        program.loss(net, inputs).backward()
        steps = sum(program.STEPS[: len(played.learners)])
        info = np.zeros(0, np.float32)
        local.apply(flat.gradient, info, loss=0.5, steps=steps, wish=program.Wish())
    moved = (flat.vector - start).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(
        torch.from_numpy(trained[0]["vector"]), flat.vector, atol=float(moved) * 1e-2, rtol=1e-3
    )


def test_of_two_numbers_mpi_and_gloo_make_the_same_sum(play):
    mpi, gloo = (play(choice, 2).saw("train")[0] for choice in ("mpi", "gloo"))
    assert mpi["vector"].tobytes() == gloo["vector"].tobytes()


def test_everybody_sees_everybodys_infos(played, trained, program):
    infos = trained[0]["infos"]
    assert infos.shape == (program.UPDATES, len(played.learners), program.WIDTH)
    for other in trained[1:]:
        np.testing.assert_array_equal(infos, other["infos"])
    for version in range(program.UPDATES):
        for learner in played.learners:
            row = np.arange(program.WIDTH) + 100.0 * version + 10 * learner
            np.testing.assert_array_equal(infos[version, learner, :-1], row[:-1])
            assert np.isnan(infos[version, learner, -1])  # NaN stays in its own place


def test_what_any_learner_wishes_all_agree_on(trained, program):
    expected = np.zeros((program.UPDATES, 2), bool)
    for version, wishes in program.WISHES.items():
        expected[version] = [any(w.save for w in wishes), any(w.stop for w in wishes)]
    for saw in trained:
        np.testing.assert_array_equal(saw["agreed"], expected)


def test_steps_are_those_of_all_learners(trained, program):
    for saw in trained:
        expected = sum(program.STEPS[: len(trained)]) * np.arange(1, program.UPDATES + 1)
        np.testing.assert_array_equal(saw["steps"], expected)


def test_all_learners_end_with_the_same_round(played, program):
    together = sum(program.STEPS[: len(played.learners)])
    assert not any(played.said("length"))
    for saw in played.saw("length"):
        enough = -(-program.LENGTH // together)
        assert len(saw["steps"]) == -(-enough // 4) * 4, f"{enough} are enough, a round is 4"
        assert saw["steps"][-1] == len(saw["steps"]) * together


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        ("tamper", "ReplicaError: at version 0 the parameters of learners [1] differ"),
        ("nan", "DivergenceError: the gradient of update 7 has norm nan"),
    ],
)
def test_all_learners_end_together_and_say_why(played, scenario, text):
    for said in played.said(scenario):
        assert said.startswith(text)


def test_nothing_runs_on_after_close(played):
    """Not even a thread of the library: neither after a run nor after an error."""
    for scenario in SCENARIOS:
        assert [int(saw["threads"]) for saw in played.saw(scenario)] == [0] * len(played.learners)


@pytest.fixture
def faulty(play):
    return play("gloo", 3)


def test_a_learner_that_stalls_is_given_up_in_time_and_without_spinning(faulty, program):
    said, saw = faulty.said("stall"), faulty.saw("stall")
    for learner in (0, 2):
        assert said[learner].startswith("SilenceError: waited 1 s for the other learners' gradie")
        wall, cpu = saw[learner]["took"]
        assert program.PATIENCE_S <= wall < program.LATE_S
        assert cpu < 0.2 * wall
    assert said[1] == "", "it found the others' gradients waiting"


def test_what_the_library_says_is_said(faulty):
    """Learner 1 hung up. Who exchanges with it notices; who waits for that one may not."""
    said = faulty.said("gone")
    ours = "CollectiveError: gloo failed while this learner waited for the other learners' gradien"
    noticed = [text for text in (said[0], said[2]) if text.startswith(ours)]
    assert noticed, said
    assert all("onnection" in text for text in noticed), "gloo's own words"
    assert all(text in noticed or text.startswith("SilenceError") for text in (said[0], said[2]))
    assert said[1].startswith(f"{ours}ts: Default process group has not been initialized")


def test_a_learner_that_does_not_connect_is_given_up_in_time(faulty, program):
    said, saw = faulty.said("orphan"), faulty.saw("orphan")
    for learner in (0, 2):
        assert said[learner].startswith("SilenceError: waited 1 s for the learners' gloo to conn")
        assert program.PATIENCE_S <= saw[learner]["took"][0] < 10.0
