"""A3C solves a small task."""

import pytest

# Found by experiment: seeds 1 to 3 all end at 500.
OPTIONS = (
    "--learners 2 --servers 2 --envs-per-actor 8 --unroll-length 20 --optimizer adam "
    "--epsilon 1e-5 --learning-rate 3e-3 --reward-clip 0.1 --baseline-cost 0.1 "
    "--entropy-cost 0.001 --checkpoint-unrolls 100000 --total-frames 200000"
)


@pytest.mark.slow
def test_cartpole(final_return):
    assert final_return("a3c", OPTIONS) >= 450.0
