"""Several learners of a job that sum their gradients by torch.distributed."""

import time

import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import plan
from drl_mpi.systems.impala import Impala

OPTIONS = "--env CartPole-v1 --learners 2 --actors 2 --gradient-sum gloo"


def test_nccl_is_for_learners_with_gpus():
    config = Impala(learners=2, gradient_sum="nccl")
    config.check_layout(plan(4, ["host"] * 4, 2, learners=2))
    with pytest.raises(UsageError, match="--gradient-sum nccl, but the learners have no GPUs"):
        config.check_layout(plan(4, ["host"] * 4, 0, learners=2))


def test_the_sum_may_change_but_not_in_lockstep():
    """Another order of summation rounds differently."""
    assert Impala().identity() == Impala(gradient_sum="gloo").identity()
    fixed = Impala(lockstep=True)
    assert fixed.identity() != Impala(lockstep=True, gradient_sum="gloo").identity()


def test_two_runs_in_lockstep_give_the_same_bits(start, tiny, tmp_path, bits):
    options = f"{tiny} {OPTIONS} --lockstep --checkpoint-unrolls 50 --total-frames 6000"
    one, other = (start(options, tmp_path / name, 4).wait() for name in "ab")
    for run in (one, other):
        assert run.rc == 0, run.text
        assert (run.folder / "DONE").exists()
        for learner in range(2):
            log = (run.folder / "logs" / f"rank-{learner}.log").read_text()
            assert "gradients of 2 learners are summed by gloo" in log
            assert "did not end well" not in log
    assert bits(one.folder) == bits(other.folder)


def test_a_learner_that_dies_ends_the_job(start, tiny, tmp_path):
    """And the same command goes on, also with another sum."""
    options = f"{tiny} {OPTIONS} --checkpoint-minutes 0.01"
    run = start(f"{options} --total-frames 1e9", tmp_path, 4)
    run.until_saved()
    began = time.monotonic()
    run.rank(1).kill()
    assert run.wait(10).rc not in (0, 2, 75), run.text
    assert time.monotonic() - began < 10
    frames = max((run.folder / "checkpoints").glob("*.h5")).stem.removeprefix("frames-")
    changed = options.replace("--gradient-sum gloo", "--gradient-sum mpi")
    again = start(f"{changed} --total-frames {int(frames) + 2000}", tmp_path, 4).wait()
    assert again.rc == 0, again.text
    assert "going on from" in again.stdout
    assert "summed by mpi" in (again.folder / "logs" / "rank-1.log").read_text()


@pytest.mark.parametrize("ranks", [4, None], ids=["mpirun", "self"])
def test_nccl_without_gpus_is_refused_in_one_line(start, tiny, tmp_path, ranks):
    options = f"{tiny} --learners 2 --actors 2 --gradient-sum nccl --device cpu"
    run = start(options, tmp_path, ranks).wait()
    assert run.rc == 2, run.text
    ours = [line for line in run.stderr.splitlines() if line.startswith("impala.py: ")]
    assert len(ours) == 1, run.text
    assert ours[0].startswith("impala.py: --gradient-sum nccl, but the learners have no GPUs")
    assert not run.folder.exists()
