"""Optimisers of a parameter server's shard: NumPy only, because a server never loads torch.

Beside `drl_mpi.updating.optimizers` these read one version of the parameters and write the next,
and they know their size from the start. Each operation works on single elements and is correctly
rounded, so a vector cut into shards gets the same bits as the whole.

One step passes memory once: in C if kernels.c was built, else in NumPy, a block at a time while it
is in the cache. Both get the same bits. For 1.7M parameters (the nature net) on one core of an
EPYC 9005 (2.6 GHz; medians of 61 rounds of everything in turn, and multiples of the copy):

                                    C               NumPy
    np.copyto of one vector                      0.20 ms
    adagrad                    0.54 ms  2.7 x   1.9 ms   9 x
    rmsprop                    0.54 ms  2.7 x   2.0 ms  10 x
    rmsprop, momentum          0.72 ms  3.6 x   2.4 ms  12 x
    centred-rmsprop            0.74 ms  3.7 x   2.7 ms  13 x
    adam                       0.75 ms  3.7 x   2.5 ms  12 x

So C moves its 5 or 7 vectors at 63 to 66 GB/s, the copy its 2 at 68: the limit is memory. NumPy's
is arithmetic on cached blocks, 10 to 15 passes of 0.1 ms and a square root of 0.5 ms. (torch's
RMSProp takes 1.7 ms, its fused Adam 0.75.) For 1,000 parameters each takes 10 us.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.record import aligned_bytes
from drl_mpi.updating import kernels

BLOCK = 32_768
"""Parameters at a time in NumPy: six blocks of 128 KiB fit a 1 MiB L2 cache.

RMSProp on the machine above: 8,192 took 2.7 ms, 16,384 2.2, 32,768 2.0, 65,536 2.0 (centred: more).
"""

Vector = npt.NDArray[np.float32]
Rule = Callable[..., Vector]
"""(gradient, scratch, *slots) -> what to subtract; all blocks of one length, slots in place."""


class ShardOptimizer(Protocol):
    """How a gradient makes the next version of a shard from the newest."""

    steps: int
    """Calls of `step` so far, across restores."""

    def step(self, source: Vector, target: Vector, gradient: Vector, rate: float) -> bool:
        """Apply one gradient: reads `source` and `gradient`, writes `target`, all [size] float32.

        `target` is `source` itself or does not overlap it; `gradient` overlaps neither. Returns
        whether every new parameter is finite. A slot that overflows (gradients around 1e19) makes
        its parameter NaN: otherwise it would silently never move again. After False the slots are
        as bad as `target`: go back to a checkpoint.

        Raises ValueError for vectors of another size or dtype.
        """
        ...

    def slots(self) -> dict[str, Vector]:
        """The optimiser's memory by name, each [size] float32, always the same arrays."""
        ...

    def restore(self, slots: Mapping[str, Vector], steps: int) -> None:
        """Go on from `slots` (copied) and `steps`, bit for bit.

        Raises ValueError, and changes nothing, if the slots are not this optimiser's.
        """
        ...


class _BlockOptimizer:
    """What the optimisers share: slots, blocks, and the check of what was written.

    size: parameters in the shard. initial: first value of each slot by name.
    squares: the slot that sums up squared gradients, the first to overflow. kernel: the function
    of kernels.c that makes the same step; slots and scalars are in its order.
    """

    def __init__(self, size: int, initial: Mapping[str, float], squares: str, kernel: str) -> None:
        _check("size", size, size >= 1, "1 or more")
        self.size, self.steps = size, 0
        self._slots = {name: _vector(size) for name in initial}
        for name, value in initial.items():
            self._slots[name].fill(value)
        self._squares = self._slots[squares]
        self._kernel = kernel
        self._scratch = _vector(min(BLOCK, size))

    def _numbers(self, rate: float) -> tuple[float, ...]:
        """The scalars of the step that now begins."""
        raise NotImplementedError

    def _rule(self, scalars: Sequence[Vector]) -> Rule:
        """The formula, for NumPy; scalars: float32 without dimensions."""
        raise NotImplementedError

    def step(self, source: Vector, target: Vector, gradient: Vector, rate: float) -> bool:
        for name, vector in (("source", source), ("target", target), ("gradient", gradient)):
            _check_vector(name, vector, self.size)
        with np.errstate(all="ignore"):
            scalars = np.array(self._numbers(rate), dtype=np.float32)
            slots = self._slots.values()
            finite = kernels.step(self._kernel, source, target, gradient, scalars, slots)
            if finite is None:
                finite = self._step_in_numpy(source, target, gradient, scalars)
        self.steps += 1
        return finite

    def _step_in_numpy(
        self, source: Vector, target: Vector, gradient: Vector, scalars: Vector
    ) -> bool:
        slots, finite = tuple(self._slots.values()), True
        # Without dimensions: a Python float costs each operation 0.5 us more, an array [1] 0.2 us.
        rule = self._rule([scalars[i, ...] for i in range(scalars.size)])
        for begin in range(0, self.size, BLOCK):
            block = slice(begin, begin + BLOCK)
            d = gradient[block]
            change = rule(d, self._scratch[: d.size], *[slot[block] for slot in slots])
            new, squares = target[block], self._squares[block]
            np.subtract(source[block], change, out=new)
            # Whatever is not finite on either side makes the sum NaN or infinite.
            if not math.isfinite(np.dot(new, squares)):
                finite &= _all_finite(new, squares)
        return finite

    def slots(self) -> dict[str, Vector]:
        return dict(self._slots)

    def restore(self, slots: Mapping[str, Vector], steps: int) -> None:
        _check("steps", steps, steps >= 0, "0 or more")
        if set(slots) != set(self._slots):
            raise ValueError(
                f"slots are {sorted(slots)}, allowed: {sorted(self._slots)};"
                " is the checkpoint from another optimiser?"
            )
        for name, slot in slots.items():
            _check_vector(f"slot {name}", slot, self.size)
        for name, slot in slots.items():
            np.copyto(self._slots[name], slot)
        self.steps = int(steps)


