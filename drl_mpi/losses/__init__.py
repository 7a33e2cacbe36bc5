"""Losses and their targets: pure functions of time-major tensors.

Nothing here knows of MPI, networks or episodes: ``discounts`` already contain (1 - done).
Targets never carry gradients; losses are sums over time and batch, to be minimised.
"""

from drl_mpi.losses.policy import (
    action_log_probs,
    entropy_loss,
    policy_gradient_loss,
    value_loss,
)
from drl_mpi.losses.returns import discounted_returns, lambda_returns, n_step_returns
from drl_mpi.losses.value_learning import double_q_learning, q_learning
from drl_mpi.losses.vtrace import VTrace, vtrace

__all__ = [
    "VTrace",
    "action_log_probs",
    "discounted_returns",
    "double_q_learning",
    "entropy_loss",
    "lambda_returns",
    "n_step_returns",
    "policy_gradient_loss",
    "q_learning",
    "value_loss",
    "vtrace",
]
