"""V-trace: off-policy corrected targets for an actor-critic whose actors lag behind its learner."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from drl_mpi.losses._checks import (
    require_between,
    require_shape,
    require_time_major,
    working_dtype,
)
from drl_mpi.losses.returns import accumulate_backwards


class VTrace(NamedTuple):
    """Targets of the critic and advantages of the actor; both constants, both [T, B, ...]."""

    vs: Tensor
    """v_t, the target of V(x_t)."""
    pg_advantages: Tensor
    """What the gradient of log pi(a_t | x_t) is multiplied with; already contains the ratio."""


@torch.no_grad()
def vtrace(
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    clip_rho: float = 1.0,
    clip_pg_rho: float = 1.0,
    clip_c: float = 1.0,
    lambda_: float = 1.0,
) -> VTrace:
    """Return V-trace targets and policy gradient advantages.

    With ratio_t = pi(a_t | x_t) / mu(a_t | x_t) of the target over the behaviour policy::

        delta_t   = min(clip_rho, ratio_t) (r_t + gamma_t V(x_{t+1}) - V(x_t))
        c_t       = lambda_ min(clip_c, ratio_t)
        v_t       = V(x_t) + delta_t + gamma_t c_t (v_{t+1} - V(x_{t+1}))
        advantage = min(clip_pg_rho, ratio_t) (r_t + gamma_t v_{t+1} - V(x_t))

    and v_T = V(x_T) = ``bootstrap_value``. On policy with all bars at 1, v_t is the n-step
    Bellman target up to the end of the unroll.

    A masked transition has a log ratio of -inf. Use it for the bogus transition from a final
    observation into an automatic reset: its target is exactly ``values[t]`` (no value loss), its
    advantage is 0, and nothing after it reaches the transition before it, which still bootstraps
    from V(final observation) if its discount says so (truncation). Its reward, discount and
    values must be finite, as everywhere.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), sections 4.1 (targets; lambda in remark 2)
    and 4.2 (actor-critic).

    Args:
      log_rhos: [T, B, ...] float, log pi(a_t | x_t) - log mu(a_t | x_t); may contain -inf.
      discounts: [T, B, ...] float, contains (1 - done).
      rewards: [T, B, ...] float, of the transition x_t -> x_{t+1}.
      values: [T, B, ...] float, V(x_t).
      bootstrap_value: [B, ...] float, V(x_T).
      clip_rho: rho bar, decides which policy's value is learned; ``math.inf`` does not clip.
      clip_pg_rho: the same bar for the policy gradient.
      clip_c: c bar, decides how fast it is learned; at most ``clip_rho``.
      lambda_: from 0 (one-step targets) to 1.

    Returns:
      VTrace(vs, pg_advantages), [T, B, ...] each, in the widest dtype given, at least float32.

    Raises:
      ValueError: for T < 1, shapes that do not match, a negative or NaN bar, ``clip_c`` above
        ``clip_rho``, or ``lambda_`` outside [0, 1].
    """
    shape = require_time_major(
        log_rhos=log_rhos, discounts=discounts, rewards=rewards, values=values
    )
    require_shape("bootstrap_value", bootstrap_value, shape[1:], "that of one row of values")
    _require_bars(clip_rho, clip_pg_rho, clip_c, lambda_)
    dtype = working_dtype(log_rhos, discounts, rewards, values, bootstrap_value)
    discounts, values = discounts.to(dtype), values.to(dtype)

    largest = torch.finfo(dtype).max  # a ratio that overflows stays finite: inf * 0 would be NaN
    ratios = log_rhos.to(dtype).exp()  # [T, B, ...], 0 where masked
    rhos = ratios.clamp(max=min(clip_rho, largest))
    pg_rhos = ratios.clamp(max=min(clip_pg_rho, largest))
    cs = ratios.clamp_(max=min(clip_c, largest)).mul_(lambda_)

    values_tp1 = torch.cat([values[1:], bootstrap_value.to(dtype).unsqueeze(0)])
    td_errors = torch.addcmul(rewards.to(dtype), discounts, values_tp1).sub_(values)

    corrections = rhos.mul_(td_errors)  # delta_t, and after the next line v_t - V(x_t)
    accumulate_backwards(corrections, cs.mul_(discounts))

    # r_t + gamma_t v_{t+1} - V(x_t), as the TD error plus what v_{t+1} adds to V(x_{t+1});
    # at the end v_T is V(x_T), so the last row stays as it is.
    td_errors[:-1].addcmul_(discounts[:-1], corrections[1:])
    return VTrace(vs=values + corrections, pg_advantages=pg_rhos.mul_(td_errors))


def _require_bars(clip_rho: float, clip_pg_rho: float, clip_c: float, lambda_: float) -> None:
    require_between("clip_rho", clip_rho, 0.0, math.inf)
    require_between("clip_pg_rho", clip_pg_rho, 0.0, math.inf)
    require_between("clip_c", clip_c, 0.0, math.inf)
    require_between("lambda_", lambda_, 0.0, 1.0)
    if clip_c > clip_rho:
        raise ValueError(
            f"clip_c is {clip_c} and clip_rho is {clip_rho}; expected clip_c <= clip_rho "
            "(V-trace's proof of contraction needs it): lower clip_c or raise clip_rho"
        )
