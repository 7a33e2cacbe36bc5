"""Actor-critic losses: policy gradient, entropy, value. Sums over all rows, to be minimised.

An optional ``mask`` excludes rows: 0 or False excludes, True or 1 includes, a positive number is a
weight. An excluded row adds exactly nothing to loss and gradient, whatever the advantages and
targets in it are (NaN too).

A ``min_probability`` above 0 is GA3C's guard against the logarithm of a vanishing probability
(Babaeizadeh et al. 2017, arXiv 1611.06256: 1e-6): log pi becomes log(max(pi, min_probability)),
through which no gradient passes where pi is below it.
"""

import math

import torch
from torch import Tensor

from drl_mpi.losses._checks import require_integer, require_per_action, require_shape


def policy_gradient_loss(
    logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    min_probability: float = 0.0,
) -> Tensor:
    """Return the sum of -log pi(a_t | x_t) advantage_t; the advantages are constants.

    Source: Mnih et al. 2016 (arXiv 1602.01783), section 4; Espeholt et al. 2018, section 4.2.

    Args:
      logits: [T, B, A] float; more leading dimensions are welcome. -inf rules an action out.
      actions: [T, B] integer, from 0 to A - 1.
      advantages: [T, B] float.
      mask: [T, B] bool or float; see the top of this file.
      min_probability: bounds pi from below, from 0 (no bound) to less than 1; see there too.

    Returns:
      [] float.

    Raises:
      ValueError: for shapes that do not match, actions that are not integers, or a minimum that is
        no probability below 1.
    """
    log_probs = _bounded(action_log_probs(logits, actions), min_probability)
    require_shape("advantages", advantages, actions.shape, "that of actions")
    return -(log_probs * _weighted(advantages.detach(), mask)).sum()


def entropy_loss(
    logits: Tensor, *, mask: Tensor | None = None, min_probability: float = 0.0
) -> Tensor:
    """Return the sum of p log p, which is minus the entropy: minimising it explores.

    Source: Mnih et al. 2016 (arXiv 1602.01783), section 4.

    Args:
      logits: [T, B, A] float; more leading dimensions are welcome. -inf rules an action out.
      mask: [T, B] bool or float; see the top of this file.
      min_probability: bounds the p in log p from below, from 0 (no bound) to less than 1; the
        factor p stays as it is. See there too.

    Returns:
      [] float.

    Raises:
      ValueError: for logits without an action dimension, a mask that does not match, or a minimum
        that is no probability below 1.
    """
    require_per_action("logits", logits)
    log_probs = logits.log_softmax(dim=-1)
    # An action ruled out has p = 0 and log p = -inf; finite, their product is the limit, 0, also
    # when costs and masks scale it.
    low = max(-1e30, torch.finfo(log_probs.dtype).min)
    finite = _bounded(log_probs, min_probability).clamp(min=low)
    return _weighted((log_probs.exp() * finite).sum(dim=-1), mask).sum()


def value_loss(values: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return 0.5 times the sum of (target_t - V(x_t))^2; the targets are constants.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.2.

    Args:
      values: [T, B, ...] float, V(x_t).
      targets: [T, B, ...] float.
      mask: [T, B, ...] bool or float; see the top of this file.

    Returns:
      [] float.

    Raises:
      ValueError: for shapes that do not match.
    """
    require_shape("targets", targets, values.shape, "that of values")
    errors = targets.detach() - values
    if mask is not None:  # scaled before the square, so that no infinite gradient meets a zero
        errors = _weighted(errors, mask.detach().sqrt())
    return 0.5 * errors.square().sum()


def action_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """Return log pi(a_t | x_t); the difference of two policies' is what ``vtrace`` takes.

    Args:
      logits: [T, B, A] float; any leading dimensions.
      actions: [T, B] integer, from 0 to A - 1.

    Returns:
      [T, B] float, with gradient.

    Raises:
      ValueError: for shapes that do not match or actions that are not integers.
    """
    leading = require_per_action("logits", logits)
    require_shape("actions", actions, leading, "that of logits without its last dimension")
    require_integer("actions", actions)
    chosen = logits.log_softmax(dim=-1).gather(-1, actions.long().unsqueeze(-1))
    return chosen.squeeze(-1)


def _bounded(log_probs: Tensor, min_probability: float) -> Tensor:
    """Return log(max(pi, min_probability)) of log pi."""
    if not 0.0 <= min_probability < 1.0:
        raise ValueError(
            f"min_probability is {min_probability}; expected a number from 0 (no bound) to less "
            "than 1"
        )
    return log_probs if min_probability == 0.0 else log_probs.clamp(min=math.log(min_probability))


def _weighted(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Weigh rows by the mask; where it is 0 the result is 0 even if the row is not finite."""
    if mask is None:
        return rows
    require_shape("mask", mask, rows.shape, "one entry per row")
    return torch.where(mask != 0, rows * mask, 0.0)
