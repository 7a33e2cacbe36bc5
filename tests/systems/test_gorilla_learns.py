"""Gorilla solves a small task, with learners that act for themselves."""

import pytest

# Found by experiment: seed 1 ends at 497.
OPTIONS = (
    "--bundled --learners 2 --servers 2 --envs-per-actor 8 --unroll-length 8 --batch-size 64 "
    "--replay-start 512 --replay-capacity 50000 --replay-ratio 8 --n-steps 10 --target-period 200 "
    "--epsilon 1e-5 --learning-rate 5e-4 --reward-clip 0.1 --exploration-horizon 10000 "
    "--exploration-end 0.02 --checkpoint-unrolls 100000 --total-frames 100000"
)


@pytest.mark.slow
def test_cartpole(final_return):
    assert final_return("gorilla", OPTIONS) >= 450.0