class AdaGrad(_BlockOptimizer):
    """AdaGrad (Duchi et al. 2011, diagonal form), of Gorilla's servers (Nair et al. 2015).

        sum_of_squares += d^2
        parameters -= rate d / (sqrt(sum_of_squares) + eps)

    The sum never decays. initial_accumulator above 0 makes the first steps smaller; the paper
    names neither it nor eps, whose default is torch's.
    """

    def __init__(self, size: int, eps: float = 1e-10, initial_accumulator: float = 0.0) -> None:
        _check_eps(eps)
        good = 0.0 <= initial_accumulator <= 1e20
        _check("initial_accumulator", initial_accumulator, good, "0 to 1e20")
        initial = {"sum_of_squares": initial_accumulator}
        super().__init__(size, initial, "sum_of_squares", "adagrad")
        self.eps = eps

    def _numbers(self, rate: float) -> tuple[float, ...]:
        return self.eps, rate

    def _rule(self, scalars: Sequence[Vector]) -> Rule:
        eps, rate = scalars

        def rule(d: Vector, scratch: Vector, sum_of_squares: Vector) -> Vector:
            np.multiply(d, d, out=scratch)
            np.add(sum_of_squares, scratch, out=sum_of_squares)
            np.sqrt(sum_of_squares, out=scratch)
            np.add(scratch, eps, out=scratch)
            return _quotient(d, scratch, rate)

        return rule


class RMSProp(_BlockOptimizer):
    """RMSProp with eps inside the root (Mnih et al. 2016, equation S3: shared RMSProp).

        mean_square = decay mean_square + (1 - decay) d^2
        parameters -= rate d / sqrt(mean_square + eps)

    With momentum, the right-hand side first enters velocity = momentum velocity + it.
    eps: A3C's paper names none; 0.1 is GA3C's (Babaeizadeh et al. 2017).
    """

    def __init__(
        self, size: int, decay: float = 0.99, eps: float = 0.1, momentum: float = 0.0
    ) -> None:
        _check_decay("decay", decay)
        _check_eps(eps)
        _check_decay("momentum", momentum)
        velocity = {"velocity": 0.0} if momentum else {}
        kernel = "rmsprop_momentum" if momentum else "rmsprop"
        super().__init__(size, {"mean_square": 0.0} | velocity, "mean_square", kernel)
        self.decay, self.eps, self.momentum = decay, eps, momentum

    def _numbers(self, rate: float) -> tuple[float, ...]:
        return self.decay, 1.0 - self.decay, self.eps, rate, self.momentum

    def _rule(self, scalars: Sequence[Vector]) -> Rule:
        decay, rest, eps, rate, momentum = scalars

        def rule(
            d: Vector, scratch: Vector, mean_square: Vector, velocity: Vector | None = None
        ) -> Vector:
            np.multiply(d, rest, out=scratch)
            np.multiply(scratch, d, out=scratch)
            _average(mean_square, decay, scratch)
            np.add(mean_square, eps, out=scratch)
            np.sqrt(scratch, out=scratch)
            change = _quotient(d, scratch, rate)
            return change if velocity is None else _average(velocity, momentum, change)

        return rule


