"""DQN solves a small task."""

import pytest

# Found by experiment: seeds 1 and 2 end at 490 and 491.
OPTIONS = (
    "--actors 1 --envs-per-actor 8 --unroll-length 8 --batch-size 64 --replay-start 1024 "
    "--replay-capacity 50000 --replay-ratio 8 --n-steps 10 --target-period 200 "
    "--epsilon 1e-5 --learning-rate 5e-4 --reward-clip 0.1 --exploration-horizon 10000 "
    "--exploration-end 0.02 --checkpoint-unrolls 100000 --total-frames 100000"
)


@pytest.mark.slow
def test_cartpole(final_return):
    assert final_return("dqn", OPTIONS) >= 450.0
