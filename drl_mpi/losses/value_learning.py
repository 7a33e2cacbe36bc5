"""Q-learning errors. Of a transition, ``tm1`` is what was known before it and ``t`` after it.

The targets are constants: gradient flows through ``q_tm1`` only. Leading dimensions [B] may be
any [...], [T, B] for one.
"""

from torch import Tensor

from drl_mpi.losses._checks import require_integer, require_per_action, require_shape


def q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor
) -> Tensor:
    """Return the TD error r + gamma max_a q_t(a) - q_tm1(a_tm1).

    Source: Mnih et al. 2015 (Nature 518), methods; ``q_t`` is then the target network's.

    Args:
      q_tm1: [B, A] float, Q(x_{t-1}, .).
      a_tm1: [B] integer, from 0 to A - 1.
      r_t: [B] float.
      discount_t: [B] float, contains (1 - done).
      q_t: [B, A] float, Q(x_t, .).

    Returns:
      [B] float.

    Raises:
      ValueError: for shapes that do not match or actions that are not integers.
    """
    _require_transition(q_tm1, a_tm1, r_t, discount_t)
    require_shape("q_t", q_t, q_tm1.shape, "that of q_tm1")
    target = r_t.detach() + discount_t.detach() * q_t.detach().amax(dim=-1)
    return target - _of_action(q_tm1, a_tm1)


def double_q_learning(
    q_tm1: Tensor,
    a_tm1: Tensor,
    r_t: Tensor,
    discount_t: Tensor,
    q_t_value: Tensor,
    q_t_selector: Tensor,
) -> Tensor:
    """Return the TD error r + gamma q_t_value(argmax_a q_t_selector(a)) - q_tm1(a_tm1).

    Source: van Hasselt, Guez and Silver 2016 (arXiv 1509.06461), "Double DQN"; the online
    network selects and the target network gives the value.

    Args:
      q_tm1: [B, A] float, Q(x_{t-1}, .).
      a_tm1: [B] integer, from 0 to A - 1.
      r_t: [B] float.
      discount_t: [B] float, contains (1 - done).
      q_t_value: [B, A] float, values the selected action at x_t.
      q_t_selector: [B, A] float, selects the action at x_t.

    Returns:
      [B] float.

    Raises:
      ValueError: for shapes that do not match or actions that are not integers.
    """
    _require_transition(q_tm1, a_tm1, r_t, discount_t)
    require_shape("q_t_value", q_t_value, q_tm1.shape, "that of q_tm1")
    require_shape("q_t_selector", q_t_selector, q_tm1.shape, "that of q_tm1")
    selected = q_t_selector.detach().argmax(dim=-1)
    target = r_t.detach() + discount_t.detach() * _of_action(q_t_value.detach(), selected)
    return target - _of_action(q_tm1, a_tm1)


def _of_action(q: Tensor, action: Tensor) -> Tensor:
    return q.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)


def _require_transition(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor) -> None:
    leading = require_per_action("q_tm1", q_tm1)
    meaning = "that of q_tm1 without its last dimension"
    require_shape("a_tm1", a_tm1, leading, meaning)
    require_shape("r_t", r_t, leading, meaning)
    require_shape("discount_t", discount_t, leading, meaning)
    require_integer("a_tm1", a_tm1)