class CentredRMSProp(_BlockOptimizer):
    """RMSProp by the variance of the gradient (Graves 2013, equations 38 to 41, no momentum).

        mean_square = decay mean_square + (1 - decay) d^2
        mean_gradient = decay mean_gradient + (1 - decay) d
        parameters -= rate d / sqrt(mean_square - mean_gradient^2 + eps)

    decay 0.95 is Graves' and DQN's, eps 0.01 DQN's (Mnih et al. 2015).
    """

    def __init__(self, size: int, decay: float = 0.95, eps: float = 0.01) -> None:
        _check_decay("decay", decay)
        _check_eps(eps)
        initial = {"mean_square": 0.0, "mean_gradient": 0.0}
        super().__init__(size, initial, "mean_square", "centred_rmsprop")
        self.decay, self.eps = decay, eps

    def _numbers(self, rate: float) -> tuple[float, ...]:
        return self.decay, 1.0 - self.decay, self.eps, rate

    def _rule(self, scalars: Sequence[Vector]) -> Rule:
        decay, rest, eps, rate = scalars

        def rule(d: Vector, scratch: Vector, mean_square: Vector, mean_gradient: Vector) -> Vector:
            np.multiply(d, rest, out=scratch)
            _average(mean_gradient, decay, scratch)
            np.multiply(scratch, d, out=scratch)
            _average(mean_square, decay, scratch)
            np.multiply(mean_gradient, mean_gradient, out=scratch)
            np.subtract(mean_square, scratch, out=scratch)
            np.absolute(scratch, out=scratch)  # below 0 it is rounding; a maximum is no faster
            np.add(scratch, eps, out=scratch)
            np.sqrt(scratch, out=scratch)
            return _quotient(d, scratch, rate)

        return rule


class Adam(_BlockOptimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), bias-corrected, eps outside the root.

    mean = beta1 mean + (1 - beta1) d
    mean_square = beta2 mean_square + (1 - beta2) d^2
    parameters -= rate (mean / b1) / (sqrt(mean_square / b2) + eps), b = 1 - beta^steps
    """

    def __init__(
        self, size: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        _check_decay("beta1", beta1)
        _check_decay("beta2", beta2)
        _check_eps(eps)
        super().__init__(size, {"mean": 0.0, "mean_square": 0.0}, "mean_square", "adam")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _numbers(self, rate: float) -> tuple[float, ...]:
        root = math.sqrt(1.0 - self.beta2 ** (self.steps + 1))  # saves dividing by it each time
        scale = rate * root / (1.0 - self.beta1 ** (self.steps + 1))
        eps = self.eps * root
        return self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, eps, scale

    def _rule(self, scalars: Sequence[Vector]) -> Rule:
        beta1, rest1, beta2, rest2, eps, rate = scalars

        def rule(d: Vector, scratch: Vector, mean: Vector, mean_square: Vector) -> Vector:
            np.multiply(d, rest1, out=scratch)
            _average(mean, beta1, scratch)
            np.multiply(d, rest2, out=scratch)
            np.multiply(scratch, d, out=scratch)
            _average(mean_square, beta2, scratch)
            np.sqrt(mean_square, out=scratch)
            np.add(scratch, eps, out=scratch)
            return _quotient(mean, scratch, rate)

        return rule


def make_shard_optimizer(name: str, size: int, **settings: Any) -> ShardOptimizer:
    """ "adagrad", "rmsprop", "centred-rmsprop" or "adam" with the settings of that class.

    Raises ValueError for an unknown name or setting, and for values that cannot work.
    """
    makers: dict[str, Callable[..., ShardOptimizer]] = {
        "adagrad": AdaGrad,
        "rmsprop": RMSProp,
        "centred-rmsprop": CentredRMSProp,
        "adam": Adam,
    }
    if name not in makers:
        raise ValueError(f"optimizer is {name!r}, allowed: {', '.join(makers)}; choose one of them")
    try:
        return makers[name](size, **settings)
    except TypeError as error:
        raise ValueError(f"optimizer {name!r} cannot take {settings}: {error}") from None


def _average(average: Vector, decay: Vector, value: Vector) -> Vector:
    """average = decay average + value, in place."""
    np.multiply(average, decay, out=average)
    return np.add(average, value, out=average)


def _quotient(numerator: Vector, scratch: Vector, rate: Vector) -> Vector:
    """rate numerator / scratch, in place of scratch."""
    np.divide(numerator, scratch, out=scratch)
    return np.multiply(scratch, rate, out=scratch)


def _all_finite(new: Vector, squares: Vector) -> bool:
    """Look closely at one block: the dot product of finite numbers may overflow, too."""
    new[~np.isfinite(squares)] = np.nan
    return bool(np.isfinite(new).all())


def _vector(size: int) -> Vector:
    """Zeros, aligned to cache lines: unaligned slots made a step 8 % slower."""
    return aligned_bytes(4 * size).view(np.float32)


def _check_vector(name: str, vector: Vector, size: int) -> None:
    if vector.shape != (size,) or vector.dtype != np.float32:
        raise ValueError(
            f"{name} is {vector.dtype} {vector.shape}, allowed: float32 ({size},);"
            " is it of another shard or network?"
        )


def _check_decay(name: str, value: float) -> None:
    good = value >= 0.0 and bool(np.float32(value) < 1.0)
    _check(name, value, good, "0 or more, and below 1 in float32")


def _check_eps(value: float) -> None:
    # The square of a smaller gradient underflows float32: a smaller eps would divide by next to 0.
    _check("eps", value, 1e-20 <= value <= 1e20, "1e-20 to 1e20")


def _check(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}, allowed: {allowed}; change it")
