"""Returns: what the critic should have said, from rewards and later values.

Row t of every argument belongs to the transition x_t -> x_{t+1}. ``discounts[t]`` is gamma, or 0
where that transition ended an episode. All results are targets: no gradient flows through them.
They are kept in the widest dtype given, at least float32.
"""

import torch
from torch import Tensor

from drl_mpi.losses._checks import (
    require_between,
    require_shape,
    require_time_major,
    working_dtype,
)


@torch.no_grad()
def discounted_returns(rewards: Tensor, discounts: Tensor, bootstrap_value: Tensor) -> Tensor:
    """Return G_t = r_t + gamma_t G_{t+1}, where G_T is the bootstrap value.

    Source: Sutton and Barto 2018, section 3.3; the target of A3C (Mnih et al. 2016, section 4).

    Args:
      rewards: [T, B, ...] float.
      discounts: [T, B, ...] float, contains (1 - done).
      bootstrap_value: [B, ...] float, V(x_T).

    Returns:
      [T, B, ...] float.

    Raises:
      ValueError: for T < 1 or shapes that do not match.
    """
    shape = require_time_major(rewards=rewards, discounts=discounts)
    require_shape("bootstrap_value", bootstrap_value, shape[1:], "that of one row of rewards")
    dtype = working_dtype(rewards, discounts, bootstrap_value)

    returns = rewards.to(dtype, copy=True)
    accumulate_backwards(returns, discounts.to(dtype), bootstrap_value.to(dtype))
    return returns


@torch.no_grad()
def lambda_returns(
    rewards: Tensor, discounts: Tensor, values: Tensor, lambda_: float = 1.0
) -> Tensor:
    """Return G_t = r_t + gamma_t ((1 - lambda) V(x_{t+1}) + lambda G_{t+1}); G_T is the last value.

    ``lambda_`` 0 gives one-step targets, 1 gives ``discounted_returns``.
    Source: Sutton and Barto 2018, section 12.1.

    Args:
      rewards: [T, B, ...] float.
      discounts: [T, B, ...] float, contains (1 - done).
      values: [T, B, ...] float, ``values[t]`` = V(x_{t+1}).
      lambda_: from 0 to 1.

    Returns:
      [T, B, ...] float.

    Raises:
      ValueError: for T < 1, shapes that do not match, or ``lambda_`` outside [0, 1].
    """
    require_time_major(rewards=rewards, discounts=discounts, values=values)
    require_between("lambda_", lambda_, 0.0, 1.0)
    dtype = working_dtype(rewards, discounts, values)
    discounts, values = discounts.to(dtype), values.to(dtype)

    returns = torch.addcmul(rewards.to(dtype), discounts, values, value=1.0 - lambda_)
    accumulate_backwards(returns, discounts * lambda_, values[-1])
    return returns


@torch.no_grad()
def n_step_returns(rewards: Tensor, discounts: Tensor, values: Tensor, n: int) -> Tensor:
    """Return n discounted rewards and then the discounted value n steps ahead.

    Rows with fewer than n transitions left bootstrap from the last value instead.
    Source: Sutton and Barto 2018, section 7.1.

    Args:
      rewards: [T, B, ...] float.
      discounts: [T, B, ...] float, contains (1 - done).
      values: [T, B, ...] float, ``values[t]`` = V(x_{t+1}).
      n: steps, at least 1; more than T is the same as T.

    Returns:
      [T, B, ...] float.

    Raises:
      ValueError: for T < 1, shapes that do not match, or ``n`` < 1.
    """
    shape = require_time_major(rewards=rewards, discounts=discounts, values=values)
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1 step (1 gives one-step targets)")
    dtype = working_dtype(rewards, discounts, values)
    rewards, discounts, values = rewards.to(dtype), discounts.to(dtype), values.to(dtype)

    length = shape[0]
    n = min(n, length)
    last = values[-1:].expand(n - 1, *shape[1:])
    returns = torch.cat([values[n - 1 :], last])  # [T, B, ...], the value each row ends with
    for step in reversed(range(n)):  # all rows at once take in their transition t + step
        inside = returns[: length - step]
        inside.mul_(discounts[step:]).add_(rewards[step:])
    return returns


def accumulate_backwards(terms: Tensor, decays: Tensor, after: Tensor | None = None) -> None:
    """Turn ``terms`` into x_t = terms_t + decays_t x_{t+1}, in place; call it without gradients.

    Args:
      terms: [T, B, ...] float, overwritten.
      decays: [T, B, ...] of the same dtype.
      after: [B, ...] of the same dtype, x_T; left out, x_T is 0.
    """
    rows, decay_rows = terms.unbind(0), decays.unbind(0)  # views, made once and not per row
    if after is not None:
        rows[-1].addcmul_(decay_rows[-1], after)
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(decay_rows[t], rows[t + 1])
