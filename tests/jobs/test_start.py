"""Ranks meet when all of them are ready: nobody is silent because another one loads."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "noted_job.py"
POLE = "--env CartPole-v1 --net mlp --precision fp32 --envs-per-actor 4 --run-dir run"
REPLAY = "--unroll-length 4 --replay-start 160 --replay-capacity 1000 --target-period 10"
ACTOR = {"opened-nicely"}, set()
LIMIT_S = 240.0


@pytest.fixture
def notes(mpirun, tmp_path):
    """``notes(ranks, job, options)``: plays a job; what each of its ranks did, before it met the
    others and after that."""

    def play(ranks, job, options):
        folder = tmp_path / f"notes-{len(list(tmp_path.glob('notes-*')))}"
        folder.mkdir()
        run = mpirun(
            ranks,
            PROGRAM,
            job,
            *options.split(),
            cwd=tmp_path,
            env={"DRL_TEST_NOTES": str(folder)},
            timeout=LIMIT_S,
        )
        assert run.rc == 0, run.text
        lines = [(folder / str(rank)).read_text().split() for rank in range(ranks)]
        assert all(each.count("met") == 1 for each in lines), lines
        met = [each.index("met") for each in lines]
        return [(set(each[:at]), set(each[at + 1 :])) for each, at in zip(lines, met)]

    return play


def test_a_replay_is_restored_before_actors_wait_for_the_first_version(notes):
    options = f"{POLE} {REPLAY} --actors 1 --total-frames"
    learner, actor = notes(2, "dqn", f"{options} 1000")
    assert (learner[1], actor) == (set(), ACTOR)
    learner, actor = notes(2, "dqn", f"{options} 1500")
    assert {"replay", "loss"} <= learner[0]
    assert (learner[1], actor) == (set(), ACTOR)


def test_servers_are_filled_when_everything_else_is_done(notes):
    options = f"{POLE} {REPLAY} --bundled --learners 2 --servers 1 --total-frames"
    first, second, server = notes(3, "gorilla", f"{options} 2000")
    assert "opened" in first[0]
    assert (first[1], second, server) == ({"filled"}, ({"opened"}, set()), (set(), set()))
    first, second, server = notes(3, "gorilla", f"{options} 3000")
    loaded = {"opened", "replay", "loss", "outliers"}
    assert loaded <= first[0]
    assert (first[1], second, server) == ({"filled"}, (loaded, set()), (set(), set()))


def test_actors_without_a_network_open_their_environments_first(notes):
    learner, *actors = notes(3, "ga3c", f"{POLE} --batch-size 4 --actors 2 --total-frames 1000")
    assert learner[1] == set()
    assert actors == [ACTOR, ACTOR]
